/* Vision transformers: ViTForImageClassification, or a bare ViTModel with the classifier of a head model. The logits
 * come from the class token after the last layer norm; a pooler is not part of it. */
#include "fitness_internal.h"
#include "images.h"
#include "kernels.h"
#include "linear.h"

#include "nps/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Indices of tensors. */
typedef struct {
  int weight, bias;
} pair_t;

typedef struct {
  pair_t norm_before, norm_after;
  nps_linear_t query, key, value, output, up, down;
} layer_t;

typedef struct {
  int64_t hidden, layers, heads, inner, channels;
  int64_t image[2], patch[2], grid[2]; /* height, width; grid: patches */
  int64_t tokens;                      /* patches and the class token */
  int64_t patch_size;                  /* numbers in a patch */
  int64_t classes;
  bool qkv_bias;
  double eps;
  nps_activation_fn *activation;
  const char *prefix; /* of the body's tensors */
  int class_token, positions;
  pair_t patches, norm;
  nps_linear_t classifier;
  layer_t *layer; /* [layers] */
} vit_t;

/* ---- description ---- */

static const char *const linear_layers[] = {
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    NULL,
};

static const char *const refused[] = {"quantization_config", "pruned_heads"};

static nps_err_t derive(const nps_net_t *net, const json_t *config, vit_t *v) {
  const char *path = net->body->path;
  int64_t head_dim = 0;
  if (v->hidden % v->heads != 0)
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: hidden_size %lld is no multiple of num_attention_heads %lld", path,
                    (long long)v->hidden, (long long)v->heads);
  NPS_TRY(nps_net_get_count(net, config, "head_dim", v->hidden / v->heads, &head_dim));
  if (head_dim != v->hidden / v->heads)
    return nps_fail(NPS_ERR_INPUT,
                    "%s: config.json: head_dim %lld is not implemented, only hidden_size / "
                    "num_attention_heads",
                    path, (long long)head_dim);
  for (int i = 0; i < 2; i++) v->grid[i] = v->image[i] / v->patch[i];
  v->tokens = v->grid[0] * v->grid[1] + 1;
  v->patch_size = v->channels * v->patch[0] * v->patch[1];
  if (v->tokens * v->hidden > INT32_MAX)
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: %lld patches with hidden_size %lld are too large for BLAS", path,
                    (long long)v->tokens - 1, (long long)v->hidden);
  if (v->grid[0] > 0 && v->grid[1] > 0 && v->tokens <= 65536 && v->patch_size <= 1048576) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT,
                  "%s: config.json: image_size %lldx%lld in patches of %lldx%lld: expected 1 to 65535 "
                  "patches, of at most 1048576 numbers",
                  path, (long long)v->image[0], (long long)v->image[1], (long long)v->patch[0], (long long)v->patch[1]);
}

static nps_err_t read_config(const nps_net_t *net, const json_t *config, vit_t *v) {
  nps_err_t err = NPS_OK;
#define ALSO(expr) err = nps_err_worse(err, expr)
  ALSO(nps_net_get_count(net, config, "hidden_size", 768, &v->hidden));
  ALSO(nps_net_get_count(net, config, "num_hidden_layers", 12, &v->layers));
  ALSO(nps_net_get_count(net, config, "num_attention_heads", 12, &v->heads));
  ALSO(nps_net_get_count(net, config, "intermediate_size", 3072, &v->inner));
  ALSO(nps_net_get_count(net, config, "num_channels", 3, &v->channels));
  ALSO(nps_net_get_pair(net, config, "image_size", 224, v->image));
  ALSO(nps_net_get_pair(net, config, "patch_size", 16, v->patch));
  ALSO(nps_net_get_number(net, config, "layer_norm_eps", 1e-12, &v->eps));
  ALSO(nps_net_get_bool(net, config, "qkv_bias", true, &v->qkv_bias));
  ALSO(nps_net_get_activation(net, config, "gelu", &v->activation));
  ALSO(nps_net_check_problem_type(net, config));
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) ALSO(nps_net_refuse(net, config, refused[i]));
  if (err == NPS_OK) err = derive(net, config, v);
  return err;
}

/* Adds PREFIX NAME.weight of the shape, and NAME.bias as long as its first dimension. */
static nps_err_t add_pair(nps_net_t *net, const char *prefix, const char *name, int ndim, const int64_t *shape,
                          pair_t *pair) {
  char *weight_name = nps_xstrf("%s%s.weight", prefix, name), *bias_name = nps_xstrf("%s%s.bias", prefix, name);
  nps_err_t err = nps_net_add(net, weight_name, false, ndim, shape, &pair->weight);
  err = nps_err_worse(err, nps_net_add(net, bias_name, false, 1, shape, &pair->bias));
  free(weight_name);
  free(bias_name);
  return err;
}

static nps_err_t add_layer(nps_net_t *net, const vit_t *v, int64_t l, layer_t *layer) {
  const int64_t h = v->hidden, inner = v->inner;
  const bool qkv = v->qkv_bias;
  nps_err_t err = NPS_OK;
  char *prefix = nps_xstrf("%sencoder.layer.%lld.", v->prefix, (long long)l);
  ALSO(add_pair(net, prefix, "layernorm_before", 1, &h, &layer->norm_before));
  ALSO(nps_net_add_linear(net, prefix, "attention.attention.query", false, qkv, h, h, &layer->query));
  ALSO(nps_net_add_linear(net, prefix, "attention.attention.key", false, qkv, h, h, &layer->key));
  ALSO(nps_net_add_linear(net, prefix, "attention.attention.value", false, qkv, h, h, &layer->value));
  ALSO(nps_net_add_linear(net, prefix, "attention.output.dense", false, true, h, h, &layer->output));
  ALSO(add_pair(net, prefix, "layernorm_after", 1, &h, &layer->norm_after));
  ALSO(nps_net_add_linear(net, prefix, "intermediate.dense", false, true, inner, h, &layer->up));
  ALSO(nps_net_add_linear(net, prefix, "output.dense", false, true, h, inner, &layer->down));
  free(prefix);
  return err;
}

static nps_err_t add_embeddings(nps_net_t *net, vit_t *v) {
  const int64_t token[3] = {1, 1, v->hidden}, positions[3] = {1, v->tokens, v->hidden};
  const int64_t patches[4] = {v->hidden, v->channels, v->patch[0], v->patch[1]};
  nps_err_t err = NPS_OK;
  char *class_token = nps_xstrf("%sembeddings.cls_token", v->prefix);
  char *position = nps_xstrf("%sembeddings.position_embeddings", v->prefix);
  ALSO(nps_net_add(net, class_token, false, 3, token, &v->class_token));
  ALSO(nps_net_add(net, position, false, 3, positions, &v->positions));
  ALSO(add_pair(net, v->prefix, "embeddings.patch_embeddings.projection", 4, patches, &v->patches));
  free(class_token);
  free(position);
  return err;
}

/* Stages: the embedding, the layers, the last norm with the classifier. */
static nps_err_t describe(nps_net_t *net, const json_t *config, void **shape) {
  bool of_head = false;
  vit_t *v = nps_xcalloc(1, sizeof *v);
  *shape = v;
  NPS_TRY(read_config(net, config, v));
  const int layers = (int)v->layers;
  v->prefix = nps_net_look_up(net, "embeddings.cls_token", false, &of_head) ? "" : "vit.";
  v->layer = nps_xcalloc((size_t)v->layers, sizeof *v->layer);
  for (int stage = 0; stage < layers + 2; stage++) nps_net_add_step(net, stage);
  nps_err_t err = add_embeddings(net, v);
  /* What is wrong in one layer is mostly wrong in all. */
  for (int l = 0; l < layers && err == NPS_OK; l++) {
    nps_net_begin_stage(net, 1 + l);
    err = add_layer(net, v, l, &v->layer[l]);
  }
  nps_net_begin_stage(net, layers + 1);
  ALSO(add_pair(net, v->prefix, "layernorm", 1, &v->hidden, &v->norm));
  ALSO(nps_net_add_classifier(net, "", "classifier", true, v->hidden, &v->classifier));
  v->classes = net->classes;
#undef ALSO
  return err;
}

static void free_shape(void *shape) {
  vit_t *v = shape;
  if (v) free(v->layer);
  free(v);
}

static nps_err_t check_data(const nps_net_t *net, const nps_dataset_t *data) {
  const vit_t *v = net->shape;
  return nps_images_check(net, data, v->channels, v->image);
}

static double flops(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)data;
  const vit_t *v = shape;
  const double h = (double)v->hidden, t = (double)v->tokens, inner = (double)v->inner;
  const double patches = t * (double)v->patch_size * h, key_value = t * 2 * h * h;
  const double rest = 2 * h * h + 2 * h * inner + 2 * t * h; /* for a token: query, output, MLP, scores and values */
  const double layers = (double)v->layers * key_value + (double)(v->layers - 1) * t * rest + rest;
  return 2 * (double)n * (patches + layers + h * (double)v->classes);
}

/* ---- forward pass ---- */

typedef struct {
  const vit_t *v;
  const nps_pass_t *pass;
  int64_t n, rows; /* samples, tokens of all of them */
  int64_t ldq;     /* leading dimension of the transposed queries */
  int64_t plane;   /* room of [rows][hidden] */
  float *x;        /* [rows][hidden] the activation */
  float *norm;     /* [rows][hidden], then what attention gives */
  float *keys;     /* [rows][hidden] */
  float *value;    /* [rows][hidden] */
  float *query;    /* [hidden][ldq] transposed, and NPS_PAD more */
  float *scores;   /* what attention needs */
  float *inner;    /* [rows][inner], [rows][patch_size] or [n][classes]: shares its place with keys, value and query */
} work_t;

static int64_t padded(int64_t n) { return (n + NPS_PAD - 1) / NPS_PAD * NPS_PAD; }

/* An odd number of cache lines: a column of queries then spreads over the sets of the cache. */
static int64_t query_stride(int64_t rows) {
  const int64_t lines = padded(rows) / NPS_PAD;
  return (lines | 1) * NPS_PAD;
}

static work_t start_work(const vit_t *v, int64_t n) {
  const int64_t rows = n * v->tokens;
  return (work_t){.v = v, .n = n, .rows = rows, .ldq = query_stride(rows), .plane = padded(rows * v->hidden)};
}

static int64_t scores_size(const vit_t *v) { return (v->tokens + 3) * padded(v->tokens); }

static int64_t scratch_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)data;
  const vit_t *v = shape;
  const work_t w = start_work(v, n);
  const int64_t attention = 2 * w.plane + v->hidden * w.ldq + NPS_PAD;
  const int64_t wide = nps_max64(w.rows * nps_max64(v->inner, v->patch_size), n * v->classes);
  return w.plane + scores_size(v) + nps_max64(attention, wide);
}

static void lay_out(work_t *w, float *scratch) {
  w->x = w->pass->x;
  w->norm = scratch;
  w->scores = w->norm + w->plane;
  w->keys = w->inner = w->scores + scores_size(w->v);
  w->value = w->keys + w->plane;
  w->query = w->value + w->plane;
}

static const float *tensor_of(const work_t *w, int index) { return w->pass->weights[index]; }

static void embed(const work_t *w) {
  const vit_t *v = w->v;
  const nps_pass_t *pass = w->pass;
  const int64_t image = v->channels * v->image[0] * v->image[1], sample = v->tokens * v->hidden;
  const nps_patches_t patches = {.channels = v->channels,
                                 .image = {v->image[0], v->image[1]},
                                 .patch = {v->patch[0], v->patch[1]},
                                 .grid = {v->grid[0], v->grid[1]}};
  for (int64_t i = 0; i < w->n; i++) {
    float *x = w->x + i * sample;
    nps_images_cut(&patches, pass->data->inputs + pass->samples[i] * image, w->inner + i * v->tokens * v->patch_size);
    memcpy(x, tensor_of(w, v->positions), (size_t)sample * sizeof *x);
    nps_kernel_add(x, v->hidden, 1, v->hidden, tensor_of(w, v->class_token));
    nps_kernel_add(x + v->hidden, v->hidden, v->tokens - 1, v->hidden, tensor_of(w, v->patches.bias));
  }
  nps_sgemm(true, w->rows, v->hidden, v->patch_size, 1, w->inner, v->patch_size, tensor_of(w, v->patches.weight),
            v->patch_size, 1, w->x, v->hidden);
}

static void normalise(const work_t *w, pair_t pair, int64_t m, int64_t ldx) {
  nps_kernel_layer_norm(w->x, ldx, m, w->v->hidden, tensor_of(w, pair.weight), tensor_of(w, pair.bias), w->v->eps,
                        w->norm);
}

/* query[c][i] = number c of the query of row i, for m rows: the product is made transposed, as attention reads it.
 * Columns behind the last are read, though not used: they must hold numbers. */
static void make_queries(const work_t *w, const layer_t *layer, int64_t m, int64_t step) {
  const int64_t h = w->v->hidden;
  const float *bias = nps_linear_bias(w->pass, &layer->query);
  for (int64_t c = 0; c < h; c++)
    for (int64_t i = 0; i < w->ldq; i++) w->query[c * w->ldq + i] = bias ? bias[c] : 0;
  memset(w->query + h * w->ldq, 0, NPS_PAD * sizeof(float));
  nps_linear_add_turned(w->pass, &layer->query, m, w->norm, step, w->query, w->ldq);
}

/* Attention of `queries` tokens of every sample. The result takes the place of the normalised rows. */
static void attend(const work_t *w, int64_t queries) {
  const vit_t *v = w->v;
  const int64_t h = v->hidden, width = h / v->heads;
  nps_attention_t a = {.scores = w->scores, .queries = queries, .tokens = v->tokens, .width = width};
  a.ldk = a.ldv = a.ldo = h;
  a.ldq = w->ldq;
  a.scale = (float)(1 / sqrt((double)width));
  for (int64_t i = 0; i < w->n; i++)
    for (int64_t head = 0; head < v->heads; head++) {
      a.query = w->query + head * width * w->ldq + i * queries;
      a.keys = w->keys + i * v->tokens * h + head * width;
      a.value = w->value + i * v->tokens * h + head * width;
      a.out = w->norm + i * queries * h + head * width;
      nps_kernel_attention(&a);
    }
}

/* In the last layer only the class tokens' rows of query and of what follows count: every tokens-th row of x. */
static void run_layer(const work_t *w, const layer_t *layer, bool last) {
  const vit_t *v = w->v;
  const int64_t h = v->hidden, queries = last ? 1 : v->tokens, m = w->n * queries, step = last ? v->tokens * h : h;
  normalise(w, layer->norm_before, w->rows, h);
  make_queries(w, layer, m, step);
  nps_linear_set(w->pass, &layer->key, w->rows, w->norm, h, w->keys, h);
  nps_linear_set(w->pass, &layer->value, w->rows, w->norm, h, w->value, h);
  attend(w, queries);
  nps_linear_add(w->pass, &layer->output, m, w->norm, h, w->x, step);
  normalise(w, layer->norm_after, m, step);
  nps_linear_product(w->pass, &layer->up, m, w->norm, h, w->inner, v->inner);
  const float *bias = nps_linear_bias(w->pass, &layer->up);
  for (int64_t i = 0; i < m; i++) v->activation(w->inner + i * v->inner, bias, v->inner);
  nps_linear_add(w->pass, &layer->down, m, w->inner, v->inner, w->x, step);
}

static void classify(const work_t *w) {
  const vit_t *v = w->v;
  normalise(w, v->norm, w->n, v->tokens * v->hidden);
  nps_linear_set(w->pass, &v->classifier, w->n, w->norm, v->hidden, w->inner, v->classes);
  nps_pass_take_samples(w->pass, w->inner, v->classes);
}

static void run(const void *shape, const nps_pass_t *pass, const nps_net_step_t *step, float *scratch) {
  const vit_t *v = shape;
  const int64_t layer = step->stage - 1;
  work_t w = start_work(v, pass->n);
  w.pass = pass;
  lay_out(&w, scratch);
  if (layer < 0)
    embed(&w);
  else if (layer < v->layers)
    run_layer(&w, &v->layer[layer], layer == v->layers - 1);
  else
    classify(&w);
}

static int64_t activation_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)data;
  const vit_t *v = shape;
  return n * v->tokens * v->hidden;
}

const nps_net_family_t nps_net_vit = {
    .model_type = "vit",
    .linear_layers = linear_layers,
    .describe = describe,
    .free_shape = free_shape,
    .check_data = check_data,
    .flops = flops,
    .activation = activation_size,
    .rows = nps_pass_sample_rows,
    .scratch = scratch_size,
    .run = run,
};
