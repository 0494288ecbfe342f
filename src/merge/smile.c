/* SMILE (Tang et al., arXiv 2408.10174): a mixture of low-rank experts without training. The base stays; every linear layer gets
 * the leading singular triples of each task vector as experts, whose first right vectors are its router. Factors are exact: of
 * a subspace found to an energy of 0.99 the last directions, where the spectrum is flat, would be others. Directions with
 * σ ≤ NPS_SVD_ABSENT·σ1 are 0: no token is drawn to rounding noise. */
#include "merge_internal.h"

#include "nps/svd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KG, K, TOP_K, WEIGHT };

/* Parts in the byte order of their groups. */
enum { SIGMA, U, V, LINEAR_PARTS };

static int64_t whole_number(const nps_merge_tensor_t *tensor, int param) { return (int64_t)tensor->param[param][0]; }

/* Triples of an expert. */
static int64_t rank_of(const nps_merge_tensor_t *tensor) {
  return nps_min64(whole_number(tensor, K), nps_min64(tensor->rows, tensor->columns));
}

/* Right vectors that are stored: the expert's, and the router's where it has more. */
static int64_t directions_of(const nps_merge_tensor_t *tensor) {
  return nps_min64(nps_max64(whole_number(tensor, K), whole_number(tensor, KG)),
                   nps_min64(tensor->rows, tensor->columns));
}

static bool smile_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  static const char *const names[] = {"kg", "k", "top_k"};
  for (int p = KG; p <= TOP_K; p++) {
    const double value = tensor->param[p][0];
    if (value == floor(value) && value == first->param[p][0]) continue;
    snprintf(why, 160, "%s: expected %s, found %g", names[p],
             value == floor(value) ? "the same for all tensors" : "a whole number", value);
    return false;
  }
  if (tensor->param[TOP_K][0] > tensor->models) {
    snprintf(why, 160, "top_k: expected at most %d, the number of models, found %g", tensor->models,
             tensor->param[TOP_K][0]);
    return false;
  }
  return nps_merge_weights_are_one(tensor, WEIGHT, why);
}

static bool smile_whole(const nps_merge_tensor_t *tensor) { return tensor->role != NPS_ROLE_OTHER; }

/* The base stays as it is: x + (−0) is x, also for x = −0. */
static void stay(double *update, int64_t n) {
  for (int64_t i = 0; i < n; i++) update[i] = -0.0;
}

static void smile_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                        int64_t *kept) {
  (void)state;
  (void)tensor;
  (void)kept;
  stay(out, chunk->count);
}

static nps_err_t smile_merge_whole(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  (void)tau;
  stay(update->local, tensor->count);
  return NPS_OK;
}

static int smile_plan(const nps_merge_tensor_t *tensor, nps_part_t *parts) {
  const int64_t models = tensor->models;
  if (tensor->role == NPS_ROLE_OTHER) return 0;
  if (tensor->role == NPS_ROLE_LINEAR_BIAS) {
    parts[0] =
        (nps_part_t){.group = "/experts/bias", .dtype = parts[0].dtype, .ndim = 2, .shape = {models, tensor->count}};
    return 1;
  }
  const nps_dtype_t dtype = parts[0].dtype;
  const int64_t k = rank_of(tensor), directions = directions_of(tensor);
  parts[SIGMA] = (nps_part_t){.group = "/experts/sigma", .dtype = NPS_F32, .ndim = 2, .shape = {models, k}};
  parts[U] = (nps_part_t){.group = "/experts/u", .dtype = dtype, .ndim = 3, .shape = {models, k, tensor->rows}};
  parts[V] =
      (nps_part_t){.group = "/experts/v", .dtype = dtype, .ndim = 3, .shape = {models, directions, tensor->columns}};
  return LINEAR_PARTS;
}

/* Copies the present ones of the first `most` rows, the others are 0. */
static void take_rows(const double *from, int64_t present, int64_t most, int64_t width, double *to) {
  const size_t row = (size_t)width * sizeof *to;
  const int64_t n = nps_min64(present, most);
  memcpy(to, from, (size_t)n * row);
  memset(to + n * width, 0, (size_t)(most - n) * row);
}

static nps_err_t factorise(const nps_merge_tensor_t *tensor, const double *a, int model, double *const *out) {
  const int64_t k = rank_of(tensor), directions = directions_of(tensor);
  nps_svd_t s = {0};
  nps_err_t err = nps_svd_compute(a, tensor->rows, tensor->columns,
                                  &(nps_svd_options_t){.name = tensor->name, .leading = directions}, &s);
  if (err == NPS_OK) {
    take_rows(s.sigma, s.present, k, 1, out[SIGMA] + model * k);
    take_rows(s.u, s.present, k, tensor->rows, out[U] + model * k * tensor->rows);
    take_rows(s.v, s.present, directions, tensor->columns, out[V] + model * directions * tensor->columns);
  }
  nps_svd_free(&s);
  return err;
}

static nps_err_t smile_make(const nps_merge_tensor_t *tensor, float *const *tau, double *const *out) {
  double *a = NULL;
  nps_err_t err = NPS_OK;
  if (tensor->role == NPS_ROLE_LINEAR_BIAS) {
    for (int m = 0; m < tensor->models; m++)
      nps_tensor_widen(NPS_F32, tau[m], tensor->count, out[0] + m * tensor->count);
    return NPS_OK;
  }
  NPS_TRY(nps_buffer_alloc((size_t)tensor->count * sizeof *a, "a task vector", &a));
  for (int m = 0; m < tensor->models && err == NPS_OK; m++) {
    nps_tensor_widen(NPS_F32, tau[m], tensor->count, a);
    err = factorise(tensor, a, m, out);
  }
  free(a);
  return err;
}

static nps_err_t smile_describe(const nps_merge_tensor_t *tensor, const char *const *models, nps_h5_t *file) {
  NPS_TRY(nps_h5_put_attr_text(file, "/experts", "method", "smile"));
  NPS_TRY(nps_h5_put_attr_texts(file, "/experts", "names", models, tensor->models));
  NPS_TRY(nps_h5_put_attr_i64(file, "/experts", "kg", whole_number(tensor, KG)));
  NPS_TRY(nps_h5_put_attr_i64(file, "/experts", "k", whole_number(tensor, K)));
  return nps_h5_put_attr_i64(file, "/experts", "top_k", whole_number(tensor, TOP_K));
}

static double smile_seconds(const nps_merge_tensor_t *tensor, int ranks) {
  (void)ranks;
  if (tensor->role != NPS_ROLE_LINEAR) return 1e-9 * (double)tensor->count * tensor->models;
  return tensor->models * nps_svd_seconds(tensor->rows, tensor->columns, directions_of(tensor), NPS_SVD_GRAM);
}

/* One rank makes all parts of a tensor. */
static int64_t smile_bytes(const nps_merge_tensor_t *tensor, int ranks) {
  if (ranks > 1) return INT64_MAX;
  const int64_t models = tensor->models, k = rank_of(tensor), directions = directions_of(tensor);
  if (tensor->role != NPS_ROLE_LINEAR) return 16 * models * tensor->count;
  const int64_t factors = directions * (tensor->rows + tensor->columns);
  const int64_t parts = models * (k * tensor->rows + directions * tensor->columns + k);
  return 8 * tensor->count + 16 * parts + 8 * factors +
         nps_svd_bytes(tensor->rows, tensor->columns, directions, NPS_SVD_GRAM);
}

const nps_merge_method_t nps_method_smile = {
    .name = "smile",
    .summary = "a mixture of low-rank experts: the base, and the leading triples of every task vector behind routers",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = {[KG] = {.name = "kg", .fallback = 16, .least = 1, .most = 1e6},
               [K] = {.name = "k", .fallback = 32, .least = 1, .most = 1e6},
               [TOP_K] = {.name = "top_k", .fallback = 1, .least = 1, .most = 1e6},
               [WEIGHT] = {.name = "weight", .per_model = true, .fallback = 1, .least = -1e30, .most = 1e30}},
    .param_count = 4,
    .check = smile_check,
    .merge = smile_merge,
    .merge_whole = smile_merge_whole,
    .whole = smile_whole,
    .plan_parts = smile_plan,
    .make_parts = smile_make,
    .describe_parts = smile_describe,
    .whole_seconds = smile_seconds,
    .whole_bytes = smile_bytes,
};
