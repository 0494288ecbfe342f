/** @file delta.h
 *  Task vectors: forming them, exact selection of their largest entries, ordered sums. Layer 5.
 *
 *  A task vector is τ = fl32(θ − θ0). Entries are looked at in chunks of at most NPS_CHUNK. */
#ifndef NPS_DELTA_H
#define NPS_DELTA_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/tensor.h"

/** Most entries looked at in one go: working arrays of this length stay in the first cache. Divides NPS_BLOCK. */
#define NPS_CHUNK 1024

/** Form τ_i = fl32(θ_i − θ0) of several models from stored values. Local.
 *  @param base_dtype, base  [n] stored values of θ0; n at most NPS_CHUNK
 *  @param models   number of models
 *  @param dtype    [models] types of θ_i; @param tuned  [models][n] stored values of θ_i
 *  @param[out] tau  [models][n] */
void nps_delta_form(nps_dtype_t base_dtype, const void *base, int models, const nps_dtype_t *dtype,
                    const void *const *tuned, int64_t n, float *const *tau);

/** Exact selection of the k entries of largest magnitude among entries spread over ranks, without sorting: two radix
 *  histograms of the float32 bit patterns (upper 16 of the 31 bits, then the lower 15 within the bin that holds the k-th
 *  largest). Among entries that equal the threshold the earliest are kept.
 *
 *  Use: nps_select_start; every rank counts all its entries with pass 0; reduce; counts them again with pass 1; reduce;
 *  sets the ties this rank may keep; then keeps chunk by chunk, in order. */
typedef struct nps_select nps_select_t;

/** Make a selection. Freed with nps_select_free(). Local. */
nps_select_t *nps_select_new(void);
void nps_select_free(nps_select_t *select);

/** Bytes of one selection. */
size_t nps_select_bytes(void);

/** Begin anew. Local.
 *  @param keep  k, over all ranks */
void nps_select_start(nps_select_t *select, int64_t keep);

/** Count entries: pass 0 or 1. Local. */
void nps_select_count(nps_select_t *select, int pass, const float *x, int64_t n);

/** Put the counts of all ranks together after a pass. Collective over the ranks that share the entries.
 *  After pass 1 the threshold is known, and the ties this rank may keep are those that are left when the ranks before it
 *  have taken theirs. */
void nps_select_reduce(nps_select_t *select, int pass, const nps_comm_t *comm);

/** Count the entries that equal the threshold, after pass 1. Local. */
int64_t nps_select_count_ties(const nps_select_t *select, const float *x, int64_t n);

/** Give the entries equal to the threshold that are kept over all ranks, after pass 1. Local. */
int64_t nps_select_ties(const nps_select_t *select);

/** Set how many of the entries at the threshold that follow on this rank may be kept. Local. */
void nps_select_set_ties(nps_select_t *select, int64_t ties);

/** Set to zero the entries that are not kept; entries must come in order. Local.
 *  @param[in,out] x  [n]
 *  @return how many are kept */
int64_t nps_select_keep(nps_select_t *select, float *x, int64_t n);

/** Sums over the blocks of a tensor, made in block order whatever rank holds which block. */
typedef struct nps_block_sums {
  double *block; /**< [blocks] owned */
  int64_t blocks;
  nps_lanes_t lanes; /**< of the block in work */
} nps_block_sums_t;

/** Prepare for a tensor of `count` elements. Local. Keeps memory from before. */
void nps_block_sums_start(nps_block_sums_t *sums, int64_t count);

/** Note that entries [first, first + n) have been added to `lanes`; completes the block when it ends there, or when the
 *  piece ends. Local. */
void nps_block_sums_advance(nps_block_sums_t *sums, int64_t first, int64_t n, bool piece_ends);

/** Add up all blocks of all ranks that share the tensor. Collective. */
double nps_block_sums_total(nps_block_sums_t *sums, const nps_comm_t *comm);

void nps_block_sums_free(nps_block_sums_t *sums);

#endif
