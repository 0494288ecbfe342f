/** @file factors_internal.h
 *  What the files on singular factors share. */
#ifndef NPS_DELTA_FACTORS_INTERNAL_H
#define NPS_DELTA_FACTORS_INTERNAL_H

#include "nps/factors.h"

/* ---- numbered arrays of float32, in memory or in one file (blocks.c) ---- */

typedef struct nps_blocks nps_blocks_t;

/** Make room for arrays of at most these lengths. Collective: the ranks of a host share the file.
 *  @param most    [count] numbers
 *  @param folder  where the file goes; NULL: memory */
nps_err_t nps_blocks_new(const nps_comm_t *comm, const int64_t *most, int count, const char *folder,
                         nps_blocks_t **out);
void nps_blocks_free(nps_blocks_t *blocks);

/** Whether this rank is to put arrays that another has made: not where a rank of the same host does. Local. */
bool nps_blocks_wanted(const nps_blocks_t *blocks);

/** Whether the arrays lie in a file. Local. */
bool nps_blocks_in_file(const nps_blocks_t *blocks);

/** Forget an array that lies in memory. Local. */
void nps_blocks_drop(nps_blocks_t *blocks, int block);

nps_err_t nps_blocks_put(nps_blocks_t *blocks, int block, const float *x, int64_t n);
nps_err_t nps_blocks_get(const nps_blocks_t *blocks, int block, int64_t first, int64_t n, float *x);

/* ---- task vectors from files (source.c) ---- */

/** Reads a list of task vectors. */
typedef struct nps_source nps_source_t;

nps_err_t nps_source_new(const nps_factors_spec_t *spec, nps_source_t **out);
void nps_source_free(nps_source_t *source);

/** Load elements [first, first + count) of a target, count at most NPS_STEP. */
nps_err_t nps_source_load(nps_source_t *source, int list, const nps_target_t *target, int64_t first, int64_t count);

/** Give elements at offset `at` of what is loaded, n at most NPS_CHUNK: τ, or Σ λ_i τ_i. @param[out] x  [n] */
void nps_source_values(nps_source_t *source, int64_t at, int64_t n, double *x);

/* ---- what the rest keeps (rest.c) ---- */

/** Entries whose magnitude exceeds the threshold are kept, and those that equal it up to a position. */
typedef struct nps_rest_rule {
  int64_t keep;       /* entries kept */
  uint32_t threshold; /* bits of the magnitude */
  int last_tensor;    /* where the last entry at the threshold lies that is kept */
  int64_t last_index;
} nps_rest_rule_t;

/** Find the rules of all lists. Collective. */
nps_err_t nps_rest_find(const nps_comm_t *comm, const nps_factors_spec_t *spec, nps_factors_t *factors);

/* ---- factors ---- */

typedef struct nps_matrix {
  int tensor; /* among the merged ones, in byte order of their names */
  int64_t rows, columns, count;
  int64_t sigma_at; /* into a list's σ */
  int64_t seen_at;  /* into a list's marks of rows, then columns */
  int owner;
  bool held; /* this rank has the factors, or will have them, or can read them from a file */
} nps_matrix_t;

struct nps_factors {
  int models, lists, subspaces;
  bool sum;
  nps_scope_t scope;
  double *lambda;               /* [models] */
  const nps_target_t **targets; /* [tensors] merged ones in byte order of their names */
  int tensors;
  int *matrix_of; /* [tensors] or -1 */
  nps_matrix_t *matrices;
  int matrix_count;
  int64_t matrix_elements, rest_elements;
  int64_t sigma_count, seen_count; /* of a list */
  double *sigma;                   /* [lists][sigma_count] */
  int64_t *present;                /* [lists][matrices] */
  uint8_t *seen;                   /* [lists][seen_count] rows and columns of τ that are not all 0 */
  nps_blocks_t *blocks;            /* [lists][matrices] U [present][rows], V [present][columns] */
  nps_rest_rule_t *rules;          /* [lists][tensors]; scope model: all of a list alike */
};

/** Give the number of the factors' array of a list's matrix. */
static inline int nps_factors_block(const nps_factors_t *f, int list, int matrix) {
  return list * f->matrix_count + matrix;
}

#endif
