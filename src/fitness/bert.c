/* Encoders with learned positions, norms after each part, and a classifier of the first token: BertForSequenceClassification
 * and RobertaForSequenceClassification, or bare bodies with the classifier of a head model. In the last layer only the first
 * token's query, and what follows it, count. */
#include "fitness_internal.h"
#include "kernels.h"
#include "linear.h"
#include "texts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 512 /* of the MLP's inner rows held at once */ };

/* What a model_type has. */
typedef struct {
  const char *prefix; /* of the body's tensors in a model with a head */
  bool counts;        /* positions count the tokens that are no padding, from pad_token_id + 1 on */
  const char *dense;  /* before the classifier, with tanh */
  bool dense_of_head;
  const char *classifier;
} variant_t;

typedef struct {
  int weight, bias;
} pair_t;

typedef struct {
  nps_linear_t query, key, value, output, up, down;
  pair_t norm_attention, norm_mlp;
} layer_t;

typedef struct {
  const variant_t *variant;
  int64_t hidden, layers, heads, inner, vocabulary, positions, types, padding;
  double eps;
  nps_activation_fn *activation;
  const char *prefix;
  int words, places, kinds; /* the embeddings */
  pair_t norm;
  nps_linear_t dense, classifier;
  layer_t *layer; /* [layers] */
} bert_t;

/* ---- description ---- */

#define ALSO(expr) err = nps_err_worse(err, expr)

static const char *const linear_layers[] = {
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    NULL,
};

static nps_err_t check_positions(const nps_net_t *net, const json_t *config) {
  const char *kind = NULL;
  NPS_TRY(nps_net_get_text(net, config, "position_embedding_type", "absolute", &kind));
  if (strcmp(kind, "absolute") == 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: position_embedding_type %s is not implemented, only absolute",
                  net->body->path, kind);
}

static nps_err_t read_padding(const nps_net_t *net, const json_t *config, bert_t *b) {
  double padding = 1;
  if (!b->variant->counts) return NPS_OK;
  NPS_TRY(nps_net_get_number(net, config, "pad_token_id", 1, &padding));
  b->padding = (int64_t)padding;
  if (padding == (double)b->padding && padding < (double)b->vocabulary) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: pad_token_id: expected a token of the vocabulary, found %g",
                  net->body->path, padding);
}

static nps_err_t read_config(const nps_net_t *net, const json_t *config, bert_t *b) {
  static const char *const refused[] = {"quantization_config", "pruned_heads", "is_decoder", "add_cross_attention"};
  nps_err_t err = NPS_OK;
  ALSO(nps_net_get_count(net, config, "hidden_size", 768, &b->hidden));
  ALSO(nps_net_get_count(net, config, "num_hidden_layers", 12, &b->layers));
  ALSO(nps_net_get_count(net, config, "num_attention_heads", 12, &b->heads));
  ALSO(nps_net_get_count(net, config, "intermediate_size", 3072, &b->inner));
  ALSO(nps_net_get_count(net, config, "vocab_size", b->variant->counts ? 50265 : 30522, &b->vocabulary));
  ALSO(nps_net_get_count(net, config, "max_position_embeddings", 512, &b->positions));
  ALSO(nps_net_get_count(net, config, "type_vocab_size", 2, &b->types));
  ALSO(nps_net_get_number(net, config, "layer_norm_eps", 1e-12, &b->eps));
  ALSO(nps_net_get_activation(net, config, "gelu", &b->activation));
  ALSO(nps_net_check_problem_type(net, config));
  ALSO(check_positions(net, config));
  ALSO(read_padding(net, config, b));
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) ALSO(nps_net_refuse(net, config, refused[i]));
  if (err != NPS_OK || b->hidden % b->heads == 0) return err;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: hidden_size %lld is no multiple of num_attention_heads %lld",
                  net->body->path, (long long)b->hidden, (long long)b->heads);
}

static nps_err_t add_norm(nps_net_t *net, const bert_t *b, const char *prefix, const char *name, pair_t *pair) {
  char *weight = nps_xstrf("%s%s.weight", prefix, name), *bias = nps_xstrf("%s%s.bias", prefix, name);
  nps_err_t err = nps_net_add(net, weight, false, 1, &b->hidden, &pair->weight);
  ALSO(nps_net_add(net, bias, false, 1, &b->hidden, &pair->bias));
  free(weight);
  free(bias);
  return err;
}

static nps_err_t add_table(nps_net_t *net, const bert_t *b, const char *name, int64_t rows, int *index) {
  const int64_t shape[2] = {rows, b->hidden};
  char *full = nps_xstrf("%sembeddings.%s.weight", b->prefix, name);
  nps_err_t err = nps_net_add(net, full, false, 2, shape, index);
  free(full);
  return err;
}

static nps_err_t add_embeddings(nps_net_t *net, bert_t *b) {
  nps_err_t err = NPS_OK;
  ALSO(add_table(net, b, "word_embeddings", b->vocabulary, &b->words));
  ALSO(add_table(net, b, "position_embeddings", b->positions, &b->places));
  ALSO(add_table(net, b, "token_type_embeddings", b->types, &b->kinds));
  ALSO(add_norm(net, b, b->prefix, "embeddings.LayerNorm", &b->norm));
  return err;
}

static nps_err_t add_layer(nps_net_t *net, const bert_t *b, int l, layer_t *layer) {
  const int64_t h = b->hidden, inner = b->inner;
  nps_err_t err = NPS_OK;
  char *prefix = nps_xstrf("%sencoder.layer.%d.", b->prefix, l);
  ALSO(nps_net_add_linear(net, prefix, "attention.self.query", false, true, h, h, &layer->query));
  ALSO(nps_net_add_linear(net, prefix, "attention.self.key", false, true, h, h, &layer->key));
  ALSO(nps_net_add_linear(net, prefix, "attention.self.value", false, true, h, h, &layer->value));
  ALSO(nps_net_add_linear(net, prefix, "attention.output.dense", false, true, h, h, &layer->output));
  ALSO(add_norm(net, b, prefix, "attention.output.LayerNorm", &layer->norm_attention));
  ALSO(nps_net_add_linear(net, prefix, "intermediate.dense", false, true, inner, h, &layer->up));
  ALSO(nps_net_add_linear(net, prefix, "output.dense", false, true, h, inner, &layer->down));
  ALSO(add_norm(net, b, prefix, "output.LayerNorm", &layer->norm_mlp));
  free(prefix);
  return err;
}

static nps_err_t add_head(nps_net_t *net, bert_t *b) {
  const variant_t *v = b->variant;
  const char *prefix = v->dense_of_head ? "" : b->prefix;
  nps_err_t err = nps_net_add_linear(net, prefix, v->dense, v->dense_of_head, true, b->hidden, b->hidden, &b->dense);
  ALSO(nps_net_add_classifier(net, "", v->classifier, true, b->hidden, &b->classifier));
  return err;
}

/* Stages: the embeddings, the layers, the head. */
static nps_err_t describe(nps_net_t *net, const json_t *config, void **shape) {
  bool of_head = false;
  bert_t *b = nps_xcalloc(1, sizeof *b);
  *shape = b;
  b->variant = net->family->variant;
  NPS_TRY(read_config(net, config, b));
  b->prefix = nps_net_look_up(net, "embeddings.word_embeddings.weight", false, &of_head) ? "" : b->variant->prefix;
  b->layer = nps_xcalloc((size_t)b->layers, sizeof *b->layer);
  const int layers = (int)b->layers;
  nps_err_t err = add_embeddings(net, b);
  nps_net_add_table(net, 0, b->words, b->vocabulary, b->hidden);
  for (int l = 0; l < layers && err == NPS_OK; l++) {
    nps_net_begin_stage(net, 1 + l);
    nps_net_add_step(net, 1 + l);
    err = add_layer(net, b, l, &b->layer[l]);
  }
  nps_net_begin_stage(net, layers + 1);
  nps_net_add_step(net, layers + 1);
  ALSO(add_head(net, b));
  return err;
}

#undef ALSO

static void free_shape(void *shape) {
  bert_t *b = shape;
  if (b) free(b->layer);
  free(b);
}

static nps_err_t check_types(const bert_t *b, const nps_dataset_t *data) {
  for (int64_t i = 0; data->types && i < data->samples * data->tokens; i++)
    if (data->types[i] < 0 || data->types[i] >= b->types)
      return nps_fail(NPS_ERR_INPUT, "%s: group %s: token_type_ids: %d in row %lld: expected 0 to %lld", data->path,
                      data->group, (int)data->types[i], (long long)(i / data->tokens), (long long)b->types - 1);
  return NPS_OK;
}

static nps_err_t check_data(const nps_net_t *net, const nps_dataset_t *data) {
  const bert_t *b = net->shape;
  const int64_t most = b->positions - (b->variant->counts ? b->padding + 1 : 0);
  NPS_TRY(nps_texts_check(net, data, b->vocabulary, 1));
  if (data->choices || data->places || !data->labels)
    return nps_fail(NPS_ERR_INPUT,
                    "%s: group %s: expected input_ids [samples, tokens] with labels [samples], as %s needs them",
                    data->path, data->group, net->body->path);
  if (data->tokens > most)
    return nps_fail(NPS_ERR_INPUT,
                    "%s: group %s: input_ids: %s has positions for rows of at most %lld tokens, found %lld", data->path,
                    data->group, net->body->path, (long long)most, (long long)data->tokens);
  return check_types(b, data);
}

static double flops(const void *shape, const nps_dataset_t *data, int64_t n) {
  const bert_t *b = shape;
  const double h = (double)b->hidden, t = (double)data->tokens;
  const double key_value = t * 2 * h * h,
               rest = 2 * h * h + 2 * h * (double)b->inner + 2 * t * h; /* rest: of a query */
  return 2 * (double)n * ((double)b->layers * key_value + ((double)(b->layers - 1) * t + 1) * rest + h * h);
}

/* ---- forward pass ---- */

typedef struct {
  const bert_t *b;
  const nps_pass_t *pass;
  int64_t n, tokens, rows;            /* texts, tokens of each, of all of them */
  float *x;                           /* [rows][hidden] the activation; after the last layer [n][hidden] */
  float *query, *key, *value, *mixed; /* [rows][hidden] each */
  float *heads;                       /* what attention needs */
  float *inner;                       /* [ROWS][inner] */
  float *logits;                      /* [classes] */
} work_t;

static work_t start_work(const bert_t *b, const nps_dataset_t *data, int64_t n) {
  return (work_t){.b = b, .n = n, .tokens = data->tokens, .rows = n * data->tokens};
}

static int64_t lay_out(work_t *w, float *scratch) {
  const int64_t plane = w->rows * w->b->hidden;
  const nps_room_part_t parts[] = {{&w->query, plane},
                                   {&w->key, plane},
                                   {&w->value, plane},
                                   {&w->mixed, plane},
                                   {&w->heads, nps_heads_room(w->tokens, w->b->hidden / w->b->heads)},
                                   {&w->inner, ROWS * w->b->inner},
                                   {&w->logits, w->b->classifier.out}};
  return nps_room_lay_out(parts, sizeof parts / sizeof *parts, scratch);
}

static int64_t scratch_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  work_t w = start_work(shape, data, n);
  return lay_out(&w, NULL);
}

static const float *tensor_of(const work_t *w, int index) { return w->pass->weights[index]; }

static void normalise(const work_t *w, pair_t norm, int64_t rows) {
  const int64_t h = w->b->hidden;
  nps_kernel_layer_norm(w->x, h, rows, h, tensor_of(w, norm.weight), tensor_of(w, norm.bias), w->b->eps, w->x);
}

/* Adds what a text's places and token types give to its tokens. */
static void add_places(const work_t *w, int64_t text) {
  const bert_t *b = w->b;
  const nps_dataset_t *data = w->pass->data;
  const int64_t first = w->pass->samples[text] * w->tokens;
  int64_t count = 0;
  for (int64_t p = 0; p < w->tokens; p++) {
    const bool padding = b->variant->counts && data->ids[first + p] == b->padding;
    const int64_t place = !b->variant->counts ? p : padding ? b->padding : b->padding + ++count;
    const int64_t kind = data->types ? data->types[first + p] : 0;
    float *x = w->x + (text * w->tokens + p) * b->hidden;
    nps_kernel_add(x, b->hidden, 1, b->hidden, tensor_of(w, b->places) + place * b->hidden);
    nps_kernel_add(x, b->hidden, 1, b->hidden, tensor_of(w, b->kinds) + kind * b->hidden);
  }
}

static void embed(const work_t *w, const nps_net_step_t *step) {
  const bert_t *b = w->b;
  for (int64_t i = 0; i < w->n; i++)
    nps_texts_embed(w->pass, step, w->pass->data->ids + w->pass->samples[i] * w->tokens, w->tokens, b->hidden,
                    w->x + i * w->tokens * b->hidden);
  if (step->first + step->rows < b->vocabulary) return;
  for (int64_t i = 0; i < w->n; i++) add_places(w, i);
  normalise(w, b->norm, w->rows);
}

static void attend(const work_t *w, int64_t queries) {
  const int64_t h = w->b->hidden;
  nps_heads_t heads = {.query = w->query, .keys = w->key, .value = w->value, .out = w->mixed, .masked = true};
  heads.ldq = heads.ldk = heads.ldo = h;
  heads.texts = w->n;
  heads.queries = queries;
  heads.tokens = w->tokens;
  heads.heads = heads.groups = w->b->heads;
  heads.width = h / w->b->heads;
  heads.scale = (float)(1 / sqrt((double)heads.width));
  nps_heads_attend(w->pass, &heads, w->heads);
}

static void run_mlp(const work_t *w, const layer_t *layer, int64_t m) {
  const bert_t *b = w->b;
  const float *bias = nps_linear_bias(w->pass, &layer->up);
  for (int64_t first = 0; first < m; first += ROWS) {
    const int64_t rows = nps_min64(m - first, ROWS);
    float *x = w->x + first * b->hidden;
    nps_linear_product(w->pass, &layer->up, rows, x, b->hidden, w->inner, b->inner);
    for (int64_t i = 0; i < rows; i++) b->activation(w->inner + i * b->inner, bias, b->inner);
    nps_linear_add(w->pass, &layer->down, rows, w->inner, b->inner, x, b->hidden);
  }
}

static void keep_first_tokens(const work_t *w) {
  const int64_t h = w->b->hidden;
  for (int64_t i = 1; i < w->n; i++) memmove(w->x + i * h, w->x + i * w->tokens * h, (size_t)h * sizeof(float));
}

static void run_layer(const work_t *w, const layer_t *layer, bool last) {
  const int64_t h = w->b->hidden, queries = last ? 1 : w->tokens, m = w->n * queries;
  nps_linear_set(w->pass, &layer->key, w->rows, w->x, h, w->key, h);
  nps_linear_set(w->pass, &layer->value, w->rows, w->x, h, w->value, h);
  nps_linear_set(w->pass, &layer->query, m, w->x, last ? w->tokens * h : h, w->query, h);
  if (last) keep_first_tokens(w);
  attend(w, queries);
  nps_linear_add(w->pass, &layer->output, m, w->mixed, h, w->x, h);
  normalise(w, layer->norm_attention, m);
  run_mlp(w, layer, m);
  normalise(w, layer->norm_mlp, m);
}

static void classify(const work_t *w) {
  const bert_t *b = w->b;
  nps_linear_set(w->pass, &b->dense, w->n, w->x, b->hidden, w->query, b->hidden);
  for (int64_t i = 0; i < w->n * b->hidden; i++) w->query[i] = tanhf(w->query[i]);
  for (int64_t i = 0; i < w->n; i++) {
    nps_linear_set(w->pass, &b->classifier, 1, w->query + i * b->hidden, b->hidden, w->logits, b->classifier.out);
    nps_pass_take(w->pass, i, w->pass->data->labels[w->pass->samples[i]], w->logits, 0, b->classifier.out);
  }
}

static void run(const void *shape, const nps_pass_t *pass, const nps_net_step_t *step, float *scratch) {
  const bert_t *b = shape;
  const int64_t layer = step->stage - 1;
  work_t w = start_work(b, pass->data, pass->n);
  w.pass = pass;
  w.x = pass->x;
  lay_out(&w, scratch);
  if (layer < 0)
    embed(&w, step);
  else if (layer < b->layers)
    run_layer(&w, &b->layer[layer], layer == b->layers - 1);
  else
    classify(&w);
}

static int64_t activation_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  const bert_t *b = shape;
  return n * data->tokens * b->hidden;
}

/* ---- families ---- */

static const variant_t bert = {.prefix = "bert.", .dense = "pooler.dense", .classifier = "classifier"};
static const variant_t roberta = {.prefix = "roberta.",
                                  .counts = true,
                                  .dense = "classifier.dense",
                                  .dense_of_head = true,
                                  .classifier = "classifier.out_proj"};

#define FAMILY(type, what)                                                                                             \
  {                                                                                                                    \
    .model_type = type, .variant = what, .linear_layers = linear_layers, .describe = describe,                         \
    .free_shape = free_shape, .check_data = check_data, .flops = flops, .activation = activation_size,                 \
    .rows = nps_pass_sample_rows, .scratch = scratch_size, .run = run,                                                 \
  }

const nps_net_family_t nps_net_bert = FAMILY("bert", &bert);
const nps_net_family_t nps_net_roberta = FAMILY("roberta", &roberta);
const nps_net_family_t nps_net_xlm_roberta = FAMILY("xlm-roberta", &roberta);
