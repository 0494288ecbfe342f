/* Llama: decoders with RMSNorm, rotary positions (RoPE), grouped-query attention and SwiGLU, LlamaForCausalLM. A text's score
 * is that of its next tokens: position p of a row is asked for the token at p + 1. Work that needs wide rows is done for a fixed
 * number of rows at a time, and the vocabulary comes in parts, so that memory stays small and products keep their shapes. */
#include "fitness_internal.h"
#include "kernels.h"
#include "linear.h"

#include "nps/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
  QUERIES = 64,         /* in one call of the attention kernel */
  ROWS = 512,           /* of the MLP's inner rows and of logits held at once */
  LOGITS = 1 << 23,     /* at most so many logits held at once */
  NOT_ASKED = -100,     /* a label that does not count, as in transformers */
  MOST_TOKENS = 1 << 16 /* in a row of text */
};

typedef struct {
  int norm_before, norm_after;
  nps_linear_t query, key, value, output, gate, up, down;
} layer_t;

typedef struct {
  int64_t hidden, layers, heads, groups; /* groups: heads of keys and values */
  int64_t width, inner, vocabulary;      /* width: of a head */
  double eps, theta;
  bool attention_bias, mlp_bias, tied;
  nps_activation_fn *activation;
  int embedding, norm, head;
  layer_t *layer; /* [layers] */
} llama_t;

/* ---- description ---- */

#define ALSO(expr) err = nps_err_worse(err, expr)

/* Positions are turned by θ^(−2i/width) a token; newer configs hold θ in rope_parameters. */
static nps_err_t read_rope(const nps_net_t *net, const json_t *config, llama_t *m) {
  static const char *const keys[] = {"rope_parameters", "rope_scaling"};
  NPS_TRY(nps_net_get_number(net, config, "rope_theta", 10000, &m->theta));
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    const json_t *rope = json_object_get(config, keys[i]);
    const char *type = NULL;
    if (!json_is_object(rope)) {
      NPS_TRY(nps_net_refuse(net, config, keys[i]));
      continue;
    }
    NPS_TRY(nps_net_get_text(net, rope, json_object_get(rope, "type") ? "type" : "rope_type", "default", &type));
    if (strcmp(type, "default") != 0)
      return nps_fail(NPS_ERR_INPUT, "%s: config.json: %s: rope_type %s is not implemented, only default",
                      net->body->path, keys[i], type);
    NPS_TRY(nps_net_get_number(net, rope, "rope_theta", m->theta, &m->theta));
  }
  if (m->theta > 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: rope_theta: expected a number above 0, found %g", net->body->path,
                  m->theta);
}

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
  NPS_TRY(nps_net_get_count(net, config, "num_attention_heads", 32, &m->heads));
  NPS_TRY(nps_net_get_count_or_null(net, config, "num_key_value_heads", m->heads, &m->groups));
  if (!json_is_integer(json_object_get(config, "head_dim")) && m->hidden % m->heads != 0)
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: hidden_size %lld is no multiple of num_attention_heads %lld",
                    net->body->path, (long long)m->hidden, (long long)m->heads);
  NPS_TRY(nps_net_get_count_or_null(net, config, "head_dim", m->hidden / m->heads, &m->width));
  return check_heads(net, m);
}

static nps_err_t read_config(const nps_net_t *net, const json_t *config, llama_t *m) {
  nps_err_t err = NPS_OK;
  ALSO(nps_net_get_count(net, config, "hidden_size", 4096, &m->hidden));
  ALSO(nps_net_get_count(net, config, "num_hidden_layers", 32, &m->layers));
  ALSO(nps_net_get_count(net, config, "intermediate_size", 11008, &m->inner));
  ALSO(nps_net_get_count(net, config, "vocab_size", 32000, &m->vocabulary));
  ALSO(nps_net_get_number(net, config, "rms_norm_eps", 1e-6, &m->eps));
  ALSO(nps_net_get_bool(net, config, "attention_bias", false, &m->attention_bias));
  ALSO(nps_net_get_bool(net, config, "mlp_bias", false, &m->mlp_bias));
  ALSO(nps_net_get_bool(net, config, "tie_word_embeddings", false, &m->tied));
  ALSO(nps_net_get_activation(net, config, "silu", &m->activation));
  ALSO(read_rope(net, config, m));
  ALSO(check_one(net, config, "pretraining_tp"));
  ALSO(check_one(net, config, "partial_rotary_factor"));
  ALSO(nps_net_refuse(net, config, "quantization_config"));
  if (err == NPS_OK) err = read_heads(net, config, m);
  return err;
}

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

static nps_err_t add_layer(nps_net_t *net, const llama_t *m, int64_t l, layer_t *layer) {
  const int64_t h = m->hidden, all = m->heads * m->width, shared = m->groups * m->width;
  const bool attention = m->attention_bias, mlp = m->mlp_bias;
  nps_err_t err = NPS_OK;
  char *prefix = nps_xstrf("model.layers.%lld.", (long long)l);
  ALSO(add_norm(net, prefix, "input_layernorm", h, &layer->norm_before));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.q_proj", false, attention, all, h, &layer->query));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.k_proj", false, attention, shared, h, &layer->key));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.v_proj", false, attention, shared, h, &layer->value));
  ALSO(nps_net_add_linear(net, prefix, "self_attn.o_proj", false, attention, h, all, &layer->output));
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
  NPS_TRY(read_config(net, config, m));
  m->layer = nps_xcalloc((size_t)m->layers, sizeof *m->layer);
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

static nps_err_t check_ids(const llama_t *m, const nps_dataset_t *data) {
  for (int64_t i = 0; i < data->samples * data->tokens; i++)
    if (data->ids[i] < 0 || data->ids[i] >= m->vocabulary)
      return nps_fail(NPS_ERR_INPUT, "%s: group %s: input_ids: token %d in row %lld: expected 0 to %lld", data->path,
                      data->group, (int)data->ids[i], (long long)(i / data->tokens), (long long)m->vocabulary - 1);
  for (int64_t i = 0; data->labels && i < data->samples * data->tokens; i++)
    if (data->labels[i] != NOT_ASKED && (data->labels[i] < 0 || data->labels[i] >= m->vocabulary))
      return nps_fail(NPS_ERR_INPUT, "%s: group %s: labels: %d in row %lld: expected 0 to %lld, or %d where none",
                      data->path, data->group, (int)data->labels[i], (long long)(i / data->tokens),
                      (long long)m->vocabulary - 1, NOT_ASKED);
  return NPS_OK;
}

/* Whether position p of a sample is asked for the token after it, and which that is. */
static bool asks(const nps_dataset_t *data, int64_t sample, int64_t p, int *label) {
  const int64_t at = sample * data->tokens + p;
  if (data->mask && !(data->mask[at] && data->mask[at + 1])) return false;
  *label = (data->labels ? data->labels : data->ids)[at + 1];
  return *label != NOT_ASKED;
}

static nps_err_t check_asked(const nps_dataset_t *data) {
  int label;
  for (int64_t i = 0; i < data->samples; i++)
    for (int64_t p = 0; p + 1 < data->tokens; p++)
      if (asks(data, i, p, &label)) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: group %s: no token is asked for: attention_mask or labels leave all out",
                  data->path, data->group);
}

static nps_err_t check_data(const nps_net_t *net, const nps_dataset_t *data) {
  const llama_t *m = net->shape;
  if (!data->ids)
    return nps_fail(NPS_ERR_INPUT, "%s: group %s: expected texts (input_ids), as %s needs them, found images",
                    data->path, data->group, net->body->path);
  if (data->tokens < 2 || data->tokens > MOST_TOKENS)
    return nps_fail(NPS_ERR_INPUT, "%s: group %s: input_ids: expected rows of 2 to %d tokens, found %lld", data->path,
                    data->group, MOST_TOKENS, (long long)data->tokens);
  NPS_TRY(check_ids(m, data));
  return check_asked(data);
}

/* The last token of a row is only asked for: it needs no pass. */
static int64_t positions_of(const nps_dataset_t *data) { return data->tokens - 1; }

static double flops(const void *shape, const nps_dataset_t *data, int64_t n) {
  const llama_t *m = shape;
  const double h = (double)m->hidden, t = (double)positions_of(data);
  const double all = (double)(m->heads * m->width), shared = (double)(m->groups * m->width);
  const double token = 2 * h * all + 2 * h * shared + 3 * h * (double)m->inner + (t + 1) * all;
  return 2 * (double)n * t * ((double)m->layers * token + h * (double)m->vocabulary);
}

/* ---- forward pass ---- */

typedef struct {
  const llama_t *m;
  const nps_pass_t *pass;
  const nps_dataset_t *data;
  const int64_t *samples;
  int64_t n, positions, rows; /* samples, positions of each, rows of all of them */
  int64_t all, shared;        /* numbers of all heads' queries, of all groups' keys */
  float *x;                   /* [rows][hidden] the activation */
  float *norm;                /* [rows][hidden] */
  float *query, *key, *value; /* [rows][all], [rows][shared] twice */
  float *mixed;               /* [rows][all]: what attention gives */
  float *turned;              /* [width][QUERIES] and NPS_PAD more */
  float *scores;              /* [positions + 3][QUERIES] */
  float *cosine, *sine;       /* [positions][width/2] */
  float *gate, *up;           /* [ROWS][inner] */
  float *none;                /* [inner] zeros: no bias */
  float *logits;              /* [logit rows][most of the vocabulary in a part]: shares its place with all others */
} work_t;

static int64_t most_classes(const llama_t *m) {
  return nps_min64(m->vocabulary, nps_max64(NPS_TABLE_COUNT / m->hidden, 1));
}

static int64_t logit_rows(const llama_t *m) {
  const int64_t rows = LOGITS / most_classes(m);
  return rows < 16 ? 16 : nps_min64(rows, ROWS);
}

static work_t start_work(const llama_t *m, const nps_dataset_t *data, int64_t n) {
  work_t w = {.m = m, .data = data, .n = n, .positions = positions_of(data)};
  w.rows = n * w.positions;
  w.all = m->heads * m->width;
  w.shared = m->groups * m->width;
  return w;
}

/* Hands out the memory of a pass. @param scratch  NULL: only counts. @return numbers */
static int64_t lay_out(work_t *w, float *scratch) {
  const llama_t *m = w->m;
  int64_t at = 0;
  const struct {
    float **to;
    int64_t count;
  } parts[] = {{&w->norm, w->rows * m->hidden},
               {&w->query, w->rows * w->all},
               {&w->key, w->rows * w->shared},
               {&w->value, w->rows * w->shared},
               {&w->mixed, w->rows * w->all},
               {&w->turned, m->width * QUERIES + NPS_PAD},
               {&w->scores, (w->positions + 3) * QUERIES},
               {&w->cosine, w->positions * m->width / 2},
               {&w->sine, w->positions * m->width / 2},
               {&w->gate, ROWS * m->inner},
               {&w->up, ROWS * m->inner},
               {&w->none, m->inner}};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    if (scratch) *parts[i].to = scratch + at;
    at += (parts[i].count + NPS_PAD - 1) / NPS_PAD * NPS_PAD;
  }
  w->logits = scratch;
  return nps_max64(at, logit_rows(m) * most_classes(m));
}

static int64_t scratch_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  work_t w = start_work(shape, data, n);
  return lay_out(&w, NULL);
}

static const float *tensor_of(const work_t *w, int index) { return w->pass->weights[index]; }

/* Puts the rows of a part of the table where their tokens are. */
static void embed(const work_t *w, const nps_net_step_t *step) {
  const int64_t h = w->m->hidden;
  for (int64_t i = 0; i < w->n; i++)
    for (int64_t p = 0; p < w->positions; p++) {
      const int64_t row = w->data->ids[w->samples[i] * w->data->tokens + p] - step->first;
      if (row < 0 || row >= step->rows) continue;
      memcpy(w->x + (i * w->positions + p) * h, w->pass->table + row * h, (size_t)h * sizeof(float));
    }
}

static void make_angles(const work_t *w) {
  const int64_t half = w->m->width / 2;
  for (int64_t c = 0; c < half; c++) {
    const double turn = pow(w->m->theta, -(double)c / (double)half);
    for (int64_t p = 0; p < w->positions; p++) {
      w->cosine[p * half + c] = (float)cos((double)p * turn);
      w->sine[p * half + c] = (float)sin((double)p * turn);
    }
  }
}

static void normalise(const work_t *w, int weight) {
  nps_kernel_rms_norm(w->x, w->rows, w->m->hidden, tensor_of(w, weight), w->m->eps, w->norm);
}

/* turned[c][i] = number c of the query of position first + i; columns behind the last are read, though not used. */
static void turn_queries(const work_t *w, const float *query, int64_t count) {
  memset(w->turned, 0, (size_t)(w->m->width * QUERIES + NPS_PAD) * sizeof(float));
  for (int64_t i = 0; i < count; i++)
    for (int64_t c = 0; c < w->m->width; c++) w->turned[c * QUERIES + i] = query[i * w->all + c];
}

static void attend_head(const work_t *w, int64_t i, int64_t head) {
  const llama_t *m = w->m;
  const int64_t row = i * w->positions, group = head / (m->heads / m->groups);
  nps_attention_t a = {.query = w->turned, .scores = w->scores, .width = m->width, .causal = true};
  a.keys = w->key + row * w->shared + group * m->width;
  a.value = w->value + row * w->shared + group * m->width;
  a.mask = w->data->mask ? w->data->mask + w->samples[i] * w->data->tokens : NULL;
  a.ldq = QUERIES;
  a.ldk = a.ldv = w->shared;
  a.ldo = w->all;
  a.scale = (float)(1 / sqrt((double)m->width));
  for (int64_t first = 0; first < w->positions; first += QUERIES) {
    a.queries = nps_min64(w->positions - first, QUERIES);
    a.tokens = first + a.queries;
    a.out = w->mixed + (row + first) * w->all + head * m->width;
    turn_queries(w, w->query + (row + first) * w->all + head * m->width, a.queries);
    nps_kernel_attention(&a);
  }
}

static void attend(const work_t *w, const layer_t *layer) {
  const llama_t *m = w->m;
  normalise(w, layer->norm_before);
  nps_linear_set(w->pass, &layer->query, w->rows, w->norm, m->hidden, w->query, w->all);
  nps_linear_set(w->pass, &layer->key, w->rows, w->norm, m->hidden, w->key, w->shared);
  nps_linear_set(w->pass, &layer->value, w->rows, w->norm, m->hidden, w->value, w->shared);
  for (int64_t i = 0; i < w->n; i++) {
    const int64_t row = i * w->positions;
    nps_kernel_rope(w->query + row * w->all, w->positions, m->heads, m->width, w->cosine, w->sine);
    nps_kernel_rope(w->key + row * w->shared, w->positions, m->groups, m->width, w->cosine, w->sine);
    for (int64_t head = 0; head < m->heads; head++) attend_head(w, i, head);
  }
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

/* ---- logits ---- */

/* Normalises the rows that are asked for a token, and moves them together: only these get logits. */
static void gather_asked(const work_t *w) {
  const llama_t *m = w->m;
  int64_t count = 0;
  for (int64_t row = 0; row < w->rows; row++) {
    int label;
    if (!asks(w->data, w->samples[row / w->positions], row % w->positions, &label)) continue;
    w->pass->tallies[count].label = label;
    nps_kernel_rms_norm(w->x + row * m->hidden, 1, m->hidden, tensor_of(w, m->norm), m->eps, w->x + count * m->hidden);
    count++;
  }
}

static int64_t count_asked(const work_t *w) {
  int64_t count = 0;
  while (count < w->rows && w->pass->tallies[count].label >= 0) count++;
  return count;
}

/* The logits of a part of the vocabulary. */
static void find_logits(const work_t *w, const nps_net_step_t *step) {
  const llama_t *m = w->m;
  const int64_t asked = count_asked(w), most = logit_rows(m);
  for (int64_t first = 0; first < asked; first += most) {
    const int64_t count = nps_min64(asked - first, most);
    nps_sgemm(true, count, step->rows, m->hidden, 1, w->x + first * m->hidden, m->hidden, w->pass->table, m->hidden, 0,
              w->logits, step->rows);
    for (int64_t i = 0; i < count; i++)
      nps_pass_take(w->pass, first + i, w->pass->tallies[first + i].label, w->logits + i * step->rows, step->first,
                    step->rows);
  }
}

/* ---- steps ---- */

static void run_layer(const work_t *w, const layer_t *layer) {
  memset(w->none, 0, (size_t)w->m->inner * sizeof(float));
  make_angles(w);
  attend(w, layer);
  run_mlp(w, layer);
}

static void run(const void *shape, const nps_pass_t *pass, const nps_net_step_t *step, float *scratch) {
  work_t w = start_work(shape, pass->data, pass->n);
  const int64_t layer = step->stage - 1;
  w.pass = pass;
  w.samples = pass->samples;
  w.x = pass->x;
  lay_out(&w, scratch);
  if (layer >= 0 && layer < w.m->layers) run_layer(&w, &w.m->layer[layer]);
  if (layer < 0) embed(&w, step);
  if (layer < w.m->layers) return;
  if (step->first == 0) gather_asked(&w);
  find_logits(&w, step);
}

static int64_t activation_size(const void *shape, const nps_dataset_t *data, int64_t n) {
  const llama_t *m = shape;
  return n * positions_of(data) * m->hidden;
}

static int64_t count_rows(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)shape;
  return n * positions_of(data);
}

const nps_net_family_t nps_net_llama = {
    .model_type = "llama",
    .linear_layers = linear_layers,
    .describe = describe,
    .free_shape = free_shape,
    .check_data = check_data,
    .flops = flops,
    .activation = activation_size,
    .rows = count_rows,
    .scratch = scratch_size,
    .run = run,
};
