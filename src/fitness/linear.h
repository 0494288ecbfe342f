/** @file linear.h
 *  Linear layers of networks, shared by all families: y = x·Wᵀ + b on rows of numbers, W out×in as Hugging Face stores it.
 *  Everything here is local. */
#ifndef NPS_FITNESS_LINEAR_H
#define NPS_FITNESS_LINEAR_H

#include "fitness_internal.h"

/** A linear layer: indices of its tensors in the network; bias −1: none. Where the network is a mixture every product is that
 *  of the base, and what the chosen experts add. */
typedef struct nps_linear {
  int weight, bias;
  int64_t out, in;
  bool turned; /**< the weight is stored [in][out] */
  int experts; /**< 1 + index into the mixture's layers; 0: none */
} nps_linear_t;

/** Add PREFIX NAME.weight [out][in] and, where `bias`, NAME.bias [out] to a network. Problems are recorded.
 *  @param is_head  may come from the head model */
nps_err_t nps_net_add_linear(nps_net_t *net, const char *prefix, const char *name, bool is_head, bool bias, int64_t out,
                             int64_t in, nps_linear_t *layer);

/** Add a weight that is stored [in][out], and its bias. Such layers have no experts. */
nps_err_t nps_net_add_turned(nps_net_t *net, const char *prefix, const char *name, int64_t out, int64_t in,
                             nps_linear_t *layer);

/** Add the classifier, which may come from the head model: as many classes as its weight has rows. */
nps_err_t nps_net_add_classifier(nps_net_t *net, const char *prefix, const char *name, bool bias, int64_t in,
                                 nps_linear_t *layer);

/** y = x·Wᵀ + b / y += x·Wᵀ + b / y = x·Wᵀ, where the bias is left to what follows.
 *  @param x  [m][in], leading dimension ldx; @param y  [m][out], leading dimension ldy */
void nps_linear_set(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx, float *y,
                    int64_t ldy);
void nps_linear_add(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx, float *y,
                    int64_t ldy);
void nps_linear_product(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx,
                        float *y, int64_t ldy);

/** y += W·xᵀ: the product transposed, without the bias. @param y  [out][m], leading dimension ldy */
void nps_linear_add_turned(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx,
                           float *y, int64_t ldy);

/** Give a layer's bias, or NULL. */
const float *nps_linear_bias(const nps_pass_t *pass, const nps_linear_t *layer);

#endif
