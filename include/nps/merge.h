/** @file merge.h
 *  Merge methods and the engine that applies them, streamed, to a planned layout. Layer 6.
 *
 *  A method is one nps_merge_method_t in a table (src/merge/registry.c); a family of methods is one file. The engine reads
 *  slabs, cuts them into chunks of at most NPS_CHUNK elements that never cross a block of NPS_BLOCK, hands the chunks to
 *  the method and writes what it gives back. Methods see no files and, but for reducing their statistics, no ranks. */
#ifndef NPS_MERGE_H
#define NPS_MERGE_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/config.h"
#include "nps/delta.h"
#include "nps/dmat.h"
#include "nps/factors.h"
#include "nps/model.h"
#include "nps/plan.h"

/* ---- parameters ---- */

typedef enum nps_param_kind {
  NPS_PARAM_NUMBER, /**< within [least, most] */
  NPS_PARAM_CHOICE  /**< one of `choices`, its index as the value; true and false may be among them */
} nps_param_kind_t;

/** One parameter of a method. */
typedef struct nps_param {
  const char *name;
  bool per_model; /**< looked up in the model's parameters first, then globally; else globally only */
  bool required;
  nps_param_kind_t kind;
  double fallback;            /**< when not given; NaN: the density of the merge's nps */
  double least, most;         /**< NUMBER: bounds, inclusive */
  const char *const *choices; /**< CHOICE: NULL-terminated */
} nps_param_t;

/** Most parameters a method has. */
#define NPS_MAX_PARAMS 8

/* ---- what a method sees ---- */

typedef struct nps_merge_nps nps_merge_nps_t;

/** What a tensor is in the network. */
typedef enum nps_tensor_role {
  NPS_ROLE_OTHER,
  NPS_ROLE_LINEAR,     /**< the weight [out, in] of a linear layer of the body: nps_net_find_linear() */
  NPS_ROLE_LINEAR_BIAS /**< the bias of one */
} nps_tensor_role_t;

/** One target under a method. */
typedef struct nps_merge_tensor {
  const char *name;
  int64_t count;         /**< elements, over all ranks */
  int64_t rows, columns; /**< of a matrix: two dimensions, both at least 2; else 0 */
  int64_t row_length;    /**< the last dimension; of a scalar 1 */
  nps_tensor_role_t role;
  int models;       /**< T; in a slice with fewer sources less than in others */
  uint64_t key;     /**< of the tensor's random numbers: the recipe's seed XOR the hash of its name */
  bool has_history; /**< there is an update already, which the models are added to */
  const double *param[NPS_MAX_PARAMS]; /**< by the method's parameters: [models] values; shared ones [1] */
  int order;                           /**< position among the merged tensors in byte order of their names */
  int tensor_count;                    /**< merged tensors of the model */
  int64_t model_elements;              /**< elements of all merged tensors of the model */
  const nps_merge_nps_t *nps;          /**< merge_method nps only */
} nps_merge_tensor_t;

/** Consecutive elements of a target. */
typedef struct nps_merge_chunk {
  int64_t first;        /**< position in the tensor */
  int64_t count;        /**< 1 to NPS_CHUNK */
  bool piece_ends;      /**< last chunk of this rank's piece */
  float *const *tau;    /**< [models][count] task vectors, may be overwritten; task-vector methods only */
  double *const *theta; /**< [models][count] weights, may be overwritten; other methods only */
} nps_merge_chunk_t;

/** Whether a method uses the base. */
typedef enum nps_base_use {
  NPS_BASE_TASK_VECTORS, /**< needed; models are seen as task vectors, the base is not among them */
  NPS_BASE_FIRST,        /**< needed; it is the first of the models, wherever it is listed */
  NPS_BASE_LISTED        /**< one of the models where it is listed, otherwise not used */
} nps_base_use_t;

/** What earlier runs of the same method on the same base leave to this one; zeros: there were none. */
typedef struct nps_merge_history {
  const nps_model_t *updates; /**< float64, one for every merged tensor; NULL: none */
  int64_t models;             /**< merged so far */
  double norm_mean;           /**< mean of their ‖τ_i‖ */
} nps_merge_history_t;

typedef struct nps_merge_spec nps_merge_spec_t;
typedef struct nps_merge_subspaces nps_merge_subspaces_t;

/** Most parts that a tensor gives. */
#define NPS_MAX_PARTS 3

/** A merge method. */
typedef struct nps_merge_method {
  const char *name;
  const char *summary; /**< one line for people */
  nps_base_use_t base;
  const struct nps_merge_method *with_base; /**< its form where the recipe names a base; NULL: the same */
  int min_models, max_models; /**< as the method counts them (task vectors, or models with the base); 0: no limit */
  nps_param_t params[NPS_MAX_PARAMS];
  int param_count;
  double element_seconds; /**< predicted compute time an element and model, all passes together */

  /** Whether a rank's piece of a tensor has whole rows, of row_length entries. NULL: of none. */
  bool (*whole_rows)(const nps_merge_tensor_t *tensor);

  /** Check the parameter values of one tensor against each other, and with those of the first tensor. NULL: nothing to
   *  check.
   *  @param why  [160] set to the reason when they do not fit
   *  @return whether they fit */
  bool (*check)(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]);

  /** Give the number of statistics passes over the data before the merging pass, from the values of all tensors, without
   *  those that `next` repeats. NULL: none. */
  int (*passes)(const nps_merge_tensor_t *tensors, int count);

  /** Whether statistics are over the whole model rather than tensor by tensor. NULL: never. */
  bool (*whole_model)(const nps_merge_tensor_t *tensors, int count);

  /** Make / free the statistics of the tensor in work (with whole_model: of all); give their bytes. NULL for methods
   *  without statistics. */
  void *(*state_new)(const nps_merge_spec_t *spec);
  void (*state_free)(void *state);
  size_t (*state_bytes)(const nps_merge_spec_t *spec);

  /** Begin the statistics of a tensor, or, with whole_model, of all. */
  void (*start)(void *state, const nps_merge_tensor_t *tensor);
  /** Prepare for this rank's piece of a tensor, before each pass over it (`passes`: the merging pass). May be NULL. */
  void (*piece)(void *state, const nps_merge_tensor_t *tensor, int pass);
  /** Give the part of the next n entries that a statistics pass looks at. NULL: all.
   *  @param[out] from  where it begins, from 0; @return its length, 1 to n */
  int64_t (*part)(void *state, int pass, int64_t n, int64_t *from);
  /** Look at a chunk in statistics pass `pass`, from 0. */
  void (*scan)(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk);
  /** Put the statistics of the ranks together after a pass. Collective over the ranks that share the tensor(s). */
  void (*reduce)(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm);
  /** Give the pass that follows a reduced one, the same on every rank; an earlier one to go back to it. NULL: the next. */
  int (*next)(void *state, int pass);

  /** Merge a chunk.
   *  @param[out] out   [count] the update to θ0 (task-vector methods) or the merged weights
   *  @param[in,out] kept  [models] entries of the task vectors kept, added to */
  void (*merge)(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                int64_t *kept);

  /** Merge a tensor whole instead of `merge` chunk by chunk (NULL: by chunks). For methods on task vectors that factorise
   *  matrices. With `whole` only the tensors that it chooses; the others by chunks. A matrix lies on a grid of ranks, nearly
   *  always of one (nps/dmat.h); a tensor that is no matrix is one row, on one rank. Collective over the grid.
   *  @param tau          [models][update's local_rows][local_columns] this rank's pieces; may be overwritten
   *  @param[in,out] update  the update to θ0; before, that of the history where there is one
   *  @return agreed on by the grid's ranks: NPS_ERR_MEMORY, NPS_ERR_RUNTIME */
  nps_err_t (*merge_whole)(const nps_merge_tensor_t *tensor, float *const *tau, nps_dmat_t *update);
  /** Give the factor of all updates, once all are made (NULL: 1). The updates are kept in memory until then. Local.
   *  @param[in,out] history  of the earlier runs, to which this one is added
   *  @param tau_norms  [models] ‖τ_i‖ over all tensors; @param update_norm  ‖update‖ over all tensors */
  double (*scale)(nps_merge_history_t *history, int models, const double *tau_norms, double update_norm);
  /** Whether the updates, before they are scaled, are kept in the output for a later run. */
  bool keeps_updates;
  /** Predict its seconds / its bytes of working memory besides tau and update on every rank, on a grid of so many ranks
   *  (of tensors that are no matrices: 1). INT64_MAX bytes: not on several ranks. */
  double (*whole_seconds)(const nps_merge_tensor_t *tensor, int ranks);
  int64_t (*whole_bytes)(const nps_merge_tensor_t *tensor, int ranks);

  bool (*whole)(const nps_merge_tensor_t *tensor);

  /** Plan what a tensor that is merged whole, and on one rank, gives besides its merged values: tensors in groups of their
   *  own. NULL: nothing.
   *  @param[out] parts  [NPS_MAX_PARTS] group and shape to be set; the type, before that of the merged tensor, may be changed
   *  @return how many */
  int (*plan_parts)(const nps_merge_tensor_t *tensor, nps_part_t *parts);
  /** Make them, before merge_whole; they are rounded once. Local. @param[out] out  [parts][count of the part] */
  nps_err_t (*make_parts)(const nps_merge_tensor_t *tensor, float *const *tau, double *const *out);
  /** Write what they are into attributes of their groups. Collective as the file is.
   *  @param tensor  any that gives parts; @param models  [tensor->models] names */
  nps_err_t (*describe_parts)(const nps_merge_tensor_t *tensor, const char *const *models, nps_h5_t *file);

  /** Put what is known of the subspaces together, after merging. Collective over all ranks. NULL: the method has none. */
  void (*subspaces)(void *state, const nps_comm_t *comm, nps_merge_subspaces_t *out);
} nps_merge_method_t;

/** Find a method by name. Local.
 *  @return NPS_ERR_CONFIG with the nearest name, or "not built yet" for a method that is planned
 *  @param where  "FILE:LINE: " for the message */
nps_err_t nps_merge_method_find(const char *name, const char *where, const nps_merge_method_t **out);

/** Give the form of nps that merges with singular factors (partition: singular). Static. */
const nps_merge_method_t *nps_merge_method_singular(void);

/* ---- a merge ---- */

/** One model as the method counts them. */
typedef struct nps_merge_model {
  int input;                      /**< index into the inputs */
  const char *name;               /**< for messages and tables */
  const nps_settings_t *settings; /**< its parameters, or NULL */
} nps_merge_model_t;

/** Parameters of one slice of layers. */
typedef struct nps_merge_slice {
  const nps_settings_t *settings;  /**< of the slice, or NULL */
  const nps_settings_t **of_model; /**< [models] of its sources, in the order of the models; entries may be NULL */
  int models;                      /**< that it has; those behind have no part in it */
} nps_merge_slice_t;

/** Subspaces and their weights under merge_method nps: what `nps:` in the config gives, or a search has found. */
struct nps_merge_nps {
  nps_weighting_t
      *weighting;  /**< weights, priorities and scope; λ with has_lambda; density and normalize are parameters */
  bool has_lambda; /**< λ is the weighting's for all tensors; else parameters.lambda × the model's weight */
  double density;  /**< where neither the model nor the global parameters have one */

  /* Partition singular only: */
  bool sum; /**< of: sum */
  const char *const *exclude;
  int exclude_count;
  const nps_factors_t *factors; /**< when the merge runs: of the matrices that this rank merges, borrowed */
  int first_list;               /**< the list of the first model */
  nps_taking_t *taking;         /**< what is kept; owned */
  nps_assembly_t *assembly;     /**< owned */
};

/** What is to be merged. Borrowed by the merge. */
struct nps_merge_spec {
  const nps_merge_method_t *method;
  const nps_model_t *const *inputs; /**< [input_count] all different catalogues */
  int input_count;
  int base;                        /**< index into inputs, or -1 */
  const nps_merge_model_t *models; /**< [model_count] in the order of the config */
  int model_count;
  const nps_merge_slice_t
      *slices; /**< [slice_count] instead of the models' own settings; none: whole models are merged */
  int slice_count;
  const nps_settings_t *module;   /**< level between a slice and all, or NULL */
  const nps_settings_t *settings; /**< global level */
  const char *config_file;        /**< for messages */
  uint64_t seed;
  const nps_layout_t *layout;
  bool updates; /**< the updates to θ0 are written instead of the merged weights; methods on task vectors */
  const nps_merge_nps_t *nps;  /**< merge_method nps only */
  nps_merge_history_t history; /**< of methods with keeps_updates; its tensors fit the layout */
};

/** A checked merge: every parameter is evaluated for every tensor and model. */
typedef struct nps_merge nps_merge_t;

/** Check a merge and evaluate its parameters. Local, does no I/O.
 *  Unknown parameters (with the nearest known one), missing and ill-typed ones, values out of range: all problems are
 *  recorded. Parameters that another method knows are noted.
 *  @param[out] out  freed with nps_merge_free()
 *  @return NPS_ERR_CONFIG */
nps_err_t nps_merge_new(const nps_merge_spec_t *spec, nps_merge_t **out);
void nps_merge_free(nps_merge_t *merge);

/** Tell what the planner must know. Local. */
nps_demand_t nps_merge_demand(const nps_merge_t *merge);

/** What is known of a model after merging. */
typedef struct nps_merge_result {
  double norm; /**< ‖τ‖ over all merged tensors; NaN where the method does not see task vectors */
  double kept; /**< fraction of the task vector's entries that were kept */
} nps_merge_result_t;

/** What is known of the subspaces after merging by nps. */
struct nps_merge_subspaces {
  int models, subspaces; /**< 0: none */
  float *thresholds;     /**< [models][subspaces − 1] scope model; NULL for scope tensor; owned */
  int64_t *entries;      /**< [models][subspaces] entries of the task vector; owned */
  int64_t *kept;         /**< [models][subspaces] those that were kept; owned */
};

/** Give the subspaces, after nps_merge_run(). NULL for other methods. Owned by the merge. Local. */
const nps_merge_subspaces_t *nps_merge_subspaces(const nps_merge_t *merge);

/** Give the history for a later run, after nps_merge_run(). Local. */
nps_merge_history_t nps_merge_history(const nps_merge_t *merge);

/** Give a parameter that is the same for all tensors. Local.
 *  @param model  for a parameter of a model, else 0
 *  @return false when the method has no such parameter or it varies over the tensors */
bool nps_merge_plain_value(const nps_merge_t *merge, const char *name, int model, double *value);

/** How evenly the ranks were busy: seconds of work of a rank, waiting for others left out. */
typedef struct nps_merge_balance {
  double least, mean, most;
} nps_merge_balance_t;

/** Give the balance, after nps_merge_run(). The same on every rank. Local. */
nps_merge_balance_t nps_merge_balance(const nps_merge_t *merge);

/** Give the parts that the method writes beside the tensors, the same on every rank. Local. Owned by the merge. */
const nps_part_t *nps_merge_parts(const nps_merge_t *merge, int *count);

/** Write what the parts are into their groups; nothing where there are none. Collective as the file is. */
nps_err_t nps_merge_describe_parts(const nps_merge_t *merge, nps_h5_t *file);

/** Receives progress: bytes done over all ranks, of nps_merge_work(). */
typedef void nps_merge_progress_fn(void *ctx, int64_t done);

/** Give the work of a run over all ranks, in the unit of its progress (bytes read). Local. */
int64_t nps_merge_work(const nps_merge_t *merge);

/** Run a merge by plan: read, merge, write. Collective.
 *  @param digest    gets every byte read; may be NULL
 *  @param writer    open
 *  @param progress  called on every rank; may be NULL
 *  @param[out] results  [model_count], the same on every rank
 *  @return the same on every rank. NPS_ERR_INPUT: NaN or infinity in an input (model, tensor, index), integer tensors
 *    that differ between models; NPS_ERR_RUNTIME: a merged value that its output type cannot hold */
nps_err_t nps_merge_run(nps_merge_t *merge, const nps_comm_t *comm, const nps_plan_t *plan, nps_digest_t *digest,
                        nps_writer_t *writer, nps_merge_progress_fn *progress, void *ctx, nps_merge_result_t *results);

#endif
