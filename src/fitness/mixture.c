/* Tokens are taken in blocks; within a block those of an expert are gathered, so that each expert's part is two products. */
#include "mixture.h"

#include "nps/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1024 };

/* The experts of one linear layer: indices of tensors in the network. */
typedef struct {
  int u, sigma, v, bias; /* [experts][k][out], [experts][k], [experts][directions][in], [experts][out]; bias −1: none */
  int64_t out, in, k, directions;
  int64_t kg; /* directions of the router: the first */
} layer_t;

struct nps_mixture {
  int experts, top;
  layer_t *layers; /* [count] */
  int count;
  int64_t widest_in, widest_out, most_k, most_kg;
};

/* ---- description ---- */

void nps_mixture_start(nps_net_t *net) {
  net->mixture = nps_xcalloc(1, sizeof *net->mixture);
  net->mixture->experts = net->body->experts->count;
  net->mixture->top = (int)net->body->experts->top_k;
}

void nps_mixture_free(nps_mixture_t *mixture) {
  if (!mixture) return;
  free(mixture->layers);
  free(mixture);
}

static const nps_tensor_info_t *find_part(const nps_net_t *net, const char *kind, const char *name, char **full) {
  const nps_model_t *parts = net->body->experts->parts;
  *full = nps_xstrf("%s/%s", kind, name);
  const int i = nps_model_find(parts, *full);
  return i >= 0 ? &parts->tensors[i] : NULL;
}

/* Adds the part KIND/NAME of shape [experts][…], of which negative extents are whatever the file says (1 or more) and are
 * set. @return NPS_ERR_INPUT, and with *index −1 where there is none */
static nps_err_t add_part(nps_net_t *net, const char *kind, const char *name, int ndim, int64_t *shape, int *index) {
  const nps_model_t *parts = net->body->experts->parts;
  char *full = NULL;
  const nps_tensor_info_t *info = find_part(net, kind, name, &full);
  nps_err_t err = NPS_OK;
  *index = -1;
  if (info) {
    for (int d = 0; d < ndim; d++)
      if (shape[d] < 0) shape[d] = info->ndim == ndim && info->shape[d] > 0 ? info->shape[d] : 1;
    *index = net->count;
    nps_net_tensor_t *tensor = nps_net_append(net, full);
    tensor->of_experts = true;
    tensor->source = (int)(info - parts->tensors);
    tensor->count = info->count;
    err = nps_net_check_tensor(parts, info, ndim, shape);
  } else
    err = nps_fail(NPS_ERR_INPUT, "%s: the experts lack %s", net->body->path, full);
  free(full);
  return err;
}

static bool has_part(const nps_net_t *net, const char *kind, const char *name) {
  char *full = NULL;
  const bool found = find_part(net, kind, name, &full);
  free(full);
  return found;
}

static nps_err_t describe(nps_net_t *net, const char *weight_name, const char *bias_name, layer_t *l) {
  const nps_experts_t *experts = net->body->experts;
  int64_t u[3] = {experts->count, -1, l->out}, v[3] = {experts->count, -1, l->in}, bias[2] = {experts->count, l->out};
  NPS_TRY(add_part(net, "u", weight_name, 3, u, &l->u));
  NPS_TRY(add_part(net, "v", weight_name, 3, v, &l->v));
  NPS_TRY(add_part(net, "sigma", weight_name, 2, u, &l->sigma));
  if (bias_name) NPS_TRY(add_part(net, "bias", bias_name, 2, bias, &l->bias));
  l->k = u[1];
  l->directions = v[1];
  l->kg = nps_min64(experts->kg, l->directions);
  if (l->k <= l->directions) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: the experts of %s have %lld left and only %lld right vectors", net->body->path,
                  weight_name, (long long)l->k, (long long)l->directions);
}

nps_err_t nps_mixture_take(nps_net_t *net, const char *weight_name, const char *bias_name, nps_linear_t *layer) {
  nps_mixture_t *mixture = net->mixture;
  layer_t l = {.bias = -1, .out = layer->out, .in = layer->in};
  if (!has_part(net, "u", weight_name)) return NPS_OK;
  NPS_TRY(describe(net, weight_name, bias_name, &l));
  mixture->layers = nps_xrealloc(mixture->layers, (size_t)mixture->count + 1, sizeof *mixture->layers);
  mixture->layers[mixture->count++] = l;
  layer->experts = mixture->count;
  mixture->widest_in = nps_max64(mixture->widest_in, l.in);
  mixture->widest_out = nps_max64(mixture->widest_out, l.out);
  mixture->most_k = nps_max64(mixture->most_k, l.k);
  mixture->most_kg = nps_max64(mixture->most_kg, l.kg);
  return NPS_OK;
}

nps_err_t nps_mixture_check(const nps_net_t *net) {
  const nps_model_t *parts = net->body->experts->parts;
  bool *used = nps_xcalloc((size_t)parts->tensor_count + 1, sizeof *used);
  nps_err_t err = NPS_OK;
  for (int i = 0; i < net->count; i++)
    if (net->tensors[i].of_experts) used[net->tensors[i].source] = true;
  for (int i = 0; i < parts->tensor_count && err == NPS_OK; i++)
    if (!used[i])
      err = nps_fail(NPS_ERR_INPUT, "%s: /experts/%s belongs to no linear layer of the network", net->body->path,
                     parts->tensors[i].name);
  free(used);
  return err;
}

/* ---- working memory ---- */

/* Of one block. */
typedef struct {
  float *logits; /* [BLOCK][experts] */
  float *share;  /* [BLOCK][experts] w_i; 0: not chosen */
  float *inner;  /* [BLOCK][kg or k] */
  float *x;      /* [BLOCK][in] gathered rows */
  float *y;      /* [BLOCK][out] what they get */
} room_t;

static size_t padded(int64_t n) { return ((size_t)n * BLOCK + 15) / 16 * 16; }

static int64_t inner_width(const nps_mixture_t *m) { return nps_max64(m->most_k, m->most_kg); }

size_t nps_mixture_room(const nps_mixture_t *m) {
  return 2 * padded(m->experts) + padded(inner_width(m)) + padded(m->widest_in) + padded(m->widest_out);
}

static room_t lay_out(const nps_mixture_t *m, float *memory) {
  room_t r = {.logits = memory};
  r.share = r.logits + padded(m->experts);
  r.inner = r.share + padded(m->experts);
  r.x = r.inner + padded(inner_width(m));
  r.y = r.x + padded(m->widest_in);
  return r;
}

/* ---- routers ---- */

/* logits[row][i] = ‖V_{i,1..kg} x‖ */
static void find_logits(const nps_pass_t *pass, const layer_t *l, const room_t *r, int64_t rows, const float *x,
                        int64_t ldx) {
  const int experts = pass->mixture->experts;
  for (int e = 0; e < experts; e++) {
    const float *v = pass->weights[l->v] + e * l->directions * l->in;
    nps_sgemm(true, rows, l->kg, l->in, 1, x, ldx, v, l->in, 0, r->inner, l->kg);
    for (int64_t i = 0; i < rows; i++) {
      double sum = 0;
      for (int64_t g = 0; g < l->kg; g++) sum += (double)r->inner[i * l->kg + g] * (double)r->inner[i * l->kg + g];
      r->logits[i * experts + e] = (float)sqrt(sum);
    }
  }
}

/* The largest logit that is not taken yet; of equal ones the first. */
static int find_next(const float *logits, const float *share, int experts) {
  int best = -1;
  for (int e = 0; e < experts; e++)
    if (share[e] == 0 && (best < 0 || logits[e] > logits[best])) best = e;
  return best;
}

/* share[i] = softmax of the logits over the top K; all 0 where no expert has a part in the token. */
static void choose(const nps_mixture_t *m, const float *logits, float *share) {
  double total = 0;
  memset(share, 0, (size_t)m->experts * sizeof *share);
  const int first = find_next(logits, share, m->experts);
  if (!(logits[first] > 0)) return;
  for (int t = 0; t < m->top; t++) share[find_next(logits, share, m->experts)] = 1;
  for (int e = 0; e < m->experts; e++)
    if (share[e] > 0) total += exp((double)logits[e] - (double)logits[first]);
  for (int e = 0; e < m->experts; e++)
    if (share[e] > 0) share[e] = (float)(exp((double)logits[e] - (double)logits[first]) / total);
}

/* ---- experts ---- */

static int64_t gather(const room_t *r, int experts, int e, int64_t rows, int64_t width, const float *x, int64_t ldx) {
  int64_t n = 0;
  for (int64_t i = 0; i < rows; i++)
    if (r->share[i * experts + e] > 0) memcpy(r->x + n++ * width, x + i * ldx, (size_t)width * sizeof *x);
  return n;
}

/* y = U_iᵀ S_i V_i x for n gathered rows. */
static void run_expert(const nps_pass_t *pass, const layer_t *l, const room_t *r, int e, int64_t n) {
  const float *v = pass->weights[l->v] + e * l->directions * l->in, *u = pass->weights[l->u] + e * l->k * l->out;
  const float *sigma = pass->weights[l->sigma] + e * l->k;
  nps_sgemm(true, n, l->k, l->in, 1, r->x, l->in, v, l->in, 0, r->inner, l->k);
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < l->k; k++) r->inner[i * l->k + k] *= sigma[k];
  nps_sgemm(false, n, l->out, l->k, 1, r->inner, l->k, u, l->out, 0, r->y, l->out);
}

/* Adds the rows' shares to where they belong. @param bias  [out] or NULL */
static void scatter(const layer_t *l, const room_t *r, int experts, int e, int64_t rows, const float *bias, float *y,
                    int64_t row_step, int64_t column_step) {
  const float *from = r->y;
  for (int64_t i = 0; i < rows; i++) {
    const float share = r->share[i * experts + e];
    float *to = y + i * row_step;
    if (!(share > 0)) continue;
    for (int64_t j = 0; j < l->out; j++) to[j * column_step] += share * (from[j] + (bias ? bias[j] : 0));
    from += l->out;
  }
}

void nps_mixture_add(const nps_pass_t *pass, int layer, int64_t m, const float *x, int64_t ldx, float *y,
                     int64_t row_step, int64_t column_step) {
  const nps_mixture_t *mixture = pass->mixture;
  const layer_t *l = &mixture->layers[layer];
  const int experts = mixture->experts;
  const room_t r = lay_out(mixture, pass->mixing);
  for (int64_t first = 0; first < m; first += BLOCK) {
    const int64_t rows = nps_min64(m - first, BLOCK);
    const float *from = x + first * ldx;
    find_logits(pass, l, &r, rows, from, ldx);
    for (int64_t i = 0; i < rows; i++) choose(mixture, r.logits + i * experts, r.share + i * experts);
    for (int e = 0; e < experts; e++) {
      const int64_t n = gather(&r, experts, e, rows, l->in, from, ldx);
      const float *bias = l->bias < 0 ? NULL : pass->weights[l->bias] + e * l->out;
      if (n > 0) run_expert(pass, l, &r, e, n);
      if (n > 0) scatter(l, &r, experts, e, rows, bias, y + first * row_step, row_step, column_step);
    }
  }
}
