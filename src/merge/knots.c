/* KnOTS (Stoica et al., ICLR 2025, arXiv 2410.19735): task vectors are brought into one basis by the singular value
 * decomposition of all of them side by side, [τ_1 … τ_T] = U S [V_1ᵀ … V_Tᵀ], and merged there by TIES: over the blocks S·V_iᵀ. */
#include "merge_internal.h"

#include "nps/svd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WEIGHT, DENSITY, LAMBDA, NORMALIZE };

/* Singular values up to this are dropped, as by the authors' program. */
#define DROPPED 1e-4

/* Entries of the blocks up to this part of the largest singular value are rounding noise: a model that did not change has
 * none, and no say. */
#define NOISE 1e-12

/* ---- TIES over blocks in float64, which may lie on a grid ---- */

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static void sum_over_grid(const nps_dmat_t *m, int64_t *x, int64_t n) {
  if (nps_grid_ranks(m->grid) > 1) nps_comm_sum_i64(nps_grid_comm(m->grid), x, n);
}

/* How many of the ascending numbers are at least `least`. */
static int64_t count_from(const double *sorted, int64_t n, double least) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (sorted[middle] < least)
      low = middle + 1;
    else
      high = middle;
  }
  return n - low;
}

/* The keep-th largest magnitude over all ranks: the largest number that as many reach, bit by bit. @param work  [local] */
static double find_threshold(const nps_dmat_t *x, int64_t keep, double *work) {
  const int64_t n = nps_merge_local_count(x);
  uint64_t bits = 0;
  for (int64_t i = 0; i < n; i++) work[i] = fabs(x->local[i]);
  qsort(work, (size_t)n, sizeof *work, ascending);
  for (int bit = 62; bit >= 0; bit--) {
    const uint64_t trial = bits | (uint64_t)1 << bit;
    double least;
    memcpy(&least, &trial, sizeof least);
    int64_t reach = isfinite(least) ? count_from(work, n, least) : 0;
    sum_over_grid(x, &reach, 1);
    if (reach >= keep) bits = trial;
  }
  double threshold;
  memcpy(&threshold, &bits, sizeof threshold);
  return threshold;
}

/* Of the entries of this magnitude only the earliest stay, row by row. @param equal  how many; @param seen  [rows + columns] */
static void keep_earliest(nps_dmat_t *x, double magnitude, int64_t equal, int64_t *seen) {
  int64_t *of_row = seen, *of_column = seen + x->rows, row = 0;
  for (int64_t i = 0; i < nps_merge_local_count(x); i++)
    of_row[nps_dmat_row(x, i / x->local_columns)] += fabs(x->local[i]) == magnitude;
  sum_over_grid(x, of_row, x->rows);
  while (row < x->rows && of_row[row] <= equal) equal -= of_row[row++];
  for (int64_t i = 0; i < nps_merge_local_count(x); i++)
    if (fabs(x->local[i]) == magnitude && nps_dmat_row(x, i / x->local_columns) == row)
      of_column[nps_dmat_column(x, i % x->local_columns)] = 1;
  sum_over_grid(x, of_column, x->columns);
  for (int64_t j = 0; j < x->columns; j++)
    if (of_column[j] && equal-- <= 0) of_column[j] = -1;
  for (int64_t i = 0; i < nps_merge_local_count(x); i++) {
    const int64_t at = nps_dmat_row(x, i / x->local_columns), j = nps_dmat_column(x, i % x->local_columns);
    if (fabs(x->local[i]) == magnitude && (at > row || (at == row && of_column[j] < 0))) x->local[i] = 0;
  }
}

/* Keeps the max(1, ⌊density·n⌋) entries of largest magnitude, of equal ones the earliest. @param work  [local] */
static void trim(nps_dmat_t *x, double density, double *work) {
  const int64_t n = x->rows * x->columns;
  int64_t keep = (int64_t)floor(density * (double)n), larger = 0;
  if (keep >= n) return;
  if (keep < 1) keep = 1;
  const double threshold = find_threshold(x, keep, work);
  for (int64_t i = 0; i < nps_merge_local_count(x); i++) {
    larger += fabs(x->local[i]) > threshold;
    if (fabs(x->local[i]) < threshold) x->local[i] = 0;
  }
  sum_over_grid(x, &larger, 1);
  if (threshold == 0) return;
  int64_t *seen = nps_xcalloc((size_t)(x->rows + x->columns), sizeof *seen);
  keep_earliest(x, threshold, keep - larger, seen);
  free(seen);
}

/* One entry: the weighted ones of the elected sign, over the weights of those where `normalize` says so. */
static double elect(const nps_merge_tensor_t *tensor, const nps_dmat_t *blocks, int64_t i) {
  double all = 0, sum = 0, weights = 0;
  for (int m = 0; m < tensor->models; m++) all += tensor->param[WEIGHT][m] * blocks[m].local[i];
  for (int m = 0; m < tensor->models; m++) {
    const double weight = tensor->param[WEIGHT][m], x = weight * blocks[m].local[i];
    if (x == 0 || (x > 0) != (all >= 0)) continue;
    sum += x;
    weights += weight;
  }
  sum *= tensor->param[LAMBDA][0];
  return tensor->param[NORMALIZE][0] != 0 && weights != 0 ? sum / weights : sum;
}

/* TIES over blocks, one a model. Destroys them. */
static void merge_blocks(const nps_merge_tensor_t *tensor, nps_dmat_t *blocks, nps_dmat_t *out) {
  for (int m = 0; m < tensor->models; m++) trim(&blocks[m], tensor->param[DENSITY][m], out->local);
  for (int64_t i = 0; i < nps_merge_local_count(out); i++) out->local[i] = elect(tensor, blocks, i);
}

static void free_blocks(const nps_merge_tensor_t *tensor, nps_dmat_t *blocks) {
  for (int m = 0; m < tensor->models; m++) nps_dmat_free(&blocks[m]);
  free(blocks);
}

/* ---- tensors ---- */

static void widen(const float *tau, nps_dmat_t *out) {
  for (int64_t i = 0; i < nps_merge_local_count(out); i++) out->local[i] = (double)tau[i];
}

/* Tensors that are no matrices have no basis: TIES over the task vectors themselves. */
static nps_err_t merge_plain(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  nps_dmat_t *blocks = nps_xcalloc((size_t)tensor->models, sizeof *blocks);
  nps_err_t err = NPS_OK;
  for (int m = 0; m < tensor->models; m++) {
    blocks[m] = *update;
    blocks[m].local = NULL;
    NPS_GOTO(nps_buffer_alloc((size_t)tensor->count * sizeof(double), "task vectors", &blocks[m].local));
    widen(tau[m], &blocks[m]);
  }
  merge_blocks(tensor, blocks, update);
done:
  free_blocks(tensor, blocks);
  return err;
}

/* [rows][T·columns]. @param work  as a task vector */
static void put_side_by_side(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *work, nps_dmat_t *all) {
  for (int m = 0; m < tensor->models; m++) {
    widen(tau[m], work);
    nps_dmat_copy(work, 0, 0, tensor->rows, tensor->columns, all, 0, m * tensor->columns);
  }
}

/* The block S·V_iᵀ [k][columns] of a model. */
static nps_err_t take_block(const nps_merge_tensor_t *tensor, const nps_dsvd_t *s, int model, int64_t k,
                            nps_dmat_t *block) {
  NPS_TRY(nps_dmat_new(s->v.grid, k, tensor->columns, block));
  nps_dmat_copy(&s->v, 0, model * tensor->columns, k, tensor->columns, block, 0, 0);
  nps_dmat_scale_rows(block, s->svd.sigma);
  for (int64_t i = 0; i < nps_merge_local_count(block); i++)
    if (!(fabs(block->local[i]) > NOISE * s->svd.sigma[0])) block->local[i] = 0;
  return NPS_OK;
}

static nps_err_t merge_in_basis(const nps_merge_tensor_t *tensor, const nps_dsvd_t *s, nps_dmat_t *update) {
  int64_t k = 0;
  while (k < s->svd.present && s->svd.sigma[k] > DROPPED) k++;
  nps_dmat_clear(update);
  if (k == 0) return NPS_OK;
  const nps_dmat_t u = nps_dmat_leading_rows(&s->u, k);
  nps_dmat_t *blocks = nps_xcalloc((size_t)tensor->models, sizeof *blocks), merged = {0};
  nps_err_t err = NPS_OK;
  for (int m = 0; m < tensor->models; m++) NPS_GOTO(take_block(tensor, s, m, k, &blocks[m]));
  NPS_GOTO(nps_dmat_new(update->grid, k, tensor->columns, &merged));
  merge_blocks(tensor, blocks, &merged);
  nps_dmat_gemm(true, false, 1, &u, &merged, 0, update);
done:
  free_blocks(tensor, blocks);
  nps_dmat_free(&merged);
  return err;
}

static nps_err_t knots_merge(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  if (tensor->rows == 0) return merge_plain(tensor, tau, update);
  nps_dmat_t all = {0};
  nps_dsvd_t s = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(update->grid, tensor->rows, tensor->columns * tensor->models, &all));
  put_side_by_side(tensor, tau, update, &all);
  NPS_GOTO(nps_svd_on_grid(&all, &(nps_svd_options_t){.name = tensor->name}, &s));
  nps_dmat_free(&all);
  NPS_GOTO(merge_in_basis(tensor, &s, update));
done:
  nps_dsvd_free(&s);
  nps_dmat_free(&all);
  return err;
}

/* ---- predictions ---- */

static double knots_seconds(const nps_merge_tensor_t *tensor, int ranks) {
  const double plain = 2e-7 * (double)tensor->count * tensor->models / ranks;
  if (tensor->rows == 0) return plain;
  return plain + nps_svd_grid_seconds(tensor->rows, tensor->columns * tensor->models, 0, NPS_SVD_GRAM, ranks);
}

static int64_t knots_bytes(const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t width = tensor->columns * tensor->models, n = tensor->rows < width ? tensor->rows : width;
  if (tensor->rows == 0) return 8 * tensor->count * (tensor->models + 1);
  const int64_t all = nps_merge_matrix_bytes(tensor->rows, width, ranks);
  const int64_t vectors = nps_merge_matrix_bytes(n, tensor->rows, ranks) + nps_merge_matrix_bytes(n, width, ranks);
  const int64_t blocks = (tensor->models + 1) * nps_merge_matrix_bytes(n, tensor->columns, ranks);
  const int64_t svd = all + nps_svd_grid_bytes(tensor->rows, width, 0, NPS_SVD_GRAM, ranks);
  return vectors + (svd > blocks ? svd : blocks);
}

const nps_merge_method_t nps_method_knots = {
    .name = "knots",
    .summary = "TIES in the common basis of all task vectors side by side",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params =
        {[WEIGHT] = {.name = "weight", .per_model = true, .fallback = 1, .least = -1e30, .most = 1e30},
         [DENSITY] = {.name = "density", .per_model = true, .fallback = 1, .least = 0, .most = 1},
         [LAMBDA] = {.name = "lambda", .fallback = 1, .least = -1e30, .most = 1e30},
         [NORMALIZE] = {.name = "normalize", .kind = NPS_PARAM_CHOICE, .fallback = 1, .choices = nps_choices_bool}},
    .param_count = 4,
    .merge_whole = knots_merge,
    .whole_seconds = knots_seconds,
    .whole_bytes = knots_bytes,
};
