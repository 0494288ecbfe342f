/** @file triple_code.h
 *  The code of a matrix of low rank: its vectors, each rounded with a scale of its own. docs/formats.md describes it. */
#ifndef NPS_MODEL_TRIPLE_CODE_H
#define NPS_MODEL_TRIPLE_CODE_H

#include "nps/base.h"
#include "nps/tensor.h"

/** What is stored of each matrix besides its bytes, in the order of the fields. */
typedef struct nps_triple_row {
  int64_t rank;     /**< triples */
  int64_t bytes;    /**< of their codes; 0 where there is none */
  int64_t checksum; /**< CRC-32 of the scales' bytes, the codes' */
} nps_triple_row_t;

/** Code the vectors of a matrix. Local.
 *  @param x  [rank][rows + columns] u and v of each triple; become what the codes stand for
 *  @param value_bits  4, 8 or 16
 *  @param[in,out] bytes  codes are added
 *  @param[out] scales  [2 rank] of u and v of each triple
 *  @return NPS_ERR_RUNTIME: codes of 2 GiB or more; NPS_ERR_MEMORY */
nps_err_t nps_triples_encode(int value_bits, int64_t rank, int64_t rows, int64_t columns, float *x, nps_text_t *bytes,
                             float *scales, nps_triple_row_t *row);

/** Give the checksum of a matrix's scales and codes. Local. @param row  its numbers count */
int64_t nps_triples_checksum(nps_triple_row_t row, const uint8_t *bytes, const float *scales);

/** Decode the vectors of a matrix. Local.
 *  @param row, bytes, scales  as nps_triples_encode() made them; anything else is refused
 *  @param[out] u, v  [row.rank][rows], [row.rank][columns]
 *  @param[out] wrong  what is wrong with them, or NULL
 *  @return NPS_ERR_MEMORY */
nps_err_t nps_triples_decode(int value_bits, nps_triple_row_t row, int64_t rows, int64_t columns, const uint8_t *bytes,
                             const float *scales, float *u, float *v, const char **wrong);

#endif
