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

/* Norms of the rows from `first` on, as σ. */
static void measure(nps_triples_t *t, int64_t first) {
  for (int64_t k = first; k < t->count; k++) t->sigma[k] = sqrt(nps_svd_norm2(t->right + k * t->m, t->m));
}

/* Eigenvectors of the largest eigenvalues, largest first. @param g  [n][n] destroyed
 * @param[out] vectors  [count][n]; @param[out] sum  of the eigenvalues found */
static nps_err_t decompose(double *g, int64_t n, int64_t count, double *vectors, double *sum) {
  double *values = nps_xcalloc((size_t)n, sizeof *values);
  nps_err_t err = count == n ? nps_dsyevd(n, g, values, vectors) : nps_dsyevr_largest(n, count, g, values, vectors);
  *sum = 0;
  for (int64_t k = 0; k < count; k++) *sum += values[k];
  free(values);
  if (err == NPS_OK) reverse_rows(vectors, count, n);
  return err;
}

/* The first step: left vectors, and right ones times σ. What the leading ones capture is at most the sum of eigenvalues. */
static nps_err_t first_block(const double *a, nps_triples_t *t) {
  double *g = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(t->n * t->n) * sizeof *g, "a Gram matrix", &g));
  nps_dgram(t->n, t->m, a, g);
  double sum = 0;
  nps_err_t err = decompose(g, t->n, t->count, t->left, &sum);
  free(g);
  if (err != NPS_OK) return err;
  nps_dgemm(false, false, t->count, t->m, t->n, 1, t->left, t->n, a, t->m, 0, t->right, t->m);
  measure(t, 0);
  t->energy = t->count < t->n && sum > 0 ? nps_svd_norm2(t->sigma, t->count) / sum : 1;
  return NPS_OK;
}

/* Takes from rows [first, count) their parts along the rows before. */
static void project(const nps_triples_t *t, int64_t first, double *work) {
  const int64_t rest = t->count - first;
  double *below = t->right + first * t->m;
  nps_dgemm(false, true, rest, first, t->m, 1, below, t->m, t->right, t->m, 0, work, first);
  for (int64_t i = 0; i < rest; i++)
    for (int64_t k = 0; k < first; k++) work[i * first + k] /= t->sigma[k] * t->sigma[k];
  nps_dgemm(false, false, rest, t->m, first, -1, work, first, t->right, t->m, 1, below, t->m);
}

/* x ← rotation · x for rows of width n. */
static void rotate(const double *rotation, int64_t count, double *x, int64_t n, double *work) {
  memcpy(work, x, (size_t)(count * n) * sizeof *x);
  nps_dgemm(false, false, count, n, count, 1, rotation, count, work, n, 0, x, n);
}

static nps_err_t next_block(nps_triples_t *t, int64_t first) {
  const int64_t rest = t->count - first;
  double *g = NULL, *vectors = NULL, *work = NULL, sum = 0;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(rest * rest) * sizeof *g, "a Gram matrix", &g));
  NPS_GOTO(nps_buffer_alloc((size_t)(rest * rest) * sizeof *g, "a Gram matrix", &vectors));
  NPS_GOTO(nps_buffer_alloc((size_t)(rest * t->m) * sizeof *g, "singular vectors", &work));
  project(t, first, work);
  nps_dgram(rest, t->m, t->right + first * t->m, g);
  NPS_GOTO(decompose(g, rest, rest, vectors, &sum));
  rotate(vectors, rest, t->left + first * t->n, t->n, work);
  rotate(vectors, rest, t->right + first * t->m, t->m, work);
  measure(t, first);
done:
  free(g);
  free(vectors);
  free(work);
  return err;
}

static int64_t count_above(const nps_triples_t *t, int64_t first, double limit) {
  int64_t k = first;
  while (k < t->count && t->sigma[k] >= limit) k++;
  return k;
}

/* What is 0 to rounding has no right vector. */
static void normalise(nps_triples_t *t) {
  const double zero = (double)t->m * DBL_EPSILON * t->sigma[0];
  for (int64_t k = 0; k < t->count; k++) {
    const double scale = t->sigma[k] > zero ? 1 / t->sigma[k] : 0;
    for (int64_t i = 0; i < t->m; i++) t->right[k * t->m + i] *= scale;
    if (scale == 0) t->sigma[k] = 0;
  }
}

nps_err_t nps_svd_gram(const double *a, nps_triples_t *t) {
  NPS_TRY(first_block(a, t));
  const double largest = t->sigma[0];
  int64_t first = 0;
  for (int block = 0; block < NPS_SVD_BLOCKS; block++) {
    first = count_above(t, first, NPS_SVD_BLOCK_RANGE * t->sigma[first]);
    if (first == t->count || t->sigma[first] <= (double)t->n * DBL_EPSILON * largest) break;
    NPS_TRY(next_block(t, first));
  }
  nps_svd_sort(t);
  normalise(t);
  return NPS_OK;
}
