/* Configs of decoders of the Llama kind. */
#include "llama.h"

#include <math.h>
#include <string.h>

/* ---- sizes and options ---- */

#define ALSO(expr) err = nps_err_worse(err, expr)

static nps_err_t check_one(const nps_net_t *net, const json_t *config, const char *key) {
  double value = 1;
  NPS_TRY(nps_net_get_number(net, config, key, 1, &value));
  if (value == 1) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: %s %g is not implemented, only 1", net->body->path, key, value);
}

static nps_err_t check_heads(const nps_net_t *net, const nps_llama_t *m) {
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

static nps_err_t read_heads(const nps_net_t *net, const json_t *config, nps_llama_t *m) {
  const nps_llama_variant_t *v = m->variant;
  NPS_TRY(nps_net_get_count(net, config, "num_attention_heads", v->heads, &m->heads));
  const bool missing = !json_object_get(config, "num_key_value_heads");
  NPS_TRY(nps_net_get_count_or_null(net, config, "num_key_value_heads", m->heads, &m->groups));
  if (missing && v->groups) m->groups = v->groups;
  if (!v->width && !json_is_integer(json_object_get(config, "head_dim")) && m->hidden % m->heads != 0)
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: hidden_size %lld is no multiple of num_attention_heads %lld",
                    net->body->path, (long long)m->hidden, (long long)m->heads);
  NPS_TRY(nps_net_get_count_or_null(net, config, "head_dim", v->width ? v->width : m->hidden / m->heads, &m->width));
  return check_heads(net, m);
}

static nps_err_t read_biases(const nps_net_t *net, const json_t *config, nps_llama_t *m) {
  const nps_llama_variant_t *v = m->variant;
  if (v->attention_bias) NPS_TRY(nps_net_get_bool(net, config, "attention_bias", false, &m->attention_bias));
  return v->mlp_bias ? nps_net_get_bool(net, config, "mlp_bias", false, &m->mlp_bias) : NPS_OK;
}

/* Gemma 3's angles: rope_parameters has an object for each kind of layer; older configs' rope_scaling is that of layers that
 * see all tokens. */
static nps_err_t read_ropes(const nps_net_t *net, const json_t *config, nps_llama_t *m) {
  static const struct {
    const char *kind, *theta;
    double standard;
  } kinds[] = {{"full_attention", "rope_theta", 1e6}, {"sliding_attention", "rope_local_base_freq", 1e4}};
  nps_err_t err = NPS_OK;
  for (int k = 0; k < 2; k++) {
    json_t *own = json_copy((json_t *)(uintptr_t)config), *object = json_object_get(config, "rope_parameters");
    json_t *theta = json_object_get(config, kinds[k].theta), *nested = json_object_get(object, kinds[k].kind);
    json_object_del(own, "rope_parameters");
    if (nested) json_object_set(own, "rope_parameters", nested);
    if (k == 1) json_object_del(own, "rope_scaling");
    if (theta && !json_is_null(theta))
      json_object_set(own, "rope_theta", theta);
    else
      json_object_set_new(own, "rope_theta", json_real(kinds[k].standard));
    ALSO(nps_rope_read(net, own, m->variant->positions, k == 0 ? &m->rope : &m->local_rope));
    json_decref(own);
  }
  return err;
}

/* A missing cap is the family's, null is none. */
static nps_err_t read_cap(const nps_net_t *net, const json_t *config, const char *key, double standard, double *cap) {
  if (json_is_null(json_object_get(config, key))) return NPS_OK;
  return nps_net_get_number(net, config, key, standard, cap);
}

static nps_err_t read_caps(const nps_net_t *net, const json_t *config, nps_llama_t *m) {
  const nps_llama_variant_t *v = m->variant;
  double scalar = 0;
  nps_err_t err = NPS_OK;
  ALSO(nps_net_get_number(net, config, "query_pre_attn_scalar", 256, &scalar));
  if (v->score_cap > 0) /* Gemma 3 does not use it */
    ALSO(read_cap(net, config, "attn_logit_softcapping", v->score_cap, &m->score_cap));
  ALSO(read_cap(net, config, "final_logit_softcapping", v->cap, &m->cap));
  ALSO(nps_net_refuse(net, config, "use_bidirectional_attention"));
  m->scale = 1 / sqrt(scalar);
  if (err != NPS_OK || scalar > 0) return err;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: query_pre_attn_scalar: expected a number above 0, found 0",
                  net->body->path);
}

static nps_err_t read_config(const nps_net_t *net, const json_t *config, nps_llama_t *m) {
  const nps_llama_variant_t *v = m->variant;
  nps_err_t err = NPS_OK;
  ALSO(nps_net_get_count(net, config, "hidden_size", v->hidden, &m->hidden));
  ALSO(nps_net_get_count(net, config, "num_hidden_layers", v->layers, &m->layers));
  ALSO(nps_net_get_count(net, config, "intermediate_size", v->inner, &m->inner));
  ALSO(nps_net_get_count(net, config, "vocab_size", v->vocabulary, &m->vocabulary));
  ALSO(nps_net_get_number(net, config, "rms_norm_eps", 1e-6, &m->eps));
  ALSO(read_biases(net, config, m));
  ALSO(nps_net_get_bool(net, config, "tie_word_embeddings", v->gemma, &m->tied));
  ALSO(v->gemma ? nps_net_find_activation(net, config, "hidden_activation", "gelu_pytorch_tanh", &m->activation)
                : nps_net_get_activation(net, config, "silu", &m->activation));
  ALSO(v->local_rope ? read_ropes(net, config, m) : nps_rope_read(net, config, v->positions, &m->rope));
  ALSO(check_one(net, config, "pretraining_tp"));
  ALSO(nps_net_refuse(net, config, "quantization_config"));
  if (err == NPS_OK) err = read_heads(net, config, m);
  if (err == NPS_OK) err = v->gemma ? read_caps(net, config, m) : NPS_OK;
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

static nps_err_t read_windows_of_layers(const nps_net_t *net, const json_t *config, int64_t window, nps_llama_t *m) {
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

/* Of Gemma most layers have the window; in Gemma 3 these have their own angles. */
static nps_err_t read_windows_of_gemma(const nps_net_t *net, const json_t *config, int64_t window, nps_llama_t *m) {
  const json_t *types = json_object_get(config, "layer_types");
  int64_t pattern = m->variant->pattern;
  if (m->variant->local_rope) NPS_TRY(nps_net_get_count(net, config, "sliding_window_pattern", pattern, &pattern));
  for (int64_t l = 0; l < m->layers; l++) {
    bool has = (l + 1) % pattern != 0;
    if (json_is_array(types)) NPS_TRY(read_layer_type(net, types, l, &has));
    m->layer[l].window = has ? window : 0;
    if (has && m->variant->local_rope) m->layer[l].rope = &m->local_rope;
  }
  return NPS_OK;
}

static nps_err_t read_windows(const nps_net_t *net, const json_t *config, nps_llama_t *m) {
  int64_t window = 0;
  for (int64_t l = 0; l < m->layers; l++) m->layer[l].rope = &m->rope;
  if (!m->variant->window) return NPS_OK;
  if (!json_is_null(json_object_get(config, "sliding_window")))
    NPS_TRY(nps_net_get_count(net, config, "sliding_window", m->variant->window, &window));
  if (m->variant->gemma) return read_windows_of_gemma(net, config, window, m);
  if (m->variant->windows) return read_windows_of_layers(net, config, window, m);
  for (int64_t l = 0; l < m->layers; l++) m->layer[l].window = window;
  return NPS_OK;
}

nps_err_t nps_llama_read(const nps_net_t *net, const json_t *config, nps_llama_t *m) {
  NPS_TRY(read_config(net, config, m));
  if (!m->variant->gemma) m->scale = 1 / sqrt((double)m->width);
  m->layer = nps_xcalloc((size_t)m->layers, sizeof *m->layer);
  return read_windows(net, config, m);
}

/* ---- model types ---- */

const nps_llama_variant_t nps_llama_variant = {.attention_bias = true,
                                               .mlp_bias = true,
                                               .hidden = 4096,
                                               .inner = 11008,
                                               .layers = 32,
                                               .heads = 32,
                                               .vocabulary = 32000,
                                               .positions = 2048};

const nps_llama_variant_t nps_mistral_variant = {.window = 4096,
                                                 .hidden = 4096,
                                                 .inner = 14336,
                                                 .layers = 32,
                                                 .heads = 32,
                                                 .vocabulary = 32000,
                                                 .groups = 8,
                                                 .positions = 131072};

const nps_llama_variant_t nps_qwen2_variant = {.qkv_bias = true,
                                               .window = 4096,
                                               .windows = true,
                                               .hidden = 4096,
                                               .inner = 22016,
                                               .layers = 32,
                                               .heads = 32,
                                               .vocabulary = 151936,
                                               .groups = 32,
                                               .positions = 32768};

const nps_llama_variant_t nps_qwen3_variant = {.attention_bias = true,
                                               .query_norm = true,
                                               .window = 4096,
                                               .windows = true,
                                               .hidden = 4096,
                                               .inner = 22016,
                                               .layers = 32,
                                               .heads = 32,
                                               .vocabulary = 151936,
                                               .groups = 32,
                                               .width = 128,
                                               .positions = 32768};

const nps_llama_variant_t nps_gemma2_variant = {.gemma = true,
                                                .attention_bias = true,
                                                .window = 4096,
                                                .pattern = 2,
                                                .hidden = 2304,
                                                .inner = 9216,
                                                .layers = 26,
                                                .heads = 8,
                                                .vocabulary = 256000,
                                                .groups = 4,
                                                .width = 256,
                                                .positions = 8192,
                                                .score_cap = 50,
                                                .cap = 30};

const nps_llama_variant_t nps_gemma3_variant = {.gemma = true,
                                                .attention_bias = true,
                                                .query_norm = true,
                                                .local_rope = true,
                                                .window = 4096,
                                                .pattern = 6,
                                                .hidden = 2304,
                                                .inner = 9216,
                                                .layers = 26,
                                                .heads = 8,
                                                .vocabulary = 262208,
                                                .groups = 4,
                                                .width = 256,
                                                .positions = 131072};
