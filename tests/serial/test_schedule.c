#include "../nps_check.h"
#include "nps/schedule.h"

#include <math.h>

/* ---- lists of jobs made by hand ---- */

enum { MOST_JOBS = 300, MOST_RANKS = 64 };

/* Seconds and bytes on one rank; a group takes seconds · (1 + loss·log2 ranks) / ranks and 1.5 · bytes / ranks a rank. */
typedef struct {
  double seconds[MOST_JOBS], loss;
  int64_t bytes[MOST_JOBS];
  bool whole[MOST_JOBS]; /* one rank's only */
} list_t;

static list_t list;

static double seconds_of(const void *ctx, int job, int ranks) {
  const list_t *l = ctx;
  return l->seconds[job] * (1 + l->loss * log2(ranks)) / ranks;
}

static int64_t bytes_of(const void *ctx, int job, int ranks) {
  const list_t *l = ctx;
  if (ranks == 1) return l->bytes[job];
  return l->whole[job] ? INT64_MAX : l->bytes[job] * 3 / 2 / ranks;
}

static nps_jobs_t jobs_of(int count, int ranks, int64_t memory) {
  return (nps_jobs_t){
      .count = count, .ranks = ranks, .memory = memory, .seconds = seconds_of, .bytes = bytes_of, .ctx = &list};
}

static int64_t below(uint64_t *state, int64_t n) { return (int64_t)(next_random(state) % (uint64_t)n); }

/* Many small jobs, a few long ones, some of equal length, some that stay whole. */
static void random_list(uint64_t *state, int count) {
  list.loss = 0.1 * (double)below(state, 8);
  for (int i = 0; i < count; i++) {
    const int64_t kind = below(state, 10);
    list.seconds[i] = kind == 0  ? 100.0 * (double)(1 + below(state, 50))
                      : kind < 4 ? 2.5
                                 : 0.01 * (double)below(state, 900);
    list.bytes[i] = 1 + below(state, 1000);
    list.whole[i] = kind > 6;
  }
}

/* ---- what must hold for every schedule ---- */

static nps_schedule_t *make(int count, int ranks, int64_t memory) {
  const nps_jobs_t jobs = jobs_of(count, ranks, memory);
  nps_schedule_t *schedule = NULL;
  int misfit = 77;
  ck_assert(nps_schedule_make(&jobs, &schedule, &misfit) == NPS_OK);
  ck_assert_int_eq(misfit, -1);
  return schedule;
}

static bool is_order(const nps_schedule_t *s) {
  bool seen[MOST_JOBS] = {false};
  for (int i = 0; i < s->jobs; i++) {
    if (s->order[i] < 0 || s->order[i] >= s->jobs || seen[s->order[i]]) return false;
    seen[s->order[i]] = true;
    if (i > 0 && s->level[s->order[i]] < s->level[s->order[i - 1]]) return false;
  }
  return true;
}

/* Groups are those of their level: two groups are the same, apart, or one is within the other. */
static bool groups_are_blocks(const nps_schedule_t *s) {
  for (int i = 0; i < s->jobs; i++) {
    const nps_group_t own = s->group[i], level = nps_schedule_group(s->ranks, own.first, s->level[i]);
    if (own.first != level.first || own.size != level.size) return false;
  }
  return true;
}

static bool memory_is_kept(const nps_schedule_t *s, int64_t memory) {
  int64_t most[MOST_RANKS] = {0};
  for (int i = 0; i < s->jobs; i++) {
    const int64_t bytes = bytes_of(&list, i, s->group[i].size);
    if (bytes > memory) return false;
    for (int r = s->group[i].first; r < s->group[i].first + s->group[i].size; r++)
      if (bytes > most[r]) most[r] = bytes;
  }
  return memcmp(most, s->bytes, (size_t)s->ranks * sizeof *most) == 0;
}

/* Plays the schedule: every rank does its jobs in order, a job begins when all of its ranks are there. Waiting in a circle
 * cannot happen where this ends with the predicted times and no rank ever waits for another. */
static bool plays_as_predicted(const nps_schedule_t *s) {
  double now[MOST_RANKS] = {0};
  for (int i = 0; i < s->jobs; i++) {
    const nps_group_t g = s->group[s->order[i]];
    for (int r = g.first; r < g.first + g.size; r++)
      if (now[r] != now[g.first]) return false;
    const double end = now[g.first] + seconds_of(&list, s->order[i], g.size);
    for (int r = g.first; r < g.first + g.size; r++) now[r] = end;
  }
  double longest = 0;
  for (int r = 0; r < s->ranks; r++) {
    if (fabs(now[r] - s->finish[r]) > 1e-9 * (1 + now[r])) return false;
    longest = fmax(longest, now[r]);
  }
  return fabs(longest - s->longest) <= 1e-9 * (1 + longest);
}

/* The work of all jobs where each has the smallest group that holds it, as it is if no job is given to a larger one. */
static double bound_of(int count, int ranks, int64_t memory, double *largest) {
  double work = 0;
  *largest = 0;
  for (int i = 0; i < count; i++) {
    double most = 0;
    for (int l = nps_schedule_levels(ranks) - 1; l >= 0 && most == 0; l--)
      for (int r = 0, size = 0; r < ranks; r += size) {
        size = nps_schedule_group(ranks, r, l).size;
        if (bytes_of(&list, i, size) > memory) continue;
        most = fmax(most, seconds_of(&list, i, size) * size);
        *largest = fmax(*largest, seconds_of(&list, i, size));
      }
    work += most;
  }
  return work / ranks;
}

static void check(const nps_schedule_t *s, int64_t memory) {
  double largest = 0;
  const double bound = bound_of(s->jobs, s->ranks, memory, &largest);
  ck_assert(is_order(s));
  ck_assert(groups_are_blocks(s));
  ck_assert(memory_is_kept(s, memory));
  ck_assert(plays_as_predicted(s));
  ck_assert_msg(s->longest <= (bound + largest) * (1 + 1e-12), "%g > %g + %g", s->longest, bound, largest);
}

START_TEST(random_lists_are_scheduled_right) {
  static const int some_ranks[] = {1, 2, 3, 4, 5, 7, 8, 13, 33, 64};
  uint64_t state = 99 + (uint64_t)_i;
  for (size_t k = 0; k < sizeof some_ranks / sizeof *some_ranks; k++) {
    const int count = (int)below(&state, _i % 2 ? 12 : MOST_JOBS);
    random_list(&state, count);
    nps_schedule_t *schedule = make(count, some_ranks[k], 1000);
    check(schedule, 1000);
    nps_schedule_free(schedule);
  }
}
END_TEST

/* Some jobs fit into no rank's memory alone. */
START_TEST(large_jobs_go_to_groups_that_hold_them) {
  for (int ranks = 2; ranks <= 17; ranks++) {
    uint64_t state = 7 + (uint64_t)ranks;
    random_list(&state, 60);
    for (int i = 0; i < 60; i++) {
      list.whole[i] = i % 3 == 0;
      list.bytes[i] = i % 3 == 0 ? 500 : below(&state, 2 * 500 * ranks / 3);
    }
    nps_schedule_t *schedule = make(60, ranks, 500);
    check(schedule, 500);
    for (int i = 0; i < 60; i++) ck_assert(list.bytes[i] <= 500 || schedule->group[i].size > 1);
    nps_schedule_free(schedule);
  }
}
END_TEST

START_TEST(groups_halve_the_ranks) {
  ck_assert_int_eq(nps_schedule_levels(1), 1);
  ck_assert_int_eq(nps_schedule_levels(2), 2);
  ck_assert_int_eq(nps_schedule_levels(3), 3);
  ck_assert_int_eq(nps_schedule_levels(4), 3);
  ck_assert_int_eq(nps_schedule_levels(5), 4);
  for (int ranks = 1; ranks <= 70; ranks++) {
    const int last = nps_schedule_levels(ranks) - 1;
    for (int r = 0; r < ranks; r++) {
      ck_assert_int_eq(nps_schedule_group(ranks, r, 0).size, ranks);
      ck_assert_int_eq(nps_schedule_group(ranks, r, last).size, 1);
      for (int l = 0; l < last; l++) {
        const nps_group_t outer = nps_schedule_group(ranks, r, l), inner = nps_schedule_group(ranks, r, l + 1);
        ck_assert(inner.first <= r && r < inner.first + inner.size);
        ck_assert(inner.first >= outer.first && inner.first + inner.size <= outer.first + outer.size);
        ck_assert(abs(2 * inner.size - outer.size) <= 1);
      }
    }
  }
}
END_TEST

/* One long job and many short ones: alone it would set the end. */
START_TEST(a_job_that_would_set_the_end_is_shared) {
  list = (list_t){.loss = 0.2};
  for (int i = 0; i < 20; i++) list.seconds[i] = i == 5 ? 100 : 1;
  nps_schedule_t *schedule = make(20, 4, 1000);
  check(schedule, 1000);
  ck_assert_int_eq(schedule->group[5].size, 4);
  for (int i = 0; i < 20; i++) ck_assert(i == 5 || schedule->group[i].size == 1);
  ck_assert(schedule->longest <= 100 * 1.4 / 4 + 5 + 1e-9);
  nps_schedule_free(schedule);
}
END_TEST

/* Three equal jobs on two ranks: the third is shared; where sharing gains nothing, none is. */
START_TEST(the_tail_is_shared_where_that_helps) {
  list = (list_t){.loss = 0.1, .seconds = {1, 1, 1}};
  nps_schedule_t *schedule = make(3, 2, 1000);
  check(schedule, 1000);
  ck_assert(fabs(schedule->longest - 1.55) < 1e-12);
  nps_schedule_free(schedule);
  list.loss = 1;
  schedule = make(3, 2, 1000);
  for (int i = 0; i < 3; i++) ck_assert_int_eq(schedule->group[i].size, 1);
  ck_assert(schedule->longest == 2);
  nps_schedule_free(schedule);
}
END_TEST

START_TEST(more_ranks_than_jobs_and_no_job_at_all) {
  list = (list_t){.loss = 5, .seconds = {3, 2}};
  nps_schedule_t *schedule = make(2, 9, 1000);
  check(schedule, 1000);
  ck_assert(schedule->longest == 3 && schedule->group[0].size == 1 && schedule->group[1].size == 1);
  ck_assert_int_ne(schedule->group[0].first, schedule->group[1].first);
  nps_schedule_free(schedule);
  schedule = make(0, 5, 1000);
  ck_assert(schedule->longest == 0);
  nps_schedule_free(schedule);
}
END_TEST

START_TEST(what_does_not_fit_is_told) {
  list = (list_t){.seconds = {1, 1, 1}, .bytes = {10, 4000, 3000}};
  nps_jobs_t jobs = jobs_of(3, 4, 1000);
  nps_schedule_t *schedule = NULL;
  int misfit = -1;
  ck_assert(nps_schedule_make(&jobs, &schedule, &misfit) == NPS_ERR_CONFIG);
  ck_assert_int_eq(misfit, 1);
  ck_assert_ptr_null(schedule);
  ck_assert_int_eq(nps_schedule_least_bytes(&jobs, 1), 1500);
  ck_assert_int_eq(nps_schedule_least_ranks(&jobs, 1), 6);
  jobs.memory = 1500;
  ck_assert(nps_schedule_make(&jobs, &schedule, NULL) == NPS_OK);
  nps_schedule_free(schedule);
  jobs = jobs_of(3, 6, 1000);
  ck_assert(nps_schedule_make(&jobs, &schedule, NULL) == NPS_OK);
  nps_schedule_free(schedule);
  list.whole[1] = true;
  ck_assert_int_eq(nps_schedule_least_ranks(&jobs, 1), 0);
  ck_assert_int_eq(nps_schedule_least_bytes(&jobs, 1), 4000);
}
END_TEST

/* ---- chains ---- */

enum { MOST_ITEMS = 9 };

static int64_t weights[MOST_ITEMS];

/* The ends share an item: together they weigh less. */
static int64_t weight_of(const void *ctx, int first, int end) {
  const int count = *(const int *)ctx;
  int64_t weight = first == 0 && end == count ? -weights[0] / 2 : 0;
  for (int i = first; i < end; i++) weight += weights[i];
  return weight;
}

/* The lightest that the heaviest stretch of the items from `first` on can be, by trying all. */
static int64_t try_all(int count, int parts, int first) {
  if (parts == 1) return weight_of(&count, first, count);
  int64_t best = INT64_MAX;
  for (int next = first + 1; next <= count - parts + 1; next++)
    best = nps_min64(best, nps_max64(weight_of(&count, first, next), try_all(count, parts - 1, next)));
  return best;
}

START_TEST(chains_are_cut_where_the_heaviest_stretch_is_lightest) {
  uint64_t state = (uint64_t)_i + 1;
  const int count = 1 + (int)below(&state, MOST_ITEMS);
  for (int i = 0; i < count; i++) weights[i] = below(&state, 50);
  for (int parts = 1; parts <= count; parts++) {
    int cut[MOST_ITEMS + 1];
    int64_t heaviest = 0;
    nps_schedule_split(count, parts, weight_of, &count, cut);
    ck_assert(cut[0] == 0 && cut[parts] == count);
    for (int p = 0; p < parts; p++) {
      ck_assert_int_lt(cut[p], cut[p + 1]);
      heaviest = nps_max64(heaviest, weight_of(&count, cut[p], cut[p + 1]));
    }
    ck_assert_int_eq(heaviest, try_all(count, parts, 0));
  }
}
END_TEST

/* Groups that take pieces as they fall idle: nobody idles longer than one item takes. */
START_TEST(pieces_leave_no_group_idle_for_longer_than_an_item) {
  enum { ITEMS = 200, MOST_GROUPS = 7 };
  uint64_t state = (uint64_t)_i + 1;
  const int groups = 1 + (int)below(&state, MOST_GROUPS);
  const int64_t count = below(&state, ITEMS + 1);
  double work[ITEMS], busy[MOST_GROUPS] = {0}, longest = 0, first = INFINITY, last = 0;
  int64_t cut[ITEMS + 1];
  for (int64_t i = 0; i < count; i++) longest = fmax(longest, work[i] = 1 + (double)below(&state, 9));
  const int64_t pieces = nps_schedule_deal(work, count, groups, cut);
  ck_assert(cut[0] == 0 && cut[pieces] == count && (groups > 1 || pieces <= 1));
  for (int64_t p = 0; p < pieces; p++) {
    int idle = 0;
    for (int g = 1; g < groups; g++)
      if (busy[g] < busy[idle]) idle = g;
    ck_assert_int_lt(cut[p], cut[p + 1]);
    for (int64_t i = cut[p]; i < cut[p + 1]; i++) busy[idle] += work[i];
  }
  for (int g = 0; g < groups; g++) {
    first = fmin(first, busy[g]);
    last = fmax(last, busy[g]);
  }
  ck_assert_msg(last - first <= longest, "%g to %g, items of at most %g", first, last, longest);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("schedule");
  tcase_add_loop_test(cases, chains_are_cut_where_the_heaviest_stretch_is_lightest, 0, 40);
  tcase_add_loop_test(cases, pieces_leave_no_group_idle_for_longer_than_an_item, 0, 60);
  tcase_add_test(cases, groups_halve_the_ranks);
  tcase_add_loop_test(cases, random_lists_are_scheduled_right, 0, 20);
  tcase_add_test(cases, large_jobs_go_to_groups_that_hold_them);
  tcase_add_test(cases, a_job_that_would_set_the_end_is_shared);
  tcase_add_test(cases, the_tail_is_shared_where_that_helps);
  tcase_add_test(cases, more_ranks_than_jobs_and_no_job_at_all);
  tcase_add_test(cases, what_does_not_fit_is_told);
  return run_tests("schedule", cases);
}
