/** @file archive_read_triples.h
 *  The matrices of a model in an archive that are stored by their singular factors, as they are read. */
#ifndef NPS_MODEL_ARCHIVE_READ_TRIPLES_H
#define NPS_MODEL_ARCHIVE_READ_TRIPLES_H

#include "model_internal.h"
#include "triple_code.h"

/** Where the factors of each lie in the model's datasets. */
typedef struct nps_triple_rules {
  int bits;
  int count;
  const nps_tensor_info_t **tensors; /**< [count] of the base; owned array */
  nps_triple_row_t *rows;            /**< [count] owned, as the others */
  int64_t *byte_at, *scale_at;       /**< [count + 1] */
  int table, codes, scales;          /**< tensors of the parts */
} nps_triple_rules_t;

/** Read and check where the factors lie. Local.
 *  @param tensors  [count] of the base, with two dimensions; taken over
 *  @param[out] out  freed with nps_triple_rules_free(), after errors too; problems are recorded in checks */
nps_err_t nps_triple_rules_new(const nps_model_t *parts, int bits, const nps_tensor_info_t **tensors, int count,
                               nps_checks_t *checks, nps_triple_rules_t **out);
void nps_triple_rules_free(nps_triple_rules_t *rules);

/** Predict what a reader of them keeps. */
int64_t nps_triple_rules_bytes(const nps_triple_rules_t *rules);

/** The factors of one matrix, read and decoded. Zero-initialise, with number −1. */
typedef struct nps_triple_state {
  int number;
  float *u, *v;
  nps_low_rank_t product;
} nps_triple_state_t;
void nps_triple_state_free(nps_triple_state_t *state);

/** Make elements [first, first + n) of the update of matrix `number`. @param reader  of the parts; @param[out] update  [n] */
nps_err_t nps_triples_read(const nps_triple_rules_t *rules, const nps_model_t *parts, nps_reader_t *reader, int number,
                           int64_t first, int64_t n, nps_triple_state_t *state, float *update);

/** Find a dataset of a model, with this type and shape. @param rows  -1: any; @param columns  1: none
 *  @return -1: it is not there, or is another, which is recorded */
int nps_archive_find_part(const nps_model_t *parts, const char *name, nps_dtype_t dtype, int64_t rows, int64_t columns,
                          nps_checks_t *checks);

/** Check that a dataset has as many entries as its blocks, or whatever they are of, together. */
void nps_archive_check_total(const nps_model_t *parts, int part, const char *of, int64_t total, nps_checks_t *checks);

#endif
