#include "nps/tensor.h"

#include <string.h>

static float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

/* Exact. A half's subnormals are scaled into place by a subtraction that has no rounding. */
static inline float widen_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t rest = (uint32_t)(h & 0x7fffu) << 13;
  uint32_t exponent = rest & 0x0f800000u;
  uint32_t normal = rest + 0x38000000u;
  uint32_t special = rest + 0x70000000u;
  float subnormal = float_of_bits(rest + 0x38800000u) - float_of_bits(0x38800000u);
  uint32_t bits = exponent == 0x0f800000u ? special : exponent == 0 ? bits_of_float(subnormal) : normal;
  return float_of_bits(bits | sign);
}

static inline float widen_bf16(uint16_t b) { return float_of_bits((uint32_t)b << 16); }

NPS_VECTOR_CLONES
void nps_tensor_widen(nps_dtype_t dtype, const void *src, int64_t n, double *dst) {
  const uint16_t *half = src;
  const float *single = src;
  switch (dtype) {
  case NPS_BF16:
    for (int64_t i = 0; i < n; i++) dst[i] = (double)widen_bf16(half[i]);
    break;
  case NPS_F16:
    for (int64_t i = 0; i < n; i++) dst[i] = (double)widen_f16(half[i]);
    break;
  case NPS_F32:
    for (int64_t i = 0; i < n; i++) dst[i] = (double)single[i];
    break;
  default:
    memcpy(dst, src, (size_t)n * sizeof *dst);
  }
}

NPS_VECTOR_CLONES
void nps_tensor_widen_f32(nps_dtype_t dtype, const void *src, int64_t n, float *dst) {
  const uint16_t *half = src;
  switch (dtype) {
  case NPS_BF16:
    for (int64_t i = 0; i < n; i++) dst[i] = widen_bf16(half[i]);
    break;
  case NPS_F16:
    for (int64_t i = 0; i < n; i++) dst[i] = widen_f16(half[i]);
    break;
  default:
    memcpy(dst, src, (size_t)n * sizeof *dst);
  }
}

/* Rounds to odd: toward zero, last bit set when inexact. Rounding the result again to a type that is at least two bits
 * narrower gives the correctly rounded value (Boldo and Melquiond 2008), so that float64 → 16 bits rounds once. */
static inline uint32_t round_to_odd(double x) {
  float nearest = (float)x;
  uint32_t bits = bits_of_float(nearest);
  double back = (double)nearest;
  double magnitude = __builtin_fabs(x), back_magnitude = __builtin_fabs(back);
  uint32_t truncated = back_magnitude > magnitude ? bits - 1 : bits;
  return back == x || x != x ? bits : truncated | 1u;
}

static inline uint16_t narrow_bf16(double x) {
  uint32_t bits = round_to_odd(x);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

/* float64 → bfloat16 by integer arithmetic on the float64's bits, as far as all results are normal numbers: of the others,
 * and of 0, rounding is another.
 * @return whether they are */
NPS_VECTOR_CLONES
static bool narrow_normal_bf16(const double *src, int64_t n, uint16_t *dst) {
  const uint64_t below = (UINT64_C(1) << 45) - 1; /* the bits that are dropped */
  uint32_t least = UINT32_MAX, most = 0;
  for (int64_t i = 0; i < n; i++) {
    uint64_t bits;
    double rounded;
    memcpy(&bits, &src[i], sizeof bits);
    bits = (bits + (below >> 1) + ((bits >> 45) & 1)) & ~below;
    memcpy(&rounded, &bits, sizeof rounded);
    const uint32_t single = bits_of_float((float)rounded), magnitude = single & 0x7fffffffu;
    least = magnitude < least ? magnitude : least;
    most = magnitude > most ? magnitude : most;
    dst[i] = (uint16_t)(single >> 16);
  }
  return least >= 0x00800000u && most < 0x7f800000u;
}

static inline uint16_t narrow_f16(double x) {
  uint32_t bits = round_to_odd(x);
  uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  /* Normal range: rebias, then round to nearest even at bit 13. */
  uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  /* Below 2^-14: adding 0.5 puts the last bit of a half's subnormals at float32's last place; float32 rounds. */
  uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return (uint16_t)(result | sign);
}

NPS_VECTOR_CLONES
static void narrow(const double *src, int64_t n, nps_dtype_t dtype, void *dst) {
  uint16_t *half = dst;
  float *single = dst;
  switch (dtype) {
  case NPS_BF16:
    for (int64_t i = 0; i < n; i++) half[i] = narrow_bf16(src[i]);
    break;
  case NPS_F16:
    for (int64_t i = 0; i < n; i++) half[i] = narrow_f16(src[i]);
    break;
  case NPS_F32:
    for (int64_t i = 0; i < n; i++) single[i] = (float)src[i];
    break;
  default:
    memcpy(dst, src, (size_t)n * sizeof *src);
  }
}

/* Elements that are taken to be alike: all normal numbers. */
#define ALIKE 1024

void nps_tensor_narrow(const double *src, int64_t n, nps_dtype_t dtype, void *dst) {
  if (dtype != NPS_BF16) {
    narrow(src, n, dtype, dst);
    return;
  }
  for (int64_t at = 0; at < n; at += ALIKE) {
    const int64_t count = n - at < ALIKE ? n - at : ALIKE;
    uint16_t *to = (uint16_t *)dst + at;
    if (!narrow_normal_bf16(src + at, count, to)) narrow(src + at, count, dtype, to);
  }
}

/* Elements looked at before the search may end early. */
#define SCAN 4096

NPS_VECTOR_CLONES
static bool any_nonfinite(nps_dtype_t dtype, const void *src, int64_t n) {
  const uint16_t *half = src;
  const uint32_t *single = src;
  const uint64_t *wide = src;
  uint16_t bad16 = 0;
  uint32_t bad32 = 0;
  uint64_t bad64 = 0;
  const uint16_t mask = dtype == NPS_BF16 ? 0x7f80u : 0x7c00u;
  switch (dtype) {
  case NPS_BF16:
  case NPS_F16:
    for (int64_t i = 0; i < n; i++) bad16 |= (uint16_t)((half[i] & mask) == mask);
    break;
  case NPS_F32:
    for (int64_t i = 0; i < n; i++) bad32 |= (uint32_t)((single[i] & 0x7f800000u) == 0x7f800000u);
    break;
  default:
    for (int64_t i = 0; i < n; i++)
      bad64 |= (uint64_t)((wide[i] & UINT64_C(0x7ff0000000000000)) == UINT64_C(0x7ff0000000000000));
  }
  return bad16 || bad32 || bad64;
}

int64_t nps_tensor_find_nonfinite(nps_dtype_t dtype, const void *src, int64_t n) {
  if (nps_dtype_kind(dtype) != NPS_KIND_FLOAT) return -1;
  const size_t size = nps_dtype_size(dtype);
  const char *bytes = src;
  for (int64_t at = 0; at < n; at += SCAN) {
    int64_t count = n - at < SCAN ? n - at : SCAN;
    if (!any_nonfinite(dtype, bytes + (size_t)at * size, count)) continue;
    while (!any_nonfinite(dtype, bytes + (size_t)at * size, 1)) at++;
    return at;
  }
  return -1;
}
