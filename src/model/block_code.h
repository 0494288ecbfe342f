/** @file block_code.h
 *  The code of a block of a sparse update: which entries are not 0, and their rounded values. docs/formats.md describes it.
 *
 *  Positions are gaps, each split into a high part in unary and `shift` low bits (Rice's code; with no low bits the unary parts
 *  are a bit mask). Values are whole multiples of a scale that NPS_UNIT entries share, as bytes through Deflate. */
#ifndef NPS_MODEL_BLOCK_CODE_H
#define NPS_MODEL_BLOCK_CODE_H

#include "nps/base.h"
#include "nps/tensor.h"

/** Entries that share a scale. Divides NPS_BLOCK. */
#define NPS_UNIT 1024

/** What is stored of each block besides its bytes, in the order of the fields. */
typedef struct nps_block_row {
  int32_t kept;           /**< entries that are not 0 */
  int32_t position_bytes; /**< 0 where nothing is kept */
  int32_t value_bytes;    /**< likewise */
  int32_t checksum;       /**< CRC-32 of the scales' bytes, the positions', the values' */
} nps_block_row_t;

/** Give the blocks / the scales of a tensor. */
static inline int64_t nps_blocks_of(int64_t count) { return (count + NPS_BLOCK - 1) / NPS_BLOCK; }
static inline int64_t nps_units_of(int64_t count) { return (count + NPS_UNIT - 1) / NPS_UNIT; }

/** Room for coding and decoding. Opaque. */
typedef struct nps_block_coder nps_block_coder_t;

/** Make room. Local. @param value_bits  4, 8 or 16. Freed with nps_block_coder_free(). */
nps_block_coder_t *nps_block_coder_new(int value_bits);
void nps_block_coder_free(nps_block_coder_t *coder);

/** Code a block. Local.
 *  @param x  [n] n at most NPS_BLOCK; becomes what the code stands for
 *  @param[in,out] positions, values  bytes are added
 *  @param[out] scales  [nps_units_of(n)] */
nps_block_row_t nps_block_encode(nps_block_coder_t *coder, float *x, int64_t n, nps_text_t *positions,
                                 nps_text_t *values, float *scales);

/** Give the checksum of a block's bytes. Local. @param row  its numbers of bytes count */
int32_t nps_block_checksum(nps_block_row_t row, const uint8_t *positions, const uint8_t *values, const float *scales,
                           int64_t n);

/** Decode a block. Local.
 *  @param row, positions, values, scales  as nps_block_encode() made them; anything else is refused
 *  @param[out] x  [n]
 *  @return NULL, or what is wrong with them */
const char *nps_block_decode(nps_block_coder_t *coder, nps_block_row_t row, const uint8_t *positions,
                             const uint8_t *values, const float *scales, int64_t n, float *x);

#endif
