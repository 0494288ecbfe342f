/* Which tensors an adapter can hold, and what it says of itself to the peft library. */
#include "lora.h"

#include <stdlib.h>
#include <string.h>

static const char *last_part(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot ? dot + 1 : name;
}

char *nps_lora_module(const char *tensor) {
  const char *dot = strrchr(tensor, '.');
  return dot ? nps_xstrndup(tensor, (size_t)(dot - tensor)) : nps_xstrdup(tensor);
}

static bool is_one_of(const char *text, const char *const *list) {
  while (*list && strcmp(*list, text) != 0) list++;
  return *list != NULL;
}

/* ---- what a tensor is ---- */

/* By the name of its module: lookup tables have the shape of linear layers. */
static bool is_embedding(const char *module, bool tied) {
  static const char *const names[] = {"wte", "wpe", "shared", "relative_attention_bias", NULL};
  const char *last = last_part(module);
  if (tied && strcmp(last, "lm_head") == 0) return true;
  return is_one_of(last, names) || (strstr(last, "embed") && strcmp(last, "embed_out") != 0);
}

static nps_lora_kind_t kind_of(const nps_tensor_info_t *t, bool tied) {
  char *module = nps_lora_module(t->name);
  const char *last = last_part(t->name);
  nps_lora_kind_t kind = NPS_LORA_OTHER;
  if (nps_dtype_kind(t->dtype) != NPS_KIND_FLOAT)
    kind = NPS_LORA_OTHER;
  else if (is_embedding(module, tied) || strstr(last, "embed") || strcmp(last, "cls_token") == 0)
    kind = NPS_LORA_EMBEDDING;
  else if (t->ndim == 2 && t->shape[0] >= 2 && t->shape[1] >= 2 && strcmp(last, "weight") == 0 && strchr(t->name, '.'))
    kind = NPS_LORA_LINEAR;
  else if (t->ndim <= 1)
    kind = strcmp(last, "bias") == 0 ? NPS_LORA_BIAS : NPS_LORA_NORM;
  free(module);
  return kind;
}

static json_t *load_config(const nps_lora_t *lora) {
  const char *text = lora->model->config_json ? lora->model->config_json : lora->base->config_json;
  return nps_json_of(text);
}

/* GPT-2's linear layers are stored [in][out]. */
static bool is_transposed(const json_t *config, const char *tensor) {
  static const char *const names[] = {"c_attn", "c_proj", "c_fc", "q_attn", NULL};
  const char *type = json_string_value(json_object_get(config, "model_type"));
  char *module = nps_lora_module(tensor);
  const bool found = type && strcmp(type, "gpt2") == 0 && is_one_of(last_part(module), names);
  free(module);
  return found;
}

static void add_matrix(nps_lora_t *lora, int t, bool transposed) {
  char *module = nps_lora_module(lora->model->tensors[t].name);
  lora->matrices[lora->count++] = (nps_lora_matrix_t){.tensor = t,
                                                      .transposed = transposed,
                                                      .name = {nps_xstrf("base_model.model.%s.lora_A.weight", module),
                                                               nps_xstrf("base_model.model.%s.lora_B.weight", module)}};
  free(module);
}

void nps_lora_sort(nps_lora_t *lora) {
  const nps_model_t *model = lora->model;
  json_t *config = load_config(lora);
  const bool tied = json_is_true(json_object_get(config, "tie_word_embeddings"));
  lora->kind_of = nps_xcalloc((size_t)model->tensor_count + 1, sizeof *lora->kind_of);
  lora->matrices = nps_xcalloc((size_t)model->tensor_count + 1, sizeof *lora->matrices);
  lora->extra_names = nps_xcalloc((size_t)model->tensor_count + 1, sizeof *lora->extra_names);
  for (int t = 0; t < model->tensor_count; t++) {
    const char *name = model->tensors[t].name;
    const bool extra = nps_model_find(lora->base, name) < 0;
    lora->kind_of[t] = extra ? NPS_LORA_EXTRA : kind_of(&model->tensors[t], tied);
    if (extra) lora->extra_names[lora->extra_count++] = nps_xstrf("base_model.model.%s", name);
    if (lora->kind_of[t] == NPS_LORA_LINEAR) add_matrix(lora, t, is_transposed(config, name));
  }
  json_decref(config);
}

/* ---- adapter_config.json ---- */

static const char *task_type(const json_t *config) {
  static const struct {
    const char *ending, *type;
  } types[] = {{"ForCausalLM", "CAUSAL_LM"},
               {"LMHeadModel", "CAUSAL_LM"},
               {"ForSequenceClassification", "SEQ_CLS"},
               {"ForTokenClassification", "TOKEN_CLS"},
               {"ForQuestionAnswering", "QUESTION_ANS"}};
  const char *name = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
  const size_t n = name ? strlen(name) : 0;
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    const size_t m = strlen(types[i].ending);
    if (n >= m && strcmp(name + n - m, types[i].ending) == 0) return types[i].type;
  }
  const bool seq2seq = n > 0 && json_is_true(json_object_get(config, "is_encoder_decoder"));
  return seq2seq && strstr(name, "ForConditionalGeneration") ? "SEQ_2_SEQ_LM" : NULL;
}

static bool ends_in_module(const char *tensor, const char *last) {
  char *module = nps_lora_module(tensor);
  const bool same = strcmp(last_part(module), last) == 0;
  free(module);
  return same;
}

/* Whether a short name would also match a module that has no matrix here. */
static bool is_ambiguous(const nps_lora_t *lora, const char *last) {
  for (int t = 0; t < lora->model->tensor_count; t++) {
    const nps_tensor_info_t *info = &lora->model->tensors[t];
    if (lora->kind_of[t] == NPS_LORA_LINEAR || strcmp(last_part(info->name), "weight") != 0) continue;
    if (ends_in_module(info->name, last)) return true;
  }
  return false;
}

static void add_once(json_t *array, const char *text) {
  size_t i;
  json_t *item;
  json_array_foreach(array, i, item) if (strcmp(json_string_value(item), text) == 0) return;
  json_array_append_new(array, json_string(text));
}

static json_t *target_modules(const nps_lora_t *lora) {
  json_t *modules = json_array();
  for (int i = 0; i < lora->count; i++) {
    char *module = nps_lora_module(lora->model->tensors[lora->matrices[i].tensor].name);
    add_once(modules, is_ambiguous(lora, last_part(module)) ? module : last_part(module));
    free(module);
  }
  return modules;
}

static json_t *modules_to_save(const nps_lora_t *lora) {
  json_t *modules = json_array();
  for (int t = 0; t < lora->model->tensor_count; t++) {
    if (lora->kind_of[t] != NPS_LORA_EXTRA) continue;
    char *module = nps_lora_module(lora->model->tensors[t].name);
    add_once(modules, module);
    free(module);
  }
  if (json_array_size(modules) > 0) return modules;
  json_decref(modules);
  return json_null();
}

static int64_t largest_rank(const nps_lora_t *lora) {
  int64_t most = 1;
  for (int i = 0; i < lora->count; i++)
    if (lora->matrices[i].rank > most) most = lora->matrices[i].rank;
  return most;
}

/* Ranks that are not the common one; keys are regular expressions, where a dot matches a dot. */
static json_t *rank_pattern(const nps_lora_t *lora, int64_t common) {
  json_t *pattern = json_object();
  for (int i = 0; i < lora->count; i++) {
    if (lora->matrices[i].rank == common) continue;
    char *module = nps_lora_module(lora->model->tensors[lora->matrices[i].tensor].name);
    json_object_set_new(pattern, module, json_integer(lora->matrices[i].rank));
    free(module);
  }
  return pattern;
}

/* A path from anywhere; a name of the Hugging Face cache as it is. */
static char *base_name(const char *base) {
  char *path = realpath(base, NULL);
  return path ? path : nps_xstrdup(base);
}

static bool any_transposed(const nps_lora_t *lora) {
  for (int i = 0; i < lora->count; i++)
    if (lora->matrices[i].transposed) return true;
  return false;
}

void nps_lora_write_config(nps_lora_t *lora) {
  json_t *model = load_config(lora), *json = json_object();
  const int64_t common = largest_rank(lora);
  const char *task = task_type(model);
  char *base = base_name(lora->request->base);
  json_object_set_new(json, "peft_type", json_string("LORA"));
  json_object_set_new(json, "task_type", task ? json_string(task) : json_null());
  json_object_set_new(json, "base_model_name_or_path", nps_report_json_text(base));
  json_object_set_new(json, "r", json_integer(common));
  json_object_set_new(json, "lora_alpha", json_integer(common));
  json_object_set_new(json, "rank_pattern", rank_pattern(lora, common));
  json_object_set_new(json, "alpha_pattern", rank_pattern(lora, common));
  json_object_set_new(json, "target_modules", target_modules(lora));
  json_object_set_new(json, "modules_to_save", modules_to_save(lora));
  json_object_set_new(json, "fan_in_fan_out", json_boolean(any_transposed(lora)));
  json_object_set_new(json, "bias", json_string("none"));
  json_object_set_new(json, "lora_dropout", json_real(0));
  json_object_set_new(json, "inference_mode", json_true());
  char *text = json_dumps(json, JSON_INDENT(2));
  lora->config = nps_xstrf("%s\n", text);
  lora->card = nps_xstrf("---\nlibrary_name: peft\nbase_model: %s\n---\n# LoRA adapter\n\nThe leading singular triples "
                         "of %s minus %s, by nps-convert. %d matrices of rank at most %lld.\n",
                         base, lora->request->source, lora->request->base, lora->count, (long long)common);
  free(text);
  free(base);
  json_decref(json);
  json_decref(model);
}
