/* Vocabularies: what the config says of them, and the files of the merged tokenizer. */
#include "open_model.h"
#include "run_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- what is asked for ---- */

static nps_err_t locate(const nps_run_state_t *run, const char *model, char **path) {
  char *folder = nps_run_config_folder(run);
  nps_err_t err = nps_model_locate(model, folder, path);
  free(folder);
  return err;
}

/* One of the merged models. */
static nps_err_t find_model(const nps_run_state_t *run, const char *model, const char *token, int *index) {
  char *path = NULL;
  *index = -1;
  NPS_TRY(locate(run, model, &path));
  for (int i = 0; i < run->input_count; i++)
    if (strcmp(run->inputs[i]->path, path) == 0 || nps_run_same_place(run->inputs[i]->path, path)) *index = i;
  free(path);
  if (*index >= 0) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "%s: tokenizer.tokens: '%s' is to come from %s, which is not merged",
                  run->recipe->file, token, model);
}

static nps_err_t choose(const nps_run_state_t *run, nps_token_choice_t *choices) {
  const nps_recipe_tokenizer_t *recipe = &run->recipe->tokenizer;
  nps_err_t err = NPS_OK;
  for (int i = 0; i < recipe->token_count; i++) {
    const nps_recipe_token_t *token = &recipe->tokens[i];
    choices[i] = (nps_token_choice_t){.token = token->token,
                                      .force = token->force,
                                      .zero = token->zero,
                                      .model = -1,
                                      .from = token->from,
                                      .id = token->id};
    if (token->model) err = nps_err_worse(err, find_model(run, token->model, token->token, &choices[i].model));
  }
  return err;
}

/* A model of which only the tokenizer is wanted: in a folder its weights need not be there. */
static nps_err_t find_other(const nps_run_state_t *run, nps_model_t **other) {
  struct stat st;
  static const char *const words[] = {"base", "union"};
  char *name = run->recipe->tokenizer.model, *path = NULL;
  const nps_err_t err = locate(run, name, &path);
  const char *near = err == NPS_OK ? NULL : nps_nearest(name, words, 2);
  if (near) nps_note("%s: tokenizer_source: did you mean '%s'?", run->recipe->file, near);
  NPS_TRY(err);
  if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
    *other = nps_xcalloc(1, sizeof **other);
    **other = (nps_model_t){.name = nps_xstrdup(name), .path = path, .form = NPS_FORM_FOLDER};
    return NPS_OK;
  }
  const nps_err_t opened = nps_model_open(path, name, other);
  free(path);
  return opened;
}

nps_err_t nps_run_align(nps_run_state_t *run) {
  const nps_recipe_tokenizer_t *recipe = &run->recipe->tokenizer;
  nps_model_t *other = NULL;
  if (!recipe->given) return NPS_OK;
  nps_token_choice_t *choices = nps_xcalloc((size_t)recipe->token_count + 1, sizeof *choices);
  nps_err_t err = choose(run, choices);
  if (err == NPS_OK && recipe->source == NPS_TOKENIZER_MODEL) err = find_other(run, &other);
  const nps_tokens_spec_t spec = {.models = (const nps_model_t *const *)run->inputs,
                                  .model_count = run->input_count,
                                  .base = nps_run_reference(run),
                                  .source = recipe->source == NPS_TOKENIZER_BASE    ? NPS_TOKENS_BASE
                                            : recipe->source == NPS_TOKENIZER_UNION ? NPS_TOKENS_UNION
                                                                                    : NPS_TOKENS_MODEL,
                                  .other = other,
                                  .choices = choices,
                                  .choice_count = recipe->token_count,
                                  .pad = recipe->pad};
  if (err == NPS_OK) err = nps_tokens_align(&spec, &run->alignment, &run->tokenizer, &run->tokenizer_count);
  free(choices);
  nps_model_free(other);
  return err;
}

/* ---- on every rank ---- */

nps_err_t nps_run_share_alignment(nps_run_state_t *run) {
  nps_alignment_t *a = run->alignment;
  int64_t numbers[4] = {a ? a->models : -1, a ? a->tokens : 0, a ? a->rows : 0, a ? a->rule_count : 0};
  nps_comm_bcast(run->comm, numbers, sizeof numbers);
  if (numbers[0] < 0) return NPS_OK;
  const size_t rows = (size_t)(numbers[0] * numbers[1]);
  if (!a) {
    a = run->alignment = nps_xcalloc(1, sizeof *a);
    *a = (nps_alignment_t){
        .tokens = numbers[1], .rows = numbers[2], .models = (int)numbers[0], .rule_count = (int)numbers[3]};
    a->row = nps_xcalloc(rows + 1, sizeof *a->row);
    a->rules = nps_xcalloc((size_t)a->rule_count + 1, sizeof *a->rules);
  }
  nps_comm_bcast(run->comm, a->row, rows * sizeof *a->row);
  nps_comm_bcast(run->comm, a->rules, (size_t)a->rule_count * sizeof *a->rules);
  return NPS_OK;
}

/* ---- files ---- */

/* A copy, as what is picked is taken over. */
static nps_sidecar_t *copy_files(const nps_sidecar_t *files, int count) {
  nps_sidecar_t *copy = nps_xcalloc((size_t)count + 1, sizeof *copy);
  for (int i = 0; i < count; i++) {
    copy[i] = (nps_sidecar_t){nps_xstrdup(files[i].name), nps_xcalloc(files[i].size + 1, 1), files[i].size};
    memcpy(copy[i].data, files[i].data, files[i].size);
  }
  return copy;
}

/* A base need not be a model of sentence-transformers where fine-tuned ones are. Where each has an output of its own, none
 * speaks for the others. */
static nps_err_t read_own(const nps_run_state_t *run, nps_sidecar_t **own, int *count) {
  int sources;
  nps_model_t *const *models = nps_run_sources(run, &sources);
  NPS_TRY(nps_sidecars_read(models[nps_run_reference(run)], own, count));
  if (nps_run_is_compression(run)) return NPS_OK;
  nps_err_t err = NPS_OK;
  if (run->output_count == 1) err = nps_sidecars_add_modules((const nps_model_t *const *)models, sources, own, count);
  if (err == NPS_OK)
    nps_sidecars_note_modules(*own, *count);
  else
    nps_sidecars_free(*own, *count);
  return err;
}

nps_err_t nps_run_read_sidecars(nps_run_state_t *run) {
  if (nps_comm_rank(run->comm) != 0) return NPS_OK;
  const nps_recipe_t *recipe = run->recipe;
  nps_sidecar_t *own = NULL, *tokenizer;
  int sources, own_count = 0, count;
  nps_model_t *const *models = nps_run_sources(run, &sources);
  NPS_TRY(read_own(run, &own, &own_count));
  count = run->tokenizer ? run->tokenizer_count : own_count;
  tokenizer = copy_files(run->tokenizer ? run->tokenizer : own, count);
  nps_sidecars_pick(tokenizer, count, own, own_count, recipe->copy_tokenizer, &run->sidecars, &run->sidecar_count);
  if (!recipe->chat_template) return NPS_OK;
  if (!recipe->copy_tokenizer) {
    nps_note("chat_template: is not written, as no tokenizer is");
    return NPS_OK;
  }
  return nps_chat_template_set(recipe->chat_template, (const nps_model_t *const *)models, sources, &run->sidecars,
                               &run->sidecar_count);
}
