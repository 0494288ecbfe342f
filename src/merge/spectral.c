/* Methods on the singular values and vectors of task vectors: TSV-M (Gargiulo et al., CVPR 2025, arXiv 2412.00081), Iso-C and
 * Iso-CTS (Marczak et al., ICML 2025, arXiv 2502.04959). Directions with σ ≤ NPS_SVD_ABSENT·σ1 are left out. Tensors that are no
 * matrices get alpha times the mean of the task vectors. */
#include "merge_internal.h"

#include "nps/svd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALPHA, WEIGHT, COMMON };

/* ---- shared by the methods ---- */

static void add_mean(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  const double alpha = tensor->param[ALPHA][0];
  for (int64_t i = 0; i < tensor->count; i++) {
    double sum = 0;
    for (int m = 0; m < tensor->models; m++) sum += tensor->param[WEIGHT][m] * (double)tau[m][i];
    update->local[i] = alpha * (sum / tensor->models);
  }
}

static void add_all(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *sum) {
  for (int64_t i = 0; i < nps_merge_local_count(sum); i++) {
    double all = 0;
    for (int m = 0; m < tensor->models; m++) all += tensor->param[WEIGHT][m] * (double)tau[m][i];
    sum->local[i] = all;
  }
}

static void weigh(const nps_merge_tensor_t *tensor, float *const *tau, int model, nps_dmat_t *out) {
  for (int64_t i = 0; i < nps_merge_local_count(out); i++)
    out->local[i] = tensor->param[WEIGHT][model] * (double)tau[model][i];
}

bool nps_merge_weights_are_one(const nps_merge_tensor_t *tensor, int param, char why[160]) {
  for (int m = 0; m < tensor->models; m++)
    if (tensor->param[param][m] != 1) {
      snprintf(why, 160, "the method has no weights, expected weight 1, found %g", tensor->param[param][m]);
      return false;
    }
  return true;
}

static bool has_no_weight(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  (void)first;
  return nps_merge_weights_are_one(tensor, WEIGHT, why);
}

/* ---- Iso-C: the sum's directions, all with the mean singular value ---- */

static double mean_of(const double *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i];
  return n > 0 ? sum / (double)n : 0;
}

static nps_err_t iso_c_merge(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  if (tensor->rows == 0) {
    add_mean(tensor, tau, update);
    return NPS_OK;
  }
  add_all(tensor, tau, update);
  nps_dsvd_t s = {0};
  nps_err_t err = nps_svd_on_grid(update, &(nps_svd_options_t){.name = tensor->name, .orthogonality = 1e-9}, &s);
  if (err == NPS_OK) {
    const double value = tensor->param[ALPHA][0] * mean_of(s.svd.sigma, s.svd.count);
    const nps_dmat_t u = nps_dmat_leading_rows(&s.u, s.svd.present), v = nps_dmat_leading_rows(&s.v, s.svd.present);
    if (s.svd.present > 0) nps_dmat_gemm(true, false, value, &u, &v, 0, update);
    if (s.svd.present == 0) nps_dmat_clear(update);
  }
  nps_dsvd_free(&s);
  return err;
}

static double plain_seconds(const nps_merge_tensor_t *tensor) { return 1e-9 * (double)tensor->count * tensor->models; }

static double iso_c_seconds(const nps_merge_tensor_t *tensor, int ranks) {
  const double products = 2 * (double)tensor->count * (double)nps_min64(tensor->rows, tensor->columns) / 4e10 / ranks;
  if (tensor->rows == 0) return plain_seconds(tensor);
  return products + nps_svd_grid_seconds(tensor->rows, tensor->columns, 0, NPS_SVD_GRAM, ranks);
}

static int64_t iso_c_bytes(const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t n = nps_min64(tensor->rows, tensor->columns);
  if (tensor->rows == 0) return 0;
  return nps_svd_grid_bytes(tensor->rows, tensor->columns, 0, NPS_SVD_GRAM, ranks) +
         nps_merge_matrix_bytes(n, tensor->rows, ranks) + nps_merge_matrix_bytes(n, tensor->columns, ranks);
}

#define SPECTRAL_PARAMS                                                                                                \
  {                                                                                                                    \
    [ALPHA] = {.name = "alpha", .fallback = 1, .least = -1e30, .most = 1e30},                                          \
    [WEIGHT] = {.name = "weight", .per_model = true, .fallback = 1, .least = -1e30, .most = 1e30},                     \
  }

const nps_merge_method_t nps_method_iso_c = {
    .name = "iso_c",
    .summary = "isotropic merging: the directions of the sum of task vectors, all with its mean singular value",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = SPECTRAL_PARAMS,
    .param_count = 2,
    .check = has_no_weight,
    .merge_whole = iso_c_merge,
    .whole_seconds = iso_c_seconds,
    .whole_bytes = iso_c_bytes,
};

/* ---- TSV-M: the leading triples of every task, their directions decorrelated ---- */

/* Triples of all models one after the other. */
typedef struct {
  int64_t count;
  double *sigma;   /* [most] */
  nps_dmat_t u, v; /* [most][rows], [most][columns] */
} triples_t;

static int64_t share_of(const nps_merge_tensor_t *tensor) {
  const int64_t k = nps_min64(tensor->rows, tensor->columns) / tensor->models;
  return k > 0 ? k : 1;
}

static nps_err_t make_triples(int64_t most, const nps_dmat_t *like, triples_t *t) {
  t->sigma = nps_xcalloc((size_t)most, sizeof *t->sigma);
  NPS_TRY(nps_dmat_new(like->grid, most, like->rows, &t->u));
  return nps_dmat_new(like->grid, most, like->columns, &t->v);
}

static void free_triples(triples_t *t) {
  free(t->sigma);
  nps_dmat_free(&t->u);
  nps_dmat_free(&t->v);
}

static void append(const nps_dsvd_t *s, triples_t *t) {
  const int64_t present = s->svd.present;
  memcpy(t->sigma + t->count, s->svd.sigma, (size_t)present * sizeof *t->sigma);
  nps_dmat_copy(&s->u, 0, 0, present, s->u.columns, &t->u, t->count, 0);
  nps_dmat_copy(&s->v, 0, 0, present, s->v.columns, &t->v, t->count, 0);
  t->count += present;
}

/* Appends the present ones of the k leading triples of a matrix. */
static nps_err_t take_leading(const char *name, const nps_dmat_t *matrix, int64_t k, triples_t *t) {
  nps_dsvd_t s = {0};
  if (k == 0) return NPS_OK;
  nps_err_t err = nps_svd_on_grid(matrix, &(nps_svd_options_t){.name = name, .leading = k}, &s);
  if (err == NPS_OK && s.svd.present > 0) append(&s, t);
  nps_dsvd_free(&s);
  return err;
}

/* update ← U⊥ᵀ S V⊥ with the polar factors of U and V. */
static nps_err_t join(const nps_merge_tensor_t *tensor, triples_t *t, nps_dmat_t *update) {
  nps_dmat_t u = nps_dmat_leading_rows(&t->u, t->count), v = nps_dmat_leading_rows(&t->v, t->count);
  nps_dmat_clear(update);
  if (t->count == 0) return NPS_OK;
  NPS_TRY(nps_svd_polar_on_grid(&u));
  NPS_TRY(nps_svd_polar_on_grid(&v));
  nps_dmat_scale_rows(&v, t->sigma);
  nps_dmat_gemm(true, false, tensor->param[ALPHA][0], &u, &v, 0, update);
  return NPS_OK;
}

static nps_err_t tsv_m_merge(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  const int64_t k = share_of(tensor);
  triples_t t = {0};
  nps_err_t err = NPS_OK;
  if (tensor->rows == 0) {
    add_mean(tensor, tau, update);
    return NPS_OK;
  }
  NPS_GOTO(make_triples(k * tensor->models, update, &t));
  for (int m = 0; m < tensor->models; m++) {
    weigh(tensor, tau, m, update);
    NPS_GOTO(take_leading(tensor->name, update, k, &t));
  }
  NPS_GOTO(join(tensor, &t, update));
done:
  free_triples(&t);
  return err;
}

static double tsv_m_seconds(const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t k = share_of(tensor), all = k * tensor->models;
  if (tensor->rows == 0) return plain_seconds(tensor);
  return tensor->models * nps_svd_grid_seconds(tensor->rows, tensor->columns, k, NPS_SVD_GRAM, ranks) +
         nps_svd_grid_seconds(all, tensor->rows, 0, NPS_SVD_GRAM, ranks) +
         nps_svd_grid_seconds(all, tensor->columns, 0, NPS_SVD_GRAM, ranks);
}

static int64_t tsv_m_bytes(const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t rows = tensor->rows, columns = tensor->columns, most = rows > columns ? rows : columns;
  const int64_t k = share_of(tensor), all = k * tensor->models;
  if (rows == 0) return 0;
  const int64_t one = nps_svd_grid_bytes(rows, columns, k, NPS_SVD_GRAM, ranks) +
                      nps_merge_matrix_bytes(k, rows, ranks) + nps_merge_matrix_bytes(k, columns, ranks);
  const int64_t polar = nps_svd_grid_bytes(all, most, 0, NPS_SVD_GRAM, ranks) +
                        nps_merge_matrix_bytes(all, all, ranks) + nps_merge_matrix_bytes(all, most, ranks);
  return nps_merge_matrix_bytes(all, rows, ranks) + nps_merge_matrix_bytes(all, columns, ranks) +
         (one > polar ? one : polar);
}

const nps_merge_method_t nps_method_tsv_m = {
    .name = "tsv_m",
    .summary = "task singular vectors: the leading triples of every task vector, their directions decorrelated",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = SPECTRAL_PARAMS,
    .param_count = 2,
    .check = has_no_weight,
    .merge_whole = tsv_m_merge,
    .whole_seconds = tsv_m_seconds,
    .whole_bytes = tsv_m_bytes,
};

/* ---- Iso-CTS: directions common to all tasks, then some of each task's own, all with the mean singular value ---- */

typedef struct {
  int64_t common; /* leading triples of the sum */
  int64_t each;   /* of each task, on the complement */
} split_t;

/* As the authors' program divides r = min(rows, columns): the part of the tasks is a multiple of T, halves rounded to even. */
static split_t split_of(const nps_merge_tensor_t *tensor) {
  const int64_t r = nps_min64(tensor->rows, tensor->columns), t = tensor->models;
  const int64_t rest = r - (int64_t)((double)r * tensor->param[COMMON][0]);
  const int64_t each = nps_min64((int64_t)nearbyint((double)rest / (double)t), r / t);
  return (split_t){.common = r - each * t, .each = each};
}

/* x ← x − UᵀU x with the orthonormal rows of u. */
static nps_err_t take_away(const nps_dmat_t *u, nps_dmat_t *x) {
  nps_dmat_t c = {0};
  if (u->rows == 0) return NPS_OK;
  const nps_err_t err = nps_dmat_new(x->grid, u->rows, x->columns, &c);
  if (err == NPS_OK) {
    nps_dmat_gemm(false, false, 1, u, x, 0, &c);
    nps_dmat_gemm(true, false, -1, u, &c, 1, x);
  }
  nps_dmat_free(&c);
  return err;
}

static nps_err_t iso_cts_merge(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  const split_t split = split_of(tensor);
  const int64_t r = nps_min64(tensor->rows, tensor->columns);
  triples_t t = {0};
  nps_err_t err = NPS_OK;
  if (tensor->rows == 0) {
    add_mean(tensor, tau, update);
    return NPS_OK;
  }
  NPS_GOTO(make_triples(r, update, &t));
  add_all(tensor, tau, update);
  NPS_GOTO(take_leading(tensor->name, update, split.common, &t));
  const nps_dmat_t common = nps_dmat_leading_rows(&t.u, t.count);
  for (int m = 0; m < tensor->models; m++) {
    weigh(tensor, tau, m, update);
    NPS_GOTO(take_away(&common, update));
    NPS_GOTO(take_leading(tensor->name, update, split.each, &t));
  }
  const double value = mean_of(t.sigma, t.count) * (double)t.count / (double)r;
  for (int64_t k = 0; k < t.count; k++) t.sigma[k] = value;
  NPS_GOTO(join(tensor, &t, update));
done:
  free_triples(&t);
  return err;
}

static double iso_cts_seconds(const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t rows = tensor->rows, columns = tensor->columns;
  if (rows == 0) return plain_seconds(tensor);
  const split_t split = split_of(tensor);
  return nps_svd_grid_seconds(rows, columns, split.common, NPS_SVD_GRAM, ranks) +
         tensor->models * (nps_svd_grid_seconds(rows, columns, split.each, NPS_SVD_GRAM, ranks) +
                           4 * (double)tensor->count * (double)split.common / 4e10 / ranks) +
         2 * nps_svd_grid_seconds(rows, columns, 0, NPS_SVD_GRAM, ranks);
}

static int64_t iso_cts_bytes(const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t r = nps_min64(tensor->rows, tensor->columns);
  if (tensor->rows == 0) return 0;
  return 2 * (nps_merge_matrix_bytes(r, tensor->rows, ranks) + nps_merge_matrix_bytes(r, tensor->columns, ranks)) +
         nps_svd_grid_bytes(tensor->rows, tensor->columns, 0, NPS_SVD_GRAM, ranks);
}

const nps_merge_method_t nps_method_iso_cts = {
    .name = "iso_cts",
    .summary = "isotropic merging in common and task-specific directions",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = {[ALPHA] = {.name = "alpha", .fallback = 1, .least = -1e30, .most = 1e30},
               [WEIGHT] = {.name = "weight", .per_model = true, .fallback = 1, .least = -1e30, .most = 1e30},
               [COMMON] = {.name = "common_space_fraction", .fallback = 0.8, .least = 0, .most = 1}},
    .param_count = 3,
    .merge_whole = iso_cts_merge,
    .whole_seconds = iso_cts_seconds,
    .whole_bytes = iso_cts_bytes,
};
