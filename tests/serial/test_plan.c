#include "../nps_check.h"
#include "nps/config.h"
#include "nps/plan.h"

#include <math.h>

/* ---- layouts made by hand ---- */

enum { MOST_TARGETS = 400, MOST_INPUTS = 5, MOST_RANKS = 64 };

static nps_tensor_info_t infos[MOST_INPUTS][MOST_TARGETS];
static nps_model_t models[MOST_INPUTS];
static const nps_model_t *inputs[MOST_INPUTS];
static nps_target_t targets[MOST_TARGETS];
static int sources[MOST_TARGETS * MOST_INPUTS];
static nps_layout_t layout;

static void start_layout(int input_count) {
  layout = (nps_layout_t){targets, 0, input_count, sources};
  for (int i = 0; i < input_count; i++) {
    models[i] = (nps_model_t){.name = (char[]){"m"}, .tensors = infos[i]};
    inputs[i] = &models[i];
  }
}

/* Every input has the tensor, in `dtype`; a head only the last. */
static void add_target(nps_action_t action, int64_t count, nps_dtype_t dtype, nps_dtype_t out) {
  const int t = layout.count++;
  int *source = sources + t * layout.inputs;
  for (int i = 0; i < layout.inputs; i++) {
    infos[i][t] = (nps_tensor_info_t){.dtype = dtype, .count = count};
    models[i].tensor_count = t + 1;
    source[i] = action == NPS_ACTION_HEAD && i + 1 < layout.inputs ? -1 : t;
  }
  targets[t] = (nps_target_t){.name = "t", .action = action, .dtype = out, .count = count, .source = source};
}

static int64_t below(uint64_t *state, int64_t n) { return (int64_t)(next_random(state) % (uint64_t)n); }

static int64_t random_count(uint64_t *state) {
  switch (below(state, 8)) {
  case 0:
    return 0;
  case 1:
    return 1 + below(state, 10);
  case 2:
    return NPS_BLOCK * (1 + below(state, 4));
  case 3:
    return NPS_BLOCK * (1 + below(state, 30)) + below(state, 3) - 1;
  case 4:
    return below(state, 300) * NPS_BLOCK + below(state, NPS_BLOCK);
  case 5:
    return below(state, 40) == 0 ? ((int64_t)1 << 40) + below(state, 1000) : 12345;
  default:
    return below(state, 3 * NPS_BLOCK);
  }
}

static void random_layout(uint64_t *state) {
  const nps_dtype_t floats[] = {NPS_F64, NPS_F32, NPS_F16, NPS_BF16}, exacts[] = {NPS_I64, NPS_I8, NPS_BOOL};
  start_layout(1 + (int)below(state, MOST_INPUTS));
  for (int64_t n = below(state, 40); n > 0; n--) {
    int64_t kind = below(state, 10);
    nps_dtype_t dtype = kind == 0 ? exacts[below(state, 3)] : floats[below(state, 4)];
    nps_dtype_t out = kind == 0 ? dtype : floats[below(state, 4)];
    add_target(kind == 0   ? NPS_ACTION_COPY
               : kind == 1 ? NPS_ACTION_HEAD
                           : NPS_ACTION_MERGE,
               random_count(state), dtype, out);
  }
}

static const nps_costs_t costs = {.read_rate = 3e9,
                                  .hash_rate = 1.5e9,
                                  .write_rate = 1e9,
                                  .compute_time = 1e-9,
                                  .start_time = 0.5,
                                  .cores_per_node = 2,
                                  .ranks_per_node = 2,
                                  .fixed_memory = 50 << 20};

static const nps_demand_t demands[] = {
    {.passes = 0},
    {.whole_pieces = true, .passes = 2, .state_memory = 3 << 20},
    {.whole_model = true, .passes = 2, .state_memory = 5 << 20},
};

/* ---- what must hold for every plan ---- */

static int64_t width_of(const nps_target_t *target) {
  int64_t width = 0;
  for (int i = 0; i < layout.inputs; i++)
    if (target->source[i] >= 0) width += (int64_t)nps_dtype_size(infos[i][target->source[i]].dtype);
  return width;
}

/* Every element of every target once, in order, cut at multiples of NPS_BLOCK; an empty target is one empty piece. */
static bool covers_all(const nps_plan_t *plan) {
  int target = 0;
  int64_t at = 0;
  for (int i = 0; i < plan->piece_count; i++) {
    const nps_piece_t *piece = &plan->pieces[i];
    if (target >= layout.count || piece->target != target || piece->first != at) return false;
    const int64_t size = targets[target].count;
    if (piece->count < 0 || piece->count > size - at || (piece->count == 0 && size > 0)) return false;
    if (piece->first % NPS_BLOCK != 0) return false;
    at += piece->count;
    if (at < size && at % NPS_BLOCK != 0) return false;
    if (at == size) target++, at = 0;
  }
  return target == layout.count;
}

static bool ranks_are_in_order(const nps_plan_t *plan, int ranks) {
  bool ok = plan->ranks == ranks && plan->first_piece[0] == 0 && plan->first_piece[ranks] == plan->piece_count;
  for (int r = 0; r < ranks; r++) ok = ok && plan->first_piece[r] <= plan->first_piece[r + 1];
  return ok;
}

static bool owners_are_right(const nps_plan_t *plan) {
  int first[MOST_TARGETS], last[MOST_TARGETS];
  memset(first, -1, sizeof first);
  for (int r = 0; r < plan->ranks; r++)
    for (int i = plan->first_piece[r]; i < plan->first_piece[r + 1]; i++) {
      const int t = plan->pieces[i].target;
      if (first[t] < 0) first[t] = r;
      last[t] = r;
    }
  for (int t = 0; t < layout.count; t++)
    if (plan->owner_first[t] != first[t] || plan->owner_last[t] != last[t]) return false;
  return true;
}

static int64_t needed_memory(const nps_plan_t *plan, int rank, const nps_demand_t *demand) {
  int64_t most = 0;
  for (int i = plan->first_piece[rank]; i < plan->first_piece[rank + 1]; i++) {
    const nps_target_t *target = &targets[plan->pieces[i].target];
    const int64_t held = plan->pieces[i].count < plan->slab ? plan->pieces[i].count : plan->slab;
    const int64_t step = held < 4 * NPS_BLOCK ? held : 4 * NPS_BLOCK; /* of output */
    const int64_t bytes = width_of(target) * held + (int64_t)nps_dtype_size(target->dtype) * step;
    if (bytes > most) most = bytes;
  }
  return most + costs.fixed_memory + demand->state_memory;
}

static bool memory_is_kept(const nps_plan_t *plan, const nps_demand_t *demand, int64_t limit) {
  bool ok = plan->memory_limit == limit && plan->slab >= NPS_BLOCK && plan->slab % NPS_BLOCK == 0;
  for (int r = 0; r < plan->ranks; r++)
    ok = ok && plan->memory[r] <= limit && plan->memory[r] == needed_memory(plan, r, demand);
  return ok;
}

/* Bytes: a piece is swept once, or once for each pass and the merge, where it is not held meanwhile. */
static bool bytes_are_right(const nps_plan_t *plan, const nps_demand_t *demand) {
  for (int r = 0; r < plan->ranks; r++) {
    int64_t read = 0, write = 0;
    for (int i = plan->first_piece[r]; i < plan->first_piece[r + 1]; i++) {
      const nps_piece_t *piece = &plan->pieces[i];
      const nps_target_t *target = &targets[piece->target];
      const bool held = !demand->whole_model && piece->count <= plan->slab;
      const int sweeps = target->action == NPS_ACTION_MERGE && !held ? demand->passes + 1 : 1;
      read += width_of(target) * piece->count * sweeps;
      write += (int64_t)nps_dtype_size(target->dtype) * piece->count;
    }
    if (plan->read[r] != read || plan->write[r] != write) return false;
  }
  return true;
}

static double element_cost(const nps_target_t *target, const nps_demand_t *demand) {
  const double width = (double)width_of(target);
  const int sweeps = demand->whole_model ? demand->passes + 1 : 1;
  double cost = width * sweeps / costs.read_rate + width / costs.hash_rate +
                (double)nps_dtype_size(target->dtype) / costs.write_rate;
  if (target->action == NPS_ACTION_MERGE) cost += costs.compute_time * layout.inputs;
  return cost;
}

/* Every border between ranks lies where equal shares would have it, but for half a block, or a hundredth of a share. */
static bool is_balanced(const nps_plan_t *plan, const nps_demand_t *demand) {
  double total = 0, dearest = 0, before = 0;
  for (int t = 0; t < layout.count; t++) {
    const double element = element_cost(&targets[t], demand);
    total += element * (double)targets[t].count;
    if (targets[t].count > 0) dearest = fmax(dearest, element);
  }
  const double share = total / plan->ranks;
  const double slack = fmax(0.01 * share, dearest * NPS_BLOCK / 2) + 1e-9 * total;
  for (int r = 0; r < plan->ranks; r++) {
    if (fabs(before - share * r) > slack) return false;
    for (int i = plan->first_piece[r]; i < plan->first_piece[r + 1]; i++)
      before += element_cost(&targets[plan->pieces[i].target], demand) * (double)plan->pieces[i].count;
  }
  return true;
}

static bool equal_plans(const nps_plan_t *a, const nps_plan_t *b) {
  const size_t ranks = (size_t)a->ranks, count = (size_t)layout.count;
  if (a->piece_count != b->piece_count || a->slab != b->slab) return false;
  for (int i = 0; i < a->piece_count; i++) {
    const nps_piece_t *x = &a->pieces[i], *y = &b->pieces[i];
    if (x->target != y->target || x->first != y->first || x->count != y->count) return false;
  }
  return memcmp(a->first_piece, b->first_piece, (ranks + 1) * sizeof *a->first_piece) == 0 &&
         memcmp(a->owner_first, b->owner_first, count * sizeof *a->owner_first) == 0 &&
         memcmp(a->memory, b->memory, ranks * sizeof *a->memory) == 0 &&
         memcmp(a->time, b->time, ranks * sizeof *a->time) == 0;
}

static nps_plan_t *make(int ranks, const nps_demand_t *demand, int64_t limit) {
  nps_plan_t *plan = NULL;
  nps_err_t err = nps_plan_make(&layout, inputs, ranks, demand, &costs, limit, &plan);
  ck_assert_msg(err == NPS_OK, "%s", nps_problem_count() ? nps_problem_text(0) : "");
  return plan;
}

START_TEST(random_layouts_are_planned_right) {
  enum { LAYOUTS = 700 };
  const nps_demand_t *demand = &demands[_i];
  uint64_t state = 1000 + (uint64_t)_i;
  for (int n = 0; n < LAYOUTS; n++) {
    random_layout(&state);
    const int ranks = n < MOST_RANKS ? n + 1 : 1 + (int)below(&state, MOST_RANKS);
    const int64_t limit = costs.fixed_memory + demand->state_memory + 48 * NPS_BLOCK * (1 + below(&state, 200));
    nps_plan_t *plan = make(ranks, demand, limit), *again = make(ranks, demand, limit);
    ck_assert_msg(covers_all(plan), "layout %d", n);
    ck_assert_msg(ranks_are_in_order(plan, ranks), "layout %d", n);
    ck_assert_msg(owners_are_right(plan), "layout %d", n);
    ck_assert_msg(memory_is_kept(plan, demand, limit), "layout %d", n);
    ck_assert_msg(bytes_are_right(plan, demand), "layout %d", n);
    ck_assert_msg(is_balanced(plan, demand), "layout %d", n);
    ck_assert_msg(equal_plans(plan, again), "layout %d", n);
    nps_plan_free(plan);
    nps_plan_free(again);
  }
}
END_TEST

/* ---- single cases ---- */

static const int64_t plenty = (int64_t)4 << 30;

START_TEST(one_tensor_is_cut_for_all_ranks) {
  start_layout(3);
  add_target(NPS_ACTION_MERGE, 640 * NPS_BLOCK - 7, NPS_BF16, NPS_BF16);
  nps_plan_t *plan = make(64, &demands[0], plenty);
  ck_assert_int_eq(plan->piece_count, 64);
  for (int r = 0; r < 64; r++) {
    ck_assert_int_eq(plan->pieces[r].first, (int64_t)r * 10 * NPS_BLOCK);
    ck_assert_int_eq(plan->pieces[r].count, 10 * NPS_BLOCK - (r == 63 ? 7 : 0));
    ck_assert_int_eq(plan->read[r], plan->pieces[r].count * 6);
    ck_assert_int_eq(plan->write[r], plan->pieces[r].count * 2);
  }
  ck_assert_int_eq(plan->owner_first[0], 0);
  ck_assert_int_eq(plan->owner_last[0], 63);
  nps_plan_free(plan);
}
END_TEST

START_TEST(tensors_below_a_block_are_never_cut) {
  start_layout(2);
  for (int t = 0; t < 3; t++) add_target(NPS_ACTION_MERGE, 1000, NPS_F32, NPS_F32);
  for (int ranks = 1; ranks <= 9; ranks++) {
    nps_plan_t *plan = make(ranks, &demands[1], plenty);
    ck_assert_int_eq(plan->piece_count, 3);
    for (int t = 0; t < 3; t++) ck_assert_int_eq(plan->pieces[t].count, 1000);
    if (ranks == 3)
      for (int t = 0; t < 3; t++) ck_assert_int_eq(plan->owner_first[t], t);
    nps_plan_free(plan);
  }
}
END_TEST

static int64_t seven_blocks(const void *ctx, int target) {
  (void)ctx;
  return target == 0 ? 7 * NPS_BLOCK : NPS_BLOCK;
}

/* Ten blocks a rank; in the first tensor cuts lie on multiples of seven. */
START_TEST(cuts_lie_where_a_method_asks_for_them) {
  nps_demand_t demand = {.unit = seven_blocks};
  const int64_t cuts[] = {0, 7, 21, 28, 40};
  start_layout(2);
  add_target(NPS_ACTION_MERGE, 35 * NPS_BLOCK - 3, NPS_BF16, NPS_BF16);
  add_target(NPS_ACTION_MERGE, 15 * NPS_BLOCK, NPS_BF16, NPS_BF16);
  nps_plan_t *plan = make(5, &demand, plenty);
  ck_assert(covers_all(plan) && owners_are_right(plan));
  for (int r = 0; r < 5; r++) {
    const nps_piece_t *piece = &plan->pieces[plan->first_piece[r]];
    ck_assert_int_eq(piece->first + piece->target * 35 * NPS_BLOCK, cuts[r] * NPS_BLOCK);
  }
  nps_plan_free(plan);
  demand.unit = NULL;
  plan = make(5, &demand, plenty);
  ck_assert_int_eq(plan->pieces[1].first, 10 * NPS_BLOCK);
  nps_plan_free(plan);
}
END_TEST

START_TEST(a_cut_near_a_border_moves_there) {
  for (int64_t more = -3; more <= 3; more++) {
    start_layout(2);
    add_target(NPS_ACTION_MERGE, 1000 * NPS_BLOCK, NPS_F32, NPS_F32);
    add_target(NPS_ACTION_MERGE, (1000 + more) * NPS_BLOCK, NPS_F32, NPS_F32);
    nps_plan_t *plan = make(2, &demands[0], plenty);
    ck_assert_int_eq(plan->piece_count, 2);
    ck_assert_int_eq(plan->first_piece[1], 1);
    nps_plan_free(plan);
  }
}
END_TEST

START_TEST(nothing_to_merge_is_planned_too) {
  start_layout(1);
  nps_plan_t *plan = make(5, &demands[0], plenty);
  ck_assert_int_eq(plan->piece_count, 0);
  ck_assert_int_eq(plan->memory[4], costs.fixed_memory);
  nps_plan_free(plan);
  for (int t = 0; t < 4; t++) add_target(NPS_ACTION_MERGE, 0, NPS_F32, NPS_F32);
  plan = make(5, &demands[0], plenty);
  ck_assert(covers_all(plan) && owners_are_right(plan));
  ck_assert_int_eq(plan->read[0], 0);
  nps_plan_free(plan);
}
END_TEST

/* 2^20 elements of 2 inputs in float32 to float32: 8 MiB read at 3e9, hashed at 1.5e9 bytes/s, 2^21 ns of computing,
 * 4 MiB written at 1e9 bytes/s, on each of 2 ranks. */
START_TEST(times_are_those_of_the_cost_model) {
  const double mi = 1048576, seconds = 8 * mi / 3e9 + 8 * mi / 1.5e9 + 2 * mi * 1e-9 + 4 * mi / 1e9;
  nps_costs_t crowded = costs;
  start_layout(2);
  add_target(NPS_ACTION_MERGE, 2 << 20, NPS_F32, NPS_F32);
  nps_plan_t *plan = make(2, &demands[0], plenty);
  ck_assert_double_eq_tol(plan->time[0], 0.5 + seconds, 1e-9);
  ck_assert_double_eq_tol(plan->time[1], 0.5 + seconds, 1e-9);
  nps_plan_free(plan);
  crowded.cores_per_node = 1;
  ck_assert_int_eq(nps_plan_make(&layout, inputs, 2, &demands[0], &crowded, plenty, &plan), NPS_OK);
  ck_assert_double_eq_tol(plan->time[0], 0.5 + 2 * seconds, 1e-9);
  nps_plan_free(plan);
  plan = make(2, &demands[2], plenty); /* two passes before the merge: read three times, hashed once */
  ck_assert_double_eq_tol(plan->time[0], 0.5 + seconds + 16 * mi / 3e9, 1e-9);
  ck_assert_int_eq(plan->read[0], 24 << 20);
  nps_plan_free(plan);
}
END_TEST

START_TEST(input_widths_add_up) {
  start_layout(3);
  add_target(NPS_ACTION_MERGE, 10, NPS_BF16, NPS_F32);
  add_target(NPS_ACTION_HEAD, 10, NPS_F64, NPS_F32);
  infos[1][0].dtype = NPS_F32;
  ck_assert_int_eq(nps_plan_input_width(&targets[0], inputs, 3), 2 + 4 + 2);
  ck_assert_int_eq(nps_plan_input_width(&targets[0], inputs, 1), 2);
  ck_assert_int_eq(nps_plan_input_width(&targets[1], inputs, 3), 8);
}
END_TEST

START_TEST(too_little_memory_is_refused_with_the_least_that_would_do) {
  start_layout(4);
  add_target(NPS_ACTION_MERGE, 100 * NPS_BLOCK, NPS_F32, NPS_F32); /* a block: 20 bytes an element, 1.25 MiB */
  nps_plan_t *plan = NULL;
  const int64_t least = costs.fixed_memory + demands[1].state_memory + 20 * NPS_BLOCK;
  ck_assert_int_eq(nps_plan_make(&layout, inputs, 4, &demands[1], &costs, least - 1, &plan), NPS_ERR_CONFIG);
  ck_assert_ptr_null(plan);
  ck_assert_int_eq(nps_problem_count(), 1);
  ck_assert_str_eq(
      nps_problem_text(0),
      "a rank may use 54.2 MiB (resources.memory_per_rank, else its part of the host's memory), but this merge needs "
      "at least 55 MiB a rank");
  nps_problem_clear();
  plan = make(4, &demands[1], least);
  ck_assert_int_eq(plan->slab, NPS_BLOCK);
  ck_assert(memory_is_kept(plan, &demands[1], least));
  nps_plan_free(plan);
}
END_TEST

/* What the message asks for is enough, however it is rounded. */
START_TEST(the_memory_that_is_asked_for_is_enough) {
  const char *asked = "needs at least ";
  nps_costs_t large = costs;
  start_layout(4);
  add_target(NPS_ACTION_MERGE, 100 * NPS_BLOCK, NPS_F32, NPS_F32);
  for (int64_t fixed = 1; fixed < (int64_t)1 << 40; fixed = fixed * 3 + 1) {
    nps_plan_t *plan = NULL;
    int64_t least = 0;
    char text[32] = "";
    large.fixed_memory = fixed;
    ck_assert_int_eq(nps_plan_make(&layout, inputs, 4, &demands[0], &large, 1, &plan), NPS_ERR_CONFIG);
    const char *at = strstr(nps_problem_text(0), asked);
    ck_assert_ptr_nonnull(at);
    ck_assert_int_eq(sscanf(at + strlen(asked), "%31[^a]", text), 1);
    nps_problem_clear();
    text[strlen(text) - 1] = '\0';
    ck_assert_msg(nps_parse_size(text, &least), "%s", text);
    ck_assert_msg(nps_plan_make(&layout, inputs, 4, &demands[0], &large, least, &plan) == NPS_OK, "%s", text);
    nps_plan_free(plan);
  }
}
END_TEST

START_TEST(a_method_that_holds_pieces_gets_slabs_that_long) {
  start_layout(2);
  add_target(NPS_ACTION_MERGE, 40 * NPS_BLOCK + 5, NPS_BF16, NPS_BF16);
  nps_plan_t *plan = make(1, &demands[1], plenty);
  ck_assert_int_eq(plan->slab, 41 * NPS_BLOCK);
  ck_assert_int_eq(plan->read[0], (40 * NPS_BLOCK + 5) * 4);
  nps_plan_free(plan);
  plan = make(1, &demands[1], costs.fixed_memory + demands[1].state_memory + 10 * NPS_BLOCK * 4 + 4 * NPS_BLOCK * 2);
  ck_assert_int_eq(plan->slab, 10 * NPS_BLOCK);
  ck_assert_int_eq(plan->read[0], 3 * (40 * NPS_BLOCK + 5) * 4);
  nps_plan_free(plan);
}
END_TEST

/* ---- tensors that stay whole ---- */

/* Every target whole on one rank, in file order within the rank; no rank has more than the mean and the dearest target. */
static double given_seconds(const void *ctx, int target, int ranks) {
  return ((const double *)ctx)[target] * (ranks > 1 ? 2 : 1);
}

static int64_t no_groups(const void *ctx, int target, int ranks) {
  (void)ctx;
  (void)target;
  return ranks == 1 ? 1 << 20 : INT64_MAX;
}

START_TEST(whole_tensors_are_shared_out_by_time) {
  double seconds[MOST_TARGETS], total = 0, dearest = 0, most = 0;
  uint64_t state = 77 + (uint64_t)_i;
  const int ranks = 1 + _i % 7;
  random_layout(&state);
  for (int t = 0; t < layout.count; t++) {
    seconds[t] = (double)below(&state, 1000);
    if (targets[t].action != NPS_ACTION_MERGE) seconds[t] = 0;
    total += seconds[t];
    dearest = fmax(dearest, seconds[t]);
  }
  const nps_demand_t demand = {.seconds = given_seconds, .bytes = no_groups, .ctx = seconds};
  nps_plan_t *plan = NULL;
  ck_assert(nps_plan_make(&layout, inputs, ranks, &demand, &costs, INT64_C(1) << 40, &plan) == NPS_OK);
  ck_assert_int_eq(plan->piece_count, layout.count);
  ck_assert(ranks_are_in_order(plan, ranks) && owners_are_right(plan));
  for (int r = 0; r < ranks; r++) {
    double mine = 0;
    for (int i = plan->first_piece[r]; i < plan->first_piece[r + 1]; i++) {
      const nps_piece_t *piece = &plan->pieces[i];
      ck_assert(piece->first == 0 && piece->count == targets[piece->target].count);
      ck_assert(i == plan->first_piece[r] || plan->pieces[i - 1].target < piece->target);
      mine += seconds[piece->target];
    }
    most = fmax(most, mine);
    ck_assert(plan->time[r] >= mine);
  }
  ck_assert(most <= total / ranks + dearest + 1);
  nps_plan_free(plan);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("plan");
  tcase_add_loop_test(cases, whole_tensors_are_shared_out_by_time, 0, 14);
  tcase_add_loop_test(cases, random_layouts_are_planned_right, 0, 3);
  tcase_add_test(cases, one_tensor_is_cut_for_all_ranks);
  tcase_add_test(cases, tensors_below_a_block_are_never_cut);
  tcase_add_test(cases, cuts_lie_where_a_method_asks_for_them);
  tcase_add_test(cases, a_cut_near_a_border_moves_there);
  tcase_add_test(cases, nothing_to_merge_is_planned_too);
  tcase_add_test(cases, times_are_those_of_the_cost_model);
  tcase_add_test(cases, input_widths_add_up);
  tcase_add_test(cases, too_little_memory_is_refused_with_the_least_that_would_do);
  tcase_add_test(cases, the_memory_that_is_asked_for_is_enough);
  tcase_add_test(cases, a_method_that_holds_pieces_gets_slabs_that_long);
  return run_tests("plan", cases);
}
