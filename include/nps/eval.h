/** @file eval.h
 *  Scores of a model: on calibration data by the native evaluators, or by the command of a config. Layer 7, part of `run`.
 *
 *  Natively samples are scored in batches, in order; ranks share the batches, and a task's score is the sum over its batches in
 *  their order: the same figures on any number of ranks. A command is asked by rank 0; the others wait. */
#ifndef NPS_EVAL_H
#define NPS_EVAL_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/config.h"
#include "nps/fitness.h"
#include "nps/json.h"
#include "nps/report.h"

/** What is to be scored. Texts are borrowed. */
typedef struct nps_eval_request {
  const char *model;         /**< as nps_model_locate() takes it */
  const char *data;          /**< calibration file */
  const char *const *groups; /**< [group_count]; none: all of the file */
  int group_count;
  const char *const *heads; /**< [head_count] "MODEL", or "GROUP=MODEL" for one group; none: the model's own head */
  int head_count;
  int batch; /**< samples in a forward pass */
  const char
      *config; /**< whose command is to score its tasks; then data, groups, heads and batch have no effect; or NULL */
  const nps_override_t *overrides; /**< [override_count] of the config */
  int override_count;
} nps_eval_request_t;

/** What is known of a score. */
typedef enum nps_figure {
  NPS_FIGURE_ACCURACY,
  NPS_FIGURE_NLL,
  NPS_FIGURE_VALUE, /**< whatever a command means by it */
  NPS_FIGURE_COUNT
} nps_figure_t;

/** A task and its score. */
typedef struct nps_eval_task {
  char *group; /**< or a config's name of the task */
  nps_score_t score;
} nps_eval_task_t;

typedef struct nps_eval {
  nps_eval_task_t *tasks; /**< [task_count] in the order asked for, else in byte order */
  int task_count;
  bool known[NPS_FIGURE_COUNT]; /**< of all tasks */
  bool less_is_better;          /**< of values, which are kept as losses, as nps_command_scores() does */
} nps_eval_t;

/** Find and check model, heads and data, or the config, and score the model on every task. Collective.
 *  @param report  shows progress on rank 0; may be NULL
 *  @param[out] out  the same on every rank, a command's scores on rank 0 alone; freed with nps_eval_free()
 *  @return NPS_ERR_CONFIG: a group given twice, a head for a group that is not scored, too large a batch, a wrong config;
 *    NPS_ERR_INPUT: data or model are missing or do not fit; NPS_ERR_RUNTIME: the command gives no scores; NPS_ERR_IO: the
 *    model cannot be handed over; the same on every rank */
nps_err_t nps_eval_scores(const nps_comm_t *comm, const nps_eval_request_t *request, nps_report_t *report,
                          nps_eval_t **out);
void nps_eval_free(nps_eval_t *eval);

/** Put scores into JSON: {"tasks": {group: {"correct", "total", "accuracy", "nll"}}, "average": {"accuracy", "nll"}};
 *  the average is over tasks; an nll that is not finite is null. Of a command's scores what is known: "correct" and "accuracy",
 *  "nll", "value". Local. @return new reference */
json_t *nps_eval_json(const nps_eval_t *eval);

/** Print scores as a table. Local. */
void nps_eval_show(const nps_eval_t *eval, nps_report_t *report);

/** Score a model and show the scores: nps-eval without its options. Collective.
 *  @param as_json  print JSON on stdout instead of a table; @param report  on rank 0; may be NULL */
nps_err_t nps_eval_run(const nps_comm_t *comm, const nps_eval_request_t *request, bool as_json, nps_report_t *report);

#endif
