/* CLIP's vision transformer as a classifier by text: the logits of an image are the products of its projected and normed class
 * token with one row a class, classifier.weight [classes][projection]: features of the classes' texts, of length
 * exp(logit_scale). CLIPModel, CLIPVisionModelWithProjection, or a bare CLIPVisionModel with visual_projection and
 * classifier of a head model. In the last layer only the class token's query, and what follows it, count. */
#include "fitness_internal.h"
#include "images.h"
#include "kernels.h"
#include "linear.h"
#include "texts.h"

#include "nps/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 512 /* of the MLP's inner rows held at once */ };

typedef struct {
  int weight, bias;
} pair_t;

typedef struct {
  pair_t norm_before, norm_after;
  nps_linear_t query, key, value, output, up, down;
} layer_t;

typedef struct {
  int64_t hidden, layers, heads, inner, tokens, patch_size; /* patch_size: numbers in a patch */
  nps_patches_t patches;
  double eps;
  nps_activation_fn *activation;
  const char *prefix; /* of the body's tensors */
  int class_token, positions, convolution;
  pair_t norm_first, norm_last;
  nps_linear_t projection, classifier;
  layer_t *layer; /* [layers] */
} clip_t;

/* ---- description ---- */

#define ALSO(expr) err = nps_err_worse(err, expr)

static const char *const linear_layers[] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2", NULL,
};

static nps_err_t derive(const nps_net_t *net, clip_t *c) {
  nps_patches_t *p = &c->patches;
  const char *path = net->body->path;
  for (int i = 0; i < 2; i++) p->grid[i] = p->image[i] / p->patch[i];
  c->tokens = p->grid[0] * p->grid[1] + 1;
  c->patch_size = p->channels * p->patch[0] * p->patch[1];
  if (c->hidden % c->heads != 0)
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: hidden_size %lld is no multiple of num_attention_heads %lld", path,
                    (long long)c->hidden, (long long)c->heads);
  if (c->tokens >= 2 && c->tokens <= 65536 && c->patch_size <= 1 << 20) return NPS_OK;
  return nps_fail(
      NPS_ERR_INPUT,
      "%s: config.json: image_size %lldx%lld in patches of %lldx%lld: expected 1 to 65535 patches, of at most "
      "1048576 numbers",
      path, (long long)p->image[0], (long long)p->image[1], (long long)p->patch[0], (long long)p->patch[1]);
}

static nps_err_t read_config(const nps_net_t *net, const json_t *config, clip_t *c) {
  nps_err_t err = NPS_OK;
  ALSO(nps_net_get_count(net, config, "hidden_size", 768, &c->hidden));
  ALSO(nps_net_get_count(net, config, "num_hidden_layers", 12, &c->layers));
  ALSO(nps_net_get_count(net, config, "num_attention_heads", 12, &c->heads));
  ALSO(nps_net_get_count(net, config, "intermediate_size", 3072, &c->inner));
  ALSO(nps_net_get_count(net, config, "num_channels", 3, &c->patches.channels));
  ALSO(nps_net_get_pair(net, config, "image_size", 224, c->patches.image));
  ALSO(nps_net_get_pair(net, config, "patch_size", 32, c->patches.patch));
  ALSO(nps_net_get_number(net, config, "layer_norm_eps", 1e-5, &c->eps));
  ALSO(nps_net_get_activation(net, config, "quick_gelu", &c->activation));
  ALSO(nps_net_refuse(net, config, "quantization_config"));
  if (err == NPS_OK) err = derive(net, c);
  return err;
}

static nps_err_t add_one(nps_net_t *net, const char *prefix, const char *name, int ndim, const int64_t *shape,
                         int *index) {
  char *full = nps_xstrf("%s%s", prefix, name);
  nps_err_t err = nps_net_add(net, full, false, ndim, shape, index);
  free(full);
  return err;
}

static nps_err_t add_norm(nps_net_t *net, const clip_t *c, const char *prefix, const char *name, pair_t *pair) {
  char *weight = nps_xstrf("%s.weight", name), *bias = nps_xstrf("%s.bias", name);
  nps_err_t err = add_one(net, prefix, weight, 1, &c->hidden, &pair->weight);
  ALSO(add_one(net, prefix, bias, 1, &c->hidden, &pair->bias));
  free(weight);
  free(bias);
  return err;
}

static nps_err_t add_embeddings(nps_net_t *net, clip_t *c) {
  const nps_patches_t *p = &c->patches;
  const int64_t positions[2] = {c->tokens, c->hidden}, patches[4] = {c->hidden, p->channels, p->patch[0], p->patch[1]};
  nps_err_t err = add_one(net, c->prefix, "embeddings.class_embedding", 1, &c->hidden, &c->class_token);
  ALSO(add_one(net, c->prefix, "embeddings.position_embedding.weight", 2, positions, &c->positions));
  ALSO(add_one(net, c->prefix, "embeddings.patch_embedding.weight", 4, patches, &c->convolution));
  ALSO(add_norm(net, c, c->prefix, "pre_layrnorm", &c->norm_first));
  return err;
}

static nps_err_t add_layer(nps_net_t *net, const clip_t *c, int l, layer_t *layer) {
  const int64_t h = c->hidden;
  nps_err_t err = NPS_OK;
  char *prefix = nps_xstrf("%sencoder.layers.%d.", c->prefix, l);
  ALSO(add_norm(net, c, prefix, "layer_norm1", &layer->norm_before));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.q_proj", false, true, h, h, &layer->query));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.k_proj", false, true, h, h, &layer->key));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.v_proj", false, true, h, h, &layer->value));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.out_proj", false, true, h, h, &layer->output));
  ALSO(add_norm(net, c, prefix, "layer_norm2", &layer->norm_after));
  ALSO(nps_net_add_linear(net, prefix, "mlp.fc1", false, true, c->inner, h, &layer->up));
  ALSO(nps_net_add_linear(net, prefix, "mlp.fc2", false, true, h, c->inner, &layer->down));
  free(prefix);
  return err;
}

/* The body's own projection, else the head model's. */
static nps_err_t add_head(nps_net_t *net, clip_t *c) {
  static const char name[] = "visual_projection.weight";
  bool of_head = false;
  const bool own = nps_net_look_up(net, name, false, &of_head);
  const nps_tensor_info_t *info = nps_net_look_up(net, name, !own, &of_head);
  const int64_t width =
      info && info->ndim == 2 && info->shape[0] >= 1 && info->shape[0] <= 1 << 20 ? info->shape[0] : 1;
  nps_err_t err = add_norm(net, c, c->prefix, "post_layernorm", &c->norm_last);
  ALSO(nps_net_add_linear(net, "", "visual_projection", !own, false, width, c->hidden, &c->projection));
  ALSO(nps_net_add_classifier(net, "", "classifier", false, width, &c->classifier));
  return err;
}

/* Stages: the embeddings, the layers, the head. */
static nps_err_t describe(nps_net_t *net, const json_t *config, void **shape) {
  bool of_head = false;
  clip_t *c = nps_xcalloc(1, sizeof *c);
  *shape = c;
  const json_t *vision = json_object_get(config, "vision_config");
  NPS_TRY(read_config(net, json_is_object(vision) ? vision : config, c));
  const int layers = (int)c->layers;
  c->prefix = nps_net_look_up(net, "embeddings.class_embedding", false, &of_head) ? "" : "vision_model.";
  c->layer = nps_xcalloc((size_t)layers, sizeof *c->layer);
  for (int stage = 0; stage < layers + 2; stage++) nps_net_add_step(net, stage);
  nps_err_t err = add_embeddings(net, c);
  for (int l = 0; l < layers && err == NPS_OK; l++) {
    nps_net_begin_stage(net, 1 + l);
    err = add_layer(net, c, l, &c->layer[l]);
  }
  nps_net_begin_stage(net, layers + 1);
  ALSO(add_head(net, c));
  return err;
}

#undef ALSO

static void free_shape(void *shape) {
  clip_t *c = shape;
  if (c) free(c->layer);
  free(c);
}

static nps_err_t check_data(const nps_net_t *net, const nps_dataset_t *data) {
  const clip_t *c = net->shape;
  return nps_images_check(net, data, c->patches.channels, c->patches.image);
}

static double flops(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)data;
  const clip_t *c = shape;
  const double h = (double)c->hidden, t = (double)c->tokens, p = (double)c->projection.out;
  const double rest = 2 * h * h + 2 * h * (double)c->inner + 2 * t * h; /* of a query */
  const double layers = (double)c->layers * t * 2 * h * h + ((double)(c->layers - 1) * t + 1) * rest;
  return 2 * (double)n * (t * (double)c->patch_size * h + layers + h * p + p * (double)c->classifier.out);
}

/* ---- forward pass ---- */

typedef struct {
  const clip_t *c;
  const nps_pass_t *pass;
  int64_t n, rows;            /* images, tokens of all of them */
  float *x;                   /* [rows][hidden] the activation; after the last layer [n][hidden] */
  float *norm;                /* [rows][hidden], then what attention gives */
  float *query, *key, *value; /* [rows][hidden] each */
  float *heads;               /* what attention needs */
  float *inner;               /* [ROWS][inner] */
  float *cut;                 /* [rows][patch_size] */
  float *features, *logits;   /* [n][projection], [n][classes] */
} work_t;

static work_t start_work(const clip_t *c, int64_t n) { return (work_t){.c = c, .n = n, .rows = n * c->tokens}; }

static int64_t lay_out(work_t *w, float *scratch) {
  const clip_t *c = w->c;
  const int64_t plane = w->rows * c->hidden;
  const nps_room_part_t parts[] = {{&w->norm, plane},
                                   {&w->query, plane},
                                   {&w->key, plane},
                                   {&w->value, plane},
                                   {&w->heads, nps_heads_room(c->tokens, c->hidden / c->heads)},
                                   {&w->inner, ROWS * c->inner},
                                   {&w->features, w->n * c->projection.out},
                                   {&w->logits, w->n * c->classifier.out}};
  w->cut = scratch;
  return nps_max64(nps_room_lay_out(parts, sizeof parts / sizeof *parts, scratch), w->rows * c->patch_size);
}

static int64_t scratch_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)data;
  work_t w = start_work(shape, n);
  return lay_out(&w, NULL);
}

static const float *tensor_of(const work_t *w, int index) { return w->pass->weights[index]; }

static void normalise(const work_t *w, pair_t norm, int64_t rows, float *y) {
  const int64_t h = w->c->hidden;
  nps_kernel_layer_norm(w->x, h, rows, h, tensor_of(w, norm.weight), tensor_of(w, norm.bias), w->c->eps, y);
}

static void embed(const work_t *w) {
  const clip_t *c = w->c;
  const nps_patches_t *p = &c->patches;
  const int64_t image = p->channels * p->image[0] * p->image[1], sample = c->tokens * c->hidden;
  for (int64_t i = 0; i < w->n; i++) {
    nps_images_cut(p, w->pass->data->inputs + w->pass->samples[i] * image, w->cut + i * c->tokens * c->patch_size);
    memcpy(w->x + i * sample, tensor_of(w, c->positions), (size_t)sample * sizeof *w->x);
    nps_kernel_add(w->x + i * sample, c->hidden, 1, c->hidden, tensor_of(w, c->class_token));
  }
  nps_sgemm(true, w->rows, c->hidden, c->patch_size, 1, w->cut, c->patch_size, tensor_of(w, c->convolution),
            c->patch_size, 1, w->x, c->hidden);
  normalise(w, c->norm_first, w->rows, w->x);
}

static void attend(const work_t *w, int64_t queries) {
  const clip_t *c = w->c;
  nps_heads_t heads = {.query = w->query, .keys = w->key, .value = w->value, .out = w->norm};
  heads.ldq = heads.ldk = heads.ldo = c->hidden;
  heads.texts = w->n;
  heads.queries = queries;
  heads.tokens = c->tokens;
  heads.heads = heads.groups = c->heads;
  heads.width = c->hidden / c->heads;
  heads.scale = (float)(1 / sqrt((double)heads.width));
  nps_heads_attend(w->pass, &heads, w->heads);
}

static void run_mlp(const work_t *w, const layer_t *layer, int64_t m) {
  const clip_t *c = w->c;
  const float *bias = nps_linear_bias(w->pass, &layer->up);
  normalise(w, layer->norm_after, m, w->norm);
  for (int64_t first = 0; first < m; first += ROWS) {
    const int64_t rows = nps_min64(m - first, ROWS);
    nps_linear_product(w->pass, &layer->up, rows, w->norm + first * c->hidden, c->hidden, w->inner, c->inner);
    for (int64_t i = 0; i < rows; i++) c->activation(w->inner + i * c->inner, bias, c->inner);
    nps_linear_add(w->pass, &layer->down, rows, w->inner, c->inner, w->x + first * c->hidden, c->hidden);
  }
}

static void keep_class_tokens(const work_t *w) {
  const int64_t h = w->c->hidden;
  for (int64_t i = 1; i < w->n; i++) memmove(w->x + i * h, w->x + i * w->c->tokens * h, (size_t)h * sizeof(float));
}

static void run_layer(const work_t *w, const layer_t *layer, bool last) {
  const int64_t h = w->c->hidden, queries = last ? 1 : w->c->tokens, m = w->n * queries;
  normalise(w, layer->norm_before, w->rows, w->norm);
  nps_linear_set(w->pass, &layer->query, m, w->norm, last ? w->c->tokens * h : h, w->query, h);
  nps_linear_set(w->pass, &layer->key, w->rows, w->norm, h, w->key, h);
  nps_linear_set(w->pass, &layer->value, w->rows, w->norm, h, w->value, h);
  if (last) keep_class_tokens(w);
  attend(w, queries);
  nps_linear_add(w->pass, &layer->output, m, w->norm, h, w->x, h);
  run_mlp(w, layer, m);
}

static void norm_to_one(float *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
  const float factor = (float)(1 / sqrt(sum));
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

static void classify(const work_t *w) {
  const clip_t *c = w->c;
  const int64_t width = c->projection.out, classes = c->classifier.out;
  normalise(w, c->norm_last, w->n, w->norm);
  nps_linear_set(w->pass, &c->projection, w->n, w->norm, c->hidden, w->features, width);
  for (int64_t i = 0; i < w->n; i++) norm_to_one(w->features + i * width, width);
  nps_linear_set(w->pass, &c->classifier, w->n, w->features, width, w->logits, classes);
  nps_pass_take_samples(w->pass, w->logits, classes);
}

static void run(const void *shape, const nps_pass_t *pass, const nps_net_step_t *step, float *scratch) {
  const clip_t *c = shape;
  const int64_t layer = step->stage - 1;
  work_t w = start_work(c, pass->n);
  w.pass = pass;
  w.x = pass->x;
  lay_out(&w, scratch);
  if (layer < 0)
    embed(&w);
  else if (layer < c->layers)
    run_layer(&w, &c->layer[layer], layer == c->layers - 1);
  else
    classify(&w);
}

static int64_t activation_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)data;
  const clip_t *c = shape;
  return n * c->tokens * c->hidden;
}

#define FAMILY(type)                                                                                                   \
  {                                                                                                                    \
    .model_type = type, .linear_layers = linear_layers, .describe = describe, .free_shape = free_shape,                \
    .check_data = check_data, .flops = flops, .activation = activation_size, .rows = nps_pass_sample_rows,             \
    .scratch = scratch_size, .run = run,                                                                               \
  }

const nps_net_family_t nps_net_clip = FAMILY("clip");
const nps_net_family_t nps_net_clip_vision = FAMILY("clip_vision_model");
