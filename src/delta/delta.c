#include "nps/delta.h"

static bool fits_single(nps_dtype_t dtype) { return dtype != NPS_F64; }

NPS_VECTOR_CLONES
static void subtract_single(const float *x, const float *base, int64_t n, float *tau) {
  for (int64_t i = 0; i < n; i++) tau[i] = x[i] - base[i];
}

NPS_VECTOR_CLONES
static void subtract_double(const double *x, const double *base, int64_t n, float *tau) {
  for (int64_t i = 0; i < n; i++) tau[i] = (float)(x[i] - base[i]);
}

void nps_delta_form(nps_dtype_t base_dtype, const void *base, nps_dtype_t tuned_dtype, const void *tuned, int64_t n,
                    float *tau) {
  if (fits_single(base_dtype) && fits_single(tuned_dtype)) {
    float x[NPS_CHUNK], y[NPS_CHUNK];
    nps_tensor_widen_f32(tuned_dtype, tuned, n, x);
    nps_tensor_widen_f32(base_dtype, base, n, y);
    subtract_single(x, y, n, tau);
  } else {
    double x[NPS_CHUNK], y[NPS_CHUNK];
    nps_tensor_widen(tuned_dtype, tuned, n, x);
    nps_tensor_widen(base_dtype, base, n, y);
    subtract_double(x, y, n, tau);
  }
}
