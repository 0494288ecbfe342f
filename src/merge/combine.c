#include "combine.h"

#include <string.h>

/* Written with vector types, as compilers do not keep the models' values of an entry in registers by themselves. They are
 * lowered to what the processor has. */
#define LANES 4
#define VECTORS 2 /* side by side, to hide latencies */
#define STEP (LANES * VECTORS)

typedef double wide_t __attribute__((vector_size(8 * LANES)));
typedef int64_t bits_t __attribute__((vector_size(8 * LANES)));
typedef float narrow_t __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

/* The factors of a combination, spread over the lanes: out of reach of stores to the output. */
typedef struct {
  const wide_t *weight, *scale; /* [models] */
  wide_t lambda;
} factors_t;

/* One step. `models`, `scaled` and the like are constants where this is inlined, so that loops unroll. */
INLINE void combine_step(const factors_t *f, const int models, const bool scaled, const bool consensus,
                         const bool normalize, float *const *tau, int64_t at, double *out) {
  const wide_t zero = {0}, one = {1, 1, 1, 1};
  const bits_t sign = {INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN};
  wide_t value[models][VECTORS], sum[VECTORS] = {{0}};
  for (int m = 0; m < models; m++)
    for (int v = 0; v < VECTORS; v++) {
      narrow_t x;
      memcpy(&x, tau[m] + at + LANES * v, sizeof x);
      const wide_t delta = __builtin_convertvector(x, wide_t);
      value[m][v] = f->weight[m] * (scaled ? f->scale[m] * delta : delta);
      sum[v] += value[m][v];
    }
  for (int v = 0; v < VECTORS && consensus; v++) {
    const bits_t flip = (bits_t)(sum[v] < zero) & sign;
    wide_t agreeing = zero, divisor = zero;
    for (int m = 0; m < models; m++) {
      const bits_t agrees = (bits_t)((wide_t)((bits_t)value[m][v] ^ flip) > zero);
      agreeing += (wide_t)((bits_t)value[m][v] & agrees);
      if (normalize) divisor += (wide_t)((bits_t)f->weight[m] & agrees);
    }
    const bits_t none = (bits_t)(divisor == zero);
    divisor = (wide_t)(((bits_t)divisor & ~none) | ((bits_t)one & none));
    sum[v] = normalize ? f->lambda * agreeing / divisor : agreeing;
  }
  memcpy(out, sum, sizeof sum);
}

/* The entries that are left after the last whole step. */
INLINE void combine_rest(const factors_t *f, const int models, const bool scaled, const bool consensus,
                         const bool normalize, float *const *tau, int64_t at, int64_t n, double *out) {
  float rest[models][STEP], *row[models];
  double sum[STEP];
  for (int m = 0; m < models; m++) {
    row[m] = rest[m];
    for (int i = 0; i < STEP; i++) rest[m][i] = at + i < n ? tau[m][at + i] : 0;
  }
  combine_step(f, models, scaled, consensus, normalize, row, 0, sum);
  memcpy(out + at, sum, (size_t)(n - at) * sizeof *out);
}

INLINE void combine(const nps_combination_t *c, const int models, const bool scaled, const bool consensus,
                    const bool normalize, int64_t n, double *out) {
  float *tau[models];
  wide_t weight[models], scale[models];
  const factors_t f = {.weight = weight, .scale = scale, .lambda = (wide_t){0} + c->lambda};
  int64_t at = 0;
  for (int m = 0; m < models; m++) {
    tau[m] = c->tau[m];
    weight[m] = (wide_t){0} + c->weight[m];
    scale[m] = (wide_t){0} + (scaled ? c->scale[m] : 1);
  }
  for (; at + STEP <= n; at += STEP) combine_step(&f, models, scaled, consensus, normalize, tau, at, out + at);
  if (at < n) combine_rest(&f, models, scaled, consensus, normalize, tau, at, n, out);
}

INLINE void combine_models(const nps_combination_t *c, const int models, int64_t n, double *out) {
  const bool scaled = c->scale != NULL;
  if (!c->consensus)
    combine(c, models, scaled, false, false, n, out);
  else if (c->normalize)
    combine(c, models, scaled, true, true, n, out);
  else
    combine(c, models, scaled, true, false, n, out);
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
