/** @file combine.h
 *  Arithmetic on a chunk that several methods share. Everything here is local. */
#ifndef NPS_MERGE_COMBINE_H
#define NPS_MERGE_COMBINE_H

#include "nps/tensor.h"

/** How the task vectors of a chunk are put together. */
typedef struct nps_combination {
  int models;
  float *const *tau;    /**< [models][n] */
  const double *weight; /**< [models] */
  const double *scale;  /**< [models] factors of the task vectors; NULL: 1 */
  bool consensus;       /**< only the entries that have the sign of the sum of all, + where it is 0 */
  bool normalize;       /**< of consensus: divided by the sum of their weights, where that is not 0 */
  double lambda;        /**< factor of a sum that is divided */
} nps_combination_t;

/** Sum weight × (scale × τ) over the models, in float64, in order.
 *  @param[out] out  [n] */
void nps_combine(const nps_combination_t *combination, int64_t n, double *out);

/** Set out = factor × x, in float64. @param out  [n] */
void nps_scale(const double *x, double factor, int64_t n, double *out);

/** Add factor × x / a task vector to a sum, in float64. @param sum  [n] */
void nps_add_scaled(const double *x, double factor, int64_t n, double *sum);
void nps_add_task_vector(const float *tau, int64_t n, double *sum);

/** Set the entries to zero whose bit is not set.
 *  @param stays  bit i mod 8 of byte i div 8 is entry i's
 *  @return how many stay */
int64_t nps_drop(float *x, const uint8_t *stays, int64_t n);

/** Add |x_i| to one sum, and to another where the entry's bit is set.
 *  @param all, kept  of blocks in work; x starts at a multiple of 16 in its block
 *  @param stays      as in nps_drop() */
void nps_add_magnitudes(nps_lanes_t *all, nps_lanes_t *kept, const float *x, const uint8_t *stays, int64_t n);

#endif
