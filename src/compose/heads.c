/* Output heads that are the embeddings once more. */
#include "compose_internal.h"

#include <string.h>

bool nps_config_ties_by_file(const json_t *config) {
  const char *type = json_string_value(json_object_get(config, "model_type"));
  return type && (strcmp(type, "t5") == 0 || strcmp(type, "mt5") == 0);
}

/* 1, 0, or -1: the config does not say. */
static int read_tie(const char *config_json) {
  json_t *config = nps_json_of(config_json);
  const json_t *value = json_object_get(config, "tie_word_embeddings");
  const bool says = json_is_boolean(value) && !nps_config_ties_by_file(config);
  const int tie = says ? json_is_true(value) : -1;
  json_decref(config);
  return tie;
}

static bool same_shape(const nps_tensor_info_t *a, const nps_tensor_info_t *b) {
  return a->ndim == b->ndim && memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape) == 0;
}

/* A model that does not say whether it ties them does when it has no head. */
void nps_part_find_head(nps_part_model_t *part) {
  const nps_model_t *model = part->model;
  part->embedding = part->head = -1;
  for (int i = 0; i < model->tensor_count; i++) {
    if (nps_is_embedding(model->tensors[i].name)) part->embedding = i;
    if (nps_is_head(model->tensors[i].name)) part->head = i;
  }
  part->tied = false;
  if (part->embedding < 0) return;
  if (part->head >= 0 && !same_shape(&model->tensors[part->head], &model->tensors[part->embedding])) return;
  const int tie = read_tie(model->config_json);
  part->tied = tie == 1 || (tie < 0 && part->head < 0);
}

nps_heads_t nps_heads_find(const nps_part_model_t *parts, int count, const bool *used) {
  nps_heads_t heads = {.all_tied = true};
  bool some_tied = false;
  for (int i = 0; i < count; i++) {
    if (!used[i]) continue;
    if (parts[i].tied)
      some_tied = true;
    else {
      heads.all_tied = false;
      if (parts[i].head >= 0) heads.name = parts[i].model->tensors[parts[i].head].name;
    }
  }
  if (!some_tied) heads.name = NULL;
  return heads;
}
