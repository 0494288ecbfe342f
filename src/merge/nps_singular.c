/* nps with partition singular: matrices are put together from those of their singular triples that are kept. Factorising comes
 * before merging; here tensors are assembled, by the same functions as a search's candidates. */
#include "merge_internal.h"

#include "nps/svd.h"

#include <stdio.h>
#include <string.h>

enum { WEIGHT = NPS_PARAM_WEIGHT, LAMBDA, NORMALIZE, DENSITY };

static bool is_split(const nps_merge_tensor_t *tensor) {
  return tensor->rows > 0 && !nps_factors_excludes(tensor->name, tensor->nps->exclude, tensor->nps->exclude_count);
}

static bool same_densities(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first) {
  for (int m = 0; m < tensor->models; m++)
    if (tensor->param[DENSITY][m] != first->param[DENSITY][m]) return false;
  return true;
}

/* The sum is one for all models, so that its density is, and its λ are the same for all tensors. */
static bool check_sum(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  double lambda[tensor->models], before[tensor->models];
  nps_merge_find_lambda(tensor, lambda);
  nps_merge_find_lambda(first, before);
  if ((int)tensor->param[NORMALIZE][0] != NPS_NORMALIZE_NONE) {
    snprintf(why, 160, "with nps.of: sum, nothing is divided: expected normalize none");
    return false;
  }
  for (int m = 0; m < tensor->models; m++) {
    if (tensor->param[DENSITY][m] == tensor->param[DENSITY][0] && lambda[m] == before[m]) continue;
    snprintf(why, 160, "with nps.of: sum, %s",
             lambda[m] == before[m] ? "density must be the same for all models"
                                    : "lambda and weight must be the same for all tensors");
    return false;
  }
  return true;
}

static bool singular_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  double lambda[tensor->models], total = 0;
  if (!same_densities(tensor, first)) {
    snprintf(why, 160, "with nps.partition: singular, density must be the same for all tensors");
    return false;
  }
  if (tensor->nps->sum) return check_sum(tensor, first, why);
  nps_merge_find_lambda(tensor, lambda);
  for (int m = 0; m < tensor->models; m++) total += lambda[m];
  if ((int)tensor->param[NORMALIZE][0] != NPS_NORMALIZE_SUM || fabs(total) >= NPS_TINY_LAMBDA) return true;
  snprintf(why, 160, "lambda × weight add up to %g, and normalize: sum divides by their sum", total);
  return false;
}

static nps_err_t merge_matrix(const nps_merge_tensor_t *tensor, const nps_weighting_t *w, double *update) {
  const nps_merge_nps_t *nps = tensor->nps;
  const float *found = NULL;
  NPS_TRY(nps_assembly_matrix(nps->assembly, nps->taking, w, nps->first_list,
                              nps_factors_matrix(nps->factors, tensor->order), &found));
  for (int64_t i = 0; i < tensor->count; i++) update[i] = found[i];
  return NPS_OK;
}

static void merge_rest(const nps_merge_tensor_t *tensor, const nps_weighting_t *w, float *const *tau, double *update) {
  float *chunk[tensor->models];
  for (int64_t first = 0; first < tensor->count; first += NPS_CHUNK) {
    for (int m = 0; m < tensor->models; m++) chunk[m] = tau[m] + first;
    nps_rest_update(tensor->nps->factors, w, tensor->nps->first_list, tensor->order, first,
                    nps_min64(tensor->count - first, NPS_CHUNK), chunk, update + first);
  }
}

/* On one rank. */
static nps_err_t singular_merge(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update) {
  nps_weighting_t *w = nps_weighting_copy(tensor->nps->weighting);
  nps_err_t err = NPS_OK;
  nps_merge_find_lambda(tensor, w->lambda);
  w->normalize = (nps_normalize_t)tensor->param[NORMALIZE][0];
  if (is_split(tensor))
    err = merge_matrix(tensor, w, update->local);
  else
    merge_rest(tensor, w, tau, update->local);
  nps_weighting_free(w);
  return err;
}

static int lists_of(const nps_merge_tensor_t *tensor) { return tensor->nps->sum ? 1 : tensor->models; }

/* Of factorising and assembling. */
static double singular_seconds(const nps_merge_tensor_t *tensor, int ranks) {
  (void)ranks;
  if (!is_split(tensor)) return 1e-9 * (double)tensor->count * tensor->models;
  const double product = 2 * (double)tensor->count * (double)nps_min64(tensor->rows, tensor->columns) / 8e10;
  return lists_of(tensor) * (nps_svd_seconds(tensor->rows, tensor->columns, 0, NPS_SVD_GRAM) + product);
}

/* Factorising is over when tensors are assembled: the larger of both counts. Both are one rank's. */
static int64_t singular_bytes(const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t n = nps_min64(tensor->rows, tensor->columns), sides = tensor->rows + tensor->columns;
  if (ranks > 1) return INT64_MAX;
  if (!is_split(tensor)) return 0;
  const int64_t held = (16 + 4 * (int64_t)tensor->models) * tensor->count;
  const int64_t svd =
      nps_svd_bytes(tensor->rows, tensor->columns, 0, NPS_SVD_GRAM) + 8 * tensor->count + 12 * n * sides - held;
  return nps_max64(4 * tensor->count + 4 * nps_min64(1024, n * lists_of(tensor)) * sides, svd);
}

const nps_merge_method_t nps_method_nps_singular = {
    .name = "nps",
    .summary = "singular triples of the task vectors, weighed by bands, kept by score and summed",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = NPS_PARAMS,
    .param_count = NPS_PARAM_COUNT,
    .check = singular_check,
    .merge_whole = singular_merge,
    .whole_seconds = singular_seconds,
    .whole_bytes = singular_bytes,
};
