/* config.json of what is composed. */
#include "compose_internal.h"

#include "nps/json.h"

#include <stdlib.h>
#include <string.h>

/* Lists with one entry a layer (layer_types, …) are cut as the layers are, each from its own model's config. */
static void cut_list(const nps_compose_spec_t *spec, json_t **configs, json_t *config, const char *key) {
  json_t *list = json_array();
  for (int s = 0; s < spec->slice_count; s++) {
    const nps_slice_source_t *source = &spec->slices[s].sources[0];
    const json_t *from = json_object_get(configs[source->model], key);
    for (int64_t i = 0; i < spec->slices[s].length; i++) {
      json_t *entry = json_array_get(from, (size_t)(source->first + i));
      json_array_append_new(list, entry ? json_deep_copy(entry) : json_null());
    }
  }
  json_object_set_new(config, key, list);
}

static void set_layers(const nps_compose_spec_t *spec, json_t *config) {
  int64_t layers = 0, before = 0;
  for (int s = 0; s < spec->slice_count; s++) layers += spec->slices[s].length;
  for (int i = 0; nps_layer_keys[i]; i++) {
    const json_t *value = json_object_get(config, nps_layer_keys[i]);
    if (!json_is_integer(value)) continue;
    before = json_integer_value(value);
    json_object_set_new(config, nps_layer_keys[i], json_integer(layers));
  }
  json_t **configs = nps_xcalloc((size_t)spec->model_count, sizeof(json_t *));
  json_t *copy = json_copy(config);
  const char *key;
  json_t *value;
  for (int m = 0; m < spec->model_count; m++) configs[m] = nps_json_of(spec->models[m]->config_json);
  json_object_foreach(copy, key, value) {
    if (json_is_array(value) && strstr(key, "layer") && (int64_t)json_array_size(value) == before)
      cut_list(spec, configs, config, key);
  }
  for (int m = 0; m < spec->model_count; m++) json_decref(configs[m]);
  json_decref(copy);
  free(configs);
}

static void set_vocabulary(json_t *config, int64_t rows) {
  json_t *text = json_object_get(config, "text_config");
  if (json_object_get(text, "vocab_size")) json_object_set_new(text, "vocab_size", json_integer(rows));
  if (json_object_get(config, "vocab_size") || !json_object_get(text, "vocab_size"))
    json_object_set_new(config, "vocab_size", json_integer(rows));
}

char *nps_compose_config(const nps_compose_spec_t *spec, bool untied) {
  json_t *config = nps_json_of(spec->models[spec->reference]->config_json);
  if (!config) return NULL;
  if (spec->slice_count > 0) set_layers(spec, config);
  if (spec->alignment) set_vocabulary(config, spec->alignment->rows);
  if (untied && !nps_config_ties_by_file(config)) json_object_set_new(config, "tie_word_embeddings", json_false());
  char *text = nps_json_print(config, 0);
  json_decref(config);
  return text;
}
