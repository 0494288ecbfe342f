/* The merged vocabulary, and where its tokens are in the models' embeddings. */
#include "tokenizer.h"

#include "nps/compose.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
  const nps_tokens_spec_t *spec;
  nps_tokenizer_t **tokenizers; /* [model_count] those that lack one share the base's */
  int64_t *sizes;               /* [model_count] rows that count: ids beyond have none */
  nps_tokenizer_t *merged;
  const char **list; /* [merged->next] */
} work_t;

/* The vocabulary's size in a config, or 0. */
static int64_t config_size(const char *config_json) {
  json_t *config = nps_json_of(config_json);
  const json_t *size = json_object_get(config, "vocab_size");
  if (!size) size = json_object_get(json_object_get(config, "text_config"), "vocab_size");
  const int64_t value = json_is_integer(size) ? json_integer_value(size) : 0;
  json_decref(config);
  return value > 0 ? value : 0;
}

/* The rows of a model's embeddings, or 0. */
static int64_t embedding_rows(const nps_model_t *model) {
  for (int i = 0; i < model->tensor_count; i++)
    if (nps_is_embedding(model->tensors[i].name) && model->tensors[i].ndim == 2) return model->tensors[i].shape[0];
  return 0;
}

/* A model without tokenizer.json is taken to have the base's vocabulary, unless something tells that it has its own. */
static nps_err_t take_base_vocabulary(const work_t *w, const nps_model_t *model) {
  const nps_tokens_spec_t *spec = w->spec;
  const nps_model_t *base = spec->models[spec->base];
  const int64_t rows = embedding_rows(model), base_rows = embedding_rows(base);
  char *why = NULL;
  NPS_TRY(nps_tokenizer_contradicts(w->tokenizers[spec->base], model, &why));
  if (!why && spec->source == NPS_TOKENS_UNION && rows > 0 && base_rows > 0 && rows != base_rows)
    why =
        nps_xstrf("its embeddings have %lld rows, those of %s %lld", (long long)rows, base->name, (long long)base_rows);
  if (!why) {
    nps_note("%s has no tokenizer.json: its vocabulary is taken to be that of %s", model->name, base->name);
    return NPS_OK;
  }
  nps_fail(NPS_ERR_INPUT,
           "%s: %s: has no tokenizer.json, and its vocabulary may not be that of %s: %s; write its tokenizer.json with "
           "transformers: AutoTokenizer.from_pretrained(\"%s\").save_pretrained(\"%s\")",
           model->name, model->path, base->name, why, model->path, model->path);
  free(why);
  return NPS_ERR_INPUT;
}

static nps_err_t read_all(work_t *w) {
  const nps_tokens_spec_t *spec = w->spec;
  nps_err_t err = NPS_OK;
  for (int m = 0; m < spec->model_count; m++)
    err = nps_err_worse(err, nps_tokenizer_read(spec->models[m], &w->tokenizers[m]));
  if (err != NPS_OK) return err;
  const nps_tokenizer_t *base = w->tokenizers[spec->base];
  for (int m = 0; m < spec->model_count; m++) {
    const nps_model_t *model = spec->models[m];
    if (!w->tokenizers[m] && base) err = nps_err_worse(err, take_base_vocabulary(w, model));
    w->sizes[m] = config_size(model->config_json);
    const nps_tokenizer_t *own = w->tokenizers[m] ? w->tokenizers[m] : base;
    if (w->sizes[m] == 0 && own) w->sizes[m] = own->next;
  }
  return err;
}

static const nps_tokenizer_t *tokenizer_of(const work_t *w, int model) {
  return w->tokenizers[model] ? w->tokenizers[model] : w->tokenizers[w->spec->base];
}

/* ---- the merged vocabulary ---- */

static nps_err_t take_tokenizer(work_t *w, const nps_model_t *model) {
  NPS_TRY(nps_tokenizer_read(model, &w->merged));
  if (w->merged) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT,
                  "%s: has no tokenizer.json, which tokenizer_source needs; make one with transformers: "
                  "AutoTokenizer.from_pretrained(\"%s\").save_pretrained(…)",
                  model->path, model->path);
}

/* Whether a token is an added one of some model. */
static bool is_added(const work_t *w, const char *token) {
  for (int m = 0; m < w->spec->model_count; m++) {
    const nps_tokenizer_t *from = w->tokenizers[m];
    if (from && nps_tokenizer_added(from, token) && nps_tokenizer_id(from, token) < w->sizes[m]) return true;
  }
  return false;
}

/* Adds the tokens of a model that the merged vocabulary lacks: first those that are ordinary in all models, then added ones. */
static void add_tokens(work_t *w, int model, bool added) {
  const nps_tokenizer_t *from = w->tokenizers[model];
  if (!from || model == w->spec->base) return;
  const char **list = nps_tokenizer_list(from);
  for (int64_t id = 0; id < from->next && id < w->sizes[model]; id++) {
    if (!list[id]) continue;
    const json_t *entry = nps_tokenizer_added(from, list[id]);
    if ((entry != NULL) != added) continue;
    if (!added && (nps_tokenizer_id(w->merged, list[id]) >= 0 || is_added(w, list[id]))) continue;
    if (added && nps_tokenizer_added(w->merged, list[id])) continue;
    nps_tokenizer_add(w->merged, list[id], entry);
  }
  free(list);
}

static nps_err_t build(work_t *w) {
  const nps_tokens_spec_t *spec = w->spec;
  NPS_TRY(take_tokenizer(w, spec->source == NPS_TOKENS_MODEL ? spec->other : spec->models[spec->base]));
  if (spec->source != NPS_TOKENS_MODEL) NPS_TRY(nps_tokenizer_strip(w->merged, w->sizes[spec->base]));
  for (int added = 0; added < 2 && spec->source == NPS_TOKENS_UNION; added++)
    for (int m = 0; m < spec->model_count; m++) add_tokens(w, m, added);
  for (int i = 0; i < spec->choice_count; i++)
    if (nps_tokenizer_id(w->merged, spec->choices[i].token) < 0)
      nps_tokenizer_add(w->merged, spec->choices[i].token, NULL);
  w->list = nps_tokenizer_list(w->merged);
  return NPS_OK;
}

/* ---- rows ---- */

static int32_t row_of(const work_t *w, int model, const char *token) {
  const int64_t id = token ? nps_tokenizer_id(tokenizer_of(w, model), token) : -1;
  return id < w->sizes[model] ? (int32_t)id : -1;
}

static void fill_rows(const work_t *w, nps_alignment_t *a) {
  for (int m = 0; m < a->models; m++)
    for (int64_t t = 0; t < a->tokens; t++) a->row[(int64_t)m * a->tokens + t] = row_of(w, m, w->list[t]);
}

static nps_err_t make_rule(const work_t *w, const nps_token_choice_t *choice, nps_token_rule_t *rule) {
  *rule = (nps_token_rule_t){.token = (int32_t)nps_tokenizer_id(w->merged, choice->token),
                             .force = choice->force,
                             .model = choice->zero ? -1 : choice->model,
                             .row = (int32_t)choice->id};
  if (choice->zero || choice->id >= 0) return NPS_OK;
  const char *token = choice->from ? choice->from : choice->token;
  rule->row = row_of(w, choice->model, token);
  if (rule->row >= 0) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "tokenizer.tokens: model '%s' has no token '%s'",
                  w->spec->models[choice->model]->name, token);
}

static int by_token(const void *a, const void *b) {
  const nps_token_rule_t *x = a, *y = b;
  return (x->token > y->token) - (x->token < y->token);
}

static nps_err_t make_rules(const work_t *w, nps_alignment_t *a) {
  nps_err_t err = NPS_OK;
  a->rules = nps_xcalloc((size_t)w->spec->choice_count + 1, sizeof *a->rules);
  for (int i = 0; i < w->spec->choice_count; i++) {
    const nps_token_choice_t *choice = &w->spec->choices[i];
    if (choice->zero || choice->model >= 0)
      err = nps_err_worse(err, make_rule(w, choice, &a->rules[a->rule_count++]));
    else if (choice->force)
      err = nps_fail(NPS_ERR_CONFIG, "tokenizer.tokens: '%s': force needs a source", choice->token);
  }
  qsort(a->rules, (size_t)a->rule_count, sizeof *a->rules, by_token);
  for (int i = 1; i < a->rule_count && err == NPS_OK; i++)
    if (a->rules[i].token == a->rules[i - 1].token)
      err = nps_fail(NPS_ERR_CONFIG, "tokenizer.tokens: two of these tokens have one id, %d, in the merged vocabulary",
                     (int)a->rules[i].token);
  return err;
}

/* ---- all ---- */

static nps_err_t align(work_t *w, nps_alignment_t *a) {
  const nps_tokens_spec_t *spec = w->spec;
  a->tokens = w->merged->next;
  a->rows = spec->pad > 0 ? (a->tokens + spec->pad - 1) / spec->pad * spec->pad : a->tokens;
  a->models = spec->model_count;
  a->row = nps_xcalloc((size_t)a->models * (size_t)a->tokens + 1, sizeof *a->row);
  fill_rows(w, a);
  return make_rules(w, a);
}

static void free_work(work_t *w) {
  for (int m = 0; m < w->spec->model_count; m++) nps_tokenizer_free(w->tokenizers[m]);
  free(w->tokenizers);
  free(w->sizes);
  free(w->list);
  nps_tokenizer_free(w->merged);
}

/* The files of the merged tokenizer, taken from it. */
static void take_files(nps_tokenizer_t *merged, nps_sidecar_t **files, int *count) {
  nps_tokenizer_update(merged);
  *files = merged->files;
  *count = merged->file_count;
  merged->files = NULL;
  merged->file_count = 0;
}

nps_err_t nps_tokens_align(const nps_tokens_spec_t *spec, nps_alignment_t **out, nps_sidecar_t **files, int *count) {
  work_t w = {.spec = spec};
  nps_alignment_t *a = nps_xcalloc(1, sizeof *a);
  *out = NULL;
  *files = NULL;
  *count = 0;
  w.tokenizers = nps_xcalloc((size_t)spec->model_count + 1, sizeof(nps_tokenizer_t *));
  w.sizes = nps_xcalloc((size_t)spec->model_count + 1, sizeof *w.sizes);
  nps_err_t err = read_all(&w);
  if (err == NPS_OK && spec->source == NPS_TOKENS_BASE && spec->choice_count == 0 && !w.tokenizers[spec->base]) {
    nps_note("%s has no tokenizer.json: embeddings are merged as they are", spec->models[spec->base]->name);
    goto done;
  }
  if (err == NPS_OK && !w.tokenizers[spec->base]) err = take_tokenizer(&w, spec->models[spec->base]);
  if (err == NPS_OK) err = build(&w);
  if (err == NPS_OK) err = align(&w, a);
  if (err == NPS_OK) {
    take_files(w.merged, files, count);
    *out = a;
    a = NULL;
  }
done:
  nps_alignment_free(a);
  free_work(&w);
  return err;
}
