/* Decoders with RMSNorm, rotary positions (RoPE), grouped-query attention and gated MLPs, …ForCausalLM: Llama, Mistral (each
 * token sees a window), Qwen2 (biases of query, key and value), Qwen3 (normed queries and keys), Gemma 2 and 3 (norms also of what
 * attention and MLP give, norm weights that count from 1, scaled embeddings, capped scores). A text's score is that of its next
 * tokens: position p of a row is asked for the token at p + 1. Work that needs wide rows is done for a fixed number of
 * rows at a time, and the vocabulary comes in parts, so that memory stays small and products keep their shapes. */
#include "llama.h"
#include "fitness_internal.h"
#include "kernels.h"
#include "texts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 512 /* of the MLP's inner rows held at once */ };

/* ---- tensors ---- */

#define ALSO(expr) err = nps_err_worse(err, expr)

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

static nps_err_t add_attention(nps_net_t *net, const nps_llama_t *m, const char *prefix, nps_llama_layer_t *layer) {
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

static nps_err_t add_layer(nps_net_t *net, const nps_llama_t *m, int64_t l, nps_llama_layer_t *layer) {
  const int64_t h = m->hidden;
  const bool mlp = m->mlp_bias;
  nps_err_t err = NPS_OK;
  char *prefix = nps_xstrf("model.layers.%lld.", (long long)l);
  ALSO(add_norm(net, prefix, "input_layernorm", h, &layer->norm_before));
  ALSO(add_attention(net, m, prefix, layer));
  if (m->variant->gemma) {
    ALSO(add_norm(net, prefix, "post_attention_layernorm", h, &layer->norm_attention));
    ALSO(add_norm(net, prefix, "pre_feedforward_layernorm", h, &layer->norm_after));
    ALSO(add_norm(net, prefix, "post_feedforward_layernorm", h, &layer->norm_mlp));
  } else {
    ALSO(add_norm(net, prefix, "post_attention_layernorm", h, &layer->norm_after));
  }
  ALSO(nps_net_add_linear(net, prefix, "mlp.gate_proj", false, mlp, m->inner, h, &layer->gate));
  ALSO(nps_net_add_linear(net, prefix, "mlp.up_proj", false, mlp, m->inner, h, &layer->up));
  ALSO(nps_net_add_linear(net, prefix, "mlp.down_proj", false, mlp, h, m->inner, &layer->down));
  free(prefix);
  return err;
}

/* Gemma scales embeddings by a number that is rounded to their type. */
static float stretch_of(const nps_net_t *net, const nps_llama_t *m) {
  const nps_net_tensor_t *table = &net->tensors[m->embedding];
  const double root = sqrt((double)m->hidden);
  uint64_t stored = 0;
  double rounded = 0;
  if (table->source < 0) return 0; /* an error by itself, as other types are */
  const nps_dtype_t dtype = net->body->tensors[table->source].dtype;
  if (nps_dtype_kind(dtype) != NPS_KIND_FLOAT) return 0;
  nps_tensor_narrow(&root, 1, dtype, &stored);
  nps_tensor_widen(dtype, &stored, 1, &rounded);
  return (float)rounded;
}

/* A tied head is the embedding, also where the file has a head besides. */
static nps_err_t add_ends(nps_net_t *net, nps_llama_t *m) {
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
static void add_steps(nps_net_t *net, const nps_llama_t *m) {
  const int layers = (int)m->layers;
  nps_net_add_table(net, 0, m->embedding, m->vocabulary, m->hidden);
  for (int l = 0; l < layers; l++) nps_net_add_step(net, 1 + l);
  nps_net_add_table(net, layers + 1, m->head, m->vocabulary, m->hidden);
}

static nps_err_t describe(nps_net_t *net, const json_t *config, void **shape) {
  nps_llama_t *m = nps_xcalloc(1, sizeof *m);
  *shape = m;
  m->variant = net->family->variant;
  NPS_TRY(nps_llama_read(net, config, m));
  net->classes = (int)m->vocabulary;
  nps_err_t err = add_ends(net, m);
  m->stretch = stretch_of(net, m);
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
  nps_llama_t *m = shape;
  if (m) free(m->layer);
  free(m);
}

static nps_err_t check_data(const nps_net_t *net, const nps_dataset_t *data) {
  const nps_llama_t *m = net->shape;
  NPS_TRY(nps_texts_check(net, data, m->vocabulary, 2));
  return nps_texts_check_next(data, m->vocabulary);
}

static double flops(const void *shape, const nps_dataset_t *data, int64_t n) {
  const nps_llama_t *m = shape;
  const double h = (double)m->hidden, t = (double)nps_texts_next_places(data);
  const double all = (double)(m->heads * m->width), shared = (double)(m->groups * m->width);
  const double token = 2 * h * all + 2 * h * shared + 3 * h * (double)m->inner + (t + 1) * all;
  return 2 * (double)nps_dataset_texts(data, n) * t * ((double)m->layers * token + h * (double)m->vocabulary);
}

/* ---- forward pass ---- */

typedef struct {
  const nps_llama_t *m;
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
  float *ones;                /* [hidden or width] a norm's weights, counted from 1 */
  float *logits;              /* shares its place with all others */
} work_t;

static work_t start_work(const nps_llama_t *m, const nps_dataset_t *data, int64_t n) {
  work_t w = {.m = m, .data = data, .n = nps_dataset_texts(data, n), .positions = nps_texts_next_places(data)};
  w.rows = w.n * w.positions;
  w.all = m->heads * m->width;
  w.shared = m->groups * m->width;
  return w;
}

/* Hands out the memory of a pass. @param scratch  NULL: only counts. @return numbers */
static int64_t lay_out(work_t *w, float *scratch) {
  const nps_llama_t *m = w->m;
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
                                   {&w->none, m->inner},
                                   {&w->ones, nps_max64(m->hidden, m->width)}};
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
  if (!w->m->variant->gemma || step->first + step->rows < w->m->vocabulary) return;
  for (int64_t i = 0; i < w->rows * w->m->hidden; i++) w->x[i] *= w->m->stretch;
}

/* Weights of a norm; those of Gemma count from 1. */
static const float *norm_of(const work_t *w, int weight, int64_t n) {
  if (!w->m->variant->gemma) return tensor_of(w, weight);
  for (int64_t i = 0; i < n; i++) w->ones[i] = 1 + tensor_of(w, weight)[i];
  return w->ones;
}

static void normalise(const work_t *w, const float *x, int64_t rows, int weight, float *y) {
  const int64_t h = w->m->hidden;
  nps_kernel_rms_norm(x, rows, h, norm_of(w, weight, h), w->m->eps, y);
}

/* x += y·Wᵀ + b, normed before it is added where the family does. @param room  [rows][hidden] for it */
static void add_product(const work_t *w, const nps_linear_t *layer, int64_t rows, const float *y, int norm, float *room,
                        float *x) {
  const int64_t h = w->m->hidden;
  if (!w->m->variant->gemma) {
    nps_linear_add(w->pass, layer, rows, y, layer->in, x, h);
    return;
  }
  nps_linear_set(w->pass, layer, rows, y, layer->in, room, h);
  normalise(w, room, rows, norm, room);
  nps_kernel_add(x, rows * h, 1, rows * h, room);
}

/* Queries and keys: normed where the family does, and turned by their positions. */
static void turn(const work_t *w, float *rows, int64_t heads, int norm) {
  const int64_t width = w->m->width;
  if (w->m->variant->query_norm)
    nps_kernel_rms_norm(rows, w->rows * heads, width, norm_of(w, norm, width), w->m->eps, rows);
  for (int64_t i = 0; i < w->n; i++)
    nps_kernel_rope(rows + i * w->positions * heads * width, w->positions, heads, width, w->cosine, w->sine);
}

static void attend(const work_t *w, const nps_llama_layer_t *layer) {
  const nps_llama_t *m = w->m;
  nps_heads_t heads = {.query = w->query, .keys = w->key, .value = w->value, .out = w->mixed};
  heads.ldq = heads.ldo = w->all;
  heads.ldk = w->shared;
  heads.texts = w->n;
  heads.queries = heads.tokens = w->positions;
  heads.heads = m->heads;
  heads.groups = m->groups;
  heads.width = m->width;
  heads.scale = (float)m->scale;
  heads.cap = (float)m->score_cap;
  heads.causal = heads.masked = true;
  heads.window = layer->window;
  nps_heads_attend(w->pass, &heads, w->heads);
}

static void run_attention(const work_t *w, const nps_llama_layer_t *layer) {
  const nps_llama_t *m = w->m;
  normalise(w, w->x, w->rows, layer->norm_before, w->norm);
  nps_linear_set(w->pass, &layer->query, w->rows, w->norm, m->hidden, w->query, w->all);
  nps_linear_set(w->pass, &layer->key, w->rows, w->norm, m->hidden, w->key, w->shared);
  nps_linear_set(w->pass, &layer->value, w->rows, w->norm, m->hidden, w->value, w->shared);
  turn(w, w->query, m->heads, layer->query_norm);
  turn(w, w->key, m->groups, layer->key_norm);
  attend(w, layer);
  add_product(w, &layer->output, w->rows, w->mixed, layer->norm_attention, w->norm, w->x);
}

static void run_mlp(const work_t *w, const nps_llama_layer_t *layer) {
  const nps_llama_t *m = w->m;
  normalise(w, w->x, w->rows, layer->norm_after, w->norm);
  for (int64_t first = 0; first < w->rows; first += ROWS) {
    const int64_t rows = nps_min64(w->rows - first, ROWS);
    float *norm = w->norm + first * m->hidden;
    nps_linear_set(w->pass, &layer->gate, rows, norm, m->hidden, w->gate, m->inner);
    nps_linear_set(w->pass, &layer->up, rows, norm, m->hidden, w->up, m->inner);
    for (int64_t i = 0; i < rows; i++) m->activation(w->gate + i * m->inner, w->none, m->inner);
    nps_kernel_multiply(w->gate, w->up, rows * m->inner);
    add_product(w, &layer->down, rows, w->gate, layer->norm_mlp, norm, w->x + first * m->hidden);
  }
}

/* ---- steps ---- */

static void run_layer(const work_t *w, const nps_llama_layer_t *layer) {
  const nps_llama_t *m = w->m;
  memset(w->none, 0, (size_t)m->inner * sizeof(float));
  nps_rope_table(layer->rope, m->width, w->data->tokens, w->positions, w->cosine, w->sine);
  run_attention(w, layer);
  run_mlp(w, layer);
}

/* Only the rows that are asked for a token get logits. */
static void run_head(const work_t *w, const nps_net_step_t *step) {
  const nps_llama_t *m = w->m;
  if (step->first == 0) {
    const int64_t count = nps_texts_gather(w->pass, w->positions, m->hidden, nps_texts_ask_next, w->x);
    normalise(w, w->x, count, m->norm, w->x);
  }
  nps_texts_logits(w->pass, step, m->hidden, 1, (float)m->cap, w->x, w->logits);
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
  const nps_llama_t *m = shape;
  return nps_dataset_texts(data, n) * nps_texts_next_places(data) * m->hidden;
}

/* ---- families ---- */

#define FAMILY(type, what)                                                                                             \
  {                                                                                                                    \
    .model_type = type, .variant = what, .linear_layers = linear_layers, .describe = describe,                         \
    .free_shape = free_shape, .check_data = check_data, .flops = flops, .activation = activation_size,                 \
    .rows = nps_texts_next_rows, .scratch = scratch_size, .run = run,                                                  \
  }

const nps_net_family_t nps_net_llama = FAMILY("llama", &nps_llama_variant);
const nps_net_family_t nps_net_mistral = FAMILY("mistral", &nps_mistral_variant);
const nps_net_family_t nps_net_qwen2 = FAMILY("qwen2", &nps_qwen2_variant);
const nps_net_family_t nps_net_qwen3 = FAMILY("qwen3", &nps_qwen3_variant);
const nps_net_family_t nps_net_gemma2 = FAMILY("gemma2", &nps_gemma2_variant);
const nps_net_family_t nps_net_gemma3 = FAMILY("gemma3_text", &nps_gemma3_variant);
