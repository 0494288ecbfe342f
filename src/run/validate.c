/* The first phase: config and headers on rank 0, then the same recipe, catalogues and layout on every rank. */
#include "open_model.h"
#include "run_internal.h"

#include "nps/archive.h"

#include <stdlib.h>
#include <string.h>

char *nps_run_config_folder(const nps_run_state_t *run) {
  const char *path = run->recipe->file, *slash = strrchr(path, '/');
  return slash ? nps_xstrndup(path, slash == path ? 1 : (size_t)(slash - path)) : NULL;
}

bool nps_run_is_input(const nps_run_state_t *run, const char *path) {
  int count;
  nps_model_t *const *sources = nps_run_sources(run, &count);
  for (int i = 0; i < count; i++)
    if (nps_run_is_of_model(sources[i], path)) return true;
  return run->history.home && nps_run_same_place(run->history.home, path);
}

/* Finds the input with a path, or adds it from its headers. Problems are recorded; *index is -1 then. */
static nps_err_t add_input(nps_run_state_t *run, const char *model, const char *name, int *index) {
  char *folder = nps_run_config_folder(run), *path = NULL;
  nps_model_t *catalogue = NULL;
  *index = -1;
  nps_err_t err = nps_model_locate(model, folder, &path);
  for (int i = 0; err == NPS_OK && i < run->input_count; i++)
    if (strcmp(run->inputs[i]->path, path) == 0 || nps_run_same_place(run->inputs[i]->path, path)) *index = i;
  if (err == NPS_OK && *index < 0) err = nps_model_open(path, name, &catalogue);
  if (catalogue) {
    run->inputs = nps_xrealloc(run->inputs, (size_t)run->input_count + 1, sizeof(nps_model_t *));
    run->inputs[run->input_count] = catalogue;
    *index = run->input_count++;
  }
  free(path);
  free(folder);
  return err;
}

/* Opens base and models: all problems of all of them are recorded. */
static nps_err_t open_inputs(nps_run_state_t *run) {
  const nps_recipe_t *recipe = run->recipe;
  nps_err_t err = NPS_OK;
  run->base = -1;
  if (recipe->base_model) {
    err = nps_run_find_history(run);
    const char *base = run->history.updates ? run->history.base : recipe->base_model;
    if (err == NPS_OK) err = add_input(run, base, "base", &run->base);
  }
  for (int m = 0; m < recipe->model_count; m++) {
    const nps_recipe_model_t *model = &recipe->models[m];
    err = nps_err_worse(err, add_input(run, model->model, model->name, &run->input_of[m]));
  }
  run->slice_base = nps_xcalloc((size_t)recipe->slice_count + 1, sizeof *run->slice_base);
  for (int s = 0; s < recipe->slice_count; s++) {
    run->slice_base[s] = -1;
    if (recipe->slices[s].base_model)
      err = nps_err_worse(err, add_input(run, recipe->slices[s].base_model, "base", &run->slice_base[s]));
  }
  run->source_base = run->base;
  return err;
}

/* The config has made sure that a model of that name is listed. */
static void find_head(nps_run_state_t *run) {
  const nps_recipe_t *recipe = run->recipe;
  for (int m = 0; recipe->output_head && m < recipe->model_count; m++)
    if (strcmp(recipe->models[m].name, recipe->output_head) == 0) run->head = run->input_of[m];
}

/* Which model's names an input gets, and so the output: one whose head it takes, which may put its body's name before them,
 * else the base's. A run that goes on from an earlier one keeps that one's, as its state has them; the state lacks the
 * buffers of the base, which the models have. */
static const nps_model_t *named_like(const nps_run_state_t *run, int input) {
  const nps_application_t application = run->recipe->nps.application;
  const bool heads = run->input_count == 2 || application == NPS_APPLICATION_TRANSFER;
  const bool lends = run->base == 0 && run->input_count > 1 && heads && application != NPS_APPLICATION_COMPRESSION;
  if (run->history.updates) return input == run->base && run->input_count > 1 ? run->inputs[1] : run->history.updates;
  return run->inputs[run->head >= 0 ? run->head : lends];
}

/* Old names of norms give way where some model has the new ones, which all programs know; not in an archive, whose base is read
 * as it is. */
static nps_err_t align_norms(nps_run_state_t *run) {
  const nps_model_t *like = NULL;
  nps_err_t err = NPS_OK;
  if (run->recipe->nps.application == NPS_APPLICATION_COMPRESSION) return NPS_OK;
  for (int i = run->input_count - 1; i >= 0; i--)
    if (nps_model_names_norms(run->inputs[i])) like = run->inputs[i];
  for (int i = 0; like && i < run->input_count; i++) {
    bool changed = false;
    err = nps_err_worse(err, nps_model_name_norms(run->inputs[i], like, &changed));
    if (changed)
      nps_note("%s: its LayerNorm.gamma and LayerNorm.beta are LayerNorm.weight and LayerNorm.bias, as in %s",
               run->inputs[i]->name, like->name);
  }
  return err;
}

/* Names that differ by what stands before them become the same; the base comes first in the list, and last here. */
static nps_err_t align_names(nps_run_state_t *run) {
  nps_err_t err = align_norms(run);
  for (int i = run->input_count - 1; i >= 0; i--) {
    const nps_model_t *like = named_like(run, i);
    bool changed = false;
    err = nps_err_worse(err, nps_model_name_like(run->inputs[i], like, &changed));
    if (changed) nps_note("%s: its tensors are named as in %s", run->inputs[i]->name, like->name);
  }
  return err;
}

/* Whether models[m] takes part as the method counts models; the base of a task-vector method does not. */
static bool takes_part(const nps_run_state_t *run, int input) {
  return run->method->base == NPS_BASE_LISTED || input != run->base;
}

/* Lists the models in the method's order. */
static void choose_models(nps_run_state_t *run) {
  const nps_recipe_t *recipe = run->recipe;
  if (recipe->slice_count > 0) {
    nps_run_choose_places(run);
    return;
  }
  const nps_recipe_model_t *listed_base = NULL;
  run->models = nps_xcalloc((size_t)recipe->model_count + 1, sizeof *run->models);
  const bool base_first = run->method->base == NPS_BASE_FIRST && run->base >= 0;
  run->model_count = base_first;
  for (int m = 0; m < recipe->model_count; m++) {
    const nps_recipe_model_t *model = &recipe->models[m];
    if (!takes_part(run, run->input_of[m])) {
      listed_base = model;
      if (run->method->base == NPS_BASE_TASK_VECTORS)
        nps_note("model '%s' is the base model and has no task vector: it is left out", model->name);
      continue;
    }
    run->models[run->model_count++] = (nps_merge_model_t){run->input_of[m], model->name, &model->parameters};
  }
  if (base_first)
    run->models[0] = (nps_merge_model_t){run->base, listed_base ? listed_base->name : "base",
                                         listed_base ? &listed_base->parameters : NULL};
}

static bool names_a_base(const nps_recipe_t *recipe) {
  for (int s = 0; s < recipe->slice_count; s++)
    if (recipe->slices[s].base_model) return true;
  return recipe->base_model != NULL;
}

/* nps has two forms, others one without and one with a base. */
static void choose_form(nps_run_state_t *run) {
  if (!run->method) return;
  if (nps_run_is_singular(run)) run->method = nps_merge_method_singular();
  if (run->method->with_base && names_a_base(run->recipe)) run->method = run->method->with_base;
}

/* Makes every rank know rank 0's recipe, inputs and choices. Collective. */
static nps_err_t broadcast(nps_run_state_t *run) {
  const bool root = nps_comm_rank(run->comm) == 0;
  int numbers[4] = {0, run->source_base, run->head, root ? run->recipe->model_count : 0};
  nps_model_t *const *sources = nps_run_sources(run, &numbers[0]);
  char *text = root ? nps_recipe_emit(run->recipe) : NULL;
  nps_err_t err = NPS_OK;
  nps_comm_bcast_text(run->comm, &text);
  run->recipe_text = text;
  nps_comm_bcast(run->comm, numbers, sizeof numbers);
  if (!root) {
    err = nps_recipe_parse(text, run->options->config, NULL, 0, &run->recipe);
    run->input_count = numbers[0];
    run->base = run->source_base = numbers[1];
    run->head = numbers[2];
    run->inputs = nps_xcalloc((size_t)run->input_count, sizeof *run->inputs);
    run->input_of = nps_xcalloc((size_t)numbers[3], sizeof *run->input_of);
    run->slice_base = nps_xcalloc(err == NPS_OK ? (size_t)run->recipe->slice_count + 1 : 1, sizeof *run->slice_base);
  }
  NPS_TRY(nps_comm_agree(run->comm, err));
  nps_comm_bcast(run->comm, run->slice_base, (size_t)run->recipe->slice_count * sizeof *run->slice_base);
  nps_comm_bcast(run->comm, run->input_of, (size_t)numbers[3] * sizeof *run->input_of);
  for (int i = 0; i < numbers[0]; i++) {
    char *packed = root ? nps_model_pack(sources[i]) : NULL;
    nps_comm_bcast_text(run->comm, &packed);
    if (!root && err == NPS_OK) err = nps_model_unpack(packed, &run->inputs[i]);
    free(packed);
  }
  return nps_comm_agree(run->comm, err);
}

static nps_err_t find_method(nps_run_state_t *run) {
  const nps_recipe_t *recipe = run->recipe;
  char *where = recipe->method_line > 0 ? nps_xstrf("%s:%d: ", recipe->file, recipe->method_line)
                                        : nps_xstrdup("--set merge_method: ");
  nps_err_t err = nps_merge_method_find(recipe->merge_method, where, &run->method);
  choose_form(run);
  free(where);
  return err;
}

/* Rank 0's part before anything is broadcast: all problems of config and headers. */
static nps_err_t look_at_files(nps_run_state_t *run) {
  const nps_run_options_t *o = run->options;
  NPS_TRY(nps_recipe_load(o->config, o->overrides, o->override_count, &run->recipe));
  NPS_TRY(nps_run_check_log_beside_output(run));
  nps_err_t err = find_method(run);
  if (!o->out && !run->recipe->output_path && !o->check && !o->plan)
    err = nps_fail(NPS_ERR_CONFIG, "no output: give OUT on the command line, or output.path in %s", run->recipe->file);
  run->input_of = nps_xcalloc((size_t)run->recipe->model_count, sizeof *run->input_of);
  const nps_err_t opened = open_inputs(run);
  err = nps_err_worse(err, opened);
  find_head(run);
  if (opened != NPS_OK || !run->method) return err;
  nps_err_t composed = align_names(run);
  if (composed == NPS_OK) composed = nps_run_align(run);
  if (composed == NPS_OK) composed = nps_run_compose(run);
  err = nps_err_worse(err, composed);
  return composed == NPS_OK ? nps_err_worse(err, nps_run_find_tasks(run)) : err;
}

/* What the other ranks do besides. */
static nps_err_t prepare(nps_run_state_t *run) {
  NPS_TRY(nps_merge_method_find(run->recipe->merge_method, "", &run->method));
  choose_form(run);
  return nps_run_compose(run);
}

/* The same on every rank: what is merged, with which parameters. */
static nps_err_t build(nps_run_state_t *run) {
  choose_models(run);
  return nps_run_make_outputs(run);
}

nps_err_t nps_run_validate(nps_run_state_t *run) {
  NPS_TRY(nps_comm_agree(run->comm, nps_comm_rank(run->comm) == 0 ? look_at_files(run) : NPS_OK));
  NPS_TRY(broadcast(run));
  NPS_TRY(nps_run_share_alignment(run));
  NPS_TRY(nps_comm_agree(run->comm, nps_comm_rank(run->comm) == 0 ? NPS_OK : prepare(run)));
  NPS_TRY(nps_run_share_history(run));
  NPS_TRY(nps_run_share_tasks(run));
  if (!run->options->check && !run->options->plan)
    NPS_TRY(nps_archive_verify(run->comm, (const nps_model_t *const *)run->inputs, run->input_count));
  return nps_comm_agree(run->comm, build(run));
}
