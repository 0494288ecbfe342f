#include "nps/delta.h"

#include <math.h>

/* The three common types are widened and subtracted in one go. */
NPS_VECTOR_CLONES
static void subtract(nps_dtype_t dtype, const void *tuned, const float *base, int64_t n, float *tau) {
  const uint16_t *half = tuned;
  const float *single = tuned;
  switch (dtype) {
  case NPS_BF16:
    for (int64_t i = 0; i < n; i++) {
      union {
        uint32_t bits;
        float value;
      } x = {.bits = (uint32_t)half[i] << 16};
      tau[i] = x.value - base[i];
    }
    break;
  case NPS_F32:
    for (int64_t i = 0; i < n; i++) tau[i] = single[i] - base[i];
    break;
  default:
    nps_tensor_widen_f32(dtype, tuned, n, tau);
    for (int64_t i = 0; i < n; i++) tau[i] -= base[i];
  }
}

NPS_VECTOR_CLONES
static void subtract_wide(const double *tuned, const double *base, int64_t n, float *tau) {
  for (int64_t i = 0; i < n; i++) tau[i] = (float)(tuned[i] - base[i]);
}

static void form_wide(nps_dtype_t base_dtype, const void *base, nps_dtype_t dtype, const void *tuned, int64_t n,
                      float *tau) {
  double x[NPS_CHUNK], y[NPS_CHUNK];
  nps_tensor_widen(dtype, tuned, n, x);
  nps_tensor_widen(base_dtype, base, n, y);
  subtract_wide(x, y, n, tau);
}

void nps_delta_form(nps_dtype_t base_dtype, const void *base, int models, const nps_dtype_t *dtype,
                    const void *const *tuned, int64_t n, float *const *tau) {
  float single[NPS_CHUNK];
  if (base_dtype != NPS_F64) nps_tensor_widen_f32(base_dtype, base, n, single);
  for (int m = 0; m < models; m++) {
    if (base_dtype == NPS_F64 || dtype[m] == NPS_F64)
      form_wide(base_dtype, base, dtype[m], tuned[m], n, tau[m]);
    else
      subtract(dtype[m], tuned[m], single, n, tau[m]);
  }
}

nps_err_t nps_delta_check_finite(const nps_model_t *model, const char *tensor, nps_dtype_t dtype, const void *raw,
                                 int64_t first, int64_t n) {
  const int64_t found = nps_tensor_find_nonfinite(dtype, raw, n);
  if (found < 0) return NPS_OK;
  double value;
  nps_tensor_widen(dtype, (const char *)raw + (size_t)found * nps_dtype_size(dtype), 1, &value);
  return nps_fail(NPS_ERR_INPUT, "model %s (%s): tensor %s holds %s at index %lld", model->name, model->path, tensor,
                  isnan(value) ? "NaN" : "infinity", (long long)(first + found));
}
