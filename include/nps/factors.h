/** @file factors.h
 *  Singular factors of task vectors: which triples a candidate keeps, and the tensors that come of them (merge_method nps with
 *  partition: singular). Layer 5, part of delta.
 *
 *  A matrix is a tensor with two dimensions, both at least 2, whose name contains none of the excluded parts. What is factorised
 *  are lists: one for each model (its τ), or one alone (Σ λ_i τ_i). Triple k of n is in band ⌊kM/n⌋, largest first, and costs
 *  rows + columns stored numbers; directions with σ ≤ NPS_SVD_ABSENT·σ1 are left out. All other tensors, the rest, keep their
 *  ⌊density·d_rest⌋ entries of largest magnitude, of τ or of Σ λ_i τ_i / T.
 *
 *  Vectors are kept in float32, in memory or in a file that no other process sees; σ in float64. Factors of a matrix are one
 *  rank's work: they are the same bits on any number of ranks, and so is what is assembled from them. */
#ifndef NPS_FACTORS_H
#define NPS_FACTORS_H

#include "nps/delta.h"

/** What is to be factorised. Borrowed while it is, the layout as long as the factors live. */
typedef struct nps_factors_spec {
  const nps_layout_t *layout;
  const nps_model_t *const *inputs;
  int base;                   /**< index into inputs */
  const int *input_of;        /**< [models] likewise */
  int models;                 /**< T */
  int subspaces;              /**< M, bands */
  bool sum;                   /**< one list, of Σ λ_i τ_i; else one of each model */
  nps_scope_t scope;          /**< tensor: every matrix has a budget of its own, and so has every other tensor */
  const double *lambda;       /**< [models] with sum */
  const double *density;      /**< [models] with sum the first counts */
  const char *const *exclude; /**< [exclude_count] parts of names */
  int exclude_count;
  const int
      *owner; /**< [layout->count] the rank that factorises a target, and alone assembles it; NULL: any rank factorises
                       it, and gives it to the others */
  const nps_hold_t
      *hold; /**< [layout->count] of which targets this rank gets the factors, where `owner` is NULL; NULL: of all */
  const char *spill; /**< folder for a file of the factors; NULL: they are kept in memory */
  int value_bits;    /**< as nps_assembly_new(); for predictions */
} nps_factors_spec_t;

typedef struct nps_factors nps_factors_t;

/** Factorise all matrices of all lists and find what the rest keeps. Collective; reads files.
 *  @param[out] out  freed with nps_factors_free()
 *  @return the same on every rank. NPS_ERR_INPUT (NaN or infinity, with model, tensor, index; a file cannot be read),
 *    NPS_ERR_MEMORY, NPS_ERR_RUNTIME (no decomposition within its tolerance; the spill file cannot be written) */
nps_err_t nps_factors_new(const nps_comm_t *comm, const nps_factors_spec_t *spec, nps_factors_t **out);
void nps_factors_free(nps_factors_t *factors);

/** Predict the bytes of the factors of all matrices, and of those of one target (0: it is none). Local. */
int64_t nps_factors_bytes(const nps_factors_spec_t *spec);
int64_t nps_factors_target_bytes(const nps_factors_spec_t *spec, int target);

/** Predict the bytes that factorising the largest matrix takes on a rank, and those of an assembly. Local. */
int64_t nps_factors_work_bytes(const nps_factors_spec_t *spec);
int64_t nps_assembly_bytes(const nps_factors_spec_t *spec);

/** Whether a name contains one of the excluded parts. Local. */
bool nps_factors_excludes(const char *name, const char *const *exclude, int exclude_count);

/** Whether a target is split into bands. Local. */
bool nps_factors_splits(const nps_target_t *target, const char *const *exclude, int exclude_count);

/** Give ranks the factors of further matrices, where they do not have them. Collective.
 *  @param layout  with the same merged tensors; @param owner  [layout->count] the rank that is to have a target's */
nps_err_t nps_factors_give(const nps_comm_t *comm, nps_factors_t *factors, const nps_layout_t *layout,
                           const int *owner);

int nps_factors_lists(const nps_factors_t *factors); /* 1 with sum, else T */
int nps_factors_matrices(const nps_factors_t *factors);
int64_t nps_factors_rest(const nps_factors_t *factors); /* elements of the tensors that are no matrices */

/** Give the index of a matrix by the position of the tensor among the merged ones in byte order of their names; -1: it is none. */
int nps_factors_matrix(const nps_factors_t *factors, int tensor);

/** One matrix of a list. Owned by the factors. */
typedef struct nps_spectrum {
  const char *name;
  int64_t rows, columns, count; /**< n = min(rows, columns) */
  int64_t present;              /**< triples that are not left out */
  const double *sigma;          /**< [count] descending */
} nps_spectrum_t;
nps_spectrum_t nps_factors_spectrum(const nps_factors_t *factors, int list, int matrix);

/** Give the first triple of band m, ⌈mn/M⌉; that of band M is n. */
static inline int64_t nps_band_first(int64_t count, int subspaces, int m) {
  return (m * count + subspaces - 1) / subspaces;
}

/* ---- what is kept ---- */

/** The triples that a weighting keeps: in each band of each matrix the largest. Opaque. */
typedef struct nps_taking nps_taking_t;

/** Make room. Local. Freed with nps_taking_free(). Borrows the factors. */
nps_taking_t *nps_taking_new(const nps_factors_t *factors);
void nps_taking_free(nps_taking_t *taking);

/** Choose triples: by falling score a_m·σ_k (equal: byte order of the names, then k), until the first whose cost does not fit
 *  into ⌊density·d⌋, d the elements of all matrices, or of the matrix by itself. Density 1 keeps all. Lists whose λ is 0 stay as
 *  they are. Local.
 *  @param first_list  the list of the weighting's first model; with sum the weighting's first row counts */
void nps_taking_make(nps_taking_t *taking, const nps_weighting_t *weighting, int first_list);

/** Give how many triples of the bands of a matrix are kept. [M] owned. */
const int32_t *nps_taking_kept(const nps_taking_t *taking, int list, int matrix);

/** Give the numbers that are stored of a list: of triples, and of entries of the rest. */
int64_t nps_taking_stored(const nps_taking_t *taking, int list);
int64_t nps_rest_kept(const nps_factors_t *factors, int list);

/* ---- assembling ---- */

/** Room to assemble tensors in. Opaque. */
typedef struct nps_assembly nps_assembly_t;

/** Make room for the largest matrix. Local.
 *  @param value_bits  not 0: matrices are made as an archive stores and expands them, of one model alone: w_m·λ·σ goes to u, u
 *    and v are rounded by themselves (nps_quantise(); NPS_VALUES_UNROUNDED: not) and multiplied by nps_low_rank_entries()
 *  @param[out] out  freed with nps_assembly_free(); borrows the factors */
nps_err_t nps_assembly_new(const nps_factors_t *factors, int value_bits, nps_assembly_t **out);
#define NPS_VALUES_UNROUNDED 32
void nps_assembly_free(nps_assembly_t *assembly);

/** Make the update of a matrix: Σ λ_i U_iᵀ diag(w_m σ) V_i over kept triples, divided as `normalize` says; with sum
 *  Uᵀ diag(w_m·mean σ) V, undivided. In float32. At a coordinate of a matrix a model counts (normalize coordinate) where it has
 *  a kept triple of value ≠ 0 and neither the row nor the column of its τ is all 0. Local.
 *  @param first_list  as above; this rank has the factors of the matrix
 *  @param[out] update  [rows][columns] owned by the assembly, until the next call
 *  @return NPS_ERR_RUNTIME: the spill file cannot be read */
nps_err_t nps_assembly_matrix(nps_assembly_t *assembly, const nps_taking_t *taking, const nps_weighting_t *weighting,
                              int first_list, int matrix, const float **update);

/** Give the factors of the matrix made last, with value_bits: those that are kept, band by band, unrounded only where they were
 *  left so. Local. Owned by the assembly, until the next call. */
nps_low_rank_t nps_assembly_factors(const nps_assembly_t *assembly);

/** Make the update of entries [first, first + n) of a tensor of the rest. Local.
 *  @param tensor    position among the merged tensors in byte order of their names
 *  @param[in,out] tau  [models of the weighting][n] task vectors, n at most NPS_CHUNK; overwritten. A model with λ = 0 is not
 *    looked at, but with sum
 *  @param[out] out  [n] */
void nps_rest_update(const nps_factors_t *factors, const nps_weighting_t *weighting, int first_list, int tensor,
                     int64_t first, int64_t n, float *const *tau, double *out);

#endif
