#include "models.h"

#include "level.h"
#include "names.h"
#include "value.h"

#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static void check_text(void *target, const nps_node_t *value, const char *what) {
  (void)target;
  char *text = NULL;
  nps_text_read(value, what, &text);
  free(text);
}

/* The mapping form of mergekit's model references; nps_model_text() joins the parts. */
static void check_path(void *target, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"path", NPS_KEY_READ, check_text, NULL},
                                   {"revision", NPS_KEY_READ, check_text, NULL}};
  if (value->kind != NPS_NODE_SCALAR) nps_level_read(value, what, keys, COUNT(keys), target);
}

void nps_model_read(const nps_node_t *node, const char *what, char **out) {
  static const nps_key_t keys[] = {{"model", NPS_KEY_READ, check_path, NULL},
                                   {"lora", NPS_KEY_READ, check_path, NULL},
                                   {"override_architecture", NPS_KEY_NO_EFFECT, NULL, NULL}};
  char found[96];
  int before = nps_problem_count();
  if (node->kind == NPS_NODE_MAPPING) nps_level_read(node, what, keys, COUNT(keys), NULL);
  if (nps_problem_count() > before) return;
  char *text = nps_model_text(node);
  if (!text) {
    nps_place_fail(node->place, "%s: expected a path or org/name, found %s", what, nps_node_describe(node, found));
    return;
  }
  *out = text;
}

void nps_settings_read(const nps_node_t *node, const char *what, nps_settings_t *settings) {
  char found[96];
  if (node->kind != NPS_NODE_MAPPING) {
    nps_place_fail(node->place, "%s: expected a mapping, found %s", what, nps_node_describe(node, found));
    return;
  }
  settings->items = nps_xcalloc((size_t)node->count, sizeof *settings->items);
  for (int i = 0; i < node->count; i++) {
    const nps_entry_t *entry = &node->entries[i];
    if (strcmp(entry->key, "int8_mask") == 0) {
      nps_place_note(entry->place, "key 'int8_mask' has no effect here");
      continue;
    }
    char *name = nps_xstrf("%s.%s", what, nps_show(entry->key, found));
    nps_value_t *value = nps_value_read(entry->value, name);
    free(name);
    if (value)
      settings->items[settings->count++] =
          (nps_setting_t){.name = nps_xstrdup(entry->key), .value = value, .line = entry->value->place.line};
  }
}

void nps_settings_free(nps_settings_t *settings) {
  for (int i = 0; i < settings->count; i++) {
    free(settings->items[i].name);
    nps_value_free(settings->items[i].value);
  }
  free(settings->items);
  *settings = (nps_settings_t){0};
}

const nps_setting_t *nps_settings_find(const nps_settings_t *settings, const char *name) {
  for (int i = 0; i < settings->count; i++)
    if (strcmp(settings->items[i].name, name) == 0) return &settings->items[i];
  return NULL;
}

static void read_reference(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_model_t *model = target;
  nps_model_read(value, what, &model->model);
}

static void read_name(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_model_t *model = target;
  nps_text_read(value, what, &model->name);
}

static void read_parameters(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_model_t *model = target;
  nps_settings_read(value, what, &model->parameters);
}

static void read_model(nps_recipe_model_t *model, const nps_node_t *node, const char *what) {
  static const nps_key_t keys[] = {{"model", NPS_KEY_READ, read_reference, NULL},
                                   {"name", NPS_KEY_READ, read_name, NULL},
                                   {"parameters", NPS_KEY_READ, read_parameters, NULL},
                                   {"layer_range", NPS_KEY_ELSEWHERE, NULL, "slices.sources.layer_range"}};
  model->line = node->place.line;
  nps_level_read(node, what, keys, COUNT(keys), model);
  if (node->kind != NPS_NODE_MAPPING) return;
  const nps_entry_t *reference = nps_node_find(node, "model");
  if (!reference || nps_node_is_null(reference->value))
    nps_place_fail(node->place, "%s: 'model' is missing, expected a path or org/name", what);
}

/* Give entries without an explicit name theirs, and check that the others differ. */
static void settle_names(nps_recipe_t *recipe, const nps_node_t *node, const char *what) {
  char shown[72];
  bool *changed = nps_xcalloc((size_t)node->count, sizeof *changed);
  char **names = nps_model_names(node, changed);
  for (int i = 0; i < node->count; i++) {
    nps_recipe_model_t *model = &recipe->models[i];
    const nps_node_t *entry = node->entries[i].value;
    if (changed[i])
      nps_place_note(entry->place, "%s.%d is named '%s', as its last path component is taken", what, i,
                     nps_show(names[i], shown));
    for (int j = 0; model->name && j < i; j++)
      if (names[j] && strcmp(names[j], model->name) == 0) {
        nps_place_fail(nps_node_find(entry, "name")->place, "%s.%d.name: '%s' is the name of %s.%d already", what, i,
                       nps_show(model->name, shown), what, j);
        break;
      }
    if (!model->name && names[i]) model->name = nps_xstrdup(names[i]);
  }
  nps_model_names_free(names, node->count);
  free(changed);
}

void nps_models_read(const nps_node_t *node, const char *what, nps_recipe_t *recipe) {
  char found[96];
  if (node->kind != NPS_NODE_LIST || node->count == 0) {
    nps_place_fail(node->place, "%s: expected a list of models, found %s", what, nps_node_describe(node, found));
    return;
  }
  if (node->count > NPS_MAX_MODELS) {
    nps_place_fail(node->place, "%s: expected at most %d, found %d", what, NPS_MAX_MODELS, node->count);
    return;
  }
  if (recipe->models) return; /* given twice, as models and in slices: that is reported */
  recipe->models = nps_xcalloc((size_t)node->count, sizeof *recipe->models);
  recipe->model_count = node->count;
  for (int i = 0; i < node->count; i++) {
    char *path = nps_xstrf("%s.%d", what, i);
    read_model(&recipe->models[i], node->entries[i].value, path);
    free(path);
  }
  settle_names(recipe, node, what);
}
