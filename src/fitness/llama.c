/* Decoders with RMSNorm, rotary positions (RoPE), grouped-query attention and gated MLPs, …ForCausalLM: Llama, Mistral (each
 * token sees a window), Qwen2 (biases of query, key and value), Qwen3 (normed queries and keys). A text's score is that of its
 * next tokens: position p of a row is asked for the token at p + 1. Work that needs wide rows is done for a fixed number of
 * rows at a time, and the vocabulary comes in parts, so that memory stays small and products keep their shapes. */
#include "fitness_internal.h"
#include "kernels.h"
#include "linear.h"
#include "rope.h"
#include "texts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 512 /* of the MLP's inner rows held at once */ };

/* What a model_type has, and what its configs leave out. */
typedef struct {
  bool attention_bias, mlp_bias; /* are options */
  bool qkv_bias;                 /* there always is one */
  bool query_norm;
  bool windows;   /* a sliding window is an option of each layer; else all layers have it, where there is one */
  int64_t window; /* its default; 0: none */
  int64_t inner, vocabulary, groups, width, positions; /* groups, width 0: from the heads */
} variant_t;

typedef struct {
  int norm_before, norm_after, query_norm, key_norm;
  nps_linear_t query, key, value, output, gate, up, down;
  int64_t window; /* 0: none */
} layer_t;

typedef struct {
  const variant_t *variant;
  int64_t hidden, layers, heads, groups; /* groups: heads of keys and values */
  int64_t width, inner, vocabulary;      /* width: of a head */
  double eps;
  nps_rope_t rope;
  bool attention_bias, mlp_bias, tied;
  nps_activation_fn *activation;
  int embedding, norm, head;
  layer_t *layer; /* [layers] */
} llama_t;

/* ---- description ---- */

#define ALSO(expr) err = nps_err_worse(err, expr)

static nps_err_t check_one(const nps_net_t *net, const json_t *config, const char *key) {
  double value = 1;
  NPS_TRY(nps_net_get_number(net, config, key, 1, &value));
  if (value == 1) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: %s %g is not implemented, only 1", net->body->path, key, value);
}

static nps_err_t check_heads(const nps_net_t *net, const llama_t *m) {
  const char *path = net->body->path;
  if (m->heads % m->groups != 0)
    return nps_fail(NPS_ERR_INPUT,
                    "%s: config.json: num_attention_heads %lld is no multiple of num_key_value_heads %lld", path,
                    (long long)m->heads, (long long)m->groups);
  if (m->width % 2 != 0)
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: head_dim: expected an even number, found %lld", path,
                    (long long)m->width);
  return NPS_OK;
}

static nps_err_t read_heads(const nps_net_t *net, const json_t *config, llama_t *m) {
  const variant_t *v = m->variant;
  NPS_TRY(nps_net_get_count(net, config, "num_attention_heads", 32, &m->heads));
  const bool missing = !json_object_get(config, "num_key_value_heads");
  NPS_TRY(nps_net_get_count_or_null(net, config, "num_key_value_heads", m->heads, &m->groups));
  if (missing && v->groups) m->groups = v->groups;
  if (!v->width && !json_is_integer(json_object_get(config, "head_dim")) && m->hidden % m->heads != 0)
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: hidden_size %lld is no multiple of num_attention_heads %lld",
                    net->body->path, (long long)m->hidden, (long long)m->heads);
  NPS_TRY(nps_net_get_count_or_null(net, config, "head_dim", v->width ? v->width : m->hidden / m->heads, &m->width));
  return check_heads(net, m);
}

static nps_err_t read_biases(const nps_net_t *net, const json_t *config, llama_t *m) {
  const variant_t *v = m->variant;
  if (v->attention_bias) NPS_TRY(nps_net_get_bool(net, config, "attention_bias", false, &m->attention_bias));
  return v->mlp_bias ? nps_net_get_bool(net, config, "mlp_bias", false, &m->mlp_bias) : NPS_OK;
}

static nps_err_t read_config(const nps_net_t *net, const json_t *config, llama_t *m) {
  const variant_t *v = m->variant;
  nps_err_t err = NPS_OK;
  ALSO(nps_net_get_count(net, config, "hidden_size", 4096, &m->hidden));
  ALSO(nps_net_get_count(net, config, "num_hidden_layers", 32, &m->layers));
  ALSO(nps_net_get_count(net, config, "intermediate_size", v->inner, &m->inner));
  ALSO(nps_net_get_count(net, config, "vocab_size", v->vocabulary, &m->vocabulary));
  ALSO(nps_net_get_number(net, config, "rms_norm_eps", 1e-6, &m->eps));
  ALSO(read_biases(net, config, m));
  ALSO(nps_net_get_bool(net, config, "tie_word_embeddings", false, &m->tied));
  ALSO(nps_net_get_activation(net, config, "silu", &m->activation));
  ALSO(nps_rope_read(net, config, v->positions, &m->rope));
  ALSO(check_one(net, config, "pretraining_tp"));
  ALSO(nps_net_refuse(net, config, "quantization_config"));
  if (err == NPS_OK) err = read_heads(net, config, m);
  return err;
}

/* ---- sliding windows ---- */

/* Whether a layer has the window by layer_types; without them the layers from max_window_layers on have it. */
static nps_err_t read_layer_type(const nps_net_t *net, const json_t *types, int64_t l, bool *has) {
  const char *type = json_string_value(json_array_get(types, (size_t)l));
  *has = type && strcmp(type, "sliding_attention") == 0;
  if (*has || (type && strcmp(type, "full_attention") == 0)) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT,
                  "%s: config.json: layer_types: expected full_attention or sliding_attention for layer %lld, found %s",
                  net->body->path, (long long)l, type ? type : "none");
}

static nps_err_t read_windows_of_layers(const nps_net_t *net, const json_t *config, int64_t window, llama_t *m) {
  const json_t *types = json_object_get(config, "layer_types");
  bool use = false, has = false;
  double first = 0;
  NPS_TRY(nps_net_get_bool(net, config, "use_sliding_window", false, &use));
  NPS_TRY(nps_net_get_number(net, config, "max_window_layers", 28, &first));
  for (int64_t l = 0; l < m->layers; l++) {
    has = (double)l >= first;
    if (json_is_array(types)) NPS_TRY(read_layer_type(net, types, l, &has));
    m->layer[l].window = use && has ? window : 0;
  }
  return NPS_OK;
}

static nps_err_t read_windows(const nps_net_t *net, const json_t *config, llama_t *m) {
  int64_t window = 0;
  if (!m->variant->window) return NPS_OK;
  if (!json_is_null(json_object_get(config, "sliding_window")))
    NPS_TRY(nps_net_get_count(net, config, "sliding_window", m->variant->window, &window));
  if (m->variant->windows) return read_windows_of_layers(net, config, window, m);
  for (int64_t l = 0; l < m->layers; l++) m->layer[l].window = window;
  return NPS_OK;
}

/* ---- tensors ---- */

static const char *const linear_layers[] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj",    NULL,
};

static nps_err_t add_norm(nps_net_t *net, const char *prefix, const char *name, int64_t hidden, int *index) {
  char *full = nps_xstrf("%s%s.weight", prefix, name);
  nps_err_t err = nps_net_add(net, full, false, 1, &hidden, index);
  free(full);
  return err;
}

static nps_err_t add_attention(nps_net_t *net, const llama_t *m, const char *prefix, layer_t *layer) {
  const int64_t h = m->hidden, all = m->heads * m->width, shared = m->groups * m->width;
  const bool bias = m->attention_bias, qkv = bias || m->variant->qkv_bias;
  nps_err_t err = NPS_OK;
  ALSO(nps_net_add_linear(net, prefix, "self_attn.q_proj", false, qkv, all, h, &layer->query));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.k_proj", false, qkv, shared, h, &layer->key));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.v_proj", false, qkv, shared, h, &layer->value));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.o_proj", false, bias, h, all, &layer->output));
  if (!m->variant->query_norm) return err;
  ALSO(add_norm(net, prefix, "self_attn.q_norm", m->width, &layer->query_norm));
  ALSO(add_norm(net, prefix, "self_attn.k_norm", m->width, &layer->key_norm));
  return err;
}

static nps_err_t add_layer(nps_net_t *net, const llama_t *m, int64_t l, layer_t *layer) {
  const int64_t h = m->hidden;
  const bool mlp = m->mlp_bias;
  nps_err_t err = NPS_OK;
  char *prefix = nps_xstrf("model.layers.%lld.", (long long)l);
  ALSO(add_norm(net, prefix, "input_layernorm", h, &layer->norm_before));
  ALSO(add_attention(net, m, prefix, layer));
  ALSO(add_norm(net, prefix, "post_attention_layernorm", h, &layer->norm_after));
  ALSO(nps_net_add_linear(net, prefix, "mlp.gate_proj", false, mlp, m->inner, h, &layer->gate));
  ALSO(nps_net_add_linear(net, prefix, "mlp.up_proj", false, mlp, m->inner, h, &layer->up));
  ALSO(nps_net_add_linear(net, prefix, "mlp.down_proj", false, mlp, h, m->inner, &layer->down));
  free(prefix);
  return err;
}

/* A tied head is the embedding, also where the file has a head besides. */
static nps_err_t add_ends(nps_net_t *net, llama_t *m) {
  const int64_t shape[2] = {m->vocabulary, m->hidden};
  const int last = (int)m->layers + 1;
  nps_err_t err = nps_net_add(net, "model.embed_tokens.weight", false, 2, shape, &m->embedding);
  m->head = m->embedding;
  nps_net_begin_stage(net, last);
  if (m->tied)
    nps_net_share(net, m->embedding, last);
  else
    ALSO(nps_net_add(net, "lm_head.weight", false, 2, shape, &m->head));
  ALSO(add_norm(net, "model.", "norm", m->hidden, &m->norm));
  return err;
}

/* Stages: the embedding, the layers, the last norm with the head. */
static void add_steps(nps_net_t *net, const llama_t *m) {
  const int layers = (int)m->layers;
  nps_net_add_table(net, 0, m->embedding, m->vocabulary, m->hidden);
  for (int l = 0; l < layers; l++) nps_net_add_step(net, 1 + l);
  nps_net_add_table(net, layers + 1, m->head, m->vocabulary, m->hidden);
}

static nps_err_t describe(nps_net_t *net, const json_t *config, void **shape) {
  llama_t *m = nps_xcalloc(1, sizeof *m);
  *shape = m;
  m->variant = net->family->variant;
  NPS_TRY(read_config(net, config, m));
  m->layer = nps_xcalloc((size_t)m->layers, sizeof *m->layer);
  NPS_TRY(read_windows(net, config, m));
  net->classes = (int)m->vocabulary;
  nps_err_t err = add_ends(net, m);
  /* What is wrong in one layer is mostly wrong in all. */
  for (int l = 0; l < m->layers && err == NPS_OK; l++) {
    nps_net_begin_stage(net, 1 + l);
    err = add_layer(net, m, l, &m->layer[l]);
  }
  add_steps(net, m);
  return err;
}

#undef ALSO

static void free_shape(void *shape) {
  llama_t *m = shape;
  if (m) free(m->layer);
  free(m);
}

static nps_err_t check_data(const nps_net_t *net, const nps_dataset_t *data) {
  const llama_t *m = net->shape;
  NPS_TRY(nps_texts_check(net, data, m->vocabulary, 2));
  return nps_texts_check_next(data, m->vocabulary);
}

static double flops(const void *shape, const nps_dataset_t *data, int64_t n) {
  const llama_t *m = shape;
  const double h = (double)m->hidden, t = (double)nps_texts_next_places(data);
  const double all = (double)(m->heads * m->width), shared = (double)(m->groups * m->width);
  const double token = 2 * h * all + 2 * h * shared + 3 * h * (double)m->inner + (t + 1) * all;
  return 2 * (double)nps_dataset_texts(data, n) * t * ((double)m->layers * token + h * (double)m->vocabulary);
}

/* ---- forward pass ---- */

typedef struct {
  const llama_t *m;
  const nps_pass_t *pass;
  const nps_dataset_t *data;
  int64_t n, positions, rows; /* texts, positions of each, rows of all of them */
  int64_t all, shared;        /* numbers of all heads' queries, of all groups' keys */
  float *x;                   /* [rows][hidden] the activation */
  float *norm;                /* [rows][hidden] */
  float *query, *key, *value; /* [rows][all], [rows][shared] twice */
  float *mixed;               /* [rows][all]: what attention gives */
  float *heads;               /* what attention needs */
  float *cosine, *sine;       /* [positions][width/2] */
  float *gate, *up;           /* [ROWS][inner] */
  float *none;                /* [inner] zeros: no bias */
  float *logits;              /* shares its place with all others */
} work_t;

static work_t start_work(const llama_t *m, const nps_dataset_t *data, int64_t n) {
  work_t w = {.m = m, .data = data, .n = nps_dataset_texts(data, n), .positions = nps_texts_next_places(data)};
  w.rows = w.n * w.positions;
  w.all = m->heads * m->width;
  w.shared = m->groups * m->width;
  return w;
}

/* Hands out the memory of a pass. @param scratch  NULL: only counts. @return numbers */
static int64_t lay_out(work_t *w, float *scratch) {
  const llama_t *m = w->m;
  const nps_room_part_t parts[] = {{&w->norm, w->rows * m->hidden},
                                   {&w->query, w->rows * w->all},
                                   {&w->key, w->rows * w->shared},
                                   {&w->value, w->rows * w->shared},
                                   {&w->mixed, w->rows * w->all},
                                   {&w->heads, nps_heads_room(w->positions, m->width)},
                                   {&w->cosine, w->positions * m->width / 2},
                                   {&w->sine, w->positions * m->width / 2},
                                   {&w->gate, ROWS * m->inner},
                                   {&w->up, ROWS * m->inner},
                                   {&w->none, m->inner}};
  w->logits = scratch;
  return nps_max64(nps_room_lay_out(parts, sizeof parts / sizeof *parts, scratch),
                   nps_texts_logit_room(m->vocabulary, m->hidden));
}

static int64_t scratch_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  work_t w = start_work(shape, data, n);
  return lay_out(&w, NULL);
}

static const float *tensor_of(const work_t *w, int index) { return w->pass->weights[index]; }

static void embed(const work_t *w, const nps_net_step_t *step) {
  for (int64_t i = 0; i < w->n; i++)
    nps_texts_embed(w->pass, step, w->data->ids + nps_texts_place(w->pass, i) * w->data->tokens, w->positions,
                    w->m->hidden, w->x + i * w->positions * w->m->hidden);
}

static void normalise(const work_t *w, int weight) {
  nps_kernel_rms_norm(w->x, w->rows, w->m->hidden, tensor_of(w, weight), w->m->eps, w->norm);
}

/* Queries and keys: normed where the family does, and turned by their positions. */
static void turn(const work_t *w, float *rows, int64_t heads, int norm) {
  const int64_t width = w->m->width;
  if (w->m->variant->query_norm) nps_kernel_rms_norm(rows, w->rows * heads, width, tensor_of(w, norm), w->m->eps, rows);
  for (int64_t i = 0; i < w->n; i++)
    nps_kernel_rope(rows + i * w->positions * heads * width, w->positions, heads, width, w->cosine, w->sine);
}

static void attend(const work_t *w, const layer_t *layer) {
  const llama_t *m = w->m;
  nps_heads_t heads = {.query = w->query, .keys = w->key, .value = w->value, .out = w->mixed};
  heads.ldq = heads.ldo = w->all;
  heads.ldk = w->shared;
  heads.texts = w->n;
  heads.queries = heads.tokens = w->positions;
  heads.heads = m->heads;
  heads.groups = m->groups;
  heads.width = m->width;
  heads.scale = (float)(1 / sqrt((double)m->width));
  heads.causal = heads.masked = true;
  heads.window = layer->window;
  nps_heads_attend(w->pass, &heads, w->heads);
}

static void run_attention(const work_t *w, const layer_t *layer) {
  const llama_t *m = w->m;
  normalise(w, layer->norm_before);
  nps_linear_set(w->pass, &layer->query, w->rows, w->norm, m->hidden, w->query, w->all);
  nps_linear_set(w->pass, &layer->key, w->rows, w->norm, m->hidden, w->key, w->shared);
  nps_linear_set(w->pass, &layer->value, w->rows, w->norm, m->hidden, w->value, w->shared);
  turn(w, w->query, m->heads, layer->query_norm);
  turn(w, w->key, m->groups, layer->key_norm);
  attend(w, layer);
  nps_linear_add(w->pass, &layer->output, w->rows, w->mixed, w->all, w->x, m->hidden);
}

static void run_mlp(const work_t *w, const layer_t *layer) {
  const llama_t *m = w->m;
  normalise(w, layer->norm_after);
  for (int64_t first = 0; first < w->rows; first += ROWS) {
    const int64_t rows = nps_min64(w->rows - first, ROWS);
    const float *norm = w->norm + first * m->hidden;
    nps_linear_set(w->pass, &layer->gate, rows, norm, m->hidden, w->gate, m->inner);
    nps_linear_set(w->pass, &layer->up, rows, norm, m->hidden, w->up, m->inner);
    for (int64_t i = 0; i < rows; i++) m->activation(w->gate + i * m->inner, w->none, m->inner);
    nps_kernel_multiply(w->gate, w->up, rows * m->inner);
    nps_linear_add(w->pass, &layer->down, rows, w->gate, m->inner, w->x + first * m->hidden, m->hidden);
  }
}

/* ---- steps ---- */

static void run_layer(const work_t *w, const layer_t *layer) {
  const llama_t *m = w->m;
  memset(w->none, 0, (size_t)m->inner * sizeof(float));
  nps_rope_table(&m->rope, m->width, w->data->tokens, w->positions, w->cosine, w->sine);
  run_attention(w, layer);
  run_mlp(w, layer);
}

/* Only the rows that are asked for a token get logits. */
static void run_head(const work_t *w, const nps_net_step_t *step) {
  const llama_t *m = w->m;
  if (step->first == 0) {
    const int64_t count = nps_texts_gather(w->pass, w->positions, m->hidden, nps_texts_ask_next, w->x);
    nps_kernel_rms_norm(w->x, count, m->hidden, tensor_of(w, m->norm), m->eps, w->x);
  }
  nps_texts_logits(w->pass, step, m->hidden, 1, w->x, w->logits);
}

static void run(const void *shape, const nps_pass_t *pass, const nps_net_step_t *step, float *scratch) {
  work_t w = start_work(shape, pass->data, pass->n);
  const int64_t layer = step->stage - 1;
  w.pass = pass;
  w.x = pass->x;
  lay_out(&w, scratch);
  if (layer < 0)
    embed(&w, step);
  else if (layer < w.m->layers)
    run_layer(&w, &w.m->layer[layer]);
  else
    run_head(&w, step);
}

static int64_t activation_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  const llama_t *m = shape;
  return nps_dataset_texts(data, n) * nps_texts_next_places(data) * m->hidden;
}

/* ---- families ---- */

static const variant_t llama = {
    .attention_bias = true, .mlp_bias = true, .inner = 11008, .vocabulary = 32000, .positions = 2048};
static const variant_t mistral = {
    .window = 4096, .inner = 14336, .vocabulary = 32000, .groups = 8, .positions = 131072};
static const variant_t qwen2 = {.qkv_bias = true,
                                .window = 4096,
                                .windows = true,
                                .inner = 22016,
                                .vocabulary = 151936,
                                .groups = 32,
                                .positions = 32768};
static const variant_t qwen3 = {.attention_bias = true,
                                .query_norm = true,
                                .window = 4096,
                                .windows = true,
                                .inner = 22016,
                                .vocabulary = 151936,
                                .groups = 32,
                                .width = 128,
                                .positions = 32768};

#define FAMILY(type, what)                                                                                             \
  {                                                                                                                    \
    .model_type = type, .variant = what, .linear_layers = linear_layers, .describe = describe,                         \
    .free_shape = free_shape, .check_data = check_data, .flops = flops, .activation = activation_size,                 \
    .rows = nps_texts_next_rows, .scratch = scratch_size, .run = run,                                                  \
  }

const nps_net_family_t nps_net_llama = FAMILY("llama", &llama);
const nps_net_family_t nps_net_mistral = FAMILY("mistral", &mistral);
const nps_net_family_t nps_net_qwen2 = FAMILY("qwen2", &qwen2);
const nps_net_family_t nps_net_qwen3 = FAMILY("qwen3", &qwen3);
