/* Encoder-decoders with relative positions: T5 and Flan-T5, mT5, …ForConditionalGeneration (Raffel et al., arXiv 1910.10683).
 * The encoder sees input_ids; the decoder is given a text's target, moved by one place, and asked for it place by place. One
 * activation carries both: the decoder's rows, the encoder's rows, and the biases of relative positions, which the first
 * layers own and all layers of their stack use. So encoder and decoder are one chain of stages. */
#include "fitness_internal.h"
#include "kernels.h"
#include "linear.h"
#include "texts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 512 /* of the MLP's inner rows held at once */, ENCODER = 0, DECODER = 1 };

/* What a model_type's configs leave out, and whether logits may be scaled. */
typedef struct {
  int64_t inner, layers, heads, vocabulary;
  const char *feed_forward;
  bool scaled;
} variant_t;

typedef struct {
  int norm;
  nps_linear_t query, key, value, output;
} attention_t;

typedef struct {
  attention_t self, cross; /* cross: of the decoder */
  int norm;
  nps_linear_t gate, up, down; /* up: of gated ones */
} layer_t;

typedef struct {
  int64_t hidden, layers[2], heads, width, inner, vocabulary; /* width: of a head */
  int64_t buckets, distance, start, padding;
  double eps;
  bool gated, scaled;
  nps_activation_fn *activation;
  int embedding, head, bias[2], norm[2];
  layer_t *layer; /* [layers of the encoder, then of the decoder] */
} t5_t;

/* ---- description ---- */

#define ALSO(expr) err = nps_err_worse(err, expr)

/* "gated-ACTIVATION" or "ACTIVATION"; gated-gelu is that by tanh. */
static nps_err_t read_feed_forward(const nps_net_t *net, const json_t *config, const char *standard, t5_t *t) {
  static const char gated[] = "gated-";
  const char *name = NULL;
  NPS_TRY(nps_net_get_text(net, config, "feed_forward_proj", standard, &name));
  t->gated = strncmp(name, gated, strlen(gated)) == 0;
  const char *activation = t->gated ? name + strlen(gated) : name;
  t->activation = nps_activation_find(t->gated && strcmp(activation, "gelu") == 0 ? "gelu_new" : activation);
  if (t->activation) return NPS_OK;
  char *known = nps_activation_names();
  nps_fail(NPS_ERR_INPUT, "%s: config.json: feed_forward_proj %s is not implemented (there are, also after gated-: %s)",
           net->body->path, name, known);
  free(known);
  return NPS_ERR_INPUT;
}

/* Buckets that one place has by itself: of those on one side half. There must be one, and far places beyond them. */
static nps_err_t check_buckets(const nps_net_t *net, const t5_t *t) {
  if (t->buckets >= 4 && t->distance > t->buckets / 2) return NPS_OK;
  return nps_fail(
      NPS_ERR_INPUT,
      "%s: config.json: relative_attention_num_buckets %lld, relative_attention_max_distance %lld: expected 4 or "
      "more, and more than half of them",
      net->body->path, (long long)t->buckets, (long long)t->distance);
}

static nps_err_t read_token(const nps_net_t *net, const json_t *config, const char *key, const t5_t *t,
                            int64_t standard, int64_t *value) {
  double number = (double)standard;
  if (!json_is_null(json_object_get(config, key)))
    NPS_TRY(nps_net_get_number(net, config, key, (double)standard, &number));
  *value = number < (double)t->vocabulary ? (int64_t)number : -1;
  if (number == (double)*value) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: %s: expected a token of the vocabulary, found %g", net->body->path,
                  key, number);
}

/* Logits are scaled unless the config says that the head is not the embedding; newer configs say it in a key of its own. */
static nps_err_t read_scaled(const nps_net_t *net, const json_t *config, const variant_t *v, t5_t *t) {
  if (!v->scaled) return NPS_OK;
  NPS_TRY(nps_net_get_bool(net, config, "tie_word_embeddings", true, &t->scaled));
  return nps_net_get_bool(net, config, "scale_decoder_outputs", t->scaled, &t->scaled);
}

static nps_err_t read_config(const nps_net_t *net, const json_t *config, t5_t *t) {
  const variant_t *v = net->family->variant;
  nps_err_t err = NPS_OK;
  ALSO(nps_net_get_count(net, config, "d_model", 512, &t->hidden));
  ALSO(nps_net_get_count(net, config, "d_kv", 64, &t->width));
  ALSO(nps_net_get_count(net, config, "d_ff", v->inner, &t->inner));
  ALSO(nps_net_get_count(net, config, "num_layers", v->layers, &t->layers[ENCODER]));
  ALSO(nps_net_get_count_or_null(net, config, "num_decoder_layers", t->layers[ENCODER], &t->layers[DECODER]));
  ALSO(nps_net_get_count(net, config, "num_heads", v->heads, &t->heads));
  ALSO(nps_net_get_count(net, config, "vocab_size", v->vocabulary, &t->vocabulary));
  ALSO(nps_net_get_count(net, config, "relative_attention_num_buckets", 32, &t->buckets));
  ALSO(nps_net_get_count(net, config, "relative_attention_max_distance", 128, &t->distance));
  ALSO(nps_net_get_number(net, config, "layer_norm_epsilon", 1e-6, &t->eps));
  ALSO(read_feed_forward(net, config, v->feed_forward, t));
  ALSO(read_scaled(net, config, v, t));
  ALSO(nps_net_refuse(net, config, "quantization_config"));
  ALSO(nps_net_refuse(net, config, "is_decoder"));
  if (err != NPS_OK) return err;
  ALSO(read_token(net, config, "pad_token_id", t, 0, &t->padding));
  ALSO(read_token(net, config, "decoder_start_token_id", t, t->padding, &t->start));
  ALSO(check_buckets(net, t));
  return err;
}

/* ---- tensors ---- */

static const char *const linear_layers[] = {
    "SelfAttention.q",
    "SelfAttention.k",
    "SelfAttention.v",
    "SelfAttention.o",
    "EncDecAttention.q",
    "EncDecAttention.k",
    "EncDecAttention.v",
    "EncDecAttention.o",
    "DenseReluDense.wi",
    "DenseReluDense.wo",
    "DenseReluDense.wi_0",
    "DenseReluDense.wi_1",
    NULL,
};

static nps_err_t add_norm(nps_net_t *net, const t5_t *t, const char *prefix, const char *name, int *index) {
  char *full = nps_xstrf("%s%s.weight", prefix, name);
  nps_err_t err = nps_net_add(net, full, false, 1, &t->hidden, index);
  free(full);
  return err;
}

static nps_err_t add_attention(nps_net_t *net, const t5_t *t, const char *prefix, const char *name, attention_t *a) {
  const int64_t h = t->hidden, all = t->heads * t->width;
  nps_err_t err = add_norm(net, t, prefix, "layer_norm", &a->norm);
  char *full = nps_xstrf("%s%s.", prefix, name);
  ALSO(nps_net_add_linear(net, full, "q", false, false, all, h, &a->query));
  ALSO(nps_net_add_linear(net, full, "k", false, false, all, h, &a->key));
  ALSO(nps_net_add_linear(net, full, "v", false, false, all, h, &a->value));
  ALSO(nps_net_add_linear(net, full, "o", false, false, h, all, &a->output));
  free(full);
  return err;
}

static nps_err_t add_mlp(nps_net_t *net, const t5_t *t, const char *prefix, layer_t *layer) {
  const int64_t h = t->hidden, inner = t->inner;
  nps_err_t err = add_norm(net, t, prefix, "layer_norm", &layer->norm);
  const char *gate = t->gated ? "DenseReluDense.wi_0" : "DenseReluDense.wi";
  ALSO(nps_net_add_linear(net, prefix, gate, false, false, inner, h, &layer->gate));
  if (t->gated) ALSO(nps_net_add_linear(net, prefix, "DenseReluDense.wi_1", false, false, inner, h, &layer->up));
  ALSO(nps_net_add_linear(net, prefix, "DenseReluDense.wo", false, false, h, inner, &layer->down));
  return err;
}

static const char *const stacks[] = {"encoder", "decoder"};

/* Layer l of a stack: attention, of the decoder also to the encoder, and an MLP, numbered in this order. */
static nps_err_t add_layer(nps_net_t *net, const t5_t *t, int stack, int64_t l, layer_t *layer) {
  char *prefix[3];
  for (int i = 0; i < 3; i++) prefix[i] = nps_xstrf("%s.block.%lld.layer.%d.", stacks[stack], (long long)l, i);
  nps_err_t err = add_attention(net, t, prefix[0], "SelfAttention", &layer->self);
  if (stack == DECODER) ALSO(add_attention(net, t, prefix[1], "EncDecAttention", &layer->cross));
  ALSO(add_mlp(net, t, prefix[stack == DECODER ? 2 : 1], layer));
  for (int i = 0; i < 3; i++) free(prefix[i]);
  return err;
}

static nps_err_t add_bias(nps_net_t *net, t5_t *t, int stack) {
  const int64_t shape[2] = {t->buckets, t->heads};
  char *name = nps_xstrf("%s.block.0.layer.0.SelfAttention.relative_attention_bias.weight", stacks[stack]);
  nps_err_t err = nps_net_add(net, name, false, 2, shape, &t->bias[stack]);
  free(name);
  return err;
}

/* A file without a head has that of the embedding, whatever its config says. */
static nps_err_t add_ends(nps_net_t *net, t5_t *t, int last) {
  const int64_t shape[2] = {t->vocabulary, t->hidden};
  bool of_head = false;
  nps_err_t err = nps_net_add(net, "shared.weight", false, 2, shape, &t->embedding);
  ALSO(add_bias(net, t, ENCODER));
  ALSO(add_bias(net, t, DECODER));
  nps_net_begin_stage(net, last);
  t->head = t->embedding;
  if (nps_net_look_up(net, "lm_head.weight", false, &of_head))
    ALSO(nps_net_add(net, "lm_head.weight", false, 2, shape, &t->head));
  else
    nps_net_share(net, t->embedding, last);
  ALSO(add_norm(net, t, "decoder.", "final_layer_norm", &t->norm[DECODER]));
  return err;
}

static int64_t all_layers(const t5_t *t) { return t->layers[ENCODER] + t->layers[DECODER]; }

/* Stages: the embedding of both, the encoder's layers, whose last has its final norm, the decoder's, the head. */
static nps_err_t describe(nps_net_t *net, const json_t *config, void **shape) {
  t5_t *t = nps_xcalloc(1, sizeof *t);
  *shape = t;
  NPS_TRY(read_config(net, config, t));
  const int layers = (int)all_layers(t);
  t->layer = nps_xcalloc((size_t)layers, sizeof *t->layer);
  net->classes = (int)t->vocabulary;
  nps_err_t err = add_ends(net, t, layers + 1);
  nps_net_add_table(net, 0, t->embedding, t->vocabulary, t->hidden);
  for (int l = 0; l < layers && err == NPS_OK; l++) {
    const int stack = l < t->layers[ENCODER] ? ENCODER : DECODER;
    nps_net_begin_stage(net, 1 + l);
    nps_net_add_step(net, 1 + l);
    err = add_layer(net, t, stack, stack == ENCODER ? l : l - t->layers[ENCODER], &t->layer[l]);
    if (l + 1 == t->layers[ENCODER]) ALSO(add_norm(net, t, "encoder.", "final_layer_norm", &t->norm[ENCODER]));
  }
  nps_net_add_table(net, layers + 1, t->head, t->vocabulary, t->hidden);
  return err;
}

#undef ALSO

static void free_shape(void *shape) {
  t5_t *t = shape;
  if (t) free(t->layer);
  free(t);
}

static nps_err_t check_data(const nps_net_t *net, const nps_dataset_t *data) {
  const t5_t *t = net->shape;
  return nps_texts_check_targets(net, data, t->vocabulary);
}

static double flops(const void *shape, const nps_dataset_t *data, int64_t n) {
  const t5_t *t = shape;
  const double h = (double)t->hidden, all = (double)(t->heads * t->width), s = (double)data->tokens;
  const double p = (double)data->places, texts = (double)nps_dataset_texts(data, n);
  const double mlp = (t->gated ? 3 : 2) * h * (double)t->inner;
  const double encoder = (double)n * s * (4 * h * all + 2 * s * all + mlp);
  const double cross = (double)n * s * 2 * h * all + texts * p * (2 * h * all + 2 * s * all);
  const double decoder = texts * p * (4 * h * all + (p + 1) * all + mlp) + cross;
  const double layers = (double)t->layers[ENCODER] * encoder + (double)t->layers[DECODER] * decoder;
  return 2 * (layers + texts * p * h * (double)t->vocabulary);
}

/* ---- forward pass ---- */

/* Texts of a stack: rows of tokens, or targets. */
typedef struct {
  int64_t texts, tokens, rows;
  float *x; /* [rows][hidden] its part of the activation */
} part_t;

typedef struct {
  const t5_t *t;
  const nps_pass_t *pass;
  part_t part[2];
  int64_t all;                /* numbers of all heads' queries */
  float *biases;              /* [2][buckets][heads] the last part of the activation */
  float *norm;                /* [rows][hidden] */
  float *query, *key, *value; /* [rows][all] */
  float *mixed;               /* [rows][all]: what attention gives */
  float *heads;               /* what attention needs */
  float *by_distance;         /* [heads][span]: bias of query i and token t at zero + i − t */
  float *gate, *up;           /* [ROWS][inner] */
  float *none;                /* [inner] zeros: no bias */
  float *logits;              /* shares its place with all others */
} work_t;

static work_t start_work(const t5_t *t, const nps_dataset_t *data, int64_t n) {
  const int64_t texts = nps_dataset_texts(data, n);
  return (work_t){.t = t,
                  .all = t->heads * t->width,
                  .part = {[ENCODER] = {.texts = n, .tokens = data->tokens, .rows = n * data->tokens},
                           [DECODER] = {.texts = texts, .tokens = data->places, .rows = texts * data->places}}};
}

static int64_t span(int64_t tokens) { return 2 * tokens + NPS_PAD; }

static int64_t activation_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  const t5_t *t = shape;
  const work_t w = start_work(t, data, n);
  return (w.part[ENCODER].rows + w.part[DECODER].rows) * t->hidden + 2 * t->buckets * t->heads;
}

/* Hands out the memory of a pass. @param scratch  NULL: only counts. @return numbers */
static int64_t lay_out(work_t *w, float *scratch) {
  const t5_t *t = w->t;
  const int64_t rows = nps_max64(w->part[ENCODER].rows, w->part[DECODER].rows);
  const int64_t tokens = nps_max64(w->part[ENCODER].tokens, w->part[DECODER].tokens);
  const nps_room_part_t parts[] = {{&w->norm, rows * t->hidden},
                                   {&w->query, rows * w->all},
                                   {&w->key, rows * w->all},
                                   {&w->value, rows * w->all},
                                   {&w->mixed, rows * w->all},
                                   {&w->heads, nps_heads_room(tokens, t->width)},
                                   {&w->by_distance, t->heads * span(tokens)},
                                   {&w->gate, ROWS * t->inner},
                                   {&w->up, ROWS * t->inner},
                                   {&w->none, t->inner}};
  w->logits = scratch;
  return nps_max64(nps_room_lay_out(parts, sizeof parts / sizeof *parts, scratch),
                   nps_texts_logit_room(t->vocabulary, t->hidden));
}

static int64_t scratch_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  work_t w = start_work(shape, data, n);
  return lay_out(&w, NULL);
}

static int64_t row_count(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)shape;
  return nps_dataset_texts(data, n) * data->places;
}

static const float *tensor_of(const work_t *w, int index) { return w->pass->weights[index]; }

/* ---- the embedding ---- */

/* What the decoder is given at a place: the target's token before it; padding where none is asked for. */
static int32_t given_at(const work_t *w, const int32_t *target, int64_t p) {
  if (p == 0) return (int32_t)w->t->start;
  return target[p - 1] == NPS_NOT_ASKED ? (int32_t)w->t->padding : target[p - 1];
}

static void embed(const work_t *w, const nps_net_step_t *step) {
  const nps_dataset_t *data = w->pass->data;
  const part_t *encoder = &w->part[ENCODER], *decoder = &w->part[DECODER];
  const int64_t h = w->t->hidden, biases = w->t->buckets * w->t->heads;
  for (int64_t i = 0; i < encoder->texts; i++)
    nps_texts_embed(w->pass, step, data->ids + w->pass->samples[i] * data->tokens, data->tokens, h,
                    encoder->x + i * data->tokens * h);
  for (int64_t i = 0; i < decoder->texts; i++)
    for (int64_t p = 0; p < data->places; p++) {
      const int32_t *target = nps_dataset_targets(data) + nps_texts_place(w->pass, i) * data->places;
      const int32_t id = given_at(w, target, p);
      nps_texts_embed(w->pass, step, &id, 1, h, decoder->x + (i * data->places + p) * h);
    }
  for (int stack = 0; stack < 2; stack++)
    memcpy(w->biases + stack * biases, tensor_of(w, w->t->bias[stack]), (size_t)biases * sizeof(float));
}

/* ---- relative positions ---- */

/* The first half of a side's buckets are for one distance each, the others for more and more, up to the largest distance.
 * In float32, as transformers computes it: where a bucket ends depends on how the logarithm is rounded. */
static int64_t bucket_of_side(int64_t buckets, int64_t most, int64_t distance) {
  const int64_t single = buckets / 2;
  if (distance < single) return distance;
  const float grown = logf((float)distance / (float)single) / (float)log((double)most / (double)single);
  return nps_min64(single + (int64_t)(grown * (float)(buckets - single)), buckets - 1);
}

/* @param distance  of the query's place from the token's: positive where the token comes before */
static int64_t bucket_of(const t5_t *t, int stack, int64_t distance) {
  const int64_t side = t->buckets / 2;
  if (stack == DECODER) return bucket_of_side(t->buckets, t->distance, nps_max64(distance, 0));
  return distance < 0 ? side + bucket_of_side(side, t->distance, -distance)
                      : bucket_of_side(side, t->distance, distance);
}

/* @return where distance 0 lies in a head's row */
static int64_t spread_biases(const work_t *w, int stack) {
  const t5_t *t = w->t;
  const int64_t tokens = w->part[stack].tokens, zero = tokens - 1;
  const float *biases = w->biases + stack * t->buckets * t->heads;
  for (int64_t at = 0; at < span(tokens); at++) {
    const float *bucket = biases + bucket_of(t, stack, at - zero) * t->heads;
    for (int64_t head = 0; head < t->heads; head++) w->by_distance[head * span(tokens) + at] = bucket[head];
  }
  return zero;
}

/* ---- layers ---- */

static void normalise(const work_t *w, const part_t *part, int weight, float *y) {
  nps_kernel_rms_norm(part->x, part->rows, w->t->hidden, tensor_of(w, weight), w->t->eps, y);
}

static nps_heads_t start_heads(const work_t *w) {
  nps_heads_t heads = {.query = w->query, .keys = w->key, .value = w->value, .out = w->mixed, .scale = 1};
  heads.ldq = heads.ldk = heads.ldo = w->all;
  heads.heads = heads.groups = w->t->heads;
  heads.width = w->t->width;
  return heads;
}

static void attend(const work_t *w, int stack, const attention_t *a) {
  const part_t *part = &w->part[stack];
  const int64_t h = w->t->hidden;
  normalise(w, part, a->norm, w->norm);
  nps_linear_set(w->pass, &a->query, part->rows, w->norm, h, w->query, w->all);
  nps_linear_set(w->pass, &a->key, part->rows, w->norm, h, w->key, w->all);
  nps_linear_set(w->pass, &a->value, part->rows, w->norm, h, w->value, w->all);
  nps_heads_t heads = start_heads(w);
  heads.texts = part->texts;
  heads.queries = heads.tokens = part->tokens;
  heads.bias = w->by_distance + spread_biases(w, stack);
  heads.ldb = span(part->tokens);
  heads.causal = stack == DECODER;
  heads.masked = stack == ENCODER;
  nps_heads_attend(w->pass, &heads, w->heads);
  nps_linear_add(w->pass, &a->output, part->rows, w->mixed, w->all, part->x, h);
}

/* Targets of one sample follow each other: to the encoder's rows they are one text. */
static void attend_encoder(const work_t *w, const attention_t *a) {
  const part_t *encoder = &w->part[ENCODER], *decoder = &w->part[DECODER];
  const int64_t h = w->t->hidden;
  normalise(w, decoder, a->norm, w->norm);
  nps_linear_set(w->pass, &a->query, decoder->rows, w->norm, h, w->query, w->all);
  nps_linear_set(w->pass, &a->key, encoder->rows, encoder->x, h, w->key, w->all);
  nps_linear_set(w->pass, &a->value, encoder->rows, encoder->x, h, w->value, w->all);
  nps_heads_t heads = start_heads(w);
  heads.texts = encoder->texts;
  heads.queries = decoder->rows / encoder->texts;
  heads.tokens = encoder->tokens;
  heads.masked = true;
  nps_heads_attend(w->pass, &heads, w->heads);
  nps_linear_add(w->pass, &a->output, decoder->rows, w->mixed, w->all, decoder->x, h);
}

static void run_mlp(const work_t *w, const part_t *part, const layer_t *layer) {
  const t5_t *t = w->t;
  const int64_t h = t->hidden, inner = t->inner;
  normalise(w, part, layer->norm, w->norm);
  memset(w->none, 0, (size_t)inner * sizeof(float));
  for (int64_t first = 0; first < part->rows; first += ROWS) {
    const int64_t rows = nps_min64(part->rows - first, ROWS);
    const float *norm = w->norm + first * h;
    nps_linear_set(w->pass, &layer->gate, rows, norm, h, w->gate, inner);
    for (int64_t i = 0; i < rows; i++) t->activation(w->gate + i * inner, w->none, inner);
    if (t->gated) {
      nps_linear_set(w->pass, &layer->up, rows, norm, h, w->up, inner);
      nps_kernel_multiply(w->gate, w->up, rows * inner);
    }
    nps_linear_add(w->pass, &layer->down, rows, w->gate, inner, part->x + first * h, h);
  }
}

/* ---- steps ---- */

static void run_layer(const work_t *w, int64_t l) {
  const int stack = l < w->t->layers[ENCODER] ? ENCODER : DECODER;
  const layer_t *layer = &w->t->layer[l];
  const part_t *part = &w->part[stack];
  attend(w, stack, &layer->self);
  if (stack == DECODER) attend_encoder(w, &layer->cross);
  run_mlp(w, part, layer);
  if (l + 1 == w->t->layers[ENCODER]) normalise(w, part, w->t->norm[ENCODER], part->x);
}

/* Only the rows that are asked for a token get logits. */
static void run_head(const work_t *w, const nps_net_step_t *step) {
  const t5_t *t = w->t;
  part_t decoder = w->part[DECODER];
  if (step->first == 0) {
    decoder.rows = nps_texts_gather(w->pass, decoder.tokens, t->hidden, nps_texts_ask_target, decoder.x);
    normalise(w, &decoder, t->norm[DECODER], decoder.x);
  }
  const float scale = t->scaled ? (float)(1 / sqrt((double)t->hidden)) : 1;
  nps_texts_logits(w->pass, step, t->hidden, scale, 0, decoder.x, w->logits);
}

static void run(const void *shape, const nps_pass_t *pass, const nps_net_step_t *step, float *scratch) {
  const t5_t *t = shape;
  const int64_t layer = step->stage - 1;
  work_t w = start_work(t, pass->data, pass->n);
  w.pass = pass;
  w.part[DECODER].x = pass->x;
  w.part[ENCODER].x = pass->x + w.part[DECODER].rows * t->hidden;
  w.biases = w.part[ENCODER].x + w.part[ENCODER].rows * t->hidden;
  lay_out(&w, scratch);
  if (layer < 0)
    embed(&w, step);
  else if (layer < all_layers(t))
    run_layer(&w, layer);
  else
    run_head(&w, step);
}

/* ---- families ---- */

static const variant_t t5 = {
    .inner = 2048, .layers = 6, .heads = 8, .vocabulary = 32128, .feed_forward = "relu", .scaled = true};
static const variant_t mt5 = {
    .inner = 1024, .layers = 8, .heads = 6, .vocabulary = 250112, .feed_forward = "gated-gelu"};

#define FAMILY(type, what)                                                                                             \
  {                                                                                                                    \
    .model_type = type, .variant = what, .linear_layers = linear_layers, .describe = describe,                         \
    .free_shape = free_shape, .check_data = check_data, .flops = flops, .activation = activation_size,                 \
    .rows = row_count, .scratch = scratch_size, .run = run,                                                            \
  }

const nps_net_family_t nps_net_t5 = FAMILY("t5", &t5);
const nps_net_family_t nps_net_mt5 = FAMILY("mt5", &mt5);
