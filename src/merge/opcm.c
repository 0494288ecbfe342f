/* OPCM: continual merging by orthogonal projection (Tang et al., arXiv 2501.09522). Models are merged one at a time: from every
 * new task vector is taken what lies along the directions of the merged update so far; what is left is added. In the end the
 * whole update is scaled to the mean norm of the task vectors. */
#include "merge_internal.h"

#include "nps/svd.h"

#include <stdio.h>
#include <stdlib.h>

enum { ALPHA, MODE, WEIGHT };
enum { MODE_BLOCK, MODE_PAPER };

static const char *const modes[] = {"block", "paper", NULL};

/* How many leading directions hold the part α of Σσ. block: as many as stay within it; paper: the least that reach it. */
static int64_t count_leading(const nps_svd_t *s, double alpha, int mode) {
  double total = 0, sum = 0;
  int64_t r = 0;
  for (int64_t k = 0; k < s->count; k++) total += s->sigma[k];
  for (; r < s->count; r++) {
    sum += s->sigma[r];
    if (mode == MODE_BLOCK ? sum > alpha * total : sum >= alpha * total) break;
  }
  if (r == s->count) r = mode == MODE_BLOCK ? 0 : s->present;
  return mode == MODE_BLOCK ? r : nps_min64(r + 1, s->present);
}

/* x ← x − Uᵀ M V over the present directions, M being what is left of U x Vᵀ: its leading r × r block and its diagonal. */
static nps_err_t take_block(const nps_dsvd_t *s, int64_t r, nps_dmat_t *x) {
  const int64_t k = s->svd.present;
  const nps_dmat_t u = nps_dmat_leading_rows(&s->u, k), v = nps_dmat_leading_rows(&s->v, k);
  nps_dmat_t left = {0}, inner = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(x->grid, k, x->columns, &left));
  NPS_GOTO(nps_dmat_new(x->grid, k, k, &inner));
  nps_dmat_gemm(false, false, 1, &u, x, 0, &left);
  nps_dmat_gemm(false, true, 1, &left, &v, 0, &inner);
  for (int64_t i = 0; i < inner.local_rows; i++)
    for (int64_t j = 0; j < inner.local_columns; j++) {
      const int64_t row = nps_dmat_row(&inner, i), column = nps_dmat_column(&inner, j);
      if (row != column && (row >= r || column >= r)) inner.local[i * inner.local_columns + j] = 0;
    }
  nps_dmat_gemm(false, false, 1, &inner, &v, 0, &left);
  nps_dmat_gemm(true, false, -1, &u, &left, 1, x);
done:
  nps_dmat_free(&left);
  nps_dmat_free(&inner);
  return err;
}

/* x ← (I − U_rU_rᵀ) x (I − V_rV_rᵀ) */
static nps_err_t take_sides(const nps_dsvd_t *s, int64_t r, nps_dmat_t *x) {
  const nps_dmat_t u = nps_dmat_leading_rows(&s->u, r), v = nps_dmat_leading_rows(&s->v, r);
  nps_dmat_t left = {0}, right = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(x->grid, r, x->columns, &left));
  NPS_GOTO(nps_dmat_new(x->grid, x->rows, r, &right));
  nps_dmat_gemm(false, false, 1, &u, x, 0, &left);
  nps_dmat_gemm(true, false, -1, &u, &left, 1, x);
  nps_dmat_gemm(false, true, 1, x, &v, 0, &right);
  nps_dmat_gemm(false, false, -1, &right, &v, 1, x);
done:
  nps_dmat_free(&left);
  nps_dmat_free(&right);
  return err;
}

/* Takes from a new task vector what lies along the directions of the merged update. @param[in,out] x  as merged */
static nps_err_t project(const nps_merge_tensor_t *tensor, const nps_dmat_t *merged, nps_dmat_t *x) {
  const int mode = (int)tensor->param[MODE][0];
  nps_dsvd_t s = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_svd_on_grid(merged, &(nps_svd_options_t){.name = tensor->name}, &s));
  if (s.svd.present == 0) goto done;
  const int64_t r = count_leading(&s.svd, tensor->param[ALPHA][0], mode);
  if (mode == MODE_PAPER) NPS_GOTO(take_sides(&s, r, x));
  NPS_GOTO(take_block(&s, mode == MODE_PAPER ? 0 : r, x)); /* after take_sides, the diagonal up to r is 0 already */
done:
  nps_dsvd_free(&s);
  return err;
}

static nps_err_t opcm_merge(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  const int64_t n = nps_merge_local_count(update);
  nps_dmat_t x = *update;
  x.local = NULL;
  nps_err_t err = nps_buffer_alloc((size_t)n * sizeof(double), "a task vector", &x.local);
  if (nps_grid_ranks(update->grid) > 1) err = nps_comm_agree(nps_grid_comm(update->grid), err);
  for (int m = 0; m < tensor->models && err == NPS_OK; m++) {
    for (int64_t i = 0; i < n; i++) x.local[i] = (double)tau[m][i];
    const bool first = m == 0 && !tensor->has_history;
    if (!first && tensor->rows > 0) NPS_GOTO(project(tensor, update, &x));
    for (int64_t i = 0; i < n; i++) update->local[i] = first ? x.local[i] : update->local[i] + x.local[i];
  }
done:
  nps_dmat_free(&x);
  return err;
}

/* ‖update‖ becomes the mean of the ‖τ_i‖: a running one, the same number whether models come in one run or in several. */
static double opcm_scale(nps_merge_history_t *history, int models, const double *tau_norms, double update_norm) {
  for (int m = 0; m < models; m++)
    history->norm_mean += (tau_norms[m] - history->norm_mean) / (double)++history->models;
  return update_norm > 0 ? history->norm_mean / update_norm : 0;
}

static bool opcm_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  if (tensor->param[ALPHA][0] != first->param[ALPHA][0]) {
    snprintf(why, 160, "alpha must be the same for all tensors, found %g and %g", tensor->param[ALPHA][0],
             first->param[ALPHA][0]);
    return false;
  }
  return nps_merge_weights_are_one(tensor, WEIGHT, why);
}

static double opcm_seconds(const nps_merge_tensor_t *tensor, int ranks) {
  const double products = 8 * (double)tensor->count * (double)nps_min64(tensor->rows, tensor->columns) / 4e10 / ranks;
  const double plain = 2e-9 * (double)tensor->count * tensor->models / ranks;
  if (tensor->rows == 0) return plain;
  return plain + (tensor->models - !tensor->has_history) *
                     (nps_svd_grid_seconds(tensor->rows, tensor->columns, 0, NPS_SVD_GRAM, ranks) + products);
}

static int64_t opcm_bytes(const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t rows = tensor->rows, columns = tensor->columns, n = nps_min64(rows, columns);
  if (rows == 0) return 8 * tensor->count;
  const int64_t sides = nps_merge_matrix_bytes(n, rows, ranks) + nps_merge_matrix_bytes(n, columns, ranks);
  return nps_merge_matrix_bytes(rows, columns, ranks) + 2 * sides + nps_merge_matrix_bytes(n, n, ranks) +
         nps_svd_grid_bytes(rows, columns, 0, NPS_SVD_GRAM, ranks);
}

const nps_merge_method_t nps_method_opcm = {
    .name = "opcm",
    .summary = "continual merging: each task vector without what lies along those before",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = {[ALPHA] = {.name = "alpha", .fallback = 0.5, .least = 0, .most = 1},
               [MODE] = {.name = "mode", .kind = NPS_PARAM_CHOICE, .fallback = MODE_BLOCK, .choices = modes},
               [WEIGHT] = {.name = "weight", .per_model = true, .fallback = 1, .least = -1e30, .most = 1e30}},
    .param_count = 3,
    .check = opcm_check,
    .merge_whole = opcm_merge,
    .scale = opcm_scale,
    .keeps_updates = true,
    .whole_seconds = opcm_seconds,
    .whole_bytes = opcm_bytes,
};
