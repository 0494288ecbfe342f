#include "linear.h"

#include "kernels.h"
#include "mixture.h"

#include "nps/blas.h"

#include <stdlib.h>

nps_err_t nps_net_add_linear(nps_net_t *net, const char *prefix, const char *name, bool is_head, bool bias, int64_t out,
                             int64_t in, nps_linear_t *layer) {
  const int64_t shape[2] = {out, in};
  char *weight_name = nps_xstrf("%s%s.weight", prefix, name), *bias_name = nps_xstrf("%s%s.bias", prefix, name);
  *layer = (nps_linear_t){.bias = -1, .out = out, .in = in};
  nps_err_t err = nps_net_add(net, weight_name, is_head, 2, shape, &layer->weight);
  if (bias) err = nps_err_worse(err, nps_net_add(net, bias_name, is_head, 1, shape, &layer->bias));
  if (net->body->experts && !net->tensors[layer->weight].of_head)
    err = nps_err_worse(err, nps_mixture_take(net, weight_name, bias ? bias_name : NULL, layer));
  free(weight_name);
  free(bias_name);
  return err;
}

nps_err_t nps_net_add_turned(nps_net_t *net, const char *prefix, const char *name, int64_t out, int64_t in,
                             nps_linear_t *layer) {
  const int64_t shape[2] = {in, out};
  char *weight_name = nps_xstrf("%s%s.weight", prefix, name), *bias_name = nps_xstrf("%s%s.bias", prefix, name);
  *layer = (nps_linear_t){.out = out, .in = in, .turned = true};
  nps_err_t err = nps_net_add(net, weight_name, false, 2, shape, &layer->weight);
  err = nps_err_worse(err, nps_net_add(net, bias_name, false, 1, shape + 1, &layer->bias));
  free(weight_name);
  free(bias_name);
  return err;
}

nps_err_t nps_net_add_classifier(nps_net_t *net, const char *prefix, const char *name, bool bias, int64_t in,
                                 nps_linear_t *layer) {
  bool of_head = false;
  char *weight_name = nps_xstrf("%s%s.weight", prefix, name);
  const nps_tensor_info_t *info = nps_net_look_up(net, weight_name, true, &of_head);
  const bool usable = info && info->ndim == 2 && info->shape[0] >= 1 && info->shape[0] <= 1 << 20;
  free(weight_name);
  net->classes = usable ? (int)info->shape[0] : 1;
  return nps_net_add_linear(net, prefix, name, true, bias, net->classes, in, layer);
}

const float *nps_linear_bias(const nps_pass_t *pass, const nps_linear_t *layer) {
  return layer->bias < 0 ? NULL : pass->weights[layer->bias];
}

/* y = x·Wᵀ + beta·y */
static void multiply(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx,
                     float beta, float *y, int64_t ldy) {
  nps_sgemm(!layer->turned, m, layer->out, layer->in, 1, x, ldx, pass->weights[layer->weight],
            layer->turned ? layer->out : layer->in, beta, y, ldy);
  if (layer->experts > 0) nps_mixture_add(pass, layer->experts - 1, m, x, ldx, y, ldy, 1);
}

void nps_linear_set(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx, float *y,
                    int64_t ldy) {
  nps_kernel_fill(y, ldy, m, layer->out, nps_linear_bias(pass, layer));
  multiply(pass, layer, m, x, ldx, 1, y, ldy);
}

void nps_linear_add(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx, float *y,
                    int64_t ldy) {
  const float *bias = nps_linear_bias(pass, layer);
  if (bias) nps_kernel_add(y, ldy, m, layer->out, bias);
  multiply(pass, layer, m, x, ldx, 1, y, ldy);
}

void nps_linear_product(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx,
                        float *y, int64_t ldy) {
  multiply(pass, layer, m, x, ldx, 0, y, ldy);
}

void nps_linear_add_turned(const nps_pass_t *pass, const nps_linear_t *layer, int64_t m, const float *x, int64_t ldx,
                           float *y, int64_t ldy) {
  nps_sgemm(true, layer->out, m, layer->in, 1, pass->weights[layer->weight], layer->in, x, ldx, 1, y, ldy);
  if (layer->experts > 0) nps_mixture_add(pass, layer->experts - 1, m, x, ldx, y, 1, ldy);
}
