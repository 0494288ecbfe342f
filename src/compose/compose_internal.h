/** @file compose_internal.h
 *  What the parts of composing share. */
#ifndef NPS_COMPOSE_INTERNAL_H
#define NPS_COMPOSE_INTERNAL_H

#include "nps/compose.h"
#include "nps/json.h"

/** What is known of one model. */
typedef struct nps_part_model {
  const nps_model_t *model;
  nps_stack_t stack; /**< with slices only */
  int embedding;     /**< tensor of the tokens' embeddings, or -1 */
  int head;          /**< tensor of the output head, or -1 */
  bool tied;         /**< its head is its embeddings */
} nps_part_model_t;

/** The heads of all models together. */
typedef struct nps_heads {
  bool all_tied;    /**< the merged model has no head */
  const char *name; /**< of the head, where some are tied and some are not; else NULL */
} nps_heads_t;

/** Find embeddings and head of a model. */
void nps_part_find_head(nps_part_model_t *part);

/** Whether a head is tied where the file has none, whatever the config says: T5's tie_word_embeddings is about the scale of
 *  logits, and newer ones always have it. */
bool nps_config_ties_by_file(const json_t *config);

/** See what becomes of the models' heads. @param used  [count] those that take part */
nps_heads_t nps_heads_find(const nps_part_model_t *parts, int count, const bool *used);

/** A tensor of a model that takes part in a merged one. */
typedef struct nps_row_part {
  int model, tensor;
} nps_row_part_t;

/** Make a tensor just added of the rows that the merged vocabulary's tokens have.
 *  @param own    what it was added from, one of the parts
 *  @param parts  [count] all models' tensors for it
 *  @param base   model, or -1 */
nps_err_t nps_align_rows(const nps_compose_spec_t *spec, nps_tensor_info_t *info, const nps_row_part_t *own,
                         const nps_row_part_t *parts, int count, int base);

/** Write the config of the merged model. @param untied  its head is written @return freed with free(); NULL: there is none */
char *nps_compose_config(const nps_compose_spec_t *spec, bool untied);

#endif
