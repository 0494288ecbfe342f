#include "task_family.h"
#include "combine.h"

#include <math.h>

/* Weights that add up to less are not divided by. */
#define TINY_WEIGHT 1e-8

/* An L1 norm below it is taken as nothing: no rescaling. */
#define TINY_L1 1e-7

NPS_VECTOR_CLONES
static void divide_all(double *sum, double lambda, double divisor, int64_t n) {
  for (int64_t i = 0; i < n; i++) sum[i] = lambda * sum[i] / divisor;
}

void nps_family_sum(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, const double *scale,
                    double *out) {
  const double *weight = tensor->param[NPS_FAMILY_WEIGHT], lambda = tensor->param[NPS_FAMILY_LAMBDA][0];
  double divisor = 0;
  for (int m = 0; m < tensor->models; m++) divisor += weight[m];
  if (tensor->param[NPS_FAMILY_NORMALIZE][0] == 0 || fabs(divisor) < TINY_WEIGHT) divisor = 1;
  nps_combine(&(nps_combination_t){.models = tensor->models, .tau = chunk->tau, .weight = weight, .scale = scale},
              chunk->count, out);
  if (lambda != 1 || divisor != 1) divide_all(out, lambda, divisor, chunk->count);
}

void nps_family_consensus(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, const double *scale,
                          double *out) {
  const bool normalize = tensor->param[NPS_FAMILY_NORMALIZE][0] != 0;
  const double lambda = tensor->param[NPS_FAMILY_LAMBDA][0];
  nps_combine(&(nps_combination_t){.models = tensor->models,
                                   .tau = chunk->tau,
                                   .weight = tensor->param[NPS_FAMILY_WEIGHT],
                                   .scale = scale,
                                   .consensus = true,
                                   .normalize = normalize,
                                   .lambda = lambda},
              chunk->count, out);
  if (!normalize && lambda != 1) divide_all(out, lambda, 1, chunk->count);
}

void nps_family_keep_all(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, int64_t *kept) {
  for (int m = 0; m < tensor->models; m++) kept[m] += chunk->count;
}

double nps_family_l1_factor(double all, double kept) { return all < TINY_L1 || kept < TINY_L1 ? 1 : all / kept; }

bool nps_family_all_dense(const nps_merge_tensor_t *tensors, int count) {
  for (int i = 0; i < count; i++)
    for (int m = 0; tensors[i].name && m < tensors[i].models; m++)
      if (tensors[i].param[NPS_FAMILY_DENSITY][m] < 1) return false;
  return true;
}
