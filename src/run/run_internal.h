/** @file run_internal.h
 *  The state of a run, which its phases fill in. */
#ifndef NPS_RUN_INTERNAL_H
#define NPS_RUN_INTERNAL_H

#include "nps/merge.h"
#include "nps/model.h"
#include "nps/plan.h"
#include "nps/report.h"
#include "nps/run.h"

typedef struct nps_run_state {
  const nps_comm_t *comm;
  const nps_run_options_t *options;
  nps_report_t *report; /**< NULL but on rank 0 */
  double started;

  nps_recipe_t *recipe;
  const char *out;      /**< output path, or NULL */
  nps_model_t **inputs; /**< [input_count] all different; the base is first */
  int input_count;
  int base; /**< index into inputs, or -1 */
  int head; /**< index into inputs, or -1 */
  nps_layout_t *layout;

  const nps_merge_method_t *method;
  nps_merge_model_t *models; /**< [model_count] as the method counts them */
  int model_count;
  nps_merge_t *merge;
  nps_plan_t *plan;

  nps_sidecar_t *sidecars; /**< [sidecar_count] rank 0 only */
  int sidecar_count;
  char *recipe_text;
  char *config_json; /**< of the output, or NULL */
  char *model_card;
} nps_run_state_t;

/** Read config and headers, check everything against everything, choose the method. Collective. */
nps_err_t nps_run_validate(nps_run_state_t *run);

/** Whether a path leads to one of the inputs. Local. */
bool nps_run_is_input(const nps_run_state_t *run, const char *path);

/** Share out the work. Collective. @param ranks  as many as the plan is for */
nps_err_t nps_run_plan(nps_run_state_t *run, int ranks);

/** Find the memory that a rank may use: the cgroup's or Slurm's limit, else the free memory of this host, divided by the
 *  ranks on it, less a reserve. Local. @param ranks_here  ranks on this host */
int64_t nps_run_memory_per_rank(int ranks_here);

/** Prepare what is written besides tensors: recipe, config.json, model card, sidecars. Local; reads files on rank 0. */
nps_err_t nps_run_dress(nps_run_state_t *run);

/** Print the plan / the summary at the end, and log them. Local, does nothing where there is no report. */
void nps_run_show_plan(const nps_run_state_t *run);
void nps_run_show_summary(const nps_run_state_t *run, const nps_merge_result_t *results, int64_t bytes);

#endif
