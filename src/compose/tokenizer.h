/** @file tokenizer.h
 *  One tokenizer.json with what travels beside it. Private to compose. Everything here is local. */
#ifndef NPS_COMPOSE_TOKENIZER_H
#define NPS_COMPOSE_TOKENIZER_H

#include "nps/json.h"
#include "nps/model.h"

typedef struct nps_tokenizer {
  char *where;          /**< for messages: the path of its model; owned */
  nps_sidecar_t *files; /**< [file_count] of the model; owned */
  int file_count;
  json_t *root;  /**< of tokenizer.json */
  json_t *vocab; /**< every token with its id, added ones too */
  json_t *added; /**< root's added_tokens by their contents */
  int64_t next;  /**< the largest id + 1 */
  bool changed;  /**< root is no longer what the file holds */
} nps_tokenizer_t;

/** Read a model's tokenizer. @param[out] out  NULL where there is no tokenizer.json; NPS_ERR_INPUT: it is damaged */
nps_err_t nps_tokenizer_read(const nps_model_t *model, nps_tokenizer_t **out);
void nps_tokenizer_free(nps_tokenizer_t *tokenizer);

/** Look whether other files of a model's tokenizer say that its vocabulary is not this one: tokens or ids that differ, or
 *  files of SentencePiece and the like that differ or that this one lacks.
 *  @param[out] why  NULL: none says so; else freed with free(). NPS_ERR_INPUT: one is damaged */
nps_err_t nps_tokenizer_contradicts(const nps_tokenizer_t *tokenizer, const nps_model_t *model, char **why);

/** Give the id of a token, or -1. */
int64_t nps_tokenizer_id(const nps_tokenizer_t *tokenizer, const char *token);

/** Remove all tokens with an id of at least `limit`. NPS_ERR_INPUT: the kind of its model is not known */
nps_err_t nps_tokenizer_strip(nps_tokenizer_t *tokenizer, int64_t limit);

/** Add a token, under its id where it is known already, as an added token. @param entry  of another's added_tokens, or NULL */
void nps_tokenizer_add(nps_tokenizer_t *tokenizer, const char *token, const json_t *entry);

/** Give the entry of an added token, or NULL. Borrowed. */
const json_t *nps_tokenizer_added(const nps_tokenizer_t *tokenizer, const char *token);

/** List all tokens by their ids: [next], NULL where no token has the id. @return freed with free(); the texts are borrowed */
const char **nps_tokenizer_list(const nps_tokenizer_t *tokenizer);

/** Write the changes into its files; those that would now say something else are dropped. */
void nps_tokenizer_update(nps_tokenizer_t *tokenizer);

/* ---- files.c ---- */

/** Find a sidecar, or NULL. */
nps_sidecar_t *nps_sidecar_find(nps_sidecar_t *list, int count, const char *name);

/** Set a sidecar's contents, adding it where it is not there. @param data  taken over */
void nps_sidecar_set(nps_sidecar_t **list, int *count, const char *name, char *data, size_t size);

/** Drop a sidecar where it is there. */
void nps_sidecar_drop(nps_sidecar_t *list, int *count, const char *name);

#endif
