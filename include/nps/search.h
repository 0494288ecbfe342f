/** @file search.h
 *  Neural parameter search (Du et al., ACL 2025, arXiv 2505.18713): CMA-ES over the weights and priorities of subspaces and
 *  over the models' λ, scored by the native evaluators or a command, candidates spread over the ranks. Layer 6.
 *
 *  One evaluation is one candidate on all its tasks. Ranks form groups that hold the models together. The batches of a
 *  generation, candidate by candidate and task by task, stand in one line, of which groups take pieces as they fall idle; every
 *  batch has a slot of its own (correct, total, Σ nll), filled by one rank; one reduction brings all slots to all ranks, and
 *  they are summed in slot order. Rank 0 leads CMA-ES and broadcasts the candidates: the history is the same bytes on any
 *  number of ranks, in whatever groups. */
#ifndef NPS_SEARCH_H
#define NPS_SEARCH_H

#include "nps/base.h"
#include "nps/cmaes.h"
#include "nps/comm.h"
#include "nps/config.h"
#include "nps/delta.h"
#include "nps/factors.h"
#include "nps/fitness.h"
#include "nps/h5.h"
#include "nps/model.h"
#include "nps/report.h"

/** One task that candidates are scored on. All pointers are borrowed. */
typedef struct nps_search_task {
  const char *name;
  int model;            /**< index of the model it belongs to, or -1: none */
  const nps_net_t *net; /**< this and what follows: native evaluators only; else NULL */
  const nps_dataset_t *data;
  float *const *own; /**< [tensors of the net] weights that are not the candidate's (heads); NULL: the candidate's */
} nps_search_task_t;

/** A command that scores candidates, and what it is given. Borrowed. */
typedef struct nps_search_command {
  char *const *words; /**< [word_count] */
  int word_count;
  double timeout;             /**< seconds */
  const char *directory;      /**< as nps_handover_new() */
  const nps_layout_t *layout; /**< the tensors of a model; those that are copied come from `base` */
  const nps_model_t *base;
  int base_input;                /**< its index in the layout's sources */
  const char *config_json;       /**< or NULL */
  const nps_sidecar_t *sidecars; /**< [sidecar_count] tokenizer and other files, on every rank */
  int sidecar_count;
  const json_t *about; /**< of each task what the command is told: {NAME: {…}} */
} nps_search_command_t;

/** Ranks that hold base and fine-tuned models together, whole layers each, and score candidates together. Borrowed. */
typedef struct nps_search_group {
  const nps_comm_t *ranks; /**< this rank's group, in the order of its stages; NULL: it has none and only waits */
  int size;                /**< ranks in it */
  int count;               /**< groups */
  int first, end;          /**< stages of the networks that this rank runs: [first, end) */
  int64_t held;            /**< bytes of the models that it holds */
} nps_search_group_t;

/** Predict the bytes of a rank's working memory while it scores; with a command those of the models that are handed over are not
 *  counted. Local.
 *  @param tasks  [count] their weights are not looked at
 *  @param group  all but `ranks` */
int64_t nps_search_work_bytes(const nps_search_task_t *tasks, int count, int batch, const nps_search_group_t *group);

/** How a search is interrupted and goes on. All pointers are borrowed. */
typedef struct nps_search_keep {
  const char *snapshot; /**< file that holds what has been scored, replaced after every generation; NULL: none */
  const char *identity; /**< lines "what: value" that scores and steps depend on; a snapshot with others is refused */
  bool resume;          /**< begin with what the snapshot holds, where there is one */
  bool (*stop)(void *ctx); /**< whether this rank is asked to stop; NULL: never */
  void *ctx;
} nps_search_keep_t;

/** What is to be searched. Borrowed. */
typedef struct nps_search_spec {
  const nps_store_t *store;     /**< this rank's part of its group's copy; copies are numbered as groups */
  const nps_factors_t *factors; /**< partition singular: of all models and of all matrices in the store; else NULL */
  nps_search_group_t group;
  bool of_sum;                  /**< factors of the sum alone: λ is fixed, and one row of weights counts */
  const char *const *models;    /**< [T] names */
  const nps_weighting_t *start; /**< given weights, priorities, densities, scope, normalize; λ: the models' weights */
  bool given_priorities;        /**< priorities are as given; else they follow the weights: a = |w| */
  nps_application_t application;
  bool round;                     /**< as nps_candidate_new() */
  int value_bits;                 /**< likewise */
  const nps_search_task_t *tasks; /**< [task_count] */
  int task_count;
  const nps_search_command_t *command; /**< NULL: the native evaluators */
  const nps_recipe_search_t *search;   /**< NULL, or algorithm none: no search, only the scores of `start` */
  const nps_recipe_fitness_t *fitness;
  uint64_t seed;
  nps_search_keep_t keep;
} nps_search_spec_t;

/** One search: all it has evaluated, in order. Arrays are owned. */
typedef struct nps_search_history {
  char *path;     /**< "prune/NAME", "fuse", "joint" */
  char **columns; /**< [variables] "weight[0]", "weight[rest]", "log_priority[0]", "lambda[plain]", "weight[plain,0]" */
  int variables;
  const char **tasks; /**< [task_count] names */
  int task_count;
  int64_t evaluations;
  double *genome;      /**< [evaluations][variables] */
  int32_t *generation; /**< [evaluations] 0: starting points; from 1: CMA-ES */
  int32_t *candidate;  /**< [evaluations] within the generation; -1: CMA-ES's last mean, -2: the average of its means */
  int64_t *correct;    /**< [evaluations][tasks], as the rest on the samples that the search sees */
  int64_t *total;
  double *nll_sum;
  double *fitness;  /**< [evaluations] primary fitness, to be minimised; NaN: failed */
  int64_t best;     /**< row of the final genome */
  int64_t start;    /**< row the search began at: the best of generation 0 */
  const char *stop; /**< why it ended; static */
  double
      *held_fitness; /**< [evaluations] primary fitness on held-out samples; NaN where it was not evaluated on them */
} nps_search_history_t;

/** Scores of one task for the table; [0] on samples that the search sees, [1] on those held out (total 0: none). */
typedef struct nps_search_row {
  int task;
  int model;            /**< whose output the row is about: transfer; else -1 */
  bool general;         /**< a task of no model, which the base could do before */
  double kept;          /**< fraction of the task vector of the task's model that is kept; NaN without model */
  nps_score_t base[2];  /**< θ0 with the task's head */
  nps_score_t tuned[2]; /**< the task's model, of a general task the row's; total 0 where there is none */
  nps_score_t start[2]; /**< where the last stage began */
  nps_score_t merged[2];
} nps_search_row_t;

/** The way from θ0 along one pruned task vector, θ0 + λq, under transfer: what is learnt against what is lost. All samples.
 *  Arrays are owned. */
typedef struct nps_search_path {
  char *name;          /**< of the model */
  const char **tasks;  /**< [task_count] names; those of the model, then the general ones */
  int task_count, own; /**< own: how many are the model's */
  int points;
  double *lambda;      /**< [points] ascending from 0 */
  nps_score_t *scores; /**< [points][task_count] */
  double *learnt;      /**< [points] mean accuracy on the model's tasks */
  double *general;     /**< [points] on the others */
  double *h_score;     /**< [points] harmonic mean of both */
  int best;            /**< point of the largest H-score, of equals the first */
  int knee;            /**< nps_path_knee(); -1: none */
} nps_search_path_t;

/** Find the knee of a path: between λ = 0 and where most is learnt, the point farthest above the straight line from one to the
 *  other, both accuracies in units of their change on that way (Satopää et al., ICDCS Workshops 2011). Where nothing is lost
 *  on it, its end. @return -1: nothing is learnt, or no point is above the line. Local. */
int nps_path_knee(const double *learnt, const double *general, int points);

/** What a search has found; the same on every rank. All pointers are owned. */
typedef struct nps_search {
  nps_weighting_t *weighting;      /**< of the result */
  bool has_lambda;                 /**< λ was searched */
  nps_search_history_t *histories; /**< [history_count] */
  int history_count;
  nps_search_row_t *rows; /**< [row_count] */
  int row_count;
  nps_search_path_t *paths; /**< [path_count] of models with tasks of both kinds */
  int path_count;
  int64_t evaluations; /**< of candidates, all searches */
  double seconds;      /**< of searching */
  double flops;        /**< of matrix products, all ranks */
  int ranks;
  bool by_command; /**< only what the metric says is known of scores */
  nps_metric_t metric;
  bool less_is_better; /**< of values */
} nps_search_t;

/** Search, and score base, fine-tuned models, start and result. Collective: every rank has nets and data.
 *  Shows progress and logs an event for each generation.
 *  @param report  rank 0's, else NULL
 *  @param[out] out  freed with nps_search_free()
 *  @return the same on every rank. NPS_ERR_CONFIG: a model without a task under prune, …; NPS_ERR_RUNTIME: every candidate
 *    failed, with a command every one of a generation; NPS_ERR_INPUT: the snapshot is damaged or of another search; NPS_ERR_IO: it cannot be written; NPS_ERR_STOPPED:
 *    asked to stop, the snapshot holds all that was scored; NPS_ERR_MEMORY */
nps_err_t nps_search_run(const nps_comm_t *comm, const nps_search_spec_t *spec, nps_report_t *report,
                         nps_search_t **out);
void nps_search_free(nps_search_t *search);

/** Give the mean over rows of accuracy / nll, unweighted: of which = base, tuned, start or merged as an offset into the row.
 *  Local. @param part  0: samples the search saw; 1: held out; 2: both together. NaN where there is none, or a command has not
 *  given it */
double nps_search_mean_accuracy(const nps_search_t *search, size_t which, int part);
double nps_search_mean_nll(const nps_search_t *search, size_t which, int part);

/** Give the mean of what models are compared by, nll apart: of values with that metric, else of accuracies. */
double nps_search_mean_score(const nps_search_t *search, size_t which, int part);

/** Give the H-score of a model's rows (of all where model is -1): the harmonic mean of the mean accuracies on its tasks and on
 *  general ones. Local. @return NaN: there are not tasks of both kinds, or no scores */
double nps_search_h_score(const nps_search_t *search, int model, size_t which, int part);

/** Print the table of results (task, base, fine-tuned, merged, kept, difference), warn where the held-out score fell while the
 *  calibration score rose, and paths; log the events "scores" and "path". Local, rank 0. @param tasks  as in the spec */
void nps_search_show(const nps_search_t *search, const nps_search_spec_t *spec, nps_report_t *report);

/** Write /search, /transfer and /timing into an output. Collective as the file is.
 *  @param brief  of every search its start and its result alone, as archives are to be small */
nps_err_t nps_search_write(const nps_search_t *search, bool brief, nps_h5_t *file);

/** Read the best genome of an earlier merged file, for search.start_from. Local.
 *  @param path  "prune/NAME", "fuse", "joint"
 *  @param columns  [n] wanted; @param[in,out] x  [n] set where the file has the column
 *  @return NPS_ERR_INPUT: no merged file, no such search in it, none of the columns */
nps_err_t nps_search_read_best(const char *file, const char *path, char *const *columns, int n, double *x);

#endif
