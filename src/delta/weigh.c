#include "nps/delta.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- weightings ---- */

static double *make_ones(int count) {
  double *x = nps_xcalloc((size_t)count, sizeof *x);
  for (int i = 0; i < count; i++) x[i] = 1;
  return x;
}

nps_weighting_t *nps_weighting_new(int models, int subspaces) {
  nps_weighting_t *w = nps_xcalloc(1, sizeof *w);
  w->models = models;
  w->subspaces = subspaces;
  w->weight = make_ones(models * subspaces);
  w->priority = make_ones(models * subspaces);
  w->lambda = make_ones(models);
  w->density = make_ones(models);
  return w;
}

nps_weighting_t *nps_weighting_copy(const nps_weighting_t *from) {
  nps_weighting_t *w = nps_weighting_new(from->models, from->subspaces);
  const size_t cells = (size_t)(from->models * from->subspaces) * sizeof(double);
  w->scope = from->scope;
  w->normalize = from->normalize;
  memcpy(w->weight, from->weight, cells);
  memcpy(w->priority, from->priority, cells);
  memcpy(w->lambda, from->lambda, (size_t)from->models * sizeof(double));
  memcpy(w->density, from->density, (size_t)from->models * sizeof(double));
  return w;
}

void nps_weighting_free(nps_weighting_t *w) {
  if (!w) return;
  free(w->weight);
  free(w->priority);
  free(w->lambda);
  free(w->density);
  free(w);
}

/* ---- entries of subspaces ---- */

/* Entries weighed at a time: their factors stay in the first cache while threshold after threshold is passed. */
enum { GROUP = 256 };

/* Factors of entries: those of the last subspace whose threshold is at most |x|. */
NPS_VECTOR_CLONES
static void raise_factor(const float *x, float threshold, float factor, int n, float *restrict factors) {
  for (int i = 0; i < n; i++) factors[i] = fabsf(x[i]) >= threshold ? factor : factors[i];
}

NPS_VECTOR_CLONES
static void fill(float factor, int n, float *factors) {
  for (int i = 0; i < n; i++) factors[i] = factor;
}

NPS_VECTOR_CLONES
static void multiply(const float *factors, const float *x, int n, float *out) {
  for (int i = 0; i < n; i++) out[i] = factors[i] * x[i];
}

NPS_VECTOR_CLONES
static void multiply_magnitudes(const float *factors, const float *x, int n, float *out) {
  for (int i = 0; i < n; i++) out[i] = factors[i] * fabsf(x[i]);
}

static void find_factors(const float *thresholds, int subspaces, const double *factor, const float *x, int n,
                         float *factors) {
  fill((float)factor[0], n, factors);
  for (int m = 1; m < subspaces; m++) raise_factor(x, thresholds[m - 1], (float)factor[m], n, factors);
}

void nps_subspace_apply(const float *thresholds, int subspaces, const double *weight, const double *priority,
                        const float *x, int64_t n, float *value, float *score) {
  float factors[GROUP];
  for (int64_t at = 0; at < n; at += GROUP) {
    const int count = n - at < GROUP ? (int)(n - at) : GROUP;
    if (score) {
      find_factors(thresholds, subspaces, priority, x + at, count, factors);
      multiply_magnitudes(factors, x + at, count, score + at);
    }
    if (value) {
      find_factors(thresholds, subspaces, weight, x + at, count, factors);
      multiply(factors, x + at, count, value + at);
    }
  }
}

void nps_subspace_count(const float *thresholds, int subspaces, const float *x, const float *keep, int64_t n,
                        int64_t *counts) {
  for (int64_t i = 0; i < n; i++) {
    if (keep && keep[i] == 0) continue;
    int m = 0;
    while (m + 1 < subspaces && thresholds[m] <= fabsf(x[i])) m++;
    counts[m]++;
  }
}

/* ---- putting models together ---- */

NPS_VECTOR_CLONES
static void add_scaled(const float *q, double lambda, int64_t n, double *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += lambda * (double)q[i];
}

NPS_VECTOR_CLONES
static void add_present(const float *q, double lambda, int64_t n, double *restrict divisor) {
  for (int64_t i = 0; i < n; i++) divisor[i] += q[i] != 0 ? lambda : 0.0;
}

NPS_VECTOR_CLONES
static void divide_all(double divisor, int64_t n, double *sum) {
  for (int64_t i = 0; i < n; i++) sum[i] = sum[i] / divisor;
}

NPS_VECTOR_CLONES
static void divide_each(const double *restrict divisor, int64_t n, double *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] = divisor[i] != 0 ? sum[i] / divisor[i] : 0.0;
}

void nps_fuse(int models, const float *const *q, const double *lambda, nps_normalize_t normalize, int64_t n,
              double *out) {
  double divisor[NPS_CHUNK] = {0}, total = 0;
  memset(out, 0, (size_t)n * sizeof *out);
  for (int i = 0; i < models; i++) {
    if (lambda[i] == 0) continue;
    add_scaled(q[i], lambda[i], n, out);
    if (normalize == NPS_NORMALIZE_COORDINATE) add_present(q[i], lambda[i], n, divisor);
    total += lambda[i];
  }
  if (normalize == NPS_NORMALIZE_SUM) divide_all(total, n, out);
  if (normalize == NPS_NORMALIZE_COORDINATE) divide_each(divisor, n, out);
}
