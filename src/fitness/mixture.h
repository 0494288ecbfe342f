/** @file mixture.h
 *  Mixtures of low-rank experts in linear layers (SMILE: Tang et al., arXiv 2408.10174): for every token x the router gives each
 *  expert i the logit ‖V_{i,1..kg} x‖; the top K experts are taken with their softmax divided by its sum over them, w_i:
 *  y = W0·x + b0 + Σ w_i (U_iᵀ S_i V_i x + b_i − b0). Equal logits: the earlier expert comes first. A token in whose input no
 *  expert has a part, all logits 0, stays with the base. Everything here is local. */
#ifndef NPS_FITNESS_MIXTURE_H
#define NPS_FITNESS_MIXTURE_H

#include "linear.h"

/** Begin the mixture of a network whose body has experts. */
void nps_mixture_start(nps_net_t *net);

/** Add the experts of a linear layer to the network's tensors, where the body has some for it. Shapes are checked.
 *  @param bias_name  NULL: the layer has no bias
 *  @param[in,out] layer  its `experts` are set */
nps_err_t nps_mixture_take(nps_net_t *net, const char *weight_name, const char *bias_name, nps_linear_t *layer);

/** Check that the network uses all experts of the body. NPS_ERR_INPUT names one that it does not. */
nps_err_t nps_mixture_check(const nps_net_t *net);

/** Give the numbers of working memory: a multiple of 16, whatever the batch. */
size_t nps_mixture_room(const nps_mixture_t *mixture);

/** Add to y what the experts of a layer give for the rows of x; number j of row i of y lies at i·row_step + j·column_step.
 *  @param x  [m][in], leading dimension ldx */
void nps_mixture_add(const nps_pass_t *pass, int layer, int64_t m, const float *x, int64_t ldx, float *y,
                     int64_t row_step, int64_t column_step);

void nps_mixture_free(nps_mixture_t *mixture);

#endif
