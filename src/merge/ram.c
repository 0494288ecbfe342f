/* ram, ramplus_tl: what one model alone changes is taken in full, what several change is averaged (Reinforced Agent Merging,
 * arXiv 2601.13572), in mergekit's conventions. */
#include "merge_internal.h"

#include <math.h>
#include <stdlib.h>

enum { EPSILON, GAIN, ALPHA };

typedef struct {
  int64_t *shared, *alone; /* [models] entries that a model changes as others do / alone */
  double *factor;          /* [models] of what it changes alone */
} ram_state_t;

/* Adds 1 where an entry is changed: its magnitude is above epsilon. */
NPS_VECTOR_CLONES
static void add_changed(const float *restrict x, float epsilon, int64_t n, int32_t *restrict changing) {
  for (int64_t i = 0; i < n; i++) changing[i] += fabsf(x[i]) > epsilon;
}

/* Counts the models that change each entry. @param[out] changing  [chunk->count] */
static void count_changing(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, int32_t *changing) {
  for (int64_t i = 0; i < chunk->count; i++) changing[i] = 0;
  for (int m = 0; m < tensor->models; m++)
    add_changed(chunk->tau[m], (float)tensor->param[EPSILON][0], chunk->count, changing);
}

/* Adds the changed entries, those of one model times its factor. @return how many entries it changes */
NPS_VECTOR_CLONES
static int64_t add_entries(const float *restrict x, float epsilon, double factor, const int32_t *restrict changing,
                           int64_t n, double *restrict sum) {
  int32_t changed = 0;
  for (int64_t i = 0; i < n; i++) {
    const bool counts = fabsf(x[i]) > epsilon;
    const double value = (changing[i] == 1 ? factor : 1) * (double)x[i];
    sum[i] += counts ? value : 0;
    changed += counts;
  }
  return changed;
}

NPS_VECTOR_CLONES
static void divide(const int32_t *restrict changing, int64_t n, double *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] /= changing[i] > 1 ? changing[i] : 1;
}

/* state: NULL where all factors are 1. */
static void ram_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                      int64_t *kept) {
  const ram_state_t *s = state;
  const float epsilon = (float)tensor->param[EPSILON][0];
  int32_t changing[NPS_CHUNK];
  count_changing(tensor, chunk, changing);
  for (int64_t i = 0; i < chunk->count; i++) out[i] = 0;
  for (int m = 0; m < tensor->models; m++)
    kept[m] += add_entries(chunk->tau[m], epsilon, s ? s->factor[m] : 1, changing, chunk->count, out);
  divide(changing, chunk->count, out);
}

/* ---- ramplus_tl: factors ---- */

static void *ramplus_new(const nps_merge_spec_t *spec) {
  ram_state_t *s = nps_xcalloc(1, sizeof *s);
  const size_t models = (size_t)spec->model_count;
  s->shared = nps_xcalloc(models, sizeof *s->shared);
  s->alone = nps_xcalloc(models, sizeof *s->alone);
  s->factor = nps_xcalloc(models, sizeof *s->factor);
  return s;
}

static void ramplus_free(void *state) {
  ram_state_t *s = state;
  free(s->shared);
  free(s->alone);
  free(s->factor);
  free(s);
}

static size_t ramplus_bytes(const nps_merge_spec_t *spec) {
  return sizeof(ram_state_t) + (size_t)spec->model_count * (2 * sizeof(int64_t) + sizeof(double));
}

static void ramplus_start(void *state, const nps_merge_tensor_t *tensor) {
  ram_state_t *s = state;
  for (int m = 0; m < tensor->models; m++) s->shared[m] = s->alone[m] = 0;
}

/* Counts the entries that are changed here, and by this model alone. @return the latter */
NPS_VECTOR_CLONES
static int64_t count_entries(const float *restrict x, float epsilon, const int32_t *restrict changing, int64_t n,
                             int64_t *shared) {
  int32_t changed = 0, alone = 0;
  for (int64_t i = 0; i < n; i++) {
    const int32_t counts = fabsf(x[i]) > epsilon;
    changed += counts;
    alone += counts & (changing[i] == 1);
  }
  *shared += changed - alone;
  return alone;
}

static void ramplus_scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  (void)pass;
  ram_state_t *s = state;
  int32_t changing[NPS_CHUNK];
  count_changing(tensor, chunk, changing);
  for (int m = 0; m < tensor->models; m++)
    s->alone[m] +=
        count_entries(chunk->tau[m], (float)tensor->param[EPSILON][0], changing, chunk->count, &s->shared[m]);
}

/* Of a model that changes nothing alone the factor is not used. */
static void ramplus_reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  (void)pass;
  ram_state_t *s = state;
  nps_comm_sum_i64(comm, s->shared, tensor->models);
  nps_comm_sum_i64(comm, s->alone, tensor->models);
  for (int m = 0; m < tensor->models; m++) {
    const double ratio = s->alone[m] > 0 ? (double)s->shared[m] / (double)s->alone[m] : 0;
    s->factor[m] = 1 + tensor->param[GAIN][0] * fmin(ratio, tensor->param[ALPHA][0]);
  }
}

/* ---- the table entries ---- */

#define PARAM_EPSILON                                                                                                  \
  { .name = "epsilon", .fallback = 1e-5, .least = 0, .most = 1e30 }

const nps_merge_method_t nps_method_ram = {
    .name = "ram",
    .summary = "entries that one model changes in full, those that several change averaged",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = {[EPSILON] = PARAM_EPSILON},
    .param_count = 1,
    .element_seconds = 1e-9,
    .merge = ram_merge,
};

const nps_merge_method_t nps_method_ramplus_tl = {
    .name = "ramplus_tl",
    .summary = "as ram, what one model alone changes larger by its share of what several change",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = {[EPSILON] = PARAM_EPSILON,
               [GAIN] = {.name = "r", .fallback = 0.1, .least = -1e30, .most = 1e30},
               [ALPHA] = {.name = "alpha", .fallback = 0.2, .least = 0, .most = 1e30}},
    .param_count = 3,
    .element_seconds = 1.8e-9,
    .passes = nps_merge_one_pass,
    .state_new = ramplus_new,
    .state_free = ramplus_free,
    .state_bytes = ramplus_bytes,
    .start = ramplus_start,
    .scan = ramplus_scan,
    .reduce = ramplus_reduce,
    .merge = ram_merge,
};
