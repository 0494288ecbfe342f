/** @file run_internal.h
 *  The state of a run, which its phases fill in. */
#ifndef NPS_RUN_INTERNAL_H
#define NPS_RUN_INTERNAL_H

#include "nps/compose.h"
#include "nps/eval.h"
#include "nps/fitness.h"
#include "nps/merge.h"
#include "nps/model.h"
#include "nps/plan.h"
#include "nps/report.h"
#include "nps/run.h"
#include "nps/search.h"

/** One output: what it is merged from, and all that is made for it. A run has one, but transfer has one a model. */
typedef struct nps_run_output {
  char *path;                 /**< or NULL */
  const nps_model_t **inputs; /**< [input_count] those of the run that it is made from */
  int input_count;
  int base;                  /**< index into inputs, or -1 */
  int head;                  /**< index into inputs, or -1 */
  nps_merge_model_t *models; /**< [model_count] as the method counts them */
  int model_count;
  int first_model; /**< index of models[0] among the models of the run */
  nps_layout_t *layout;
  nps_merge_nps_t nps; /**< weights of its models' subspaces; merge_method nps only */
  nps_merge_t *merge;
  nps_plan_t *plan;
  nps_lock_t *lock;       /**< rank 0, from the checks to the end */
  bool complete;          /**< it was there already, made by this recipe */
  bool spill;             /**< its singular factors go to a file */
  nps_factors_t *factors; /**< its own singular factors, or NULL: those of the run, or none */
  bool adapter;           /**< its inputs are PEFT adapters, and so is it */
  char *config_json;      /**< or NULL */
  char *model_card;
} nps_run_output_t;

/** One task of `fitness.tasks`, with the files it needs. */
typedef struct nps_run_task {
  char *data;     /**< resolved path */
  int head;       /**< catalogue its head comes from: index into inputs, or input_count + index into extras; -1: none */
  nps_net_t *net; /**< on every rank from the search on; before, on rank 0 */
  nps_dataset_t *dataset; /**< likewise */
  float **own;            /**< weights of the head */
} nps_run_task_t;

/** State of earlier runs of the same method, where base_model is an output with one. */
typedef struct nps_run_history {
  char *home;    /**< that output; rank 0 only, as all but updates, models and norm_mean */
  char *base;    /**< path of the base that its models were merged into */
  char **hashes; /**< [hash_count] content hashes of the base's files */
  int hash_count;
  double param[NPS_MAX_PARAMS]; /**< of the method: those that hold for all models */
  nps_model_t *updates;         /**< NULL: there is no state */
  int64_t models;               /**< as in nps_merge_history_t */
  double norm_mean;
} nps_run_history_t;

typedef struct nps_run_state {
  const nps_comm_t *comm;
  const nps_run_options_t *options;
  nps_report_t *report;     /**< NULL but on rank 0 */
  double started, deadline; /**< by nps_now() */

  nps_recipe_t *recipe;
  char *recipe_text;
  nps_model_t *
      *sources; /**< [source_count] the models as they lie on disk, where something else is merged; else NULL */
  int source_count;
  int source_base; /**< index into sources, else into inputs; or -1 */
  int *slice_base; /**< [recipe->slice_count] of a slice that names one, likewise; else -1 */
  nps_model_t *
      *inputs; /**< [input_count] what is merged: the models, all different, the base first; or what is composed */
  int input_count;
  int base; /**< index into inputs, or -1 */
  int head; /**< index into inputs, or -1 */
  int *
      input_of; /**< [recipe->model_count] index into sources, else into inputs: where whole models are merged the same */
  nps_run_history_t history;

  const nps_merge_method_t *method;
  nps_merge_model_t *models; /**< [model_count] as the method counts them */
  int model_count;
  nps_merge_slice_t *slices; /**< [recipe->slice_count] their parameters in the order of the models */
  nps_run_output_t *outputs; /**< [output_count] */
  int output_count;
  nps_layout_t *layout; /**< of all models together, in the types that are written; that of the only output, or owned */

  nps_model_t **extras; /**< [extra_count] models that only lend a head to a task */
  int extra_count;
  nps_run_task_t *tasks;  /**< [recipe->fitness.task_count] */
  char *start_from;       /**< resolved path, or NULL */
  nps_digest_t *hashes;   /**< finished, of files that were hashed before the merge; or NULL */
  nps_search_t *search;   /**< NULL before the search, and without tasks */
  nps_factors_t *factors; /**< partition singular: of all models, where tasks are scored; else NULL */

  nps_alignment_t *alignment; /**< of the vocabularies, or NULL */
  nps_sidecar_t *tokenizer; /**< [tokenizer_count] files of the merged tokenizer; NULL: the reference's; rank 0 only */
  int tokenizer_count;
  nps_sidecar_t *sidecars; /**< [sidecar_count] rank 0 only, but with a command all ranks */
  int sidecar_count;
  bool handed_in_memory; /**< models that are handed over to a command lie in memory on some host */
} nps_run_state_t;

/** Free what a run has made. Local. */
void nps_run_free(nps_run_state_t *run);

/** Read config and headers, check everything against everything, choose the method. Collective. */
nps_err_t nps_run_validate(nps_run_state_t *run);

/* ---- tokens.c ---- */

/** Read the tokenizers and bring the vocabularies together, where the config asks for it. Local, for rank 0. */
nps_err_t nps_run_align(nps_run_state_t *run);

/** Make every rank know the result. Collective. */
nps_err_t nps_run_share_alignment(nps_run_state_t *run);

/* ---- slices.c ---- */

/** Compose what is merged, where that is not the models as they are. Local, the same on every rank.
 *  NPS_ERR_CONFIG, NPS_ERR_INPUT */
nps_err_t nps_run_compose(nps_run_state_t *run);

/** Give the models as they lie on disk. */
nps_model_t *const *nps_run_sources(const nps_run_state_t *run, int *count);

/** Give the model, an index into those, whose config and tokenizer the merged model has. */
int nps_run_reference(const nps_run_state_t *run);

/** List the places of slices as models, in the order of the method. Local. */
void nps_run_choose_places(nps_run_state_t *run);

/** Print what slices the merged model has. Local, does nothing where there is no report. */
void nps_run_show_slices(const nps_run_state_t *run);
void nps_run_free_slices(nps_run_state_t *run);

/** Give "merged-{name}.h5" for a model; the same path where there is no {name}. @return owned */
char *nps_run_fill_in_name(const char *path, const char *name);

/** Check that the log is neither the config nor in OUT, before it is opened. Local. NPS_ERR_CONFIG */
nps_err_t nps_run_check_log(const nps_run_options_t *options);

/** Check that the open log is in no output: neither in the config's, nor in OUT with a model's name filled in. Local, for rank 0. NPS_ERR_CONFIG: nothing is logged any more */
nps_err_t nps_run_check_log_beside_output(nps_run_state_t *run);

/** Whether a path leads to one of the inputs. Local. */
bool nps_run_is_input(const nps_run_state_t *run, const char *path);

/** Give the folder of the config, or NULL for the current one. @return freed with free() */
char *nps_run_config_folder(const nps_run_state_t *run);

/** Make the outputs: models, layouts, merges with checked parameters. Local, the same on every rank. */
nps_err_t nps_run_make_outputs(nps_run_state_t *run);
void nps_run_free_outputs(nps_run_state_t *run);

/** Find what the tasks need: data, heads, networks, and check them against each other. Local, for rank 0. */
nps_err_t nps_run_find_tasks(nps_run_state_t *run);

/** Make every rank know what rank 0 has found. Collective. */
nps_err_t nps_run_share_tasks(nps_run_state_t *run);
void nps_run_free_tasks(nps_run_state_t *run);

/* ---- keep.c ---- */

/** Hash the files of models into run->hashes, what is not known yet from there. Collective. */
nps_err_t nps_run_hash(nps_run_state_t *run, const nps_model_t *const *models, int n);

/** Give the file of the search's snapshot; only rank 0 knows and uses it. Local. @return freed with free() */
char *nps_run_keep_path(const nps_run_state_t *run);

/** Write down what scores and steps of the search depend on; the models' files are read. Collective.
 *  @param[out] out  freed with free(), after errors too */
nps_err_t nps_run_keep_identity(nps_run_state_t *run, char **out);

/** Whether the user, the batch system or search.max_time asks this rank to stop. @param ctx  the run */
bool nps_run_should_stop(void *ctx);

/** Look whether input files were touched since they were opened, after an output is complete: a note says so, and --resume will
 *  look at their contents. Local. */
void nps_run_check_inputs(const nps_run_state_t *run, const char *output);

/** Find the outputs that --resume finds complete: made by this recipe from these inputs, and say so. Collective.
 *  @param[out] all  whether all are */
nps_err_t nps_run_find_complete(nps_run_state_t *run, bool *all);

/* ---- search.c ---- */

/** Whether there is something to score: merge_method nps with tasks. */
bool nps_run_has_tasks(const nps_run_state_t *run);

/** Whether a command scores. */
bool nps_run_asks_command(const nps_run_state_t *run);

/** Give the model that a task's head comes from, or NULL. Local. */
const nps_model_t *nps_run_head_of(const nps_run_state_t *run, const nps_run_task_t *task);

/* ---- command.c ---- */

/** Make a config.json that names another type of the tensors; one that cannot be read stays. Freed with free(). (dress.c) */
char *nps_run_typed_config(const char *text, nps_dtype_t type);

/** Share where models are handed over, and find whether that is in memory: on any host, so that all ranks plan alike. Collective. */
void nps_run_share_handover(nps_run_state_t *run);

/** Give the bytes of memory that a model takes that is handed over to a command: 0 where it does not lie in memory. Local;
 *  after nps_run_share_handover(). */
int64_t nps_run_handed_bytes(const nps_run_state_t *run);

/** Prepare what the search gives to the command. Collective.
 *  @param[out] out  borrows from the run; freed with nps_run_free_command() */
void nps_run_make_command(nps_run_state_t *run, nps_search_command_t *out);
void nps_run_free_command(nps_search_command_t *command);

/* ---- eval_command.c ---- */

/** Score a model by the command of request->config: nps_eval_scores() by a command. Collective.
 *  @param[in,out] eval  tasks, scores and which figures are known */
nps_err_t nps_eval_ask(const nps_comm_t *comm, const nps_eval_request_t *request, nps_report_t *report,
                       nps_eval_t *eval);

/** Search and score; the outputs are to be merged with what was found. Does nothing without tasks. Collective. */
nps_err_t nps_run_search(nps_run_state_t *run);

/** Show what the search will take, and check that it fits into memory. Local.
 *  @param limit  bytes a rank may use */
nps_err_t nps_run_plan_search(const nps_run_state_t *run, int64_t limit);

/* ---- groups.c ---- */

/** Ranks that hold the models of a search together. */
typedef struct nps_run_groups {
  int size, count; /**< ranks of the smallest group; groups */
  int *cut;        /**< [size + 1] rank r of such a group has the stages [cut[r], cut[r + 1]); owned */
  bool spill;      /**< singular factors go to a file */
  int64_t bytes;   /**< the most that a rank needs while scoring */
  /* This rank's: */
  nps_comm_t *ranks; /**< its group; NULL: it has nothing to do; owned */
  nps_hold_t *hold;  /**< [layout->count] owned */
  nps_share_t part;
  nps_search_group_t group;
} nps_run_groups_t;

/** Find how many ranks share the models, and which layers each holds: the fewest whose memory suffices, the largest of their
 *  shares as small as can be. Local.
 *  @param given   search.ranks_per_model: so many, where there are so many ranks and layers; 0: as said
 *  @param limit   bytes a rank may use
 *  @param[in,out] groups  begin with zeros; freed with nps_run_leave_group(), after errors too
 *  @return NPS_ERR_CONFIG: too little memory */
nps_err_t nps_run_find_groups(const nps_run_state_t *run, int ranks, int given, int64_t limit,
                              nps_run_groups_t *groups);

/** Make the groups, and find this rank's part. Collective, as leaving is. */
void nps_run_join_group(const nps_run_state_t *run, nps_run_groups_t *groups);
void nps_run_leave_group(nps_run_groups_t *groups);

/** Show groups in the plan. Local. */
void nps_run_show_groups(const nps_run_state_t *run, int ranks, const nps_run_groups_t *groups);

/** Share out the work of an output. Collective. @param ranks  as many as the plan is for */
nps_err_t nps_run_plan(nps_run_state_t *run, nps_run_output_t *output, int ranks);

/** Find the memory that every rank may use, as the config or the hosts say; the least of all ranks. Collective.
 *  @param ranks_per_node  as the plan assumes */
int64_t nps_run_memory_limit(const nps_run_state_t *run, int ranks_per_node);

/** Find the memory that every rank may use, as the hosts say; the least of all ranks. Collective. */
int64_t nps_run_free_memory(const nps_comm_t *comm);

/** Give the ranks on a host that the plan assumes. Collective. */
int nps_run_ranks_per_node(const nps_run_state_t *run);

/* ---- history.c ---- */

/** Find and read the state that base_model holds for the method. Local, for rank 0. NPS_ERR_INPUT: damaged, or the base that
 *  it names is missing. */
nps_err_t nps_run_find_history(nps_run_state_t *run);

/** Make every rank know what there is. Collective. */
nps_err_t nps_run_share_history(nps_run_state_t *run);

/** Check that the state fits the tensors (NPS_ERR_INPUT) / the parameters (NPS_ERR_CONFIG). Local. */
nps_err_t nps_run_fit_history(const nps_run_state_t *run, const nps_layout_t *layout);
nps_err_t nps_run_check_history(const nps_run_state_t *run, const nps_merge_t *merge);

/** Check that the base's files are those of the earlier runs: they are read. Collective. */
nps_err_t nps_run_hash_history(nps_run_state_t *run);

/** Write the state for a later run, but for its tensors. Collective. @param digest  finished */
nps_err_t nps_run_put_history(const nps_run_state_t *run, const nps_run_output_t *output, const nps_digest_t *digest,
                              nps_h5_t *file);
void nps_run_free_history(nps_run_state_t *run);

/** Read what travels with the outputs: tokenizer and other files. Local; reads files on rank 0. */
nps_err_t nps_run_read_sidecars(nps_run_state_t *run);

/** Whether the run writes a compressed archive: its outputs are the models in it. Local. */
bool nps_run_is_compression(const nps_run_state_t *run);

/** Make the plan of a model say what the archive takes of it, at its density. Local. */
void nps_run_predict_archive(const nps_run_state_t *run, nps_run_output_t *output);

/** Show what the models of an archive take, as they are planned. Local. */
void nps_run_show_archive(const nps_run_state_t *run);

/** Check the archive's target before any work. Local, for rank 0. */
nps_err_t nps_run_check_archive(const nps_run_state_t *run);

/** Write all outputs into one archive. Collective. */
nps_err_t nps_run_write_archive(nps_run_state_t *run);

/** Prepare what is written besides tensors: config.json, model card. Local. */
nps_err_t nps_run_dress(nps_run_state_t *run, nps_run_output_t *output);

/** Print the plan / the summary at the end, and log them. Local, does nothing where there is no report. */
void nps_run_show_plan(const nps_run_state_t *run, const nps_run_output_t *output);
void nps_run_show_summary(const nps_run_state_t *run, const nps_run_output_t *output, const nps_merge_result_t *results,
                          int64_t bytes);

/* ---- singular factors (factors.c) ---- */

/** Whether matrices are split by their singular values. */
bool nps_run_is_singular(const nps_run_state_t *run);

/** Predict the bytes of the factors of a target of the layout, and of the working memory of a rank that makes and uses
 *  factors. Local. */
int64_t nps_run_factors_target_bytes(const nps_run_state_t *run, int target);
int64_t nps_run_factors_work_bytes(const nps_run_state_t *run);
void nps_run_show_factors(const nps_run_state_t *run, bool spill);

/** Factorise the task vectors of all models for a search. Collective.
 *  @param start   λ and densities
 *  @param groups  joined; every rank gets the factors of the tensors that it holds */
nps_err_t nps_run_factorise_all(nps_run_state_t *run, const nps_weighting_t *start, const int *input_of,
                                const nps_run_groups_t *groups);

/** Add the factors of an output to its plan, where it has some of its own / show them. Local. */
void nps_run_plan_factors(const nps_run_state_t *run, nps_run_output_t *output);
void nps_run_show_output_factors(const nps_run_state_t *run, const nps_run_output_t *output);

/** Make ready what an output's merge assembles from. Collective. */
nps_err_t nps_run_prepare_factors(nps_run_state_t *run, nps_run_output_t *output);
void nps_run_free_factors(nps_run_output_t *output);

/** Tell which part of the task vectors' size is stored. @param[in,out] results  [model_count] */
void nps_run_count_stored(const nps_run_output_t *output, nps_merge_result_t *results);

/** Write what is known of the bands below /subspaces. */
nps_err_t nps_run_put_factors(nps_h5_t *file, const nps_run_output_t *output);

#endif
