/** @file search_internal.h
 *  What the sources of search share: scoring on all ranks, fitness of scores, genomes, and searches in lockstep. */
#ifndef NPS_SEARCH_INTERNAL_H
#define NPS_SEARCH_INTERNAL_H

#include "nps/search.h"

/* ---- parts of a task's samples ---- */

enum { NPS_PART_SEEN, NPS_PART_HELD, NPS_PARTS };

/** Whether sample i, from 0, is held out of the search: ⌊(i+1)h⌋ > ⌊i·h⌋. */
bool nps_sample_is_held(int64_t i, double holdout);

/* ---- what has been scored (memo.c, snapshot.c) ---- */

/** A hash of what a score depends on; collisions are as good as impossible. */
typedef struct nps_memo_key {
  uint64_t half[2];
} nps_memo_key_t;

/** Go on with a key over bytes; begin with zeros. */
nps_memo_key_t nps_memo_key(nps_memo_key_t before, const void *bytes, size_t n);

typedef struct nps_memo_entry {
  nps_memo_key_t key;
  nps_score_t score;
} nps_memo_entry_t;

typedef struct nps_memo nps_memo_t;

nps_memo_t *nps_memo_new(void);
void nps_memo_free(nps_memo_t *memo);

/** Find a score. @return NULL: not known; else valid until the next nps_memo_add() */
const nps_score_t *nps_memo_find(const nps_memo_t *memo, nps_memo_key_t key);

/** Add a score; a key that is there already keeps its first. */
void nps_memo_add(nps_memo_t *memo, nps_memo_key_t key, nps_score_t score);

/** Take the failures (NaN) that a memo holds for final: from now on it keeps them. */
void nps_memo_settle(nps_memo_t *memo);

/** Whether an entry is to be kept: a score, or a failure that is final. */
bool nps_memo_keeps(const nps_memo_t *memo, int64_t i);

/** Give the entries in the order in which they were added. */
int64_t nps_memo_count(const nps_memo_t *memo);
const nps_memo_entry_t *nps_memo_entry(const nps_memo_t *memo, int64_t i);

/** Replace a snapshot by what a memo keeps, all at once. Local. NPS_ERR_IO. */
nps_err_t nps_snapshot_write(const char *path, const char *identity, const nps_memo_t *memo);

/** Add what a snapshot holds to a memo; nothing where there is none. Local.
 *  @return NPS_ERR_INPUT with the reason: damaged, no snapshot, another version, another identity */
nps_err_t nps_snapshot_read(const char *path, const char *identity, nps_memo_t *memo);

/* ---- scoring (evaluate.c, runner.c, group.c, ask.c) ---- */

/** One model on some tasks. Borrowed. */
typedef struct nps_job {
  const nps_weighting_t *weighting; /**< the model is a candidate, or NULL: a stored one */
  int model;                        /**< which of the store; -1: the base */
  const int *tasks;                 /**< [task_count] indices into the spec's */
  int task_count;
  int part;
  bool shaken;   /**< the sum over the perturbations of fitness.sharpness, not the model as it is */
  char what[96]; /**< the model, for messages: "candidate 3 of generation 2 of fuse" */
} nps_job_t;

/** What is scored at a time: a batch; by a command a whole task. Borrowed. */
typedef struct nps_slot {
  const nps_job_t *job;
  int task;               /**< index into the spec's */
  int shake;              /**< which perturbation of the model, or -1: none */
  const int64_t *samples; /**< [count] of the task's data; NULL: a command knows them */
  int count;
  nps_memo_key_t key; /**< what the score is known by */
  double flops;
} nps_slot_t;

/** Whether two slots are of the same model, and of the same part of the samples. */
bool nps_slot_is_of_same_model(const nps_slot_t *a, const nps_slot_t *b);

/** Make the candidate the model of a slot. */
void nps_slot_become(const nps_slot_t *slot, const nps_search_spec_t *spec, nps_candidate_t *candidate);

/** One round of scoring: the same slots and pieces on every rank. Borrowed. */
typedef struct nps_round {
  const nps_slot_t *slots; /**< [count] in order of the jobs */
  int64_t count;
  const int64_t *cut; /**< [pieces + 1] piece p is the slots [cut[p], cut[p + 1]) */
  int64_t pieces;
  bool (*may_go_on)(void *ctx);  /**< asked by the first rank of a group before it begins something */
  bool (*is_stopped)(void *ctx); /**< whether this rank is asked to leave what it has begun */
  void *ctx;
  nps_score_t *scores; /**< [count] set by the one rank that scores a slot */
  bool *done;          /**< [count] likewise */
} nps_round_t;

typedef struct nps_evaluator_kind nps_evaluator_kind_t;

/** A rank as part of its group, which scores the pieces that its first rank draws. */
typedef struct nps_runner {
  const nps_comm_t *comm;
  const nps_search_spec_t *spec;
  nps_candidate_t *candidate;
  const nps_evaluator_kind_t *kind;
  void *own;              /**< the evaluator's */
  nps_counter_t *counter; /**< of pieces of the line, where there are several groups */
  int rank, ranks;        /**< in the group */
  double flops;           /**< of what this rank has led so far */
  nps_text_t failures;    /**< of commands on this rank, lines "SLOT TEXT\0" of the last round */
  bool again;             /**< set by run() on a group's first rank: it is to be called once more */
  nps_err_t err;          /**< after which nothing can be scored on this rank; recorded */
} nps_runner_t;

/** How the slots of a candidate are scored by a group: by networks in C (group.c), or by a command (ask.c). */
struct nps_evaluator_kind {
  nps_err_t (*begin)(nps_runner_t *runner); /**< makes room; every rank; it is agreed on afterwards */
  void (*end)(nps_runner_t *runner);        /**< after errors too */
  /** Give how many of the slots [first, end) are scored together; on a group's first rank. */
  int64_t (*size)(const nps_runner_t *runner, const nps_round_t *round, int64_t first, int64_t end);
  /** Score them: all ranks of the group. */
  void (*run)(nps_runner_t *runner, const nps_round_t *round, int64_t first, int64_t count);
  void (*finish)(nps_runner_t *runner); /**< of a round; all ranks of the group; may be NULL */
};
extern const nps_evaluator_kind_t nps_evaluator_native, nps_evaluator_command;

/** Give the bytes of working memory of a rank with a command. */
int64_t nps_ask_work_bytes(void);

/** Make room. Collective. @param[out] out  freed with nps_runner_free(), after errors too; borrows everything */
nps_err_t nps_runner_new(const nps_comm_t *comm, const nps_search_spec_t *spec, nps_candidate_t *candidate,
                         nps_runner_t **out);
void nps_runner_free(nps_runner_t *runner); /* collective */

/** Score slots until none is left or a group may not go on. A candidate that cannot be made has no correct sample and NaN as
 *  nll; what a command fails to score has no sample at all. Collective. */
void nps_runner_run(nps_runner_t *runner, const nps_round_t *round);

/** Note why a command failed to score a slot; kept until the next round. Local. */
void nps_runner_note_failure(nps_runner_t *runner, int64_t slot, const char *why);

typedef struct nps_scorer nps_scorer_t;

/** Prepare: splits task vectors and samples, finds the tensors of the networks. Collective.
 *  @param[out] out  freed with nps_scorer_free(); borrows comm and spec
 *  @return NPS_ERR_INPUT: a tensor that neither the candidate nor the head has; NPS_ERR_MEMORY */
nps_err_t nps_scorer_new(const nps_comm_t *comm, const nps_search_spec_t *spec, nps_scorer_t **out);
void nps_scorer_free(nps_scorer_t *scorer);

/** Score jobs, spread over the ranks. Collective. A candidate that cannot be built has no correct sample and NaN as nll.
 *  What has been scored before is not scored again. The snapshot is replaced when all is scored, once a minute, and before
 *  stopping. It gets what a command failed to score with the next jobs only: a caller that ends the run for these failures lets
 *  them be asked for again.
 *  @param[out] scores  job by job, task by task; the same bits on any number of ranks
 *  @return NPS_ERR_STOPPED: some rank was asked to stop; NPS_ERR_IO: the snapshot cannot be written; NPS_ERR_RUNTIME: factors
 *    could not be read back */
nps_err_t nps_scorer_run(nps_scorer_t *scorer, const nps_job_t *jobs, int count, nps_score_t *scores);

/** Take what the snapshot holds, where that is asked for. Collective. @param[out] known  scores taken */
nps_err_t nps_scorer_resume(nps_scorer_t *scorer, int64_t *known);

/** Give the reason of the last failure of a command; NULL: there was none, or this is not rank 0. Local. */
const char *nps_scorer_last_failure(const nps_scorer_t *scorer);

/** Whether the scores of a model say that it could not be scored. @param scores  [count] of its tasks */
bool nps_score_has_failed(const nps_score_t *scores, int count);

/** Add a score to a sum; give the accuracy / the mean negative log-likelihood of one. Local. */
void nps_score_add(nps_score_t *sum, const nps_score_t *score);
double nps_score_accuracy(const nps_score_t *score);
double nps_score_nll(const nps_score_t *score);

/** Make a JSON number, or null of one that is not finite, as JSON has no NaN. @return owned */
json_t *nps_search_number(double x);

/** Give the floating-point operations of the batches that this rank has led so far. */
double nps_scorer_flops(const nps_scorer_t *scorer);

/* ---- fitness of scores (objective.c) ---- */

/** What makes a candidate good. A task's gain is (score − offset) / scale, its score the accuracy or −nll. */
typedef struct nps_goal {
  const nps_recipe_fitness_t *fitness; /**< borrowed */
  const nps_search_task_t *tasks;      /**< borrowed */
  double *offset[NPS_PARTS];           /**< [tasks] owned */
  double *scale[NPS_PARTS];
} nps_goal_t;

/** Make a goal; notes the tasks that cannot be normalised. Freed with nps_goal_free().
 *  @param base, tuned  [tasks][parts] scores of θ0, and of the task's model (total 0: none) */
nps_goal_t *nps_goal_new(const nps_search_spec_t *spec, const nps_score_t (*base)[NPS_PARTS],
                         const nps_score_t (*tuned)[NPS_PARTS]);
void nps_goal_free(nps_goal_t *goal);

/** Give the fitness of scores; tasks without samples do not count. Failed: a task that could not be scored, or no sample at all.
 *  @param tasks  [count]; @param scores  [count] on the part */
nps_fitness_value_t nps_goal_value(const nps_goal_t *goal, int part, const int *tasks, int count,
                                   const nps_score_t *scores);

/** Whether scores are better than others beyond doubt: their mean gain over the tasks is more than twice its standard error
 *  over the tasks. One task has no such error, and the worst of the tasks and the H-score are no means: then there is no
 *  doubt. None of the scores has failed. */
bool nps_goal_is_gain(const nps_goal_t *goal, int part, const int *tasks, int count, const nps_score_t *scores,
                      const nps_score_t *than);

/** Give the harmonic mean of two accuracies. NaN where one is. */
double nps_h_score(double learnt, double general);

/** Whether of what the metric gives less is better. */
bool nps_fitness_is_loss(const nps_recipe_fitness_t *fitness);

/** Give a primary fitness as people read it: accuracy, normalised gain, H-score (more is better), nll (less is better), or value. */
double nps_fitness_shown(const nps_recipe_fitness_t *fitness, double primary);

/* ---- genomes (genome.c) ---- */

/** One variable of a search. */
typedef struct nps_gene {
  nps_variable_t kind;
  int model;    /**< -1: all models alike */
  int subspace; /**< not of a λ; M: the tensors that are not split into bands */
} nps_gene_t;

/** The variables of a search. Arrays are owned. */
typedef struct nps_genome {
  int count;
  nps_gene_t *genes;
  char **columns; /**< names of the variables */
  double *start;  /**< within the bounds */
  double *lower, *upper;
  bool follow; /**< priorities follow the weights: a = |w| */
} nps_genome_t;

/** Make the genome of a stage. @param model  whose subspaces prune searches. Freed with nps_genome_free(). */
nps_genome_t *nps_genome_new(const nps_search_spec_t *spec, nps_stage_t stage, int model);
void nps_genome_free(nps_genome_t *genome);

/** Clip values to the bounds. @param[in,out] x  [count] */
void nps_genome_clip(const nps_genome_t *genome, double *x);

/** Put values into a weighting; the rest of it stays. @param x  [count] */
void nps_genome_put(const nps_genome_t *genome, const double *x, nps_weighting_t *weighting);

/** Put the same values into the weightings of all ranks, to the same bits: exp() of two C libraries, or of one on two types of
 *  processors, differs in the last bit, and what ranks do together follows from hashes of these bits. Collective. */
void nps_genome_put_alike(const nps_comm_t *comm, const nps_genome_t *genome, const double *x,
                          nps_weighting_t *weighting);

/* ---- searches (track.c, stages.c) ---- */

/** One search on its way. All pointers are owned but history's. */
typedef struct nps_track {
  nps_stage_t stage;
  int model; /**< prune: whose; else -1 */
  nps_genome_t *genome;
  bool from_file;         /**< the genome's start is that of an earlier search */
  nps_weighting_t *frame; /**< what the genome's values are put into */
  int *tasks;             /**< [task_count] */
  int task_count;
  nps_search_history_t *history;
  nps_fitness_value_t *values; /**< [evaluations] */
  int generation;
  double *points; /**< [point_count][variables] of the generation in work */
  int point_count;
  nps_cmaes_t *cmaes;   /**< rank 0, once the start is known */
  double *mean_sum;     /**< [variables] rank 0: sum of CMA-ES's means after every generation */
  nps_cmaes_stop_t why; /**< it has stopped */
} nps_track_t;

/** A run of all stages. Borrowed but for what says otherwise. */
typedef struct nps_searching {
  const nps_comm_t *comm;
  const nps_search_spec_t *spec;
  nps_report_t *report;
  nps_scorer_t *scorer;
  nps_goal_t *goal;
  nps_weighting_t *current; /**< what has been found so far; owned */
  nps_weighting_t *began;   /**< where the last stage began; owned */
  nps_search_t *search;
} nps_searching_t;

/** Whether anything is searched. */
bool nps_search_wanted(const nps_search_spec_t *spec);

/** Begin a search: its history, its tasks. @param[out] track  ended with nps_track_end() */
void nps_track_begin(const nps_search_spec_t *spec, nps_stage_t stage, int model, nps_search_history_t *history,
                     nps_track_t *track);
void nps_track_end(nps_track_t *track);

/** Score the points of several searches together and add them to the histories. Collective.
 *  @param means  the points are CMA-ES's last mean and the average of its means */
nps_err_t nps_tracks_score(nps_searching_t *s, nps_track_t *tracks, int count, bool means);

/** Give the best of the rows [first, end) of a history by its fitness; the earliest of equals. */
int64_t nps_track_best(const nps_track_t *track, int64_t first, int64_t end);

/** Choose the final genomes. Collective. */
nps_err_t nps_tracks_choose(nps_searching_t *s, nps_track_t *tracks, int count);

/** Score the way from θ0 along what is found, under transfer, of models that have tasks where there are general tasks too:
 *  s->search->paths. Collective. (path.c) */
nps_err_t nps_paths_score(nps_searching_t *s);
void nps_path_free(nps_search_path_t *path);

/** Show paths and log their events. Rank 0. */
void nps_paths_show(const nps_search_t *search, nps_report_t *report);

/** Run all stages: histories, s->current, s->began. Collective. */
nps_err_t nps_stages_run(nps_searching_t *s);

void nps_history_free(nps_search_history_t *history);

/** Show a generation of searches in lockstep and log its events. Rank 0.
 *  @param first    [count] row of each history at which the generation begins
 *  @param started  when the stage began */
void nps_tracks_show(const nps_searching_t *s, const nps_track_t *tracks, int count, const int64_t *first,
                     double started);

/** Write a score for people: ".8712", "1.0000", "-.0123", "-" for NaN. @param[out] out  [32] characters @return out */
const char *nps_format_score(double score, char out[32]);

/** Give a stage's name. Static. */
const char *nps_stage_name(nps_stage_t stage);

/** As nps_search_read_best(), but what the file does not have is no error. @param[out] found  columns set */
nps_err_t nps_search_look_up(const char *file, const char *path, char *const *columns, int n, double *x, int *found);

#endif
