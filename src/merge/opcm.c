/* OPCM: continual merging by orthogonal projection (Tang et al., arXiv 2501.09522). Models are merged one at a time: from every
 * new task vector is taken what lies along the directions of the merged update so far; what is left is added. In the end the
 * whole update is scaled to the mean norm of the task vectors. */
#include "merge_internal.h"

#include "nps/blas.h"
#include "nps/svd.h"

#include <stdio.h>
#include <stdlib.h>

enum { ALPHA, MODE, WEIGHT };
enum { MODE_BLOCK, MODE_PAPER };

static const char *const modes[] = {"block", "paper", NULL};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

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
  return mode == MODE_BLOCK ? r : min64(r + 1, s->present);
}

/* Working memory of a projection: [present][columns], [present][present], [r][columns], [rows][r]. */
typedef struct {
  double *left, *inner, *own;
} room_t;

static nps_err_t make_room(const nps_svd_t *s, room_t *room) {
  const size_t k = (size_t)(s->present > 0 ? s->present : 1);
  NPS_TRY(nps_buffer_alloc(k * (size_t)s->columns * sizeof(double), "a projection", &room->left));
  NPS_TRY(nps_buffer_alloc(k * k * sizeof(double), "a projection", &room->inner));
  return nps_buffer_alloc(k * (size_t)s->rows * sizeof(double), "a projection", &room->own);
}

static void free_room(room_t *room) {
  free(room->left);
  free(room->inner);
  free(room->own);
}

/* x ← x − Uᵀ M V over the present directions, M being what is left of U x Vᵀ: its leading r × r block and its diagonal. */
static void take_block(const nps_svd_t *s, int64_t r, room_t *room, double *x) {
  const int64_t k = s->present, rows = s->rows, columns = s->columns;
  nps_dgemm(false, false, k, columns, rows, 1, s->u, rows, x, columns, 0, room->left, columns);
  nps_dgemm(false, true, k, k, columns, 1, room->left, columns, s->v, columns, 0, room->inner, k);
  for (int64_t i = 0; i < k; i++)
    for (int64_t j = 0; j < k; j++)
      if (i != j && (i >= r || j >= r)) room->inner[i * k + j] = 0;
  nps_dgemm(false, false, k, columns, k, 1, room->inner, k, s->v, columns, 0, room->left, columns);
  nps_dgemm(true, false, rows, columns, k, -1, s->u, rows, room->left, columns, 1, x, columns);
}

/* x ← (I − U_rU_rᵀ) x (I − V_rV_rᵀ) */
static void take_sides(const nps_svd_t *s, int64_t r, room_t *room, double *x) {
  const int64_t rows = s->rows, columns = s->columns;
  nps_dgemm(false, false, r, columns, rows, 1, s->u, rows, x, columns, 0, room->left, columns);
  nps_dgemm(true, false, rows, columns, r, -1, s->u, rows, room->left, columns, 1, x, columns);
  nps_dgemm(false, true, rows, r, columns, 1, x, columns, s->v, columns, 0, room->own, r);
  nps_dgemm(false, false, rows, columns, r, -1, room->own, r, s->v, columns, 1, x, columns);
}

/* Takes from a new task vector what lies along the directions of the merged update. @param[in,out] x  [rows][columns] */
static nps_err_t project(const nps_merge_tensor_t *tensor, const double *merged, double *x) {
  const int mode = (int)tensor->param[MODE][0];
  nps_svd_t s = {0};
  room_t room = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_svd_compute(merged, tensor->rows, tensor->columns, &(nps_svd_options_t){.name = tensor->name}, &s));
  if (s.present == 0) goto done;
  const int64_t r = count_leading(&s, tensor->param[ALPHA][0], mode);
  NPS_GOTO(make_room(&s, &room));
  if (mode == MODE_PAPER) take_sides(&s, r, &room, x);
  take_block(&s, mode == MODE_PAPER ? 0 : r, &room, x); /* after take_sides, the diagonal up to r is 0 already */
done:
  free_room(&room);
  nps_svd_free(&s);
  return err;
}

static nps_err_t opcm_merge(const nps_merge_tensor_t *tensor, float *const *tau, double *update) {
  double *x = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)tensor->count * sizeof *x, "a task vector", &x));
  nps_err_t err = NPS_OK;
  for (int m = 0; m < tensor->models; m++) {
    for (int64_t i = 0; i < tensor->count; i++) x[i] = (double)tau[m][i];
    const bool first = m == 0 && !tensor->has_history;
    if (!first && tensor->rows > 0) NPS_GOTO(project(tensor, update, x));
    for (int64_t i = 0; i < tensor->count; i++) update[i] = first ? x[i] : update[i] + x[i];
  }
done:
  free(x);
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

static double opcm_seconds(const nps_merge_tensor_t *tensor) {
  const double products = 8 * (double)tensor->count * (double)min64(tensor->rows, tensor->columns) / 4e10;
  const double one = nps_svd_seconds(tensor->rows, tensor->columns, 0, NPS_SVD_GRAM) + products;
  return 2e-9 * (double)tensor->count * tensor->models +
         (tensor->rows ? (tensor->models - !tensor->has_history) * one : 0);
}

static int64_t opcm_bytes(const nps_merge_tensor_t *tensor) {
  const int64_t n = min64(tensor->rows, tensor->columns), sides = tensor->rows + tensor->columns;
  if (tensor->rows == 0) return 8 * tensor->count;
  return 8 * tensor->count + 16 * n * sides + 8 * n * n + nps_svd_bytes(tensor->rows, tensor->columns, 0, NPS_SVD_GRAM);
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
