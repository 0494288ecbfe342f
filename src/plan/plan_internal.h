/** @file plan_internal.h
 *  What the files of this module share. */
#ifndef NPS_PLAN_INTERNAL_H
#define NPS_PLAN_INTERNAL_H

#include "nps/plan.h"

typedef struct nps_planner {
  const nps_layout_t *layout;
  const nps_model_t *const *inputs;
  const nps_demand_t *demand;
  const nps_costs_t *costs;
  nps_plan_t *plan;
} nps_planner_t;

/** Seconds that one element of a target takes when its bytes are read `sweeps` times. */
double nps_plan_element_time(const nps_planner_t *p, const nps_target_t *target, int sweeps);

/** Seconds of a target that a group of ranks does whole. */
double nps_plan_whole_time(const nps_planner_t *p, int target, int ranks);

/** Add a piece to the rank in work. */
void nps_plan_add_piece(nps_plan_t *plan, int target, int64_t first, int64_t count);

/** Give every target to one rank or to a group of ranks, of which each gets some of its rows.
 *  @return NPS_ERR_CONFIG (recorded) when no group holds a tensor */
nps_err_t nps_plan_share_out_whole(nps_planner_t *p);

#endif
