/* linear: Σ w_i θ_i / Σ w_i; passthrough: one model, scaled. */
#include "combine.h"
#include "merge_internal.h"

#include <stdio.h>

enum { LINEAR_WEIGHT, LINEAR_NORMALIZE };

static bool linear_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  (void)first;
  if (tensor->param[LINEAR_NORMALIZE][0] == 0 || nps_merge_sum_of(tensor->param[LINEAR_WEIGHT], tensor->models) != 0)
    return true;
  snprintf(why, 160, "the weights add up to 0, and normalize: true divides by their sum");
  return false;
}

NPS_VECTOR_CLONES
static void divide(double *x, double divisor, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] /= divisor;
}

static void linear_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                         int64_t *kept) {
  (void)state;
  (void)kept;
  const double *weight = tensor->param[LINEAR_WEIGHT];
  nps_scale(chunk->theta[0], weight[0], chunk->count, out);
  for (int i = 1; i < tensor->models; i++) nps_add_scaled(chunk->theta[i], weight[i], chunk->count, out);
  double divisor = nps_merge_sum_of(weight, tensor->models);
  if (tensor->param[LINEAR_NORMALIZE][0] != 0 && divisor != 1) divide(out, divisor, chunk->count);
}

const nps_merge_method_t nps_method_linear = {
    .name = "linear",
    .summary = "weighted average of the models",
    .base = NPS_BASE_LISTED,
    .min_models = 1,
    .params = {[LINEAR_WEIGHT] = {.name = "weight", .per_model = true, .required = true, .least = -1e30, .most = 1e30},
               [LINEAR_NORMALIZE] =
                   {.name = "normalize", .kind = NPS_PARAM_CHOICE, .fallback = 1, .choices = nps_choices_bool}},
    .param_count = 2,
    .element_seconds = 0.35e-9,
    .check = linear_check,
    .merge = linear_merge,
};

static void passthrough_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                              double *out, int64_t *kept) {
  (void)state;
  (void)kept;
  nps_scale(chunk->theta[0], tensor->param[0][0], chunk->count, out);
}

const nps_merge_method_t nps_method_passthrough = {
    .name = "passthrough",
    .summary = "one model, unchanged or scaled",
    .base = NPS_BASE_LISTED,
    .min_models = 1,
    .max_models = 1,
    .params = {{.name = "scale", .per_model = true, .fallback = 1, .least = -1e30, .most = 1e30}},
    .param_count = 1,
    .element_seconds = 0.4e-9,
    .merge = passthrough_merge,
};
