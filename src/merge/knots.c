/* KnOTS (Stoica et al., ICLR 2025, arXiv 2410.19735): task vectors are brought into one basis by the singular value
 * decomposition of all of them side by side, [τ_1 … τ_T] = U S [V_1ᵀ … V_Tᵀ], and merged there by TIES: over the blocks S·V_iᵀ. */
#include "merge_internal.h"

#include "nps/blas.h"
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

/* ---- TIES over blocks in float64 ---- */

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* Keeps the max(1, ⌊density·n⌋) entries of largest magnitude, of equal ones the earliest. @param work  [n] */
static void trim(double *x, int64_t n, double density, double *work) {
  int64_t keep = (int64_t)floor(density * (double)n), larger = 0;
  if (keep >= n) return;
  if (keep < 1) keep = 1;
  for (int64_t i = 0; i < n; i++) work[i] = fabs(x[i]);
  qsort(work, (size_t)n, sizeof *work, ascending);
  const double threshold = work[n - keep];
  for (int64_t i = 0; i < n; i++) larger += fabs(x[i]) > threshold;
  int64_t equal = keep - larger;
  for (int64_t i = 0; i < n; i++) {
    const double size = fabs(x[i]);
    if (size < threshold || (size == threshold && equal-- <= 0)) x[i] = 0;
  }
}

/* One entry: the weighted ones of the elected sign, over the weights of those where `normalize` says so. */
static double elect(const nps_merge_tensor_t *tensor, const double *blocks, int64_t n, int64_t i) {
  double all = 0, sum = 0, weights = 0;
  for (int m = 0; m < tensor->models; m++) all += tensor->param[WEIGHT][m] * blocks[m * n + i];
  for (int m = 0; m < tensor->models; m++) {
    const double weight = tensor->param[WEIGHT][m], x = weight * blocks[m * n + i];
    if (x == 0 || (x > 0) != (all >= 0)) continue;
    sum += x;
    weights += weight;
  }
  sum *= tensor->param[LAMBDA][0];
  return tensor->param[NORMALIZE][0] != 0 && weights != 0 ? sum / weights : sum;
}

/* ---- tensors ---- */

/* Tensors that are no matrices have no basis: TIES over the task vectors themselves. */
static nps_err_t merge_plain(const nps_merge_tensor_t *tensor, float *const *tau, double *update) {
  const int64_t n = tensor->count;
  double *blocks = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(n * tensor->models) * sizeof *blocks, "task vectors", &blocks));
  for (int m = 0; m < tensor->models; m++) {
    for (int64_t i = 0; i < n; i++) blocks[m * n + i] = (double)tau[m][i];
    trim(blocks + m * n, n, tensor->param[DENSITY][m], update);
  }
  for (int64_t i = 0; i < n; i++) update[i] = elect(tensor, blocks, n, i);
  free(blocks);
  return NPS_OK;
}

/* [rows][T·columns] */
static void put_side_by_side(const nps_merge_tensor_t *tensor, float *const *tau, double *all) {
  for (int64_t row = 0; row < tensor->rows; row++)
    for (int m = 0; m < tensor->models; m++)
      for (int64_t i = 0; i < tensor->columns; i++)
        all[(row * tensor->models + m) * tensor->columns + i] = (double)tau[m][row * tensor->columns + i];
}

/* Blocks S·V_iᵀ [models][k][columns] of the k triples that are kept. */
static void take_blocks(const nps_merge_tensor_t *tensor, const nps_svd_t *s, int64_t k, double *blocks) {
  const int64_t columns = tensor->columns;
  for (int m = 0; m < tensor->models; m++)
    for (int64_t j = 0; j < k; j++)
      for (int64_t i = 0; i < columns; i++) {
        const double x = s->sigma[j] * s->v[(j * tensor->models + m) * columns + i];
        blocks[(m * k + j) * columns + i] = fabs(x) > NOISE * s->sigma[0] ? x : 0;
      }
}

static nps_err_t merge_in_basis(const nps_merge_tensor_t *tensor, const nps_svd_t *s, double *update) {
  int64_t k = 0;
  double *blocks = NULL, *work = NULL;
  nps_err_t err = NPS_OK;
  while (k < s->present && s->sigma[k] > DROPPED) k++;
  const int64_t n = k * tensor->columns;
  memset(update, 0, (size_t)tensor->count * sizeof *update);
  if (k == 0) return NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(n * tensor->models) * sizeof *blocks, "blocks of singular vectors", &blocks));
  NPS_GOTO(nps_buffer_alloc((size_t)n * sizeof *work, "blocks of singular vectors", &work));
  take_blocks(tensor, s, k, blocks);
  for (int m = 0; m < tensor->models; m++) trim(blocks + m * n, n, tensor->param[DENSITY][m], work);
  for (int64_t i = 0; i < n; i++) work[i] = elect(tensor, blocks, n, i);
  nps_dgemm(true, false, tensor->rows, tensor->columns, k, 1, s->u, tensor->rows, work, tensor->columns, 0, update,
            tensor->columns);
done:
  free(blocks);
  free(work);
  return err;
}

static nps_err_t knots_merge(const nps_merge_tensor_t *tensor, float *const *tau, double *update) {
  if (tensor->rows == 0) return merge_plain(tensor, tau, update);
  const int64_t width = tensor->columns * tensor->models;
  double *all = NULL;
  nps_svd_t s = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(tensor->rows * width) * sizeof *all, "task vectors side by side", &all));
  put_side_by_side(tensor, tau, all);
  NPS_GOTO(nps_svd_compute(all, tensor->rows, width, &(nps_svd_options_t){.name = tensor->name}, &s));
  NPS_GOTO(merge_in_basis(tensor, &s, update));
done:
  nps_svd_free(&s);
  free(all);
  return err;
}

/* ---- predictions ---- */

static double knots_seconds(const nps_merge_tensor_t *tensor) {
  const double plain = 2e-7 * (double)tensor->count * tensor->models;
  return plain + (tensor->rows ? nps_svd_seconds(tensor->rows, tensor->columns * tensor->models, 0, NPS_SVD_GRAM) : 0);
}

static int64_t knots_bytes(const nps_merge_tensor_t *tensor) {
  const int64_t width = tensor->columns * tensor->models, n = tensor->rows < width ? tensor->rows : width;
  if (tensor->rows == 0) return 8 * tensor->count * tensor->models;
  return 8 * tensor->rows * width + 8 * n * (tensor->rows + 2 * width) +
         nps_svd_bytes(tensor->rows, width, 0, NPS_SVD_GRAM);
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
