/* GPT-2: a decoder with learned positions, layer norms before each part, one product for query, key and value, and weights
 * stored [in][out]; GPT2LMHeadModel. A token's position counts the tokens before it that the mask lets be seen, so that
 * padding on either side changes nothing. */
#include "fitness_internal.h"
#include "kernels.h"
#include "linear.h"
#include "texts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 512 /* of the MLP's inner rows held at once */ };

typedef struct {
  int weight, bias;
} pair_t;

typedef struct {
  pair_t norm_before, norm_after;
  nps_linear_t all, output, up, down; /* all: query, key and value */
} layer_t;

typedef struct {
  int64_t hidden, layers, heads, inner, vocabulary, positions;
  double eps;
  bool scaled, by_layer, tied; /* scaled: by 1/√width; by_layer: by 1/(1 + layer) too */
  nps_activation_fn *activation;
  const char *prefix;
  int words, places, head;
  pair_t norm;
  layer_t *layer; /* [layers] */
} gpt2_t;

/* ---- description ---- */

#define ALSO(expr) err = nps_err_worse(err, expr)

static const char *const linear_layers[] = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", NULL};

static nps_err_t read_config(const nps_net_t *net, const json_t *config, gpt2_t *g) {
  static const char *const refused[] = {"quantization_config", "add_cross_attention"};
  nps_err_t err = NPS_OK;
  ALSO(nps_net_get_count(net, config, "n_embd", 768, &g->hidden));
  ALSO(nps_net_get_count(net, config, "n_layer", 12, &g->layers));
  ALSO(nps_net_get_count(net, config, "n_head", 12, &g->heads));
  ALSO(nps_net_get_count_or_null(net, config, "n_inner", nps_min64(4 * g->hidden, 1 << 20), &g->inner));
  ALSO(nps_net_get_count(net, config, "vocab_size", 50257, &g->vocabulary));
  ALSO(nps_net_get_count(net, config, "n_positions", 1024, &g->positions));
  ALSO(nps_net_get_number(net, config, "layer_norm_epsilon", 1e-5, &g->eps));
  ALSO(nps_net_get_bool(net, config, "scale_attn_weights", true, &g->scaled));
  ALSO(nps_net_get_bool(net, config, "scale_attn_by_inverse_layer_idx", false, &g->by_layer));
  ALSO(nps_net_get_bool(net, config, "tie_word_embeddings", true, &g->tied));
  ALSO(nps_net_find_activation(net, config, "activation_function", "gelu_new", &g->activation));
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) ALSO(nps_net_refuse(net, config, refused[i]));
  if (err != NPS_OK || g->hidden % g->heads == 0) return err;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: n_embd %lld is no multiple of n_head %lld", net->body->path,
                  (long long)g->hidden, (long long)g->heads);
}

static nps_err_t add_norm(nps_net_t *net, const gpt2_t *g, const char *prefix, const char *name, pair_t *pair) {
  char *weight = nps_xstrf("%s%s.weight", prefix, name), *bias = nps_xstrf("%s%s.bias", prefix, name);
  nps_err_t err = nps_net_add(net, weight, false, 1, &g->hidden, &pair->weight);
  ALSO(nps_net_add(net, bias, false, 1, &g->hidden, &pair->bias));
  free(weight);
  free(bias);
  return err;
}

static nps_err_t add_table(nps_net_t *net, const char *prefix, const char *name, int64_t rows, int64_t width,
                           int *index) {
  const int64_t shape[2] = {rows, width};
  char *full = nps_xstrf("%s%s.weight", prefix, name);
  nps_err_t err = nps_net_add(net, full, false, 2, shape, index);
  free(full);
  return err;
}

static nps_err_t add_layer(nps_net_t *net, const gpt2_t *g, int l, layer_t *layer) {
  const int64_t h = g->hidden;
  nps_err_t err = NPS_OK;
  char *prefix = nps_xstrf("%sh.%d.", g->prefix, l);
  ALSO(add_norm(net, g, prefix, "ln_1", &layer->norm_before));
  ALSO(nps_net_add_turned(net, prefix, "attn.c_attn", 3 * h, h, &layer->all));
  ALSO(nps_net_add_turned(net, prefix, "attn.c_proj", h, h, &layer->output));
  ALSO(add_norm(net, g, prefix, "ln_2", &layer->norm_after));
  ALSO(nps_net_add_turned(net, prefix, "mlp.c_fc", g->inner, h, &layer->up));
  ALSO(nps_net_add_turned(net, prefix, "mlp.c_proj", h, g->inner, &layer->down));
  free(prefix);
  return err;
}

static nps_err_t add_head(nps_net_t *net, gpt2_t *g) {
  nps_err_t err = add_norm(net, g, g->prefix, "ln_f", &g->norm);
  g->head = g->words;
  if (g->tied)
    nps_net_share(net, g->words, (int)g->layers + 1);
  else
    ALSO(add_table(net, "", "lm_head", g->vocabulary, g->hidden, &g->head));
  return err;
}

/* Stages: the embeddings, the layers, the head. */
static nps_err_t describe(nps_net_t *net, const json_t *config, void **shape) {
  bool of_head = false;
  gpt2_t *g = nps_xcalloc(1, sizeof *g);
  nps_err_t err = NPS_OK;
  *shape = g;
  NPS_TRY(read_config(net, config, g));
  const int layers = (int)g->layers;
  g->prefix = nps_net_look_up(net, "wte.weight", false, &of_head) ? "" : "transformer.";
  g->layer = nps_xcalloc((size_t)layers, sizeof *g->layer);
  net->classes = (int)g->vocabulary;
  ALSO(add_table(net, g->prefix, "wte", g->vocabulary, g->hidden, &g->words));
  ALSO(add_table(net, g->prefix, "wpe", g->positions, g->hidden, &g->places));
  nps_net_add_table(net, 0, g->words, g->vocabulary, g->hidden);
  for (int l = 0; l < layers && err == NPS_OK; l++) {
    nps_net_begin_stage(net, 1 + l);
    nps_net_add_step(net, 1 + l);
    err = add_layer(net, g, l, &g->layer[l]);
  }
  nps_net_begin_stage(net, layers + 1);
  ALSO(add_head(net, g));
  nps_net_add_table(net, layers + 1, g->head, g->vocabulary, g->hidden);
  return err;
}

#undef ALSO

static void free_shape(void *shape) {
  gpt2_t *g = shape;
  if (g) free(g->layer);
  free(g);
}

static nps_err_t check_data(const nps_net_t *net, const nps_dataset_t *data) {
  const gpt2_t *g = net->shape;
  NPS_TRY(nps_texts_check(net, data, g->vocabulary, 2));
  if (nps_texts_next_places(data) > g->positions)
    return nps_fail(NPS_ERR_INPUT,
                    "%s: group %s: input_ids: %s has positions for rows of at most %lld tokens, found %lld", data->path,
                    data->group, net->body->path, (long long)g->positions + 1, (long long)data->tokens);
  return nps_texts_check_next(data, g->vocabulary);
}

static double flops(const void *shape, const nps_dataset_t *data, int64_t n) {
  const gpt2_t *g = shape;
  const double h = (double)g->hidden, t = (double)nps_texts_next_places(data);
  const double token = 4 * h * h + 2 * h * (double)g->inner + (t + 1) * h;
  return 2 * (double)nps_dataset_texts(data, n) * t * ((double)g->layers * token + h * (double)g->vocabulary);
}

/* ---- forward pass ---- */

typedef struct {
  const gpt2_t *g;
  const nps_pass_t *pass;
  int64_t n, positions, rows; /* texts, positions of each, rows of all of them */
  float *x;                   /* [rows][hidden] the activation */
  float *norm;                /* [rows][hidden], then what attention gives */
  float *all;                 /* [rows][3·hidden] */
  float *heads;               /* what attention needs */
  float *inner;               /* [ROWS][inner] */
  float *logits;              /* shares its place with all others */
} work_t;

static work_t start_work(const gpt2_t *g, const nps_dataset_t *data, int64_t n) {
  const int64_t texts = nps_dataset_texts(data, n), positions = nps_texts_next_places(data);
  return (work_t){.g = g, .n = texts, .positions = positions, .rows = texts * positions};
}

static int64_t lay_out(work_t *w, float *scratch) {
  const gpt2_t *g = w->g;
  const nps_room_part_t parts[] = {{&w->norm, w->rows * g->hidden},
                                   {&w->all, w->rows * 3 * g->hidden},
                                   {&w->heads, nps_heads_room(w->positions, g->hidden / g->heads)},
                                   {&w->inner, ROWS * g->inner}};
  w->logits = scratch;
  return nps_max64(nps_room_lay_out(parts, sizeof parts / sizeof *parts, scratch),
                   nps_texts_logit_room(g->vocabulary, g->hidden));
}

static int64_t scratch_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  work_t w = start_work(shape, data, n);
  return lay_out(&w, NULL);
}

static const float *tensor_of(const work_t *w, int index) { return w->pass->weights[index]; }

static void normalise(const work_t *w, pair_t norm, int64_t rows, float *y) {
  const int64_t h = w->g->hidden;
  nps_kernel_layer_norm(w->x, h, rows, h, tensor_of(w, norm.weight), tensor_of(w, norm.bias), w->g->eps, y);
}

static void add_places(const work_t *w, int64_t text) {
  const int64_t h = w->g->hidden;
  const int32_t *mask = nps_texts_mask(w->pass, text);
  int64_t place = 0;
  for (int64_t p = 0; p < w->positions; p++) {
    float *x = w->x + (text * w->positions + p) * h;
    nps_kernel_add(x, h, 1, h, tensor_of(w, w->g->places) + place * h);
    if (!mask || mask[p]) place = nps_min64(place + 1, w->g->positions - 1);
  }
}

static void embed(const work_t *w, const nps_net_step_t *step) {
  const nps_dataset_t *data = w->pass->data;
  for (int64_t i = 0; i < w->n; i++)
    nps_texts_embed(w->pass, step, data->ids + nps_texts_place(w->pass, i) * data->tokens, w->positions, w->g->hidden,
                    w->x + i * w->positions * w->g->hidden);
  if (step->first + step->rows < w->g->vocabulary) return;
  for (int64_t i = 0; i < w->n; i++) add_places(w, i);
}

static void attend(const work_t *w, int64_t layer) {
  const gpt2_t *g = w->g;
  const int64_t h = g->hidden, width = h / g->heads;
  nps_heads_t heads = {.query = w->all, .keys = w->all + h, .value = w->all + 2 * h, .out = w->norm};
  heads.ldq = heads.ldk = 3 * h;
  heads.ldo = h;
  heads.texts = w->n;
  heads.queries = heads.tokens = w->positions;
  heads.heads = heads.groups = g->heads;
  heads.width = width;
  heads.scale = (float)((g->scaled ? 1 / sqrt((double)width) : 1) / (g->by_layer ? (double)layer + 1 : 1));
  heads.causal = heads.masked = true;
  nps_heads_attend(w->pass, &heads, w->heads);
}

static void run_mlp(const work_t *w, const layer_t *layer) {
  const gpt2_t *g = w->g;
  const float *bias = nps_linear_bias(w->pass, &layer->up);
  normalise(w, layer->norm_after, w->rows, w->norm);
  for (int64_t first = 0; first < w->rows; first += ROWS) {
    const int64_t rows = nps_min64(w->rows - first, ROWS);
    nps_linear_product(w->pass, &layer->up, rows, w->norm + first * g->hidden, g->hidden, w->inner, g->inner);
    for (int64_t i = 0; i < rows; i++) g->activation(w->inner + i * g->inner, bias, g->inner);
    nps_linear_add(w->pass, &layer->down, rows, w->inner, g->inner, w->x + first * g->hidden, g->hidden);
  }
}

static void run_layer(const work_t *w, int64_t l) {
  const layer_t *layer = &w->g->layer[l];
  const int64_t h = w->g->hidden;
  normalise(w, layer->norm_before, w->rows, w->norm);
  nps_linear_set(w->pass, &layer->all, w->rows, w->norm, h, w->all, 3 * h);
  attend(w, l);
  nps_linear_add(w->pass, &layer->output, w->rows, w->norm, h, w->x, h);
  run_mlp(w, layer);
}

static void run_head(const work_t *w, const nps_net_step_t *step) {
  const gpt2_t *g = w->g;
  if (step->first == 0) {
    const int64_t count = nps_texts_gather(w->pass, w->positions, g->hidden, nps_texts_ask_next, w->x);
    normalise(w, g->norm, count, w->x);
  }
  nps_texts_logits(w->pass, step, g->hidden, 1, 0, w->x, w->logits);
}

static void run(const void *shape, const nps_pass_t *pass, const nps_net_step_t *step, float *scratch) {
  work_t w = start_work(shape, pass->data, pass->n);
  const int64_t layer = step->stage - 1;
  w.pass = pass;
  w.x = pass->x;
  lay_out(&w, scratch);
  if (layer < 0)
    embed(&w, step);
  else if (layer < w.g->layers)
    run_layer(&w, layer);
  else
    run_head(&w, step);
}

static int64_t activation_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  const gpt2_t *g = shape;
  return nps_dataset_texts(data, n) * nps_texts_next_places(data) * g->hidden;
}

const nps_net_family_t nps_net_gpt2 = {
    .model_type = "gpt2",
    .linear_layers = linear_layers,
    .describe = describe,
    .free_shape = free_shape,
    .check_data = check_data,
    .flops = flops,
    .activation = activation_size,
    .rows = nps_texts_next_rows,
    .scratch = scratch_size,
    .run = run,
};
