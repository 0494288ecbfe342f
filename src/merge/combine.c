#include "combine.h"

#include <math.h>
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
  double part[models][GROUP], last[GROUP]; /* 2 MiB of stack for the most models that a config may list, 1000 */
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

/* Entries whose bits are read at a time. */
#define BITS 32

/* Copies entries, zeros where their bits are not set. */
INLINE void keep_some(const float *x, const uint8_t *stays, float *out) {
  const word_t first = {1, 2, 4, 8, 16, 32, 64, 128};
  uint32_t bits;
  memcpy(&bits, stays, sizeof bits);
  for (int k = 0; k < BITS / 8; k++) {
    const word_t bit = first << 8 * k, set = ((word_t){0} + bits) & bit;
    word_t entry;
    memcpy(&entry, x + 8 * k, sizeof entry);
    entry &= (word_t)(set == bit);
    memcpy(out + 8 * k, &entry, sizeof entry);
  }
}

NPS_VECTOR_CLONES
static void drop_whole(float *x, const uint8_t *stays, int64_t n) {
  for (int64_t i = 0; i < n; i += BITS) keep_some(x + i, stays + i / 8, x + i);
}

/* [n] bits, n a multiple of BITS. */
NPS_VECTOR_CLONES
static int64_t count_bits(const uint8_t *stays, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += BITS) {
    uint32_t bits;
    memcpy(&bits, stays + i / 8, sizeof bits);
    count += __builtin_popcount(bits);
  }
  return count;
}

static bool stays_at(const uint8_t *stays, int64_t i) { return stays[i / 8] >> (i % 8) & 1; }

int64_t nps_drop(float *x, const uint8_t *stays, int64_t n) {
  const int64_t whole = n / BITS * BITS;
  int64_t kept = count_bits(stays, whole);
  drop_whole(x, stays, whole);
  for (int64_t i = whole; i < n; i++) {
    const bool stay = stays_at(stays, i);
    x[i] = stay ? x[i] : 0.0f;
    kept += stay;
  }
  return kept;
}

#define SUMS (int)(sizeof((nps_lanes_t *)0)->lane / sizeof(double))

INLINE void add_lanes(double *lane, const float *x) {
  for (int j = 0; j < SUMS; j++) lane[j] += (double)x[j];
}

NPS_VECTOR_CLONES
static void add_whole(nps_lanes_t *all, nps_lanes_t *kept, const float *x, const uint8_t *stays, int64_t n) {
  double sum[SUMS], kept_sum[SUMS];
  memcpy(sum, all->lane, sizeof sum);
  memcpy(kept_sum, kept->lane, sizeof kept_sum);
  for (int64_t i = 0; i < n; i += BITS) {
    float magnitude[BITS], kept_magnitude[BITS];
    for (int j = 0; j < BITS; j++) magnitude[j] = fabsf(x[i + j]);
    keep_some(magnitude, stays + i / 8, kept_magnitude);
    for (int k = 0; k < BITS; k += SUMS) {
      add_lanes(sum, magnitude + k);
      add_lanes(kept_sum, kept_magnitude + k);
    }
  }
  memcpy(all->lane, sum, sizeof sum);
  memcpy(kept->lane, kept_sum, sizeof kept_sum);
}

void nps_add_magnitudes(nps_lanes_t *all, nps_lanes_t *kept, const float *x, const uint8_t *stays, int64_t n) {
  const int64_t whole = n / BITS * BITS;
  add_whole(all, kept, x, stays, whole);
  for (int64_t i = whole; i < n; i++) {
    all->lane[i % SUMS] += fabs((double)x[i]);
    if (stays_at(stays, i)) kept->lane[i % SUMS] += fabs((double)x[i]);
  }
}

/* ---- sums ---- */

NPS_VECTOR_CLONES
void nps_scale(const double *x, double factor, int64_t n, double *out) {
  for (int64_t i = 0; i < n; i++) out[i] = factor * x[i];
}

NPS_VECTOR_CLONES
void nps_add_scaled(const double *x, double factor, int64_t n, double *sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += factor * x[i];
}

NPS_VECTOR_CLONES
void nps_add_task_vector(const float *restrict tau, int64_t n, double *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += (double)tau[i];
}
