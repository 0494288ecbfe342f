/** @file merge_internal.h
 *  What the files of this module share. */
#ifndef NPS_MERGE_INTERNAL_H
#define NPS_MERGE_INTERNAL_H

#include "nps/merge.h"

#include <math.h>

struct nps_merge {
  nps_merge_spec_t spec;
  nps_merge_tensor_t *tensors; /**< [layout->count]; merged targets only are filled */
  double *values;              /**< [param][target][model], what the tensors point into */
  int first;                   /**< the first merged target, or -1 */
  bool family_known; /**< which tensors are linear layers is known by the model's family, not by a rule for all */
  int passes;
  bool whole_model;
  nps_part_t *parts; /**< [part_count] group by group */
  int *part_target;  /**< [part_count] the target that gives it */
  int part_count;
  int64_t *part_bytes;             /**< [layout->count] of the parts that a target gives; NULL: there are none */
  nps_merge_subspaces_t subspaces; /**< after a run; none before */
  nps_merge_history_t history;     /**< the spec's; after a run with this one added */
  nps_merge_balance_t balance;     /**< after a run */
};

/* The families' methods; registry.c lists them. */
extern const nps_merge_method_t nps_method_linear;
extern const nps_merge_method_t nps_method_passthrough;
extern const nps_merge_method_t nps_method_slerp;
extern const nps_merge_method_t nps_method_nuslerp;
extern const nps_merge_method_t nps_method_multislerp;
extern const nps_merge_method_t nps_method_karcher;
extern const nps_merge_method_t nps_method_model_stock;
extern const nps_merge_method_t nps_method_nearswap;
extern const nps_merge_method_t nps_method_task_arithmetic;
extern const nps_merge_method_t nps_method_ties;
extern const nps_merge_method_t nps_method_dare_linear;
extern const nps_merge_method_t nps_method_dare_ties;
extern const nps_merge_method_t nps_method_breadcrumbs;
extern const nps_merge_method_t nps_method_breadcrumbs_ties;
extern const nps_merge_method_t nps_method_arcee_fusion;
extern const nps_merge_method_t nps_method_della;
extern const nps_merge_method_t nps_method_della_linear;
extern const nps_merge_method_t nps_method_sce;
extern const nps_merge_method_t nps_method_ram;
extern const nps_merge_method_t nps_method_ramplus_tl;
extern const nps_merge_method_t nps_method_consensus;
extern const nps_merge_method_t nps_method_nps;
extern const nps_merge_method_t nps_method_nps_singular; /* not listed: nps with partition singular */
extern const nps_merge_method_t nps_method_tsv_m;
extern const nps_merge_method_t nps_method_iso_c;
extern const nps_merge_method_t nps_method_iso_cts;
extern const nps_merge_method_t nps_method_knots;
extern const nps_merge_method_t nps_method_opcm;
extern const nps_merge_method_t nps_method_smile;

/** Choices of a yes/no parameter: value 0 is false, 1 true. */
extern const char *const nps_choices_bool[];

/* ---- merge_method nps ---- */

enum { NPS_PARAM_WEIGHT, NPS_PARAM_LAMBDA, NPS_PARAM_NORMALIZE, NPS_PARAM_DENSITY, NPS_PARAM_COUNT };

/** Choices of `normalize`, in the order of nps_normalize_t. */
extern const char *const nps_choices_normalize[];

#define NPS_PARAMS                                                                                                     \
  {                                                                                                                    \
    [NPS_PARAM_WEIGHT] = {.name = "weight", .per_model = true, .fallback = 1, .least = -1e30, .most = 1e30},           \
    [NPS_PARAM_LAMBDA] = {.name = "lambda", .fallback = 1, .least = -1e30, .most = 1e30},                              \
    [NPS_PARAM_NORMALIZE] = {.name = "normalize", .kind = NPS_PARAM_CHOICE, .choices = nps_choices_normalize},         \
    [NPS_PARAM_DENSITY] = {.name = "density", .per_model = true, .fallback = NAN, .least = 0, .most = 1},              \
  }

/** Give λ of the models of a tensor. @param[out] lambda  [models] */
void nps_merge_find_lambda(const nps_merge_tensor_t *tensor, double *lambda);

/** Check that every model has weight 1, for methods without weights. @param why  set to the reason when not */
bool nps_merge_weights_are_one(const nps_merge_tensor_t *tensor, int param, char why[160]);

/** Give the number of elements of a matrix that are this rank's. */
static inline int64_t nps_merge_local_count(const nps_dmat_t *m) { return m->local_rows * m->local_columns; }

/** Give the bytes of a matrix on each of so many ranks. */
static inline int64_t nps_merge_matrix_bytes(int64_t rows, int64_t columns, int ranks) {
  return 8 * nps_dmat_most_local(rows, columns, ranks);
}

/** Give the entries of a row of a target: its last dimension; of a scalar 1. */
static inline int64_t nps_merge_row_length(const nps_target_t *target) {
  return target->ndim > 0 ? target->shape[target->ndim - 1] : 1;
}

/** A method's whole_rows: of every tensor. */
bool nps_merge_always_rows(const nps_merge_tensor_t *tensor);

/** A method's passes: one, whatever the parameters. */
int nps_merge_one_pass(const nps_merge_tensor_t *tensors, int count);

/** Count the entries of a chunk from `at` on that lie in one row. */
static inline int64_t nps_merge_within_row(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                                           int64_t at) {
  return nps_min64(chunk->count - at, tensor->row_length - (chunk->first + at) % tensor->row_length);
}

/** Add up numbers in their order. */
static inline double nps_merge_sum_of(const double *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += x[i];
  return sum;
}

/** The most of any merged tensor: entries of a row, rows, entries. At least 1. */
typedef struct nps_extent {
  int64_t row, rows, count;
} nps_extent_t;

/** Give the extent of a layout. */
nps_extent_t nps_merge_extent(const nps_layout_t *layout);

/** Whether a tensor is merged whole. */
bool nps_merge_is_whole(const nps_merge_t *merge, int target);

/** Plan the parts. @return NPS_ERR_INPUT: no tensor gives any */
nps_err_t nps_merge_plan_parts(nps_merge_t *merge);

/** Forget what is known of the subspaces. */
void nps_merge_subspaces_clear(nps_merge_subspaces_t *subspaces);

/** Room for a path and a line number. */
#define NPS_WHERE 4200

/** Write "FILE:LINE: " for a setting of the config, "--set: " for one of the command line. @return out */
const char *nps_merge_where(const nps_merge_t *merge, const nps_setting_t *setting, char out[NPS_WHERE]);

/** Give a parameter of a method, or NULL. */
const nps_param_t *nps_merge_find_param(const nps_merge_method_t *method, const char *name);

/** Note the filters of the config that choose no tensor. Local. (filters.c) */
void nps_merge_note_filters(const nps_merge_t *merge);

/** Whether some method has a parameter of this name, or mergekit has it for a method that is planned. */
bool nps_merge_param_known(const char *name);

#endif
