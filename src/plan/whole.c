/* Tensors that stay whole: each is one rank's, or, where it is too large for that, a group's. */
#include "plan_internal.h"

#include <stdio.h>
#include <stdlib.h>

/* Of what ranks keep until the end, how much more than its part a rank is taken to have. */
#define UNEVEN 1.25

/* Bytes/s of an exchange between a group's rows and pieces, on each rank. */
#define EXCHANGE_RATE 1e9

double nps_plan_whole_time(const nps_planner_t *p, int target, int ranks) {
  const nps_target_t *t = &p->layout->targets[target];
  const bool merged = t->action == NPS_ACTION_MERGE;
  const double streamed = nps_plan_element_time(p, t, 1) * (double)t->count;
  int sources = 0;
  for (int i = 0; i < p->layout->inputs; i++) sources += t->source[i] >= 0;
  const double plain = merged ? p->costs->compute_time * sources * (double)t->count : 0;
  const double alone = (streamed - plain) / ranks + (merged ? p->demand->seconds(p->demand->ctx, target, ranks) : 0);
  if (ranks == 1) return alone;
  return alone + NPS_MEETING_SECONDS + (4.0 * sources + 8) * (double)t->count / ranks / EXCHANGE_RATE;
}

/* ---- the targets as jobs ---- */

static double job_seconds(const void *ctx, int target, int ranks) { return nps_plan_whole_time(ctx, target, ranks); }

static int64_t job_bytes(const void *ctx, int target, int ranks) {
  const nps_planner_t *p = ctx;
  if (p->layout->targets[target].action == NPS_ACTION_MERGE) return p->demand->bytes(p->demand->ctx, target, ranks);
  return ranks == 1 ? 0 : INT64_MAX;
}

/* Memory of a rank besides a job's: the libraries, a small slab, and its part of the tensors that are kept. */
static int64_t other_bytes(const nps_planner_t *p) {
  int64_t buffers = 0, elements = 0, largest = 0;
  for (int t = 0; t < p->layout->count; t++) {
    const nps_target_t *target = &p->layout->targets[t];
    buffers = nps_max64(buffers, nps_plan_buffer_bytes(target, p->inputs, p->layout->inputs, target->count, NPS_BLOCK));
    if (target->action != NPS_ACTION_MERGE) continue;
    elements += target->count;
    largest = nps_max64(largest, target->count);
  }
  const int64_t part = nps_max64((int64_t)(UNEVEN * (double)elements / p->plan->ranks), largest / p->plan->ranks);
  return p->costs->fixed_memory + buffers + part * p->demand->held_width;
}

static nps_err_t fail_misfit(const nps_planner_t *p, const nps_jobs_t *jobs, int misfit, int64_t other) {
  char have[32], more[96] = "";
  const int64_t least = nps_schedule_least_bytes(jobs, misfit) + other;
  const int ranks = nps_schedule_least_ranks(jobs, misfit);
  if (ranks > 0) snprintf(more, sizeof more, ", or %d ranks that share it", ranks);
  return nps_fail(
      NPS_ERR_CONFIG,
      "a rank may use %s (resources.memory_per_rank, else its part of the host's memory), but tensor %s needs at "
      "least %lld MiB a rank on %d ranks%s",
      nps_format_bytes((double)p->plan->memory_limit, have), p->layout->targets[misfit].name,
      (long long)((least + ((1 << 20) - 1)) >> 20), p->plan->ranks, more);
}

/* ---- pieces ---- */

static bool has_rank(const nps_group_t *group, int rank) {
  return rank >= group->first && rank < group->first + group->size;
}

/* A rank's rows of a tensor that a group shares. */
static void add_rows(const nps_planner_t *p, int rank, int target) {
  const nps_group_t group = p->plan->schedule->group[target];
  const int64_t *shape = p->layout->targets[target].shape, at = rank - group.first;
  const int64_t first = shape[0] * at / group.size, end = shape[0] * (at + 1) / group.size;
  nps_plan_add_piece(p->plan, target, first * shape[1], (end - first) * shape[1]);
}

/* Tensors that it shares, in the order of the schedule; then its own, in file order. */
static void add_pieces_of(const nps_planner_t *p, int rank) {
  const nps_schedule_t *schedule = p->plan->schedule;
  for (int i = 0; i < schedule->jobs; i++) {
    const nps_group_t *group = &schedule->group[schedule->order[i]];
    if (group->size > 1 && has_rank(group, rank)) add_rows(p, rank, schedule->order[i]);
  }
  for (int t = 0; t < schedule->jobs; t++)
    if (schedule->group[t].size == 1 && schedule->group[t].first == rank)
      nps_plan_add_piece(p->plan, t, 0, p->layout->targets[t].count);
  p->plan->first_piece[rank + 1] = p->plan->piece_count;
}

nps_err_t nps_plan_share_out_whole(nps_planner_t *p) {
  nps_plan_t *plan = p->plan;
  const int64_t other = other_bytes(p);
  const nps_jobs_t jobs = {.count = p->layout->count,
                           .ranks = plan->ranks,
                           .memory = nps_max64(plan->memory_limit - other, 0),
                           .seconds = job_seconds,
                           .bytes = job_bytes,
                           .ctx = p};
  int misfit = -1;
  if (nps_schedule_make(&jobs, &plan->schedule, &misfit) != NPS_OK) return fail_misfit(p, &jobs, misfit, other);
  for (int t = 0; t < p->layout->count; t++) {
    plan->owner_first[t] = plan->schedule->group[t].first;
    plan->owner_last[t] = plan->owner_first[t] + plan->schedule->group[t].size - 1;
  }
  for (int rank = 0; rank < plan->ranks; rank++) add_pieces_of(p, rank);
  return NPS_OK;
}
