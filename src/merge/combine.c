#include "combine.h"

#include <string.h>

/* Entries combined at a time: their models' parts stay in the first cache. */
#define GROUP 256

/* Written with vector types, as compilers do not keep the models' parts of an entry in registers by themselves. They are
 * lowered to what the processor has; conversions are left to plain loops, which compilers turn into better code. */
#define LANES 4

typedef double wide_t __attribute__((vector_size(8 * LANES)));
typedef double loose_t __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
typedef int64_t bits_t __attribute__((vector_size(8 * LANES)));

#define INLINE static inline __attribute__((always_inline))

/* part[i] = weight × (scale × tau[i]), [n]; zeros up to [GROUP]. */
INLINE void form_part(const double weight, const bool scaled, const double scale, const float *tau, int64_t n,
                      double *part) {
  if (scaled)
    for (int64_t i = 0; i < n; i++) part[i] = weight * (scale * (double)tau[i]);
  else
    for (int64_t i = 0; i < n; i++) part[i] = weight * (double)tau[i];
  for (int64_t i = n; i < GROUP; i++) part[i] = 0;
}

/* One vector. `models` and the like are constants where this is inlined, so that loops unroll. */
INLINE void combine_step(const wide_t *weight, const double lambda, const int models, const bool consensus,
                         const bool normalize, const double (*part)[GROUP], int64_t at, double *out) {
  const wide_t zero = {0}, one = {1, 1, 1, 1};
  const bits_t sign = {INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN};
  wide_t sum = zero;
  for (int m = 0; m < models; m++) sum += *(const loose_t *)(part[m] + at);
  if (consensus) {
    const bits_t flip = (bits_t)(sum < zero) & sign;
    wide_t agreeing = zero, divisor = zero;
    for (int m = 0; m < models; m++) {
      const wide_t value = *(const loose_t *)(part[m] + at);
      const bits_t agrees = (bits_t)((wide_t)((bits_t)value ^ flip) > zero);
      agreeing += (wide_t)((bits_t)value & agrees);
      if (normalize) divisor += (wide_t)((bits_t)weight[m] & agrees);
    }
    const bits_t none = (bits_t)(divisor == zero);
    divisor = (wide_t)(((bits_t)divisor & ~none) | ((bits_t)one & none));
    sum = normalize ? lambda * agreeing / divisor : agreeing;
  }
  *(loose_t *)(out + at) = sum;
}

INLINE void combine(const nps_combination_t *c, const int models, const bool consensus, const bool normalize, int64_t n,
                    double *out) {
  double part[models][GROUP], last[GROUP];
  wide_t weight[models];
  for (int m = 0; m < models; m++) weight[m] = (wide_t){0} + c->weight[m];
  for (int64_t at = 0; at < n; at += GROUP) {
    const int64_t count = n - at < GROUP ? n - at : GROUP;
    double *to = count < GROUP ? last : out + at;
    for (int m = 0; m < models; m++)
      form_part(c->weight[m], c->scale != NULL, c->scale ? c->scale[m] : 1, c->tau[m] + at, count, part[m]);
    for (int64_t i = 0; i < GROUP; i += LANES)
      combine_step(weight, c->lambda, models, consensus, normalize, (const double(*)[GROUP])part, i, to);
    if (count < GROUP) memcpy(out + at, last, (size_t)count * sizeof *out);
  }
}

INLINE void combine_models(const nps_combination_t *c, const int models, int64_t n, double *out) {
  if (!c->consensus)
    combine(c, models, false, false, n, out);
  else if (c->normalize)
    combine(c, models, true, true, n, out);
  else
    combine(c, models, true, false, n, out);
}

/* The usual numbers of models have code of their own. */
NPS_VECTOR_CLONES
void nps_combine(const nps_combination_t *c, int64_t n, double *out) {
  switch (c->models) {
  case 2:
    combine_models(c, 2, n, out);
    break;
  case 3:
    combine_models(c, 3, n, out);
    break;
  case 4:
    combine_models(c, 4, n, out);
    break;
  default:
    combine_models(c, c->models, n, out);
  }
}

typedef uint32_t word_t __attribute__((vector_size(32)));

/* Entries whose bits are four bytes each. */
NPS_VECTOR_CLONES
static int64_t drop_whole(float *x, const uint8_t *stays, int64_t n) {
  const word_t bit = {1, 2, 4, 8, 16, 32, 64, 128};
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, stays + 4 * i, sizeof bits);
    kept += __builtin_popcount(bits);
    const word_t all = (word_t){0} + bits;
    for (int k = 0; k < 4; k++) {
      word_t entry;
      memcpy(&entry, x + 32 * i + 8 * k, sizeof entry);
      entry &= (word_t)((all & bit << 8 * k) != 0);
      memcpy(x + 32 * i + 8 * k, &entry, sizeof entry);
    }
  }
  return kept;
}

int64_t nps_drop(float *x, const uint8_t *stays, int64_t n) {
  int64_t kept = drop_whole(x, stays, n / 32);
  for (int64_t i = n / 32 * 32; i < n; i++) {
    const bool stay = stays[i / 8] >> (i % 8) & 1;
    x[i] = stay ? x[i] : 0.0f;
    kept += stay;
  }
  return kept;
}
