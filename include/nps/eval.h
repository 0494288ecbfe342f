/** @file eval.h
 *  Scores of a model on calibration data. Layer 7, part of `run`.
 *
 *  Samples are scored in batches, in order; ranks share the batches, and a task's score is the sum over its batches in
 *  their order: the same figures on any number of ranks. */
#ifndef NPS_EVAL_H
#define NPS_EVAL_H

#include "nps/base.h"
#include "nps/comm.h"
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
} nps_eval_request_t;

/** A task and its score. */
typedef struct nps_eval_task {
  char *group;
  nps_score_t score;
} nps_eval_task_t;

typedef struct nps_eval {
  nps_eval_task_t *tasks; /**< [task_count] in the order asked for, else in byte order */
  int task_count;
} nps_eval_t;

/** Find and check model, heads and data, and score the model on every task. Collective.
 *  @param report  shows progress on rank 0; may be NULL
 *  @param[out] out  the same on every rank; freed with nps_eval_free()
 *  @return NPS_ERR_CONFIG: a group given twice, a head for a group that is not scored, too large a batch;
 *    NPS_ERR_INPUT: data or model are missing or do not fit; the same on every rank */
nps_err_t nps_eval_scores(const nps_comm_t *comm, const nps_eval_request_t *request, nps_report_t *report,
                          nps_eval_t **out);
void nps_eval_free(nps_eval_t *eval);

/** Put scores into JSON: {"tasks": {group: {"correct", "total", "accuracy", "nll"}}, "average": {"accuracy", "nll"}};
 *  the average is over tasks; an nll that is not finite is null. Local. @return new reference */
json_t *nps_eval_json(const nps_eval_t *eval);

/** Print scores as a table. Local. */
void nps_eval_show(const nps_eval_t *eval, nps_report_t *report);

/** Score a model and show the scores: nps-eval without its options. Collective.
 *  @param as_json  print JSON on stdout instead of a table; @param report  on rank 0; may be NULL */
nps_err_t nps_eval_run(const nps_comm_t *comm, const nps_eval_request_t *request, bool as_json, nps_report_t *report);

#endif
