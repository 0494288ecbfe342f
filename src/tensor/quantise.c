#include "nps/tensor.h"

NPS_VECTOR_CLONES
static float largest_magnitude(const float *x, int64_t n) {
  float most = 0;
  for (int64_t i = 0; i < n; i++) {
    const float magnitude = __builtin_fabsf(x[i]);
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

/* A NaN becomes −levels: it has no code, and the scale of infinities tells of it. */
NPS_VECTOR_CLONES
static void round_codes(const float *x, int64_t n, double scale, double levels, int16_t *codes) {
  for (int64_t i = 0; i < n; i++) {
    double c = __builtin_rint((double)x[i] / scale);
    c = c >= -levels ? c : -levels;
    c = c <= levels ? c : levels;
    codes[i] = (int16_t)(int32_t)c;
  }
}

float nps_quantise(const float *x, int64_t n, int bits, int16_t *codes) {
  const int levels = (1 << (bits - 1)) - 1;
  const float scale = (float)((double)largest_magnitude(x, n) / (double)levels);
  /* Below the smallest float there is no scale, and nothing worth keeping. */
  round_codes(x, n, scale > 0 ? (double)scale : __builtin_inf(), levels, codes);
  return scale;
}

NPS_VECTOR_CLONES
void nps_dequantise(float scale, const int16_t *codes, int64_t n, float *x) {
  for (int64_t i = 0; i < n; i++) x[i] = scale * (float)codes[i];
}
