/** @file texts.h
 *  What networks of texts share: checks of the data, the embedding and the head of a vocabulary that comes in parts, and
 *  attention of whole texts. Everything here is local. */
#ifndef NPS_FITNESS_TEXTS_H
#define NPS_FITNESS_TEXTS_H

#include "fitness_internal.h"

enum {
  NPS_NOT_ASKED = -100,     /**< a label that does not count, as in transformers */
  NPS_MOST_TOKENS = 1 << 16 /**< in a row of text */
};

/* ---- data ---- */

/** Give the number of texts of a batch / the place of its text i in the data / the mask of its row of input_ids i, [tokens];
 *  NULL: none. A row is a text, but that the choices of encoder-decoders share one. */
int64_t nps_texts_count(const nps_pass_t *pass);
int64_t nps_texts_place(const nps_pass_t *pass, int64_t i);
const int32_t *nps_texts_mask(const nps_pass_t *pass, int64_t i);

/** Whether place p of a text of the data is asked for a token, and which that is. */
typedef bool nps_asks_fn(const nps_dataset_t *data, int64_t text, int64_t p, int *label);

/** Asks a place for the token after it, unless the mask, the labels or the answer's mask leave that out. */
nps_asks_fn nps_texts_ask_next;

/** Give the places of a text that networks of next tokens run on: the last token is only asked for, it needs no pass. */
int64_t nps_texts_next_places(const nps_dataset_t *data);

/** The `rows` of families that go on with texts. */
int64_t nps_texts_next_rows(const void *shape, const nps_dataset_t *data, int64_t n);

/** Check that data are texts of `least` tokens or more, all within the vocabulary. NPS_ERR_INPUT. */
nps_err_t nps_texts_check(const nps_net_t *net, const nps_dataset_t *data, int64_t vocabulary, int64_t least);

/** Check the labels of next tokens, and that some token is asked for, of choices in each. NPS_ERR_INPUT. */
nps_err_t nps_texts_check_next(const nps_dataset_t *data, int64_t vocabulary);

/* ---- encoder-decoders ---- */

/** Asks place p of a text's target for its token. */
nps_asks_fn nps_texts_ask_target;

/** Check that data are input_ids within the vocabulary with targets, labels [samples, places] or target_ids, some token of which
 *  is asked for. NPS_ERR_INPUT. */
nps_err_t nps_texts_check_targets(const nps_net_t *net, const nps_dataset_t *data, int64_t vocabulary);

/* ---- the vocabulary ---- */

/** Put the rows of a step's part of the table where their tokens are. @param x  [positions][width] of one text */
void nps_texts_embed(const nps_pass_t *pass, const nps_net_step_t *step, const int32_t *ids, int64_t positions,
                     int64_t width, float *x);

/** Move the rows of the activation that are asked for a token together, and note their labels.
 *  @param[in,out] x  [texts · positions][width]; @return how many */
int64_t nps_texts_gather(const nps_pass_t *pass, int64_t positions, int64_t width, nps_asks_fn *asks, float *x);

/** Give the logits of a step's part of the vocabulary to all rows that are asked for a token.
 *  @param x  those rows, [rows][width]; @param scale  of the logits; @param cap  of them, as nps_kernel_cap(); 0: none
 *  @param room  nps_texts_logit_room() numbers */
void nps_texts_logits(const nps_pass_t *pass, const nps_net_step_t *step, int64_t width, float scale, float cap,
                      const float *x, float *room);
int64_t nps_texts_logit_room(int64_t vocabulary, int64_t width);

/* ---- attention ---- */

/** Attention of texts, all heads. Queries are taken in blocks, whatever the length of the texts. */
typedef struct nps_heads {
  const float *query; /**< [texts][queries][ldq]: heads·width numbers of each row */
  const float *keys;  /**< [texts][tokens][ldk]: groups·width of each row */
  const float *value; /**< likewise */
  float *out;         /**< [texts][queries][ldo]: heads·width of each row */
  int64_t ldq, ldk, ldo;
  int64_t texts, queries, tokens, heads, groups, width; /**< a group's keys and values serve heads/groups heads */
  float scale;
  const float
      *bias; /**< bias[head·ldb + i − t] is added to query i's score of token t, before it is scaled; readable as
                          nps_attention_t says; NULL: none */
  int64_t ldb;
  float cap;      /**< of scores, as nps_attention_t has it; 0: none */
  bool causal;    /**< query i sees the tokens up to i */
  bool masked;    /**< tokens that the data's mask leaves out are not seen */
  int64_t window; /**< with causal: of them only so many; 0: all */
} nps_heads_t;

/** Give the numbers of working memory. */
int64_t nps_heads_room(int64_t tokens, int64_t width);

/** out = softmax(scale · (query · keysᵀ + bias)) · value, head by head. @param room  nps_heads_room(), aligned to 64 bytes */
void nps_heads_attend(const nps_pass_t *pass, const nps_heads_t *heads, float *room);

/* ---- working memory ---- */

/** One part of it. */
typedef struct nps_room_part {
  float **to;
  int64_t count;
} nps_room_part_t;

/** Hand out memory, each part aligned to NPS_PAD numbers. @param memory  NULL: only count. @return numbers */
int64_t nps_room_lay_out(const nps_room_part_t *parts, int count, float *memory);

#endif
