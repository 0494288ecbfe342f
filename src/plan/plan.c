#include "plan_internal.h"

#include <stdlib.h>
#include <string.h>

/* Bytes of inputs held at a time where statistics come first: larger pieces are read again from the page cache,
 * which takes less time than touching fresh memory. */
#define HELD_BYTES ((int64_t)256 << 20)

/* A cut this near to a tensor's border, as part of a rank's share, moves there: fewer tensors are shared. */
#define SNAP 0.01

int64_t nps_plan_input_width(const nps_target_t *target, const nps_model_t *const *inputs, int n) {
  int64_t width = 0;
  for (int i = 0; i < n; i++)
    if (target->source[i] >= 0) width += (int64_t)nps_dtype_size(inputs[i]->tensors[target->source[i]].dtype);
  return width;
}

static int64_t output_width(const nps_target_t *target) { return (int64_t)nps_dtype_size(target->dtype); }

static int source_count(const nps_planner_t *p, const nps_target_t *target) {
  int count = 0;
  for (int i = 0; i < p->layout->inputs; i++) count += target->source[i] >= 0;
  return count;
}

double nps_plan_element_time(const nps_planner_t *p, const nps_target_t *target, int sweeps) {
  const nps_costs_t *c = p->costs;
  double in = (double)nps_plan_input_width(target, p->inputs, p->layout->inputs);
  double compute = target->action == NPS_ACTION_MERGE ? c->compute_time * source_count(p, target) : 0;
  return in * sweeps / c->read_rate + in / c->hash_rate + compute + (double)output_width(target) / c->write_rate;
}

static int64_t unit_of(const nps_planner_t *p, int target) {
  const bool asks = p->demand->unit && p->layout->targets[target].action == NPS_ACTION_MERGE;
  return asks ? p->demand->unit(p->demand->ctx, target) : NPS_BLOCK;
}

/* Where in a target a cut lies that should leave `cost` of it to the left: on a multiple of `unit`, or at its end. */
static int64_t cut_inside(const nps_target_t *target, int64_t unit, double cost, double element, double share) {
  double whole = element * (double)target->count;
  if (cost <= SNAP * share) return 0;
  if (whole - cost <= SNAP * share) return target->count;
  int64_t at = (int64_t)(cost / element / (double)unit + 0.5) * unit;
  return nps_min64(at, target->count);
}

void nps_plan_add_piece(nps_plan_t *plan, int target, int64_t first, int64_t count) {
  plan->pieces = nps_xrealloc(plan->pieces, (size_t)plan->piece_count + 1, sizeof *plan->pieces);
  plan->pieces[plan->piece_count++] = (nps_piece_t){target, first, count};
}

static void add_piece(nps_plan_t *plan, int rank, int target, int64_t first, int64_t count) {
  nps_plan_add_piece(plan, target, first, count);
  plan->owner_last[target] = rank;
  if (first == 0) plan->owner_first[target] = rank;
}

/* Cuts the line of all targets into one stretch a rank. */
static void share_out(nps_planner_t *p) {
  const nps_layout_t *layout = p->layout;
  nps_plan_t *plan = p->plan;
  int sweeps = p->demand->whole_model ? p->demand->passes + 1 : 1;
  double total = 0, before = 0;
  for (int i = 0; i < layout->count; i++)
    total += (double)layout->targets[i].count * nps_plan_element_time(p, &layout->targets[i], sweeps);
  const double share = total / plan->ranks;
  int rank = 0;
  for (int i = 0; i < layout->count; i++) {
    const nps_target_t *target = &layout->targets[i];
    double element = nps_plan_element_time(p, target, sweeps);
    double after = before + element * (double)target->count;
    int64_t at = 0;
    while (rank + 1 < plan->ranks && share * (rank + 1) < after) {
      int64_t cut = nps_max64(at, cut_inside(target, unit_of(p, i), share * (rank + 1) - before, element, share));
      if (cut > at) add_piece(plan, rank, i, at, cut - at);
      at = cut;
      if (cut == target->count && target->count > 0) {
        plan->first_piece[++rank] = plan->piece_count;
        break;
      }
      plan->first_piece[++rank] = plan->piece_count;
    }
    if (at < target->count || target->count == 0) add_piece(plan, rank, i, at, target->count - at);
    before = after;
  }
  while (rank < plan->ranks) plan->first_piece[++rank] = plan->piece_count;
}

int64_t nps_plan_buffer_bytes(const nps_target_t *target, const nps_model_t *const *inputs, int n, int64_t count,
                              int64_t slab) {
  const int64_t held = nps_min64(count, slab);
  return nps_plan_input_width(target, inputs, n) * held + output_width(target) * nps_min64(held, NPS_STEP);
}

static int64_t buffer_bytes(const nps_planner_t *p, const nps_piece_t *piece, int64_t slab) {
  return nps_plan_buffer_bytes(&p->layout->targets[piece->target], p->inputs, p->layout->inputs, piece->count, slab);
}

/* The most bytes that any piece needs with slabs of that size. */
static int64_t most_buffer_bytes(const nps_planner_t *p, int64_t slab) {
  int64_t most = 0;
  for (int i = 0; i < p->plan->piece_count; i++) most = nps_max64(most, buffer_bytes(p, &p->plan->pieces[i], slab));
  return most;
}

/* The largest slab that is of use: whole pieces where the method wants to hold them, within bounds. */
static int64_t wanted_slab(const nps_planner_t *p) {
  int64_t largest = NPS_BLOCK;
  for (int i = 0; i < p->plan->piece_count; i++) largest = nps_max64(largest, p->plan->pieces[i].count);
  largest = (largest + NPS_BLOCK - 1) / NPS_BLOCK * NPS_BLOCK;
  return p->demand->whole_pieces ? largest : nps_min64(largest, NPS_STEP);
}

/* The largest number of blocks, at most those of `slab`, whose buffers fit into `bytes`. */
static int64_t fit_slab(const nps_planner_t *p, int64_t slab, int64_t bytes) {
  int64_t fits = 0, most = slab / NPS_BLOCK;
  while (fits < most) {
    int64_t middle = fits + (most - fits + 1) / 2;
    if (most_buffer_bytes(p, middle * NPS_BLOCK) <= bytes)
      fits = middle;
    else
      most = middle - 1;
  }
  return fits * NPS_BLOCK;
}

/* Bytes that a rank keeps until all of its tensors are made. */
static int64_t held_bytes(const nps_planner_t *p, int rank) {
  int64_t elements = 0;
  for (int i = p->plan->first_piece[rank]; i < p->plan->first_piece[rank + 1]; i++)
    if (p->layout->targets[p->plan->pieces[i].target].action == NPS_ACTION_MERGE) elements += p->plan->pieces[i].count;
  return elements * p->demand->held_width;
}

/* Bytes of statistics, or of the largest of a rank's tensors that stay whole. */
static int64_t state_bytes(const nps_planner_t *p, int rank) {
  return p->plan->schedule ? p->plan->schedule->bytes[rank] : p->demand->state_memory;
}

/* What a rank needs besides slabs. */
static int64_t steady_bytes(const nps_planner_t *p, int rank) {
  return p->costs->fixed_memory + state_bytes(p, rank) + held_bytes(p, rank);
}

static nps_err_t choose_slab(nps_planner_t *p) {
  nps_plan_t *plan = p->plan;
  int64_t needed = 0;
  for (int r = 0; r < plan->ranks; r++) needed = nps_max64(needed, steady_bytes(p, r));
  const int64_t least = needed + most_buffer_bytes(p, NPS_BLOCK);
  if (plan->memory_limit < least) {
    char have[32];
    /* Rounded up, so that what is asked for is enough. */
    return nps_fail(
        NPS_ERR_CONFIG,
        "a rank may use %s (resources.memory_per_rank, else its part of the host's memory), but this merge needs at "
        "least %lld MiB a rank",
        nps_format_bytes((double)plan->memory_limit, have), (long long)((least + ((1 << 20) - 1)) >> 20));
  }
  int64_t room = plan->memory_limit - needed;
  if (p->demand->whole_pieces) room = nps_min64(room, nps_max64(HELD_BYTES, most_buffer_bytes(p, NPS_STEP)));
  plan->slab = nps_max64(NPS_BLOCK, fit_slab(p, wanted_slab(p), room));
  return NPS_OK;
}

/* How often the bytes of a piece are read. */
static int piece_sweeps(const nps_planner_t *p, const nps_piece_t *piece) {
  const nps_demand_t *demand = p->demand;
  if (demand->passes == 0 || p->layout->targets[piece->target].action != NPS_ACTION_MERGE) return 1;
  return demand->whole_model || piece->count > p->plan->slab ? demand->passes + 1 : 1;
}

static void predict_rank(nps_planner_t *p, int rank) {
  nps_plan_t *plan = p->plan;
  const nps_costs_t *c = p->costs;
  int64_t buffers = 0;
  double seconds = 0;
  for (int i = plan->first_piece[rank]; i < plan->first_piece[rank + 1]; i++) {
    const nps_piece_t *piece = &plan->pieces[i];
    const nps_target_t *target = &p->layout->targets[piece->target];
    int sweeps = piece_sweeps(p, piece);
    buffers = nps_max64(buffers, buffer_bytes(p, piece, plan->slab));
    plan->read[rank] += piece->count * nps_plan_input_width(target, p->inputs, p->layout->inputs) * sweeps;
    const int64_t kept = target->action == NPS_ACTION_MERGE ? p->demand->kept_width : 0;
    plan->write[rank] += piece->count * (output_width(target) + kept);
    if (p->demand->target_parts && piece->first == 0) plan->write[rank] += p->demand->target_parts[piece->target];
    seconds += (double)piece->count * nps_plan_element_time(p, target, sweeps);
  }
  const double crowd = (double)plan->ranks_per_node / plan->cores_per_node;
  const double crowding = crowd > 1 ? crowd : 1;
  if (plan->schedule) seconds = plan->schedule->finish[rank];
  plan->memory[rank] = steady_bytes(p, rank) + buffers;
  plan->time[rank] = c->start_time + seconds * crowding;
}

static nps_plan_t *allocate(int ranks, int targets) {
  nps_plan_t *plan = nps_xcalloc(1, sizeof *plan);
  plan->ranks = ranks;
  plan->first_piece = nps_xcalloc((size_t)ranks + 1, sizeof *plan->first_piece);
  plan->owner_first = nps_xcalloc((size_t)targets, sizeof *plan->owner_first);
  plan->owner_last = nps_xcalloc((size_t)targets, sizeof *plan->owner_last);
  plan->memory = nps_xcalloc((size_t)ranks, sizeof *plan->memory);
  plan->read = nps_xcalloc((size_t)ranks, sizeof *plan->read);
  plan->write = nps_xcalloc((size_t)ranks, sizeof *plan->write);
  plan->time = nps_xcalloc((size_t)ranks, sizeof *plan->time);
  return plan;
}

nps_err_t nps_plan_make(const nps_layout_t *layout, const nps_model_t *const *inputs, int ranks,
                        const nps_demand_t *demand, const nps_costs_t *costs, int64_t memory_limit, nps_plan_t **out) {
  nps_planner_t p = {layout, inputs, demand, costs, allocate(ranks, layout->count)};
  p.plan->memory_limit = memory_limit;
  p.plan->ranks_per_node = costs->ranks_per_node < ranks ? costs->ranks_per_node : ranks;
  p.plan->cores_per_node = costs->cores_per_node;
  nps_err_t err = NPS_OK;
  if (demand->seconds)
    err = nps_plan_share_out_whole(&p);
  else
    share_out(&p);
  if (err == NPS_OK) err = choose_slab(&p);
  if (err != NPS_OK) {
    nps_plan_free(p.plan);
    return err;
  }
  for (int r = 0; r < ranks; r++) predict_rank(&p, r);
  *out = p.plan;
  return NPS_OK;
}

void nps_plan_free(nps_plan_t *plan) {
  if (!plan) return;
  free(plan->pieces);
  free(plan->first_piece);
  free(plan->owner_first);
  free(plan->owner_last);
  free(plan->memory);
  free(plan->read);
  free(plan->write);
  free(plan->time);
  nps_schedule_free(plan->schedule);
  free(plan);
}
