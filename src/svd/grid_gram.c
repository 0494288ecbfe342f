/* As gram.c, on a grid: eigenvectors of the Gram matrix, then block by block down the spectrum what a thousandth of a block's
 * largest σ hides. */
#include "grid_internal.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

static void measure(nps_dtriples_t *t, int64_t first, const nps_dmat_t *right) {
  nps_dmat_row_norms2(right, t->sigma + first);
  for (int64_t k = first; k < first + right->rows; k++) t->sigma[k] = sqrt(t->sigma[k]);
}

static double sum_of(const double *x, int64_t n, bool squared) {
  double sum = 0;
  for (int64_t k = 0; k < n; k++) sum += squared ? x[k] * x[k] : x[k];
  return sum;
}

static nps_err_t first_block(nps_dtriples_t *t) {
  NPS_TRY(nps_dmat_new(t->a->grid, t->count, t->n, &t->left));
  NPS_TRY(nps_dmat_gram_vectors(t->a, t->turned, t->sigma, &t->left));
  NPS_TRY(nps_dmat_new(t->a->grid, t->count, t->m, &t->right));
  nps_dmat_gemm(false, t->turned, 1, &t->left, t->a, 0, &t->right);
  const double expected = sum_of(t->sigma, t->count, false); /* of the eigenvalues */
  measure(t, 0, &t->right);
  if (t->count < t->n && expected > 0) t->energy = sum_of(t->sigma, t->count, true) / expected;
  return NPS_OK;
}

/* Takes from rows their parts along the first triples. */
static nps_err_t project(const nps_dtriples_t *t, int64_t first, nps_dmat_t *below) {
  const nps_dmat_t found = nps_dmat_leading_rows(&t->right, first);
  double *by = nps_xcalloc((size_t)first, sizeof *by);
  nps_dmat_t along = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(below->grid, first, below->rows, &along));
  for (int64_t k = 0; k < first; k++) by[k] = 1 / (t->sigma[k] * t->sigma[k]);
  nps_dmat_gemm(false, true, 1, &found, below, 0, &along);
  nps_dmat_scale_rows(&along, by);
  nps_dmat_gemm(true, false, -1, &along, &found, 1, below);
done:
  nps_dmat_free(&along);
  free(by);
  return err;
}

/* The rows of x from `first` on ← rotation · part, `part` being those rows or what stands for them. */
static nps_err_t rotate(const nps_dmat_t *rotation, const nps_dmat_t *part, int64_t first, nps_dmat_t *x) {
  nps_dmat_t product = {0};
  const nps_err_t err = nps_dmat_new(x->grid, part->rows, part->columns, &product);
  if (err == NPS_OK) {
    nps_dmat_gemm(false, false, 1, rotation, part, 0, &product);
    nps_dmat_copy(&product, 0, 0, part->rows, part->columns, x, first, 0);
  }
  nps_dmat_free(&product);
  return err;
}

static nps_err_t copy_below(const nps_dmat_t *x, int64_t first, nps_dmat_t *below) {
  NPS_TRY(nps_dmat_new(x->grid, x->rows - first, x->columns, below));
  nps_dmat_copy(x, first, 0, x->rows - first, x->columns, below, 0, 0);
  return NPS_OK;
}

static nps_err_t next_block(nps_dtriples_t *t, int64_t first) {
  const int64_t rest = t->count - first;
  nps_dmat_t below = {0}, vectors = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(copy_below(&t->right, first, &below));
  NPS_GOTO(project(t, first, &below));
  NPS_GOTO(nps_dmat_new(t->a->grid, rest, rest, &vectors));
  NPS_GOTO(nps_dmat_gram_vectors(&below, false, t->sigma + first, &vectors));
  NPS_GOTO(rotate(&vectors, &below, first, &t->right));
  nps_dmat_free(&below);
  NPS_GOTO(copy_below(&t->left, first, &below));
  NPS_GOTO(rotate(&vectors, &below, first, &t->left));
  nps_dmat_free(&below);
  NPS_GOTO(copy_below(&t->right, first, &below));
  measure(t, first, &below);
done:
  nps_dmat_free(&below);
  nps_dmat_free(&vectors);
  return err;
}

static int64_t count_above(const nps_dtriples_t *t, int64_t first, double limit) {
  int64_t k = first;
  while (k < t->count && t->sigma[k] >= limit) k++;
  return k;
}

static nps_err_t reorder(const int64_t *order, nps_dmat_t *x) {
  nps_dmat_t sorted = {0};
  nps_err_t err = nps_dmat_new(x->grid, x->rows, x->columns, &sorted);
  if (err == NPS_OK) err = nps_dmat_take_rows(x, order, &sorted);
  if (err != NPS_OK) {
    nps_dmat_free(&sorted);
    return err;
  }
  nps_dmat_free(x);
  *x = sorted;
  return NPS_OK;
}

/* Insertion: they are nearly sorted. @return whether any moved */
static bool sort_values(double *sigma, int64_t count, int64_t *order) {
  bool moved = false;
  for (int64_t i = 0; i < count; i++) {
    const double value = sigma[i];
    int64_t j = i;
    for (; j > 0 && value > sigma[j - 1]; j--) {
      sigma[j] = sigma[j - 1];
      order[j] = order[j - 1];
      moved = true;
    }
    sigma[j] = value;
    order[j] = i;
  }
  return moved;
}

/* Right vectors to length 1, but what is 0 to rounding; then descending order. */
static nps_err_t finish(nps_dtriples_t *t) {
  const double zero = (double)t->m * DBL_EPSILON * t->sigma[0];
  double *by = nps_xcalloc((size_t)t->count, sizeof *by);
  int64_t *order = nps_xcalloc((size_t)t->count, sizeof *order);
  nps_err_t err = NPS_OK;
  for (int64_t k = 0; k < t->count; k++) {
    by[k] = t->sigma[k] > zero ? 1 / t->sigma[k] : 0;
    if (by[k] == 0) t->sigma[k] = 0;
  }
  nps_dmat_scale_rows(&t->right, by);
  if (!sort_values(t->sigma, t->count, order)) goto done;
  NPS_GOTO(reorder(order, &t->left));
  NPS_GOTO(reorder(order, &t->right));
done:
  free(by);
  free(order);
  return err;
}

nps_err_t nps_svd_grid_gram(nps_dtriples_t *t) {
  NPS_TRY(first_block(t));
  const double largest = t->sigma[0];
  int64_t first = 0;
  for (int block = 0; block < NPS_SVD_BLOCKS; block++) {
    first = count_above(t, first, NPS_SVD_BLOCK_RANGE * t->sigma[first]);
    if (first == t->count || t->sigma[first] <= (double)t->n * DBL_EPSILON * largest) break;
    NPS_TRY(next_block(t, first));
  }
  return finish(t);
}
