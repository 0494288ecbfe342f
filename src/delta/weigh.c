#include "nps/delta.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- weightings ---- */

static double *ones(size_t n) {
  double *x = nps_xcalloc(n, sizeof *x);
  for (size_t i = 0; i < n; i++) x[i] = 1;
  return x;
}

nps_weighting_t *nps_weighting_new(int models, int subspaces) {
  const size_t T = (size_t)models, M = (size_t)subspaces;
  nps_weighting_t *w = nps_xcalloc(1, sizeof *w);
  *w = (nps_weighting_t){.models = models,
                         .subspaces = subspaces,
                         .scope = NPS_SCOPE_MODEL,
                         .normalize = NPS_NORMALIZE_NONE,
                         .weight = ones(T * M),
                         .priority = ones(T * M),
                         .lambda = ones(T),
                         .density = ones(T),
                         .rest = ones(T)};
  return w;
}

nps_weighting_t *nps_weighting_copy(const nps_weighting_t *weighting) {
  const size_t T = (size_t)weighting->models, M = (size_t)weighting->subspaces;
  nps_weighting_t *w = nps_weighting_new(weighting->models, weighting->subspaces);
  w->scope = weighting->scope;
  w->normalize = weighting->normalize;
  memcpy(w->weight, weighting->weight, T * M * sizeof *w->weight);
  memcpy(w->priority, weighting->priority, T * M * sizeof *w->priority);
  memcpy(w->lambda, weighting->lambda, T * sizeof *w->lambda);
  memcpy(w->density, weighting->density, T * sizeof *w->density);
  memcpy(w->rest, weighting->rest, T * sizeof *w->rest);
  return w;
}

void nps_weighting_free(nps_weighting_t *weighting) {
  if (!weighting) return;
  free(weighting->weight);
  free(weighting->priority);
  free(weighting->lambda);
  free(weighting->density);
  free(weighting->rest);
  free(weighting);
}

uint64_t nps_weighting_hash(const nps_weighting_t *w, uint64_t hash) {
  const size_t T = (size_t)w->models, M = (size_t)w->subspaces;
  const int kinds[] = {w->models, w->subspaces, (int)w->scope, (int)w->normalize};
  hash = nps_hash64(hash, kinds, sizeof kinds);
  hash = nps_hash64(hash, w->weight, T * M * sizeof *w->weight);
  hash = nps_hash64(hash, w->priority, T * M * sizeof *w->priority);
  hash = nps_hash64(hash, w->lambda, T * sizeof *w->lambda);
  hash = nps_hash64(hash, w->rest, T * sizeof *w->rest);
  return nps_hash64(hash, w->density, T * sizeof *w->density);
}

/* ---- subspaces of entries ---- */

/* Thresholds looked at in one go: with 8 subspaces all. */
enum { STEPS = 7 };

/* Where |x| reaches a threshold, takes its subspace's number instead of what `out` holds. Thresholds ascend, so the last
 * one reached decides; a NaN is never reached. All are in variables, as vector code loads nothing under a condition. */
NPS_VECTOR_CLONES
static void climb(const float t[STEPS], const float to[STEPS], const float *restrict x, int64_t n,
                  float *restrict out) {
  const float t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3], t4 = t[4], t5 = t[5], t6 = t[6];
  const float to0 = to[0], to1 = to[1], to2 = to[2], to3 = to[3], to4 = to[4], to5 = to[5], to6 = to[6];
  for (int64_t i = 0; i < n; i++) {
    const float magnitude = fabsf(x[i]);
    float y = out[i];
    y = magnitude >= t0 ? to0 : y;
    y = magnitude >= t1 ? to1 : y;
    y = magnitude >= t2 ? to2 : y;
    y = magnitude >= t3 ? to3 : y;
    y = magnitude >= t4 ? to4 : y;
    y = magnitude >= t5 ? to5 : y;
    y = magnitude >= t6 ? to6 : y;
    out[i] = y;
  }
}

/* out = fl32(table[subspace of x]) */
static void look_up(const float *thresholds, int subspaces, const double *table, const float *x, int64_t n,
                    float *out) {
  for (int64_t i = 0; i < n; i++) out[i] = (float)table[0];
  for (int m = 1; m < subspaces; m += STEPS) {
    float t[STEPS], to[STEPS];
    for (int k = 0; k < STEPS; k++) {
      t[k] = m + k < subspaces ? thresholds[m + k - 1] : NAN;
      to[k] = m + k < subspaces ? (float)table[m + k] : 0;
    }
    climb(t, to, x, n, out);
  }
}

NPS_VECTOR_CLONES
static void times(const float *restrict x, int64_t n, float *restrict factor) {
  for (int64_t i = 0; i < n; i++) factor[i] = factor[i] * x[i];
}

NPS_VECTOR_CLONES
static void times_magnitude(const float *restrict x, int64_t n, float *restrict factor) {
  for (int64_t i = 0; i < n; i++) factor[i] = factor[i] * fabsf(x[i]);
}

void nps_subspace_apply(const float *thresholds, int subspaces, const double *weight, const double *priority,
                        const float *x, int64_t n, float *value, float *score) {
  float y[NPS_CHUNK];
  for (int64_t at = 0; at < n; at += NPS_CHUNK) {
    const int64_t count = n - at < NPS_CHUNK ? n - at : NPS_CHUNK;
    if (score) {
      look_up(thresholds, subspaces, priority, x + at, count, score + at);
      times_magnitude(x + at, count, score + at);
    }
    if (!value) continue;
    look_up(thresholds, subspaces, weight, x + at, count, y);
    times(x + at, count, y);
    memcpy(value + at, y, (size_t)count * sizeof *y);
  }
}

/* Entries of magnitude at least `least` that are kept: an entry beyond threshold m is beyond all before. */
NPS_VECTOR_CLONES
static int64_t count_from(float least, const float *x, const float *keep, int64_t n) {
  uint32_t count = 0;
  if (keep)
    for (int64_t i = 0; i < n; i++) count += (fabsf(x[i]) >= least) & (keep[i] != 0);
  else
    for (int64_t i = 0; i < n; i++) count += fabsf(x[i]) >= least;
  return count;
}

void nps_subspace_count(const float *thresholds, int subspaces, const float *x, const float *keep, int64_t n,
                        int64_t *counts) {
  for (int64_t at = 0; at < n; at += NPS_CHUNK) {
    const int64_t count = n - at < NPS_CHUNK ? n - at : NPS_CHUNK;
    const float *kept = keep ? keep + at : NULL;
    int64_t from = count_from(0, x + at, kept, count);
    for (int m = 0; m < subspaces; m++) {
      const int64_t next = m + 1 < subspaces ? count_from(thresholds[m], x + at, kept, count) : 0;
      counts[m] += from - next;
      from = next;
    }
  }
}

/* ---- putting models together ---- */

NPS_VECTOR_CLONES
static void add_model(const float *restrict q, double lambda, int64_t n, double *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += lambda * (double)q[i];
}

NPS_VECTOR_CLONES
static void add_share(const float *restrict q, double lambda, int64_t n, double *restrict share) {
  for (int64_t i = 0; i < n; i++) share[i] += q[i] != 0 ? lambda : 0.0;
}

NPS_VECTOR_CLONES
static void divide_each(const double *restrict share, int64_t n, double *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] = share[i] != 0 ? sum[i] / share[i] : 0.0;
}

NPS_VECTOR_CLONES
static void divide_all(double divisor, int64_t n, double *sum) {
  for (int64_t i = 0; i < n; i++) sum[i] = sum[i] / divisor;
}

void nps_fuse(int models, const float *const *q, const double *lambda, nps_normalize_t normalize, int64_t n,
              double *out) {
  double share[NPS_CHUNK], total = 0;
  memset(out, 0, (size_t)n * sizeof *out);
  memset(share, 0, (size_t)n * sizeof *share);
  for (int i = 0; i < models; i++) {
    if (lambda[i] == 0) continue;
    total += lambda[i];
    add_model(q[i], lambda[i], n, out);
    if (normalize == NPS_NORMALIZE_COORDINATE) add_share(q[i], lambda[i], n, share);
  }
  if (normalize == NPS_NORMALIZE_SUM) divide_all(total, n, out);
  if (normalize == NPS_NORMALIZE_COORDINATE) divide_each(share, n, out);
}
