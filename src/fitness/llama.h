/** @file llama.h
 *  Decoders of the Llama kind: what tells the model types apart, and what a config says. Everything here is local. */
#ifndef NPS_FITNESS_LLAMA_H
#define NPS_FITNESS_LLAMA_H

#include "linear.h"
#include "rope.h"

/** What a model_type has, and what its configs leave out. */
typedef struct nps_llama_variant {
  bool attention_bias, mlp_bias; /**< are options */
  bool qkv_bias;                 /**< there always is one */
  bool query_norm;
  bool windows;   /**< a sliding window is an option of each layer; else all layers have it, where there is one */
  int64_t window; /**< its default; 0: none */
  int64_t hidden, inner, layers, heads, vocabulary, groups, width, positions; /**< groups, width 0: from the heads */
  bool gemma;            /**< four norms a layer, whose weights count from 1; scaled embeddings, tied; caps */
  double score_cap, cap; /**< of gemma: the defaults of both caps; 0: none */
  int64_t pattern;       /**< of gemma: every so many layers one sees all tokens */
  bool local_rope;       /**< layers with a window turn by angles of their own */
} nps_llama_variant_t;

extern const nps_llama_variant_t nps_llama_variant, nps_mistral_variant, nps_qwen2_variant, nps_qwen3_variant,
    nps_gemma2_variant, nps_gemma3_variant;

typedef struct nps_llama_layer {
  int norm_before, norm_after, query_norm, key_norm; /**< norm_after: before the MLP */
  int norm_attention, norm_mlp;                      /**< of gemma: of what attention and the MLP give */
  nps_linear_t query, key, value, output, gate, up, down;
  int64_t window; /**< 0: none */
  const nps_rope_t *rope;
} nps_llama_layer_t;

typedef struct nps_llama {
  const nps_llama_variant_t *variant;
  int64_t hidden, layers, heads, groups; /**< groups: heads of keys and values */
  int64_t width, inner, vocabulary;      /**< width: of a head */
  double eps;
  nps_rope_t rope, local_rope;
  bool attention_bias, mlp_bias, tied;
  nps_activation_fn *activation;
  double scale;          /**< of attention's scores */
  double score_cap, cap; /**< of scores, of logits; 0: none */
  float stretch;         /**< of gemma: factor of embeddings */
  int embedding, norm, head;
  nps_llama_layer_t *layer; /**< [layers] */
} nps_llama_t;

/** Read a config; the array of layers, with their windows and angles, is made too. Problems are recorded.
 *  @param[in,out] m  all 0 but the variant */
nps_err_t nps_llama_read(const nps_net_t *net, const json_t *config, nps_llama_t *m);

#endif
