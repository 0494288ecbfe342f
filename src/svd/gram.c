/* Eigenvectors of the Gram matrix A·Aᵀ in float64. One such step finds σ to ε·σ1²/σ, and vectors as orthogonal as
 * ε·σ1²/(σ_i·σ_j): enough for σ down to a thousandth of the largest. What lies below is projected onto the complement of the
 * triples found, and factorised by its own Gram matrix: block by block down the spectrum, to ε·σ1 absolute. */
#include "svd_internal.h"

#include "nps/blas.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void swap_rows(double *x, int64_t n, int64_t i, int64_t j) {
  for (int64_t k = 0; k < n; k++) {
    const double keep = x[i * n + k];
    x[i * n + k] = x[j * n + k];
    x[j * n + k] = keep;
  }
}

/* Few swaps of rows, however disordered they are. */
void nps_svd_sort(nps_triples_t *t) {
  for (int64_t i = 0; i < t->count; i++) {
    int64_t j = i;
    for (int64_t k = i + 1; k < t->count; k++)
      if (t->sigma[k] > t->sigma[j]) j = k;
    if (j == i) continue;
    const double keep = t->sigma[i];
    t->sigma[i] = t->sigma[j];
    t->sigma[j] = keep;
    swap_rows(t->left, t->n, i, j);
    swap_rows(t->right, t->m, i, j);
  }
}

static void reverse_rows(double *x, int64_t count, int64_t n) {
  for (int64_t i = 0; i < count / 2; i++) swap_rows(x, n, i, count - 1 - i);
}

NPS_VECTOR_CLONES
static void scale_row(double *x, int64_t n, double factor) {
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

/* σ up to this is 0 to rounding. */
static double zero_of(const nps_triples_t *t) { return (double)t->m * DBL_EPSILON * t->sigma[0]; }

/* Takes σ of the rows from `first` on from their lengths, and brings those to length 1, while they are in the cache, that the
 * block holds well enough. @return the first of the others */
static int64_t settle(nps_triples_t *t, int64_t first) {
  int64_t settled = first;
  for (int64_t k = first; k < t->count; k++) {
    double *row = t->right + k * t->m;
    t->sigma[k] = sqrt(nps_svd_norm2(row, t->m));
    if (settled < k || t->sigma[k] < NPS_SVD_BLOCK_RANGE * t->sigma[first] || t->sigma[k] <= zero_of(t)) continue;
    scale_row(row, t->m, 1 / t->sigma[k]);
    settled++;
  }
  return settled;
}

/* All eigenvectors of a Gram matrix, largest eigenvalue first. @param g  [n][n] its negative; destroyed
 * @param[out] vectors  [n][n] */
static nps_err_t decompose(double *g, int64_t n, double *vectors) {
  double *values = nps_xcalloc((size_t)n, sizeof *values);
  nps_err_t err = nps_dsyevd(n, g, values, vectors);
  free(values);
  return err;
}

/* All left vectors. The Gram matrix has room where the right ones will be. */
static nps_err_t find_all(const double *a, nps_triples_t *t) {
  t->energy = 1;
  nps_dgram_negative(t->n, t->m, a, t->right);
  return decompose(t->right, t->n, t->left);
}

/* The leading left vectors. @param[out] sum  of the eigenvalues */
static nps_err_t find_leading(const double *a, nps_triples_t *t, double *sum) {
  double *g = NULL, *values = nps_xcalloc((size_t)t->n, sizeof *values);
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(t->n * t->n) * sizeof *g, "a Gram matrix", &g));
  nps_dgram(t->n, t->m, a, g);
  NPS_GOTO(nps_dsyevr_largest(t->n, t->count, g, values, t->left));
  reverse_rows(t->left, t->count, t->n);
  *sum = 0;
  for (int64_t k = 0; k < t->count; k++) *sum += values[k];
done:
  free(g);
  free(values);
  return err;
}

/* The first step: left vectors, and right ones times σ. What the leading ones capture is at most the sum of eigenvalues.
 * @param[out] settled  how many are right */
static nps_err_t first_block(const double *a, nps_triples_t *t, int64_t *settled) {
  double sum = 0;
  NPS_TRY(t->count == t->n ? find_all(a, t) : find_leading(a, t, &sum));
  nps_dgemm(false, false, t->count, t->m, t->n, 1, t->left, t->n, a, t->m, 0, t->right, t->m);
  *settled = settle(t, 0);
  t->energy = t->count < t->n && sum > 0 ? nps_svd_norm2(t->sigma, t->count) / sum : 1;
  return NPS_OK;
}

/* Takes from rows [first, count) their parts along the rows before. */
static void project(const nps_triples_t *t, int64_t first, double *work) {
  const int64_t rest = t->count - first;
  double *below = t->right + first * t->m;
  nps_dgemm(false, true, rest, first, t->m, 1, below, t->m, t->right, t->m, 0, work, first);
  nps_dgemm(false, false, rest, t->m, first, -1, work, first, t->right, t->m, 1, below, t->m);
}

/* x ← rotation · x for rows of width n. */
static void rotate(const double *rotation, int64_t count, double *x, int64_t n, double *work) {
  memcpy(work, x, (size_t)(count * n) * sizeof *x);
  nps_dgemm(false, false, count, n, count, 1, rotation, count, work, n, 0, x, n);
}

static nps_err_t next_block(nps_triples_t *t, int64_t first, int64_t *settled) {
  const int64_t rest = t->count - first;
  double *g = NULL, *vectors = NULL, *work = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(rest * rest) * sizeof *g, "a Gram matrix", &g));
  NPS_GOTO(nps_buffer_alloc((size_t)(rest * rest) * sizeof *g, "a Gram matrix", &vectors));
  NPS_GOTO(nps_buffer_alloc((size_t)(rest * t->m) * sizeof *g, "singular vectors", &work));
  project(t, first, work);
  nps_dgram_negative(rest, t->m, t->right + first * t->m, g);
  NPS_GOTO(decompose(g, rest, vectors));
  rotate(vectors, rest, t->left + first * t->n, t->n, work);
  rotate(vectors, rest, t->right + first * t->m, t->m, work);
  *settled = settle(t, first);
done:
  free(g);
  free(vectors);
  free(work);
  return err;
}

/* What no block has settled is small. What is 0 to rounding has no right vector. */
static void settle_rest(nps_triples_t *t, int64_t first) {
  const double zero = zero_of(t);
  for (int64_t k = first; k < t->count; k++) {
    const double scale = t->sigma[k] > zero ? 1 / t->sigma[k] : 0;
    scale_row(t->right + k * t->m, t->m, scale);
    if (scale == 0) t->sigma[k] = 0;
  }
}

nps_err_t nps_svd_gram(const double *a, nps_triples_t *t) {
  int64_t first = 0;
  NPS_TRY(first_block(a, t, &first));
  for (int block = 0; block < NPS_SVD_BLOCKS; block++) {
    if (first == t->count || t->sigma[first] <= (double)t->n * DBL_EPSILON * t->sigma[0]) break;
    NPS_TRY(next_block(t, first, &first));
  }
  settle_rest(t, first);
  nps_svd_sort(t);
  return NPS_OK;
}
