/** @file peft.h
 *  What the parts of reading PEFT adapters share: LoRA, DoRA, (IA)³, sine-activated low rank. */
#ifndef NPS_MODEL_PEFT_H
#define NPS_MODEL_PEFT_H

#include "model_internal.h"

/** How one tensor is computed from the base's W, seen as a matrix [rows][columns]:
 *
 *      θ = f ⊙ (W + scale · g(L·R)),   L·R = B·A, or (B·A)ᵀ where `transposed`
 *
 *  with g(x) = x, or sin(omega·x)/√(in features). f is 1; the vector of an (IA)³ adapter along the rows or columns; or DoRA's
 *  m_i/‖i-th row of W + …‖, where transposed by columns. Tensors are indices into the base's or the parts' catalogue, -1 for
 *  none. */
typedef struct nps_peft_rule {
  int w;      /**< of the base */
  int stored; /**< of the parts: stands for W */
  int64_t rows, columns;
  int a, b; /**< of the parts; b alone: a vector that is added */
  int64_t rank;
  double scale;
  bool transposed;
  int magnitude; /**< of the parts: DoRA's m */
  int vector;    /**< of the parts: (IA)³'s */
  bool by_columns;
} nps_peft_rule_t;

typedef struct nps_peft {
  nps_peft_rule_t *rules; /**< [count] rule i is number i + 1 of a tensor */
  int count;
  double omega; /**< 0: no sine */
} nps_peft_t;

/** What adapter_config.json says. */
typedef struct nps_peft_config {
  json_t *root;
  bool ia3, rslora, dora, fan_in_fan_out;
  double omega, rank, alpha;
} nps_peft_config_t;

/** Read and check a config; an option that is not built and not off is a problem that names it. @param where  for messages
 *  @param[out] config  freed with nps_peft_config_free(), after errors too */
nps_err_t nps_peft_config_read(const char *text, const char *where, nps_peft_config_t *config);
void nps_peft_config_free(nps_peft_config_t *config);

/** Give a module's rank and scale (lora_alpha/r, or over √r), by the config's patterns. NPS_ERR_INPUT: a pattern that is no
 *  regular expression. */
nps_err_t nps_peft_scale(const nps_peft_config_t *config, const char *where, const char *module, double *rank,
                         double *scale);

/** Whether modules_to_save names a module that a tensor is of. */
bool nps_peft_is_saved(const nps_peft_config_t *config, const char *tensor);

extern const nps_derivation_form_t nps_peft_form, nps_sara_form;

/* ---- peft_read.c: what a reader does ---- */

nps_err_t nps_peft_begin(const nps_model_t *model, nps_digest_t *digest, void **state);
nps_err_t nps_peft_read(void *state, int i, int64_t first, int64_t count, void *dst);
void nps_peft_end(void *state);

/** Predict the bytes that a reader keeps for a tensor. */
int64_t nps_peft_rule_bytes(const nps_derivation_t *derivation, const nps_peft_rule_t *rule);

#endif
