/* nearswap: from the base towards a model, the further the closer they are, in mergekit's conventions. */
#include "merge_internal.h"

#include <math.h>

#define CLOSEST 1e-6

/* θ0 + w(θ1 − θ0), w = min(t / |θ1 − θ0|, 1). */
NPS_VECTOR_CLONES
static void approach(const double *base, const double *other, double t, int64_t n, double *out) {
  for (int64_t i = 0; i < n; i++) {
    const double far = fabs(other[i] - base[i]), share = t / (far > CLOSEST ? far : CLOSEST);
    const double w = share > 1 ? 1 : share;
    out[i] = w * other[i] + (1 - w) * base[i];
  }
}

static void nearswap_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                           int64_t *kept) {
  (void)state;
  (void)kept;
  approach(chunk->theta[0], chunk->theta[1], tensor->param[0][0], chunk->count, out);
}

const nps_merge_method_t nps_method_nearswap = {
    .name = "nearswap",
    .summary = "the base, moved to one model where both are within t of each other, and by t elsewhere",
    .base = NPS_BASE_FIRST,
    .min_models = 2,
    .max_models = 2,
    .params = {{.name = "t", .required = true, .least = 0, .most = 1e30}},
    .param_count = 1,
    .element_seconds = 1e-9,
    .merge = nearswap_merge,
};
