/* slerp: spherical interpolation of two models, whole tensor (Shoemake 1985), in mergekit's conventions. */
#include "merge_internal.h"

#include <math.h>
#include <stdlib.h>

/* Nearly parallel tensors are interpolated linearly; shorter ones than EPS are not normalised. */
#define PARALLEL 0.9995
#define EPS 1e-8

enum { FIRST_SQUARE, SECOND_SQUARE, PRODUCT, SUMS };

typedef struct {
  nps_block_sums_t sums[SUMS];
  double share[2]; /* factors of the two models, after the pass */
} slerp_state_t;

static int slerp_passes(const nps_merge_tensor_t *tensors, int count) {
  (void)tensors;
  (void)count;
  return 1;
}

static void *slerp_new(const nps_merge_spec_t *spec) {
  (void)spec;
  return nps_xcalloc(1, sizeof(slerp_state_t));
}

static void slerp_free(void *state) {
  slerp_state_t *s = state;
  for (int i = 0; i < SUMS; i++) nps_block_sums_free(&s->sums[i]);
  free(s);
}

static size_t slerp_bytes(const nps_merge_spec_t *spec) {
  (void)spec;
  return sizeof(slerp_state_t);
}

static void slerp_start(void *state, const nps_merge_tensor_t *tensor) {
  slerp_state_t *s = state;
  for (int i = 0; i < SUMS; i++) nps_block_sums_start(&s->sums[i], tensor->count);
}

static void slerp_scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  (void)tensor;
  (void)pass;
  slerp_state_t *s = state;
  const double *a = chunk->theta[0], *b = chunk->theta[1];
  nps_lanes_add_products(&s->sums[FIRST_SQUARE].lanes, a, a, chunk->count);
  nps_lanes_add_products(&s->sums[SECOND_SQUARE].lanes, b, b, chunk->count);
  nps_lanes_add_products(&s->sums[PRODUCT].lanes, a, b, chunk->count);
  for (int i = 0; i < SUMS; i++) nps_block_sums_advance(&s->sums[i], chunk->first, chunk->count, chunk->piece_ends);
}

static void slerp_reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  (void)pass;
  slerp_state_t *s = state;
  const double t = tensor->param[0][0];
  double total[SUMS];
  for (int i = 0; i < SUMS; i++) total[i] = nps_block_sums_total(&s->sums[i], comm);
  double norm_a = sqrt(total[FIRST_SQUARE]), norm_b = sqrt(total[SECOND_SQUARE]);
  double cosine = total[PRODUCT] / ((norm_a > EPS ? norm_a : 1) * (norm_b > EPS ? norm_b : 1));
  if (fabs(cosine) > PARALLEL) {
    s->share[0] = 1 - t;
    s->share[1] = t;
  } else {
    double angle = acos(cosine);
    s->share[0] = sin((1 - t) * angle) / sin(angle);
    s->share[1] = sin(t * angle) / sin(angle);
  }
}

NPS_VECTOR_CLONES
static void combine(const double *a, double share_a, const double *b, double share_b, int64_t n, double *out) {
  for (int64_t i = 0; i < n; i++) out[i] = share_a * a[i] + share_b * b[i];
}

static void slerp_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                        int64_t *kept) {
  (void)tensor;
  (void)kept;
  const slerp_state_t *s = state;
  combine(chunk->theta[0], s->share[0], chunk->theta[1], s->share[1], chunk->count, out);
}

const nps_merge_method_t nps_method_slerp = {
    .name = "slerp",
    .summary = "spherical interpolation from the base (t = 0) to one model (t = 1)",
    .base = NPS_BASE_FIRST,
    .min_models = 2,
    .max_models = 2,
    .params = {{.name = "t", .required = true, .least = -1e30, .most = 1e30}},
    .param_count = 1,
    .element_seconds = 1e-9,
    .passes = slerp_passes,
    .state_new = slerp_new,
    .state_free = slerp_free,
    .state_bytes = slerp_bytes,
    .start = slerp_start,
    .scan = slerp_scan,
    .reduce = slerp_reduce,
    .merge = slerp_merge,
};
