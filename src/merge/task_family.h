/** @file task_family.h
 *  What the methods of the task-arithmetic family share, one pipeline over task vectors τ_i:
 *  δ_i = τ_i → sparsify and rescale → × w_i → consensus → Σ → × λ → ÷ divisor if normalize → + θ0. Everything is local. */
#ifndef NPS_MERGE_TASK_FAMILY_H
#define NPS_MERGE_TASK_FAMILY_H

#include "merge_internal.h"

/** Their parameters, in this order; a method's own come at OWN and after it. Methods that drop nothing have no density. */
enum { NPS_FAMILY_WEIGHT, NPS_FAMILY_LAMBDA, NPS_FAMILY_NORMALIZE, NPS_FAMILY_DENSITY, NPS_FAMILY_OWN };

#define NPS_FAMILY_PARAMS(normalized)                                                                                  \
  [NPS_FAMILY_WEIGHT] = {.name = "weight", .per_model = true, .required = true, .least = -1e30, .most = 1e30},         \
  [NPS_FAMILY_LAMBDA] = {.name = "lambda", .fallback = 1, .least = -1e30, .most = 1e30},                               \
  [NPS_FAMILY_NORMALIZE] = {                                                                                           \
      .name = "normalize", .kind = NPS_PARAM_CHOICE, .fallback = normalized, .choices = nps_choices_bool}

#define NPS_FAMILY_PARAM_DENSITY                                                                                       \
  [NPS_FAMILY_DENSITY] = {.name = "density", .per_model = true, .fallback = 1, .least = 0, .most = 1}

/** Put the sparsified task vectors of a chunk together as their sum.
 *  @param scale     [models] factors of the task vectors; NULL: 1
 *  @param[out] out  [chunk->count] the update to θ0 */
void nps_family_sum(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, const double *scale, double *out);

/** Put them together by elected sign, as TIES does. Parameters as of nps_family_sum(). */
void nps_family_consensus(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, const double *scale,
                          double *out);

/** Note that all entries of a chunk are kept. @param[in,out] kept  [models] */
void nps_family_keep_all(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, int64_t *kept);

/** Give the factor that makes up for what was dropped: Σ|τ| / Σ|kept τ|; 1 where either is as good as nothing. */
double nps_family_l1_factor(double all, double kept);

/** Whether no tensor has a density below 1. @param tensors  [count] */
bool nps_family_all_dense(const nps_merge_tensor_t *tensors, int count);

#endif
