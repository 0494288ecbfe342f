#include "slices.h"

#include "emit.h"
#include "level.h"
#include "models.h"
#include "names.h"
#include "section.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* More layers than any model has. */
#define MAX_LAYERS 100000

/* ---- models of sources ---- */

/* Finds a model among those of the sources before, or adds it. */
static int find_model(nps_recipe_t *recipe, char *model, int line) {
  for (int i = 0; i < recipe->model_count; i++) {
    if (strcmp(recipe->models[i].model, model) != 0) continue;
    free(model);
    return i;
  }
  char **names = nps_xcalloc((size_t)recipe->model_count + 1, sizeof *names);
  for (int i = 0; i < recipe->model_count; i++) names[i] = recipe->models[i].name;
  bool changed;
  char *name = nps_model_name(model, names, recipe->model_count, &changed);
  free(names);
  recipe->models = nps_xrealloc(recipe->models, (size_t)recipe->model_count + 1, sizeof *recipe->models);
  recipe->models[recipe->model_count] = (nps_recipe_model_t){.model = model, .name = name, .line = line};
  return recipe->model_count++;
}

/* ---- one source ---- */

typedef struct {
  char *model;
  nps_recipe_source_t *source;
} source_draft_t;

static void read_model(void *target, const nps_node_t *value, const char *what) {
  source_draft_t *draft = target;
  nps_model_read(value, what, &draft->model);
}

static void read_range(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_source_t *source = ((source_draft_t *)target)->source;
  char found[96];
  uint64_t first, end;
  const bool numbers = value->kind == NPS_NODE_LIST && value->count == 2 &&
                       nps_node_uint64(value->entries[0].value, &first) &&
                       nps_node_uint64(value->entries[1].value, &end);
  if (numbers && first <= end && end <= MAX_LAYERS) {
    source->first = (int64_t)first;
    source->end = (int64_t)end;
    return;
  }
  if (numbers)
    snprintf(found, sizeof found, "[%" PRIu64 ", %" PRIu64 "]", first, end);
  else if (value->kind == NPS_NODE_LIST)
    snprintf(found, sizeof found, "another list");
  nps_place_fail(value->place, "%s: expected [first, end], two whole numbers with 0 <= first <= end <= %d, found %s",
                 what, MAX_LAYERS, value->kind == NPS_NODE_LIST ? found : nps_node_describe(value, found));
}

static void read_source_parameters(void *target, const nps_node_t *value, const char *what) {
  nps_settings_read(value, what, &((source_draft_t *)target)->source->parameters);
}

static void check_there(const nps_node_t *node, const char *what, const char *key, const char *expected) {
  const nps_entry_t *entry = nps_node_find(node, key);
  if (!entry || nps_node_is_null(entry->value))
    nps_place_fail(node->place, "%s: '%s' is missing, expected %s", what, key, expected);
}

static void read_source(nps_recipe_t *recipe, const nps_node_t *node, const char *what, nps_recipe_source_t *source) {
  static const nps_key_t keys[] = {{"model", NPS_KEY_READ, read_model, NULL},
                                   {"layer_range", NPS_KEY_READ, read_range, NULL},
                                   {"parameters", NPS_KEY_READ, read_source_parameters, NULL}};
  source_draft_t draft = {.source = source};
  source->end = -1; /* none is given */
  nps_level_read(node, what, keys, COUNT(keys), &draft);
  if (draft.model) source->model = find_model(recipe, draft.model, node->place.line);
  if (node->kind != NPS_NODE_MAPPING) return;
  check_there(node, what, "model", "a path or org/name");
  check_there(node, what, "layer_range", "[first, end]");
}

/* ---- one slice ---- */

typedef struct {
  nps_recipe_t *recipe;
  nps_recipe_slice_t *slice;
} slice_draft_t;

static void check_lengths(const nps_node_t *node, const char *what, const nps_recipe_slice_t *slice) {
  const int64_t length = slice->sources[0].end - slice->sources[0].first;
  for (int i = 1; i < slice->source_count; i++) {
    const int64_t other = slice->sources[i].end - slice->sources[i].first;
    if (length >= 0 && other >= 0 && other != length)
      nps_place_fail(node->entries[i].value->place,
                     "%s.%d.layer_range: expected %" PRId64 " layers as in the first source, found %" PRId64, what, i,
                     length, other);
  }
}

static void read_sources(void *target, const nps_node_t *value, const char *what) {
  const slice_draft_t *draft = target;
  nps_recipe_slice_t *slice = draft->slice;
  char found[96];
  if (value->kind != NPS_NODE_LIST || value->count == 0 || value->count > NPS_MAX_MODELS) {
    nps_place_fail(value->place, "%s: expected a list of {model, layer_range}, at most %d, found %s", what,
                   NPS_MAX_MODELS, nps_node_describe(value, found));
    return;
  }
  slice->sources = nps_xcalloc((size_t)value->count, sizeof *slice->sources);
  for (int i = 0; i < value->count; i++) {
    char *path = nps_xstrf("%s.%d", what, i);
    read_source(draft->recipe, value->entries[i].value, path, &slice->sources[slice->source_count++]);
    free(path);
  }
  check_lengths(value, what, slice);
}

static void read_base(void *target, const nps_node_t *value, const char *what) {
  nps_model_read(value, what, &((slice_draft_t *)target)->slice->base_model);
}

static void read_parameters(void *target, const nps_node_t *value, const char *what) {
  nps_settings_read(value, what, &((slice_draft_t *)target)->slice->parameters);
}

static void read_slice(nps_recipe_t *recipe, const nps_node_t *node, const char *what, nps_recipe_slice_t *slice) {
  static const nps_key_t keys[] = {{"sources", NPS_KEY_READ, read_sources, NULL},
                                   {"base_model", NPS_KEY_READ, read_base, NULL},
                                   {"parameters", NPS_KEY_READ, read_parameters, NULL},
                                   {"residual_weight", NPS_KEY_NO_EFFECT, NULL, NULL}};
  slice_draft_t draft = {recipe, slice};
  slice->line = node->place.line;
  nps_level_read(node, what, keys, COUNT(keys), &draft);
  if (node->kind == NPS_NODE_MAPPING) check_there(node, what, "sources", "a list of {model, layer_range}");
}

void nps_slices_read(const nps_node_t *node, const char *what, nps_recipe_t *recipe) {
  char found[96];
  if (node->kind != NPS_NODE_LIST || node->count == 0 || node->count > NPS_MAX_MODELS) {
    nps_place_fail(node->place, "%s: expected a list of slices, at most %d, found %s", what, NPS_MAX_MODELS,
                   nps_node_describe(node, found));
    return;
  }
  if (recipe->slices) return; /* given twice, here and in a module: that is reported */
  recipe->slices = nps_xcalloc((size_t)node->count, sizeof *recipe->slices);
  for (int i = 0; i < node->count; i++) {
    char *path = nps_xstrf("%s.%d", what, i);
    read_slice(recipe, node->entries[i].value, path, &recipe->slices[recipe->slice_count++]);
    free(path);
  }
}

/* ---- modules ---- */

static void read_module_models(void *target, const nps_node_t *value, const char *what) {
  nps_models_read(value, what, target);
}

static void read_module_slices(void *target, const nps_node_t *value, const char *what) {
  nps_slices_read(value, what, target);
}

static void read_module_parameters(void *target, const nps_node_t *value, const char *what) {
  nps_settings_read(value, what, &((nps_recipe_t *)target)->module);
}

static bool is_given(const nps_node_t *node, const char *key) {
  const nps_entry_t *entry = nps_node_find(node, key);
  return entry && !nps_node_is_null(entry->value);
}

static void read_module(const nps_node_t *node, const char *what, nps_recipe_t *recipe) {
  static const nps_key_t keys[] = {{"models", NPS_KEY_READ, read_module_models, NULL},
                                   {"slices", NPS_KEY_READ, read_module_slices, NULL},
                                   {"parameters", NPS_KEY_READ, read_module_parameters, NULL}};
  if (is_given(node, "models") == is_given(node, "slices"))
    nps_place_fail(node->place, "%s: expected either models or slices", what);
  else
    nps_level_read(node, what, keys, COUNT(keys), recipe);
}

void nps_modules_read(const nps_node_t *node, const char *what, nps_recipe_t *recipe) {
  char found[96];
  if (node->kind != NPS_NODE_MAPPING || node->count == 0) {
    nps_place_fail(node->place, "%s: expected a mapping with the module 'default', found %s", what,
                   nps_node_describe(node, found));
    return;
  }
  for (int i = 0; i < node->count; i++) {
    const nps_entry_t *entry = &node->entries[i];
    if (strcmp(entry->key, "default") == 0) {
      char *path = nps_xstrf("%s.default", what);
      read_module(entry->value, path, recipe);
      free(path);
    } else
      nps_place_fail(entry->place,
                     "%s.%s: models of several modules are not built yet, expected only the module 'default'", what,
                     nps_show(entry->key, found));
  }
}

/* ---- checks ---- */

/* A slice may have none, for what lies before or after them. */
static bool has_layers(const nps_recipe_t *recipe) {
  for (int s = 0; s < recipe->slice_count; s++) {
    const nps_recipe_slice_t *slice = &recipe->slices[s];
    if (slice->source_count == 0 || slice->sources[0].end != slice->sources[0].first) return true;
  }
  return false;
}

void nps_slices_check(const nps_recipe_t *recipe, const nps_node_t *root) {
  static const char *const keys[] = {"models", "slices", "modules"};
  int given = 0;
  const nps_entry_t *last = NULL;
  for (int i = 0; i < COUNT(keys); i++) {
    if (!is_given(root, keys[i])) continue;
    given++;
    last = nps_node_find(root, keys[i]);
  }
  if (given == 0) {
    const nps_entry_t *models = nps_node_find(root, "models");
    nps_place_fail(models ? models->place : root->place, "'models' is missing, expected a list of models");
  }
  if (given > 1) nps_place_fail(last->place, "expected only one of models, slices and modules");
  if (recipe->slice_count == 0) return;
  if (!has_layers(recipe)) nps_place_fail(last->place, "slices: expected at least one layer in all");
  if (recipe->output_head)
    nps_place_fail(nps_node_find(root, "output")->place, "output.head: goes with models, not with slices");
  if (recipe->merge_method && strcmp(recipe->merge_method, "nps") == 0)
    nps_place_fail(last->place, "slices: merge_method nps merges whole models, expected models");
}

/* ---- writing ---- */

static void emit_models(nps_text_t *out, const nps_recipe_t *recipe, const char *indent) {
  char *inner = nps_xstrf("%s    ", indent);
  nps_text_add(out, "%smodels:\n", indent);
  for (int i = 0; i < recipe->model_count; i++) {
    nps_text_add(out, "%s  ", indent);
    nps_emit_pair(out, "- model", recipe->models[i].model);
    nps_text_add(out, "%s", inner);
    nps_emit_pair(out, "name", recipe->models[i].name);
    nps_emit_settings(out, &recipe->models[i].parameters, inner);
  }
  free(inner);
}

static void emit_slice(nps_text_t *out, const nps_recipe_t *recipe, const nps_recipe_slice_t *slice,
                       const char *indent) {
  char *inner = nps_xstrf("%s    ", indent), *deep = nps_xstrf("%s        ", indent);
  nps_text_add(out, "%s  - sources:\n", indent);
  for (int i = 0; i < slice->source_count; i++) {
    const nps_recipe_source_t *source = &slice->sources[i];
    nps_text_add(out, "%s      ", indent);
    nps_emit_pair(out, "- model", recipe->models[source->model].model);
    nps_text_add(out, "%slayer_range: [%" PRId64 ", %" PRId64 "]\n", deep, source->first, source->end);
    nps_emit_settings(out, &source->parameters, deep);
  }
  if (slice->base_model) {
    nps_text_add(out, "%s", inner);
    nps_emit_pair(out, "base_model", slice->base_model);
  }
  nps_emit_settings(out, &slice->parameters, inner);
  free(inner);
  free(deep);
}

void nps_slices_emit(nps_text_t *out, const nps_recipe_t *recipe) {
  const char *indent = recipe->module.count ? "    " : "";
  if (recipe->module.count) {
    nps_text_add(out, "modules:\n  default:\n");
    nps_emit_settings(out, &recipe->module, indent);
  }
  if (recipe->slice_count == 0) {
    emit_models(out, recipe, indent);
    return;
  }
  nps_text_add(out, "%sslices:\n", indent);
  for (int i = 0; i < recipe->slice_count; i++) emit_slice(out, recipe, &recipe->slices[i], indent);
}

void nps_slices_free(nps_recipe_t *recipe) {
  for (int i = 0; i < recipe->slice_count; i++) {
    nps_recipe_slice_t *slice = &recipe->slices[i];
    for (int k = 0; k < slice->source_count; k++) nps_settings_free(&slice->sources[k].parameters);
    free(slice->sources);
    free(slice->base_model);
    nps_settings_free(&slice->parameters);
  }
  free(recipe->slices);
  nps_settings_free(&recipe->module);
}
