/** @file delta.h
 *  Task vectors: forming them, exact selection of their largest entries, ordered sums; their subspaces and how these are
 *  weighed, pruned and put together (NPS-Pruning: Du et al., ACL 2025, arXiv 2505.18713). Layer 5.
 *
 *  A task vector is τ = fl32(θ − θ0). Entries are looked at in chunks of at most NPS_CHUNK. */
#ifndef NPS_DELTA_H
#define NPS_DELTA_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/config.h"
#include "nps/model.h"
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

/** Check stored values: NaN or infinity is NPS_ERR_INPUT with model, tensor and index. Local.
 *  @param raw  [n] stored values of the tensor's elements [first, first + n) */
nps_err_t nps_delta_check_finite(const nps_model_t *model, const char *tensor, nps_dtype_t dtype, const void *raw,
                                 int64_t first, int64_t n);

/** Exact selection of the k entries of largest magnitude among entries spread over ranks, without sorting: a histogram of
 *  the upper 16 of the 31 bits of float32 magnitudes, of all entries or a part, brackets the k-th largest; then those above
 *  the bracket are counted, and those within it by all their bits. Among entries that equal the threshold the earliest are
 *  kept. The result does not depend on the part.
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

/** Say, after nps_select_start(), that pass 0 will be shown only a part of the entries, such as is like the whole. Pass 1
 *  then may miss the k-th largest. Local.
 *  @param entries  how many there are over all ranks */
void nps_select_sample(nps_select_t *select, int64_t entries);

/** Whether pass 1 missed the k-th largest, after its reduction; the same on every rank. Then nps_select_restart(), and both
 *  passes again, which now cannot miss. A selection that has found its threshold ignores further passes. Local. */
bool nps_select_missed(const nps_select_t *select);
void nps_select_restart(nps_select_t *select);

/** Count entries: pass 0 or 1. Local. */
void nps_select_count(nps_select_t *select, int pass, const float *x, int64_t n);

/** Put the counts of all ranks together after a pass. Collective over the ranks that share the entries.
 *  After pass 1 the threshold is known, and the ties this rank may keep are those that are left when the ranks before it
 *  have taken theirs. */
void nps_select_reduce(nps_select_t *select, int pass, const nps_comm_t *comm);

/** Give the bits of the threshold, after pass 1: those of a magnitude, or above all where nothing is kept. Local. */
uint32_t nps_select_threshold(const nps_select_t *select);

/** Count the entries that equal the threshold, after pass 1. Local. */
int64_t nps_select_count_ties(const nps_select_t *select, const float *x, int64_t n);

/** Give the entries equal to the threshold that are kept over all ranks, after pass 1. Local. */
int64_t nps_select_ties(const nps_select_t *select);

/** Set how many of the entries at the threshold that follow on this rank may be kept. Local. */
void nps_select_set_ties(nps_select_t *select, int64_t ties);

/** Go back to the first of this rank's entries, to keep or mark them once more. Local. */
void nps_select_rewind(nps_select_t *select);

/** Set to zero the entries that are not kept; entries must come in order. Local.
 *  @param[in,out] x  [n]
 *  @return how many are kept */
int64_t nps_select_keep(nps_select_t *select, float *x, int64_t n);

/** Tell the entries that are kept instead, as zeros may be among them; entries must come in order. Local.
 *  @param[out] keep  [n] 1 for an entry that is kept, else 0; not x itself
 *  @return how many are kept */
int64_t nps_select_mark(nps_select_t *select, const float *x, int64_t n, float *keep);

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

/* ---- subspaces: how task vectors are weighed, pruned and put together ---- */

/** What the sum Σ λ_i q_i is divided by. */
typedef enum nps_normalize {
  NPS_NORMALIZE_NONE,      /**< nothing */
  NPS_NORMALIZE_SUM,       /**< Σ λ_i; below NPS_TINY_LAMBDA the result is undefined */
  NPS_NORMALIZE_COORDINATE /**< at each coordinate the λ-sum of the models whose q_i is not 0 there; where there is none, or
                                that sum is 0, the update is 0 */
} nps_normalize_t;

/** A |Σ λ_i| below it cannot be divided by. */
#define NPS_TINY_LAMBDA 1e-6

/** Most subspaces. */
#define NPS_MAX_SUBSPACES 256

/** How T task vectors, each split into M subspaces by magnitude, are weighed: an entry τ of subspace m of model i has the
 *  score fl32(fl32(priority)·|τ|) and the value fl32(fl32(weight)·τ); the ⌊density·d⌋ entries of largest score keep their
 *  value, the others become 0 (scope tensor: ⌊density·n⌋ in each tensor); then Σ λ_i q_i / divisor, in float64, models in
 *  order, any division last. Subspaces: smallest magnitudes first. */
typedef struct nps_weighting {
  int models;    /**< T */
  int subspaces; /**< M, 1 to NPS_MAX_SUBSPACES */
  nps_scope_t scope;
  nps_normalize_t normalize;
  double *weight;   /**< [T][M] owned */
  double *priority; /**< [T][M] at least 0, not −0, as scores are compared as bits; owned */
  double *lambda;   /**< [T] owned. A model with λ = 0 has no part */
  double *density;  /**< [T] 0 to 1; owned */
  double *rest;     /**< [T] partition singular: weight of the tensors that are not split into bands; owned */
} nps_weighting_t;

/** Make a weighting: weights, priorities, λ and densities 1. Local. Freed with nps_weighting_free(). */
nps_weighting_t *nps_weighting_new(int models, int subspaces);
nps_weighting_t *nps_weighting_copy(const nps_weighting_t *weighting);
void nps_weighting_free(nps_weighting_t *weighting);

/** Go on with a hash over all that a weighting holds. Local. @param hash  as nps_hash64() */
uint64_t nps_weighting_hash(const nps_weighting_t *weighting, uint64_t hash);

/** The thresholds that split magnitudes into M subspaces: threshold m (1 … M − 1) is the ⌊m·d/M⌋-th smallest |τ| from 0, and
 *  the subspace of x is the number of thresholds ≤ |x|. Found exactly by two radix histograms, entries spread over ranks.
 *  Use: start; every rank counts all its entries with pass 0; reduce; again with pass 1; reduce. Opaque. */
typedef struct nps_partition nps_partition_t;

/** Make a partition into M subspaces. Freed with nps_partition_free(). Local. */
nps_partition_t *nps_partition_new(int subspaces);
void nps_partition_free(nps_partition_t *partition);

/** Bytes of one partition. */
size_t nps_partition_bytes(int subspaces);

/** Begin anew. Local. @param entries  d, over all ranks */
void nps_partition_start(nps_partition_t *partition, int64_t entries);

/** Count entries: pass 0 or 1. Local. */
void nps_partition_count(nps_partition_t *partition, int pass, const float *x, int64_t n);

/** Put the counts of all ranks together after a pass. Collective over the ranks that share the entries. */
void nps_partition_reduce(nps_partition_t *partition, int pass, const nps_comm_t *comm);

/** Give the thresholds, after pass 1. @return [M − 1] ascending, owned by the partition */
const float *nps_partition_thresholds(const nps_partition_t *partition);

/** Give the counts of pass 0 over all ranks: [65536] entries by the upper 16 of the 31 bits of their magnitude. Owned by
 *  the partition. */
const int64_t *nps_partition_histogram(const nps_partition_t *partition);

/** Weigh and score entries. Local.
 *  @param thresholds  [subspaces − 1] ascending; @param weight, priority  [subspaces]
 *  @param x  [n] task vector
 *  @param[out] value  [n] fl32(w_m·x); may be x itself, or NULL
 *  @param[out] score  [n] fl32(a_m·|x|); may be NULL */
void nps_subspace_apply(const float *thresholds, int subspaces, const double *weight, const double *priority,
                        const float *x, int64_t n, float *value, float *score);

/** Count entries by subspace: counts[m] is raised for every x[i] of subspace m with keep[i] != 0 (keep NULL: all). Local.
 *  @param[in,out] counts  [subspaces] */
void nps_subspace_count(const float *thresholds, int subspaces, const float *x, const float *keep, int64_t n,
                        int64_t *counts);

/** Put models together: out = Σ λ_i q_i, divided as `normalize` says. Local.
 *  @param q  [models][n], n at most NPS_CHUNK; a model with λ = 0 is not read
 *  @param[out] out  [n] */
void nps_fuse(int models, const float *const *q, const double *lambda, nps_normalize_t normalize, int64_t n,
              double *out);

/* ---- candidates in memory ---- */

/** The weights of a base and of T fine-tuned models in memory, at the width in which they are stored: the merged tensors of
 *  a layout, in byte order of their names (the order in which ties are broken). Opaque. Ranks can share a copy of them: then
 *  each holds some of the tensors, and all know the names and lengths of all. */
typedef struct nps_store nps_store_t;

/** What a rank holds of a tensor. */
typedef enum nps_hold {
  NPS_HOLD_NOT,  /**< nothing */
  NPS_HOLD_ALSO, /**< all of it, as another rank of the copy does, which counts it */
  NPS_HOLD       /**< all of it */
} nps_hold_t;

/** Which part of which copy a rank holds. Borrowed. */
typedef struct nps_share {
  const nps_hold_t *hold; /**< [layout->count]; NULL: all of every tensor */
  int copy, copies;       /**< this rank's copy, −1: of none; how many there are */
} nps_share_t;

/** Read the weights. Local, reads files.
 *  @param input_of  [models] index into inputs of each model; @param base  index of the base
 *  @param digest    gets every byte read; may be NULL
 *  @param[out] out  freed with nps_store_free(); borrows layout and inputs
 *  @return NPS_ERR_INPUT (a file cannot be read; NaN or infinity, with model, tensor, index), NPS_ERR_MEMORY */
nps_err_t nps_store_load(const nps_layout_t *layout, const nps_model_t *const *inputs, int base, const int *input_of,
                         int models, const nps_share_t *part, nps_digest_t *digest, nps_store_t **out);
void nps_store_free(nps_store_t *store);

/** Predict the bytes of one tensor of all models / of what finds the entries that candidates keep. Local, from headers. */
int64_t nps_store_target_bytes(const nps_layout_t *layout, const nps_model_t *const *inputs, int base,
                               const int *input_of, int models, int target);
int64_t nps_rules_bytes(int models, int subspaces);

int nps_store_models(const nps_store_t *store);
int nps_store_tensors(const nps_store_t *store);
const char *nps_store_name(const nps_store_t *store, int tensor);
int64_t nps_store_count(const nps_store_t *store, int tensor);
int64_t nps_store_elements(const nps_store_t *store); /* d: of all tensors */

/** Whether this rank holds a tensor / counts it among the entries of its copy. */
bool nps_store_holds(const nps_store_t *store, int tensor);
bool nps_store_counts(const nps_store_t *store, int tensor);

/** Find a tensor by name. @return its index or -1 */
int nps_store_find(const nps_store_t *store, const char *name);

/** Form the task vector of a model: entries [first, first + n) of a tensor, n at most NPS_CHUNK. Local. */
void nps_store_tau(const nps_store_t *store, int model, int tensor, int64_t first, int64_t n, float *tau);

/** The subspaces of every model of a store: thresholds, and histograms that the threshold of a candidate is found by.
 *  Opaque. */
typedef struct nps_subspaces nps_subspaces_t;

/** Split the task vectors. Collective over all ranks of all copies, which share the counting.
 *  @param[out] out  freed with nps_subspaces_free(); borrows the store */
nps_err_t nps_subspaces_new(const nps_comm_t *comm, const nps_store_t *store, int subspaces, nps_scope_t scope,
                            nps_subspaces_t **out);
void nps_subspaces_free(nps_subspaces_t *subspaces);

/** Give the thresholds of a model (scope tensor: of a tensor of it; else `tensor` is not looked at). [M − 1], owned. */
const float *nps_subspaces_thresholds(const nps_subspaces_t *subspaces, int model, int tensor);

/** Which entries of the models weightings keep. Finding that out needs a look at a whole model, by all ranks of a copy
 *  together; different copies find different ones. Opaque. */
typedef struct nps_rules nps_rules_t;

/** Make room. Local. Freed with nps_rules_free(). Borrows everything.
 *  @param all   the ranks of all copies
 *  @param copy  those of this rank's copy; NULL: it has none */
nps_rules_t *nps_rules_new(const nps_comm_t *all, const nps_comm_t *copy, const nps_store_t *store,
                           const nps_subspaces_t *subspaces);
void nps_rules_free(nps_rules_t *rules);

/** Find what weightings keep; what is known from the last call is not sought again, what is not asked for is forgotten.
 *  Collective over all ranks, with the same weightings on each.
 *  @param weightings  [count]
 *  @param stop        whether this rank is asked to stop; may be NULL
 *  @return false: some rank was asked to stop, and not all is known */
bool nps_rules_find(nps_rules_t *rules, const nps_weighting_t *const *weightings, int count, bool (*stop)(void *ctx),
                    void *ctx);

/** A candidate: the weights that come of a weighting, in float32 as they would be written. They are made when they are asked
 *  for. Opaque. */
typedef struct nps_candidate nps_candidate_t;
struct nps_factors; /* factors.h */

/** Make a candidate. Local. Freed with nps_candidate_free(). Borrows everything.
 *  @param rules    NULL with factors
 *  @param factors  of all models and of all matrices that the rank holds, with partition singular (factors.h); else NULL
 *  @param round  whether values are rounded to the target's type in the layout first (as the output will be)
 *  @param value_bits  not 0: the update is quantised before, as an archive stores it (nps_quantise(), NPS_CHUNK entries a scale)
 *  @return NPS_ERR_MEMORY */
nps_err_t nps_candidate_new(const nps_store_t *store, const nps_subspaces_t *subspaces, const nps_rules_t *rules,
                            const struct nps_factors *factors, bool round, int value_bits, nps_candidate_t **out);
void nps_candidate_free(nps_candidate_t *candidate);

/** Whether a weighting has a result: with normalize sum, whether |Σ λ| ≥ NPS_TINY_LAMBDA. Local. */
bool nps_weighting_has_result(const nps_weighting_t *weighting);

/** Become θ0 + Σ λ_i q_i / divisor: the same bits as the merge method nps writes. Local.
 *  @param weighting  one that has a result and whose rules have been found; borrowed until the next call */
void nps_candidate_set(nps_candidate_t *candidate, const nps_weighting_t *weighting);

/** A random perturbation: θ_i (1 ± ρ), which moves every tensor, and every row of it, by ρ of its norm. The sign of element i
 *  is bit i mod 32, 1 for +, of word ⌊i/32⌋ of the random stream (seed XOR the hash of the tensor's name, 2^31 + sample): any
 *  rank gives an element the same one. Adaptive, average-case sharpness is measured so (Andriushchenko et al., ICML 2023,
 *  arXiv 2302.07011), there with normal numbers for ±1. */
typedef struct nps_shake {
  uint64_t seed;
  int sample; /**< which perturbation, from 0 */
  double rho; /**< ρ above 0 */
} nps_shake_t;

/** Perturb elements [first, first + n) of a tensor, in place. Local. @param[in,out] x  [n] */
void nps_shake(const nps_shake_t *shake, const char *tensor, int64_t first, int64_t n, float *x);

/** Perturb what is made, until the next nps_candidate_set() or nps_candidate_take(). Local. @param shake  copied */
void nps_candidate_shake(nps_candidate_t *candidate, const nps_shake_t *shake);

/** Become a stored model as it is: model 0 … T − 1, or -1 for the base. Local. */
void nps_candidate_take(nps_candidate_t *candidate, int model);

/** Make elements [first, first + count) of a tensor that the rank holds. Local.
 *  @param[out] out  [count]
 *  @return false when one is not finite, or factors cannot be read back (then it is recorded) */
bool nps_candidate_make(nps_candidate_t *candidate, int tensor, int64_t first, int64_t count, float *out);

/** Give the narrowest type, of at most 32 bits, that holds the values of a tensor as they are made. Local. */
nps_dtype_t nps_candidate_dtype(const nps_candidate_t *candidate, int tensor);

/** Give the error that no candidate can be made after: factors could not be read back (recorded). Local. */
nps_err_t nps_candidate_error(const nps_candidate_t *candidate);

#endif
