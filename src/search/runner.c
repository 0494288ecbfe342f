/* Who scores what: the first rank of each group draws pieces of the line, and tells its group what to score together. */
#include "search_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool nps_slot_is_of_same_model(const nps_slot_t *a, const nps_slot_t *b) {
  const nps_job_t *x = a->job, *y = b->job;
  return a->shake == b->shake && x->part == y->part && x->weighting == y->weighting &&
         (x->weighting || x->model == y->model);
}

void nps_slot_become(const nps_slot_t *slot, const nps_search_spec_t *spec, nps_candidate_t *candidate) {
  if (slot->job->weighting)
    nps_candidate_set(candidate, slot->job->weighting);
  else
    nps_candidate_take(candidate, slot->job->model);
  if (slot->shake >= 0)
    nps_candidate_shake(candidate, &(nps_shake_t){spec->seed, slot->shake, spec->fitness->sharpness_rho});
}

nps_err_t nps_runner_new(const nps_comm_t *comm, const nps_search_spec_t *spec, nps_candidate_t *candidate,
                         nps_runner_t **out) {
  nps_runner_t *r = *out = nps_xcalloc(1, sizeof *r);
  *r = (nps_runner_t){.comm = comm, .spec = spec, .candidate = candidate};
  r->kind = spec->command ? &nps_evaluator_command : &nps_evaluator_native;
  if (spec->group.ranks) {
    r->rank = nps_comm_rank(spec->group.ranks);
    r->ranks = nps_comm_size(spec->group.ranks);
  }
  NPS_TRY(nps_comm_agree(comm, r->kind->begin(r)));
  if (spec->group.count > 1) r->counter = nps_counter_new(comm);
  return NPS_OK;
}

void nps_runner_free(nps_runner_t *r) {
  if (!r) return;
  if (r->own) r->kind->end(r);
  nps_counter_free(r->counter);
  free(r->failures.text);
  free(r);
}

void nps_runner_note_failure(nps_runner_t *r, int64_t slot, const char *why) {
  nps_text_add(&r->failures, "%lld ", (long long)slot);
  nps_text_add_bytes(&r->failures, why, strlen(why) + 1);
}

/* ---- a round ---- */

/* What the first rank tells the others; count 0: the round is over. */
typedef struct {
  int64_t first, count;
} order_t;

static void pass_on(const nps_runner_t *r, order_t order) {
  if (r->rank < r->ranks - 1) nps_message_wait(nps_comm_send(r->spec->group.ranks, r->rank + 1, &order, sizeof order));
}

static void follow(nps_runner_t *r, const nps_round_t *round) {
  for (;;) {
    order_t order;
    nps_message_wait(nps_comm_receive(r->spec->group.ranks, r->rank - 1, &order, sizeof order));
    pass_on(r, order);
    if (order.count == 0) break;
    r->kind->run(r, round, order.first, order.count);
  }
}

static bool can_be_made(const nps_job_t *job) { return !job->weighting || nps_weighting_has_result(job->weighting); }

static bool may_go_on(const nps_runner_t *r, const nps_round_t *round) {
  return r->err == NPS_OK && round->may_go_on(round->ctx);
}

/* Scores the slots [first, end), or those until the round has to stop. */
static void lead_piece(nps_runner_t *r, const nps_round_t *round, int64_t first, int64_t end) {
  while (first < end && may_go_on(r, round)) {
    if (!can_be_made(round->slots[first].job)) {
      round->scores[first] = (nps_score_t){.total = round->slots[first].count, .nll_sum = NAN};
      round->done[first++] = true;
      continue;
    }
    const order_t order = {first, r->kind->size(r, round, first, end)};
    do {
      r->again = false;
      pass_on(r, order);
      r->kind->run(r, round, order.first, order.count);
    } while (r->again);
    first += order.count;
  }
}

static void lead(nps_runner_t *r, const nps_round_t *round) {
  int64_t piece = r->counter ? nps_counter_next(r->counter) : 0;
  while (piece < round->pieces && may_go_on(r, round)) {
    lead_piece(r, round, round->cut[piece], round->cut[piece + 1]);
    piece = r->counter ? nps_counter_next(r->counter) : piece + 1;
  }
  while (r->counter && piece < round->pieces)
    piece = nps_counter_next(r->counter); /* nothing is left for the others either */
  pass_on(r, (order_t){0, 0});
}

void nps_runner_run(nps_runner_t *r, const nps_round_t *round) {
  if (r->counter) nps_counter_reset(r->counter);
  r->failures.size = 0;
  if (!r->spec->group.ranks) return;
  if (r->rank == 0)
    lead(r, round);
  else
    follow(r, round);
  if (r->kind->finish) r->kind->finish(r);
}
