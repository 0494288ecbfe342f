/* Randomised subspace iteration (Halko, Martinsson, Tropp 2011): the leading triples from products with a thin matrix. The
 * subspace is sought in float32, the triples in it in float64. What the leading triples capture grows with every iteration;
 * when what is still to be gained, extrapolated from the last two gains, is small enough, the subspace is good. */
#include "svd_internal.h"

#include "nps/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_ITERATIONS = 2, MOST_ITERATIONS = 8 };

/* No faster decline of the gains is believed in than they show, and none slower than this. */
#define SLOWEST 0.9

typedef struct space {
  int64_t n, m, k, l;
  float *a;      /* [n][m] scaled to a norm near 1 */
  float *thin;   /* [l][m] */
  double *row;   /* [l][m] */
  double *q;     /* [l][n] orthonormal rows */
  double *gram;  /* [l][l] row·rowᵀ */
  double *w;     /* [l][l] its eigenvectors, rows */
  double *value; /* [l] its eigenvalues, ascending: σ² within the subspace */
  nps_gains_t gains;
} space_t;

static void to_float(const double *from, int64_t n, double scale, float *to) {
  for (int64_t i = 0; i < n; i++) to[i] = (float)(scale * from[i]);
}

static void to_double(const float *from, int64_t n, double *to) {
  for (int64_t i = 0; i < n; i++) to[i] = (double)from[i];
}

/* q ← orthonormal rows of thin·Aᵀ. */
static nps_err_t left_space(space_t *s) {
  float *y = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(s->l * s->n) * sizeof *y, "a subspace", &y));
  nps_sgemm(true, s->l, s->n, s->m, 1, s->thin, s->m, s->a, s->m, 0, y, s->n);
  to_double(y, s->l * s->n, s->q);
  free(y);
  return nps_dorthonormalise(s->l, s->n, s->q);
}

/* thin ← q·A. */
static nps_err_t right_space(space_t *s) {
  float *q = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(s->l * s->n) * sizeof *q, "a subspace", &q));
  to_float(s->q, s->l * s->n, 1, q);
  nps_sgemm(false, s->l, s->m, s->n, 1, q, s->n, s->a, s->m, 0, s->thin, s->m);
  free(q);
  to_double(s->thin, s->l * s->m, s->row);
  return NPS_OK;
}

bool nps_svd_gained(nps_gains_t *g, double captured, double energy) {
  if (captured > 0 && g->iterations > 0) {
    const double gain = fmax(captured - g->captured, 0) / captured;
    const double decline = g->iterations > 1 && g->gain > 0 ? fmin(gain / g->gain, SLOWEST) : SLOWEST;
    g->left = gain * decline / (1 - decline);
    g->gain = gain;
  }
  g->captured = captured;
  g->iterations++;
  return g->iterations == MOST_ITERATIONS || (g->iterations > LEAST_ITERATIONS && g->left <= (1 - energy) / 2);
}

/* The triples within the subspace, and what the leading ones of them capture. */
static nps_err_t measure(space_t *s, double *captured) {
  nps_dgram(s->l, s->m, s->row, s->gram);
  NPS_TRY(nps_dsyevd(s->l, s->gram, s->value, s->w));
  for (int64_t i = s->l - s->k; i < s->l; i++) *captured += s->value[i];
  return NPS_OK;
}

/* thin ← right vectors within the subspace: rows of w·row at length 1; those that are 0 to rounding stay small. */
static nps_err_t whiten(space_t *s) {
  double *v = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(s->l * s->m) * sizeof *v, "a subspace", &v));
  const double least = s->value[s->l - 1] * 1e-14;
  for (int64_t i = 0; i < s->l; i++) {
    const double scale = s->value[i] > least ? 1 / sqrt(s->value[i]) : 0;
    for (int64_t j = 0; j < s->l; j++) s->w[i * s->l + j] *= scale;
  }
  nps_dgemm(false, false, s->l, s->m, s->l, 1, s->w, s->l, s->row, s->m, 0, v, s->m);
  to_float(v, s->l * s->m, 1, s->thin);
  free(v);
  return NPS_OK;
}

static nps_err_t find_space(space_t *s, double energy) {
  for (int64_t i = 0; i < s->l; i++) {
    nps_svd_signs((uint32_t)i, 0, s->m, s->row);
    to_float(s->row, s->m, 1, s->thin + i * s->m);
  }
  NPS_TRY(left_space(s));
  for (;;) {
    double captured = 0;
    NPS_TRY(right_space(s));
    NPS_TRY(measure(s, &captured));
    if (nps_svd_gained(&s->gains, captured, energy)) return NPS_OK;
    NPS_TRY(whiten(s));
    NPS_TRY(left_space(s));
  }
}

/* The triples of q·A, in float64. */
static nps_err_t solve_within(space_t *s, const double *a, nps_triples_t *t) {
  nps_triples_t inner = {.n = s->l, .m = s->m, .count = s->k, .sigma = t->sigma, .right = t->right};
  nps_err_t err = NPS_OK;
  NPS_TRY(nps_buffer_alloc((size_t)(s->k * s->l) * sizeof *inner.left, "singular vectors", &inner.left));
  nps_dgemm(false, false, s->l, s->m, s->n, 1, s->q, s->n, a, s->m, 0, s->row, s->m);
  NPS_GOTO(nps_svd_gram(s->row, &inner));
  nps_dgemm(false, false, s->k, s->n, s->l, 1, inner.left, s->l, s->q, s->n, 0, t->left, s->n);
  t->energy = 1 - s->gains.left;
done:
  free(inner.left);
  return err;
}

nps_err_t nps_svd_randomised(const double *a, double energy, nps_triples_t *t) {
  space_t s = {.n = t->n, .m = t->m, .k = t->count, .l = t->count + NPS_SVD_OVERSAMPLE};
  nps_err_t err = NPS_OK;
  if (s.l > s.n) s.l = s.n;
  NPS_GOTO(nps_buffer_alloc((size_t)(s.n * s.m) * sizeof *s.a, "a matrix", &s.a));
  NPS_GOTO(nps_buffer_alloc((size_t)(s.l * s.m) * sizeof *s.thin, "a subspace", &s.thin));
  NPS_GOTO(nps_buffer_alloc((size_t)(s.l * s.m) * sizeof *s.row, "a subspace", &s.row));
  NPS_GOTO(nps_buffer_alloc((size_t)(s.l * s.n) * sizeof *s.q, "a subspace", &s.q));
  NPS_GOTO(nps_buffer_alloc((size_t)(s.l * s.l) * sizeof *s.w, "a Gram matrix", &s.gram));
  NPS_GOTO(nps_buffer_alloc((size_t)(s.l * s.l) * sizeof *s.w, "eigenvectors", &s.w));
  s.value = nps_xcalloc((size_t)s.l, sizeof *s.value);
  to_float(a, s.n * s.m, t->scale, s.a);
  NPS_GOTO(find_space(&s, energy));
  NPS_GOTO(solve_within(&s, a, t));
done:
  free(s.a);
  free(s.thin);
  free(s.row);
  free(s.q);
  free(s.gram);
  free(s.w);
  free(s.value);
  return err;
}
