#include "emit.h"
#include "section.h"
#include "slices.h"
#include "tokenizer.h"
#include "value.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Texts that YAML reads back as they are, in flow style too. */
static bool is_plain(const char *text) {
  nps_node_t node = {.kind = NPS_NODE_SCALAR, .text = (char *)text};
  double number;
  if (!isalpha((unsigned char)*text) && *text != '/') return false;
  for (const char *c = text; *c; c++)
    if (!isalnum((unsigned char)*c) && !strchr("/._-@", *c)) return false;
  return nps_node_scalar(&node, &number) == NPS_SCALAR_TEXT;
}

static size_t decode_utf8(const char *text, uint32_t *code) {
  const unsigned char *s = (const unsigned char *)text;
  size_t n = s[0] < 0x80 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
  *code = n == 1 ? s[0] : (uint32_t)s[0] & (0x7Fu >> n);
  for (size_t i = 1; i < n; i++) {
    if ((s[i] & 0xC0) != 0x80) return i;
    *code = *code << 6 | (s[i] & 0x3Fu);
  }
  return n;
}

/* Characters that are not allowed as they are, or that a reader would fold. */
static bool needs_escape(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 || code == 0x2029 || code == 0xFEFF ||
         code == 0xFFFE || code == 0xFFFF;
}

void nps_emit_text(nps_text_t *out, const char *text) {
  if (is_plain(text)) {
    nps_text_add_bytes(out, text, strlen(text));
    return;
  }
  nps_text_add_bytes(out, "\"", 1);
  for (size_t n = 0; *text; text += n) {
    uint32_t code;
    n = decode_utf8(text, &code);
    if (code == '"' || code == '\\')
      nps_text_add(out, "\\%c", (char)code);
    else if (needs_escape(code))
      nps_text_add(out, "\\u%04" PRIX32, code);
    else
      nps_text_add_bytes(out, text, n);
  }
  nps_text_add_bytes(out, "\"", 1);
}

/* The fewest digits that give the same number back. */
void nps_emit_number(nps_text_t *out, double number) {
  char digits[32];
  for (int precision = 1; precision <= 17; precision++) {
    snprintf(digits, sizeof digits, "%.*g", precision, number);
    if (strtod(digits, NULL) == number) break;
  }
  nps_text_add(out, "%s", digits);
}

static void add_value(nps_text_t *out, const nps_value_t *value);

static void add_list(nps_text_t *out, const nps_value_t *value) {
  for (int i = 0; i < value->count; i++) {
    nps_text_add(out, "%s", i ? ", " : "[");
    if (value->kind == NPS_VALUE_FILTERS) {
      nps_text_add(out, "{filter: ");
      nps_emit_text(out, value->filters[i].filter);
      nps_text_add(out, ", value: ");
      add_value(out, value->filters[i].value);
      nps_text_add(out, "}");
    } else if (value->kind == NPS_VALUE_BOOLEANS)
      nps_text_add(out, "%s", value->numbers[i] != 0 ? "true" : "false");
    else
      nps_emit_number(out, value->numbers[i]);
  }
  nps_text_add(out, "]");
}

static void add_value(nps_text_t *out, const nps_value_t *value) {
  switch (value->kind) {
  case NPS_VALUE_NUMBER:
    nps_emit_number(out, value->number);
    break;
  case NPS_VALUE_BOOLEAN:
    nps_text_add(out, "%s", value->number != 0 ? "true" : "false");
    break;
  case NPS_VALUE_TEXT:
    nps_emit_text(out, value->text);
    break;
  case NPS_VALUE_NUMBERS:
  case NPS_VALUE_BOOLEANS:
  case NPS_VALUE_FILTERS:
    add_list(out, value);
    break;
  }
}

void nps_emit_pair(nps_text_t *out, const char *key, const char *text) {
  nps_text_add(out, "%s: ", key);
  nps_emit_text(out, text);
  nps_text_add(out, "\n");
}

void nps_emit_settings(nps_text_t *out, const nps_settings_t *settings, const char *indent) {
  if (settings->count) nps_text_add(out, "%sparameters:\n", indent);
  for (int i = 0; i < settings->count; i++) {
    nps_text_add(out, "%s  ", indent);
    nps_emit_text(out, settings->items[i].name);
    nps_text_add(out, ": ");
    add_value(out, settings->items[i].value);
    nps_text_add(out, "\n");
  }
}

static const char *type_name(nps_dtype_t dtype) {
  switch (dtype) {
  case NPS_F64:
    return "float64";
  case NPS_F16:
    return "float16";
  case NPS_BF16:
    return "bfloat16";
  default:
    return "float32";
  }
}

char *nps_recipe_emit(const nps_recipe_t *recipe) {
  nps_text_t out = {0};
  nps_emit_pair(&out, "merge_method", recipe->merge_method);
  if (recipe->base_model) nps_emit_pair(&out, "base_model", recipe->base_model);
  nps_slices_emit(&out, recipe);
  nps_emit_settings(&out, &recipe->parameters, "");
  nps_text_add(&out, "seed: %" PRIu64 "\n", recipe->seed);
  if (recipe->memory_per_rank)
    nps_text_add(&out, "resources: {memory_per_rank: %" PRId64 "}\n", recipe->memory_per_rank);
  else
    nps_text_add(&out, "resources: {memory_per_rank: auto}\n");
  if (recipe->has_out_dtype) nps_emit_pair(&out, "out_dtype", type_name(recipe->out_dtype));
  nps_sections_emit(&out, recipe);
  nps_tokenizer_emit(&out, &recipe->tokenizer);
  if (!recipe->copy_tokenizer) nps_text_add(&out, "copy_tokenizer: false\n");
  if (recipe->chat_template) nps_emit_pair(&out, "chat_template", recipe->chat_template);
  nps_text_add(&out, "output: {");
  if (recipe->output_head) {
    nps_text_add(&out, "head: ");
    nps_emit_text(&out, recipe->output_head);
    nps_text_add(&out, ", ");
  }
  nps_text_add(&out, "shard_size: %" PRId64 "}\n", recipe->shard_size);
  return out.text;
}

/* A shallow copy of a task without its paths; a head that is no listed model is one. */
static nps_recipe_task_t without_paths(const nps_recipe_t *recipe, const nps_recipe_task_t *task) {
  nps_recipe_task_t copy = *task;
  bool listed = !task->head;
  for (int i = 0; i < recipe->model_count; i++) listed = listed || strcmp(recipe->models[i].name, task->head) == 0;
  if (!listed) copy.head = "";
  if (copy.data) copy.data = "";
  return copy;
}

char *nps_recipe_emit_search(const nps_recipe_t *recipe) {
  nps_recipe_t copy = *recipe;
  const int models = recipe->model_count, tasks = recipe->fitness.task_count;
  copy.models = nps_xcalloc((size_t)models + 1, sizeof *copy.models);
  copy.fitness.tasks = nps_xcalloc((size_t)tasks + 1, sizeof *copy.fitness.tasks);
  for (int i = 0; i < models; i++) {
    copy.models[i] = recipe->models[i];
    copy.models[i].model = "";
  }
  for (int i = 0; i < tasks; i++) copy.fitness.tasks[i] = without_paths(recipe, &recipe->fitness.tasks[i]);
  if (copy.base_model) copy.base_model = "";
  if (copy.search.start_from) copy.search.start_from = "";
  copy.fitness.timeout = 0;
  copy.output_head = NULL;
  copy.shard_size = copy.memory_per_rank = 0;
  copy.search.generations = copy.search.patience = 0;
  copy.search.max_evaluations = 0;
  char *text = nps_recipe_emit(&copy);
  free(copy.models);
  free(copy.fitness.tasks);
  return text;
}
