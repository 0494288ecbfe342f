/** @file compose.h
 *  What is merged where it is not the models as they lie on disk: slices of layers, embeddings whose rows follow another
 *  vocabulary, output heads that are tied to the embeddings. Layer 4.
 *
 *  The result are catalogues, whose tensors are made of the models' (nps_made_t): matching, planning and merging know
 *  nothing of slices and vocabularies. */
#ifndef NPS_COMPOSE_H
#define NPS_COMPOSE_H

#include "nps/model.h"

/* ---- vocabularies ---- */

/** What a token's row is that models lack, or, forced, in all models. */
typedef struct nps_token_rule {
  int32_t token;
  bool force;
  int32_t model; /**< -1: zeros */
  int32_t row;   /**< of that model */
} nps_token_rule_t;

/** Where the tokens of the merged vocabulary are in the models' embeddings. */
typedef struct nps_alignment {
  int64_t tokens; /**< of the merged vocabulary */
  int64_t rows;   /**< of the merged embeddings: tokens and padding */
  int models;
  int32_t *row;            /**< [models][tokens], -1: the model lacks the token; owned */
  nps_token_rule_t *rules; /**< [rule_count] in the order of their tokens; owned */
  int rule_count;
} nps_alignment_t;

void nps_alignment_free(nps_alignment_t *alignment);

/** Whose tokens the merged model has: the base's, those of all models (new ones behind the base's), another model's. */
typedef enum nps_token_source { NPS_TOKENS_BASE, NPS_TOKENS_UNION, NPS_TOKENS_MODEL } nps_token_source_t;

/** What the config says of a token, which is added where the vocabulary lacks it. */
typedef struct nps_token_choice {
  const char *token;
  bool force;       /**< in all models */
  bool zero;        /**< zeros */
  int model;        /**< index into the models, or -1 */
  const char *from; /**< the model's token that it takes its row from; NULL: the same */
  int64_t id;       /**< the model's row, or -1 */
} nps_token_choice_t;

typedef struct nps_tokens_spec {
  const nps_model_t *const *models; /**< [model_count] */
  int model_count;
  int base; /**< model */
  nps_token_source_t source;
  const nps_model_t *other;          /**< MODEL: only its small files are read */
  const nps_token_choice_t *choices; /**< [choice_count] */
  int choice_count;
  int64_t pad; /**< rows are padded to a multiple of it; 0: they are not */
} nps_tokens_spec_t;

/** Read the models' tokenizers and make the merged one. Local; reads files.
 *  A model without tokenizer.json is taken to have the base's vocabulary, with a note.
 *  @param[out] out    freed with nps_alignment_free(); NULL: source BASE, where the base has no tokenizer.json
 *  @param[out] files  [*count] of the model whose tokenizer was taken, with the merged tokenizer; nps_sidecars_free()
 *  @return NPS_ERR_INPUT: a tokenizer that is missing or damaged; NPS_ERR_CONFIG: a choice that cannot be followed */
nps_err_t nps_tokens_align(const nps_tokens_spec_t *spec, nps_alignment_t **out, nps_sidecar_t **files, int *count);

/** Pick from a tokenizer's files, and others, those that travel with the merged model: the tokenizer's own from `tokenizer`,
 *  all else from `others`, both of which are taken over. Local.
 *  @param with_tokenizer  whether it is copied at all */
void nps_sidecars_pick(nps_sidecar_t *tokenizer, int tokenizer_count, nps_sidecar_t *others, int other_count,
                       bool with_tokenizer, nps_sidecar_t **out, int *count);

/** Add the files of sentence-transformers (modules.json and what it names) of the first model that has them to files that
 *  are without, with a note. Local.
 *  @param models  [model_count] */
nps_err_t nps_sidecars_add_modules(const nps_model_t *const *models, int model_count, nps_sidecar_t **files,
                                   int *count);

/** Note which of the files are weights, which nobody merges. Local. */
void nps_sidecars_note_modules(const nps_sidecar_t *files, int count);

/** Set the chat template of a tokenizer's files. Local.
 *  @param text    "auto": the most frequent of the models; the name of a built-in one; or a template
 *  @param models  [model_count]
 *  @return NPS_ERR_CONFIG: neither; NPS_ERR_INPUT */
nps_err_t nps_chat_template_set(const char *text, const nps_model_t *const *models, int model_count,
                                nps_sidecar_t **files, int *count);

/* ---- composing ---- */

/** Consecutive layers of a model. */
typedef struct nps_slice_source {
  int model;     /**< index into the models */
  int64_t first; /**< layer */
} nps_slice_source_t;

/** Layers of the merged model, each made of one layer of every source. */
typedef struct nps_slice {
  int64_t length;              /**< layers, at least 1 */
  nps_slice_source_t *sources; /**< [count] in the order in which the method counts them */
  int count;                   /**< at least 1 */
  int base;                    /**< model, or -1 */
  const char *where;           /**< for messages: "FILE:LINE: slices.0" */
} nps_slice_t;

/** What is to be composed. Borrowed. */
typedef struct nps_compose_spec {
  const nps_model_t *const *models; /**< [model_count] as they lie on disk */
  int model_count;
  const nps_slice_t *slices; /**< [slice_count] none: the models as they are */
  int slice_count;
  int base;                         /**< model, or -1; with slices they have it */
  int reference;                    /**< model whose config the merged model has */
  const nps_alignment_t *alignment; /**< or NULL */
} nps_compose_spec_t;

/** Compose catalogues: one for every model, or, of slices, one for every place in the lists of sources. Local.
 *  Tensors before the layers are those of the first slice's sources, those after them the last one's. Where all models tie
 *  their output head to their embeddings, the head is left out; where only some do, those get theirs from the embeddings.
 *  All have the config of the reference, with as many layers and tokens as the merged model has.
 *  @param[out] out  [*count] each freed with nps_model_free(), before the models; NULL and 0 where nothing is to be done
 *  @return NPS_ERR_CONFIG: layers that a model does not have; NPS_ERR_INPUT: models that cannot be composed */
nps_err_t nps_compose(const nps_compose_spec_t *spec, nps_model_t ***out, int *count);

#endif
