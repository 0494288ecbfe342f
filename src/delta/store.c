/* Weights in memory, as they are stored, tensors in byte order of their names. */
#include "store.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The merged targets of a layout in byte order of their names. */
static int by_name(const void *a, const void *b) {
  return strcmp((*(const nps_target_t *const *)a)->name, (*(const nps_target_t *const *)b)->name);
}

const nps_target_t **nps_sorted_targets(const nps_layout_t *layout, int *count) {
  const nps_target_t **targets = nps_xcalloc((size_t)layout->count, sizeof *targets);
  *count = 0;
  for (int t = 0; t < layout->count; t++)
    if (layout->targets[t].action == NPS_ACTION_MERGE) targets[(*count)++] = &layout->targets[t];
  qsort(targets, (size_t)*count, sizeof *targets, by_name);
  return targets;
}

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static const nps_tensor_info_t *info_of(const nps_store_t *s, int slot, int tensor) {
  const int input = slot < 0 ? s->base : s->input_of[slot];
  return &s->inputs[input]->tensors[s->targets[tensor]->source[input]];
}

nps_dtype_t nps_store_dtype(const nps_store_t *s, int model, int tensor) { return info_of(s, model, tensor)->dtype; }

const void *nps_store_raw(const nps_store_t *s, int model, int tensor, int64_t first) {
  const char *raw = s->raw[model + 1] + s->offset[(size_t)(model + 1) * (size_t)s->tensors + (size_t)tensor];
  return raw + (size_t)first * nps_dtype_size(nps_store_dtype(s, model, tensor));
}

static nps_err_t check_finite(const nps_store_t *s, int model, int tensor) {
  const nps_model_t *input = s->inputs[model < 0 ? s->base : s->input_of[model]];
  return nps_delta_check_finite(input, s->targets[tensor]->name, nps_store_dtype(s, model, tensor),
                                nps_store_raw(s, model, tensor, 0), 0, s->targets[tensor]->count);
}

static nps_err_t read_model(nps_store_t *s, int model, nps_digest_t *digest) {
  const int input = model < 0 ? s->base : s->input_of[model];
  int64_t *offset = s->offset + (size_t)(model + 1) * (size_t)s->tensors, bytes = 0;
  for (int t = 0; t < s->tensors; t++) {
    offset[t] = bytes;
    if (nps_store_holds(s, t))
      bytes += aligned(s->targets[t]->count * (int64_t)nps_dtype_size(nps_store_dtype(s, model, t)));
  }
  NPS_TRY(nps_buffer_alloc((size_t)bytes, "a model's weights", &s->raw[model + 1]));
  nps_reader_t *reader = nps_reader_new(s->inputs[input], digest);
  nps_err_t err = NPS_OK;
  for (int t = 0; t < s->tensors && err == NPS_OK; t++) {
    if (!nps_store_holds(s, t)) continue;
    err = nps_reader_read(reader, s->targets[t]->source[input], 0, s->targets[t]->count, s->raw[model + 1] + offset[t]);
    if (err == NPS_OK) err = check_finite(s, model, t);
  }
  nps_reader_free(reader);
  return err;
}

nps_err_t nps_store_load(const nps_layout_t *layout, const nps_model_t *const *inputs, int base, const int *input_of,
                         int models, const nps_share_t *part, nps_digest_t *digest, nps_store_t **out) {
  nps_store_t *s = nps_xcalloc(1, sizeof *s);
  nps_err_t err = NPS_OK;
  s->inputs = inputs;
  s->base = base;
  s->models = models;
  s->targets = nps_sorted_targets(layout, &s->tensors);
  s->copy = part->copy;
  s->copies = part->copies;
  s->hold = nps_xcalloc((size_t)s->tensors + 1, sizeof *s->hold);
  for (int t = 0; t < s->tensors; t++) s->hold[t] = part->hold ? part->hold[s->targets[t] - layout->targets] : NPS_HOLD;
  s->input_of = nps_xcalloc((size_t)models, sizeof *s->input_of);
  memcpy(s->input_of, input_of, (size_t)models * sizeof *s->input_of);
  s->raw = nps_xcalloc((size_t)models + 1, sizeof *s->raw);
  s->offset = nps_xcalloc(((size_t)models + 1) * (size_t)s->tensors, sizeof *s->offset);
  for (int t = 0; t < s->tensors; t++) s->elements += s->targets[t]->count;
  *out = NULL;
  for (int model = -1; model < models && err == NPS_OK; model++) err = read_model(s, model, digest);
  if (err == NPS_OK)
    *out = s;
  else
    nps_store_free(s);
  return err;
}

void nps_store_free(nps_store_t *s) {
  if (!s) return;
  for (int i = 0; i <= s->models; i++) free(s->raw[i]);
  free(s->raw);
  free(s->offset);
  free(s->input_of);
  free(s->hold);
  free(s->targets);
  free(s);
}

int64_t nps_store_target_bytes(const nps_layout_t *layout, const nps_model_t *const *inputs, int base,
                               const int *input_of, int models, int target) {
  const nps_target_t *t = &layout->targets[target];
  int64_t bytes = 0;
  if (t->action != NPS_ACTION_MERGE) return 0;
  for (int model = -1; model < models; model++) {
    const int input = model < 0 ? base : input_of[model];
    bytes += aligned(t->count * (int64_t)nps_dtype_size(inputs[input]->tensors[t->source[input]].dtype));
  }
  return bytes;
}

bool nps_store_holds(const nps_store_t *s, int tensor) { return s->hold[tensor] != NPS_HOLD_NOT; }

bool nps_store_counts(const nps_store_t *s, int tensor) { return s->hold[tensor] == NPS_HOLD; }

int nps_store_models(const nps_store_t *s) { return s->models; }

int nps_store_tensors(const nps_store_t *s) { return s->tensors; }

const char *nps_store_name(const nps_store_t *s, int tensor) { return s->targets[tensor]->name; }

int64_t nps_store_count(const nps_store_t *s, int tensor) { return s->targets[tensor]->count; }

int64_t nps_store_elements(const nps_store_t *s) { return s->elements; }

int nps_store_find(const nps_store_t *s, const char *name) {
  int low = 0, high = s->tensors;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    const int order = strcmp(s->targets[middle]->name, name);
    if (order == 0) return middle;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return -1;
}

void nps_store_tau(const nps_store_t *s, int model, int tensor, int64_t first, int64_t n, float *tau) {
  const nps_dtype_t dtype = nps_store_dtype(s, model, tensor);
  const void *tuned = nps_store_raw(s, model, tensor, first);
  nps_delta_form(nps_store_dtype(s, -1, tensor), nps_store_raw(s, -1, tensor, first), 1, &dtype, &tuned, n, &tau);
}
