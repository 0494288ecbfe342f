/** @file store.h
 *  What the files on candidates in memory share. */
#ifndef NPS_DELTA_STORE_H
#define NPS_DELTA_STORE_H

#include "nps/delta.h"

struct nps_store {
  const nps_model_t *const *inputs;
  int base;      /* index into inputs */
  int *input_of; /* [models] */
  int models;
  const nps_target_t **targets; /* [tensors] in byte order of their names */
  int tensors;
  nps_hold_t *hold; /* [tensors] */
  int copy, copies;
  int64_t elements;
  char **raw;      /* [1 + models] base first */
  int64_t *offset; /* [1 + models][tensors] bytes into raw */
};

/** Give the merged targets of a layout in byte order of their names. @return freed with free() */
const nps_target_t **nps_sorted_targets(const nps_layout_t *layout, int *count);

/** Give the stored type / values of a tensor; model −1 is the base. */
nps_dtype_t nps_store_dtype(const nps_store_t *store, int model, int tensor);
const void *nps_store_raw(const nps_store_t *store, int model, int tensor, int64_t first);

/** Which entries of a model (scope tensor: of one tensor of it) are kept: those whose score exceeds the threshold, and those
 *  that equal it up to a position. */
typedef struct nps_rule {
  bool nothing;       /* no entry is kept */
  uint32_t threshold; /* bits of the score */
  int last_tensor;    /* where the last entry at the threshold lies that is kept */
  int64_t last_index;
} nps_rule_t;

/** Give the rules of a model under a weighting. [rows of the subspaces], or NULL: they have not been found */
const nps_rule_t *nps_rules_of(const nps_rules_t *rules, const nps_weighting_t *weighting, int model);

struct nps_subspaces {
  const nps_store_t *store;
  int subspaces;
  nps_scope_t scope;
  int rows;            /* sets of thresholds a model: 1, or one a tensor */
  float *thresholds;   /* [models][rows][subspaces − 1] */
  int64_t *below;      /* scope model: [models][subspaces] entries below threshold m, 0 for m = 0 */
  int64_t *cumulative; /* scope model: [models][NPS_HIGH_BINS + 1] entries below a bin of the magnitude's upper bits */
};

#endif
