/* What tensors outside of the layers are, told from their names. */
#include "model_internal.h"

#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Whether a name is `end`, or ends in it behind a dot. */
static bool has_end(const char *name, const char *end) {
  const size_t n = strlen(name), m = strlen(end);
  return n >= m && strcmp(name + n - m, end) == 0 && (n == m || name[n - m - 1] == '.');
}

bool nps_is_embedding(const char *name) {
  static const char *const ends[] = {
      "embed_tokens.weight",   "wte.weight",    "word_embeddings.weight",    "embed_in.weight",
      "tok_embeddings.weight", "shared.weight", "backbone.embeddings.weight"};
  for (size_t i = 0; i < COUNT(ends); i++)
    if (has_end(name, ends[i])) return true;
  return false;
}

bool nps_is_head(const char *name) {
  static const char *const ends[] = {"lm_head.weight",         "embed_out.weight",
                                     "lm_head.decoder.weight", "cls.predictions.decoder.weight",
                                     "vocab_projector.weight", "transformer.output_layer.weight"};
  for (size_t i = 0; i < COUNT(ends); i++)
    if (has_end(name, ends[i])) return true;
  return strcmp(name, "output.weight") == 0;
}

bool nps_is_vocabulary(const char *name) {
  static const char *const biases[] = {"lm_head.bias", "lm_head.decoder.bias", "cls.predictions.bias",
                                       "cls.predictions.decoder.bias", "vocab_projector.bias"};
  for (size_t i = 0; i < COUNT(biases); i++)
    if (has_end(name, biases[i])) return true;
  return nps_is_embedding(name) || nps_is_head(name);
}

/* Tables computed from the config, and masks of [1, 1, n, n]. */
bool nps_is_buffer(const nps_tensor_info_t *t) {
  static const char *const tables[] = {"inv_freq", "cos_cached", "sin_cached", "masked_bias"};
  static const char *const masks[] = {"attn.bias", "attention.bias"};
  const bool square = t->ndim == 4 && t->shape[0] == 1 && t->shape[1] == 1 && t->shape[2] == t->shape[3];
  for (size_t i = 0; i < COUNT(tables); i++)
    if (has_end(t->name, tables[i])) return true;
  for (size_t i = 0; square && i < COUNT(masks); i++)
    if (has_end(t->name, masks[i])) return true;
  return false;
}

/* Most families call what comes first after embeddings; the others are listed. */
bool nps_is_before_layers(const char *name) {
  static const char *const parts[] = {"embed",  "embd",       "wte.",       "wpe.",          "shared.",   "conv1.",
                                      "conv2.", "patch_conv", "ln_pre",     "layernorm_pre", "cls_token", "mask_token",
                                      "rotary", "slopes",     "project_in", "class_token",   "inv_freq"};
  if (has_end(name, "embed_out.weight")) return false;
  for (size_t i = 0; i < COUNT(parts); i++)
    if (strstr(name, parts[i])) return true;
  return false;
}
