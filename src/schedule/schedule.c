#include "nps/schedule.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A schedule with larger groups must end this much earlier to be taken: predictions are rough, and matrices that stay on one
 * rank give the same bits on any number of ranks. */
#define GAIN 0.95

/* Bounds on a job's time that are tried: from a quarter of the ideal finish on, each larger by this factor. */
#define BOUNDS 24
#define BOUND_STEP 1.3

/* How often a job of the last rank is given to a larger group in the end. */
#define MOST_RAISES 64

/* Sizes of groups at a level: two that differ by one, or only one. */
enum { SMALL, LARGE, SIZES };

typedef struct {
  double seconds[SIZES]; /* infinite where a group of the size does not hold the job */
} cost_t;

typedef struct {
  const nps_jobs_t *jobs;
  int levels;
  cost_t *cost;    /* [jobs][levels] */
  int *by_length;  /* [jobs] the longest first */
  int *deepest;    /* [jobs] the last level that holds it */
  double *longest; /* [jobs] seconds in the smallest group that holds it */
} scheduler_t;

/* ---- groups ---- */

int nps_schedule_levels(int ranks) {
  int levels = 1;
  for (int size = ranks; size > 1; size = size - size / 2) levels++;
  return levels;
}

nps_group_t nps_schedule_group(int ranks, int rank, int level) {
  nps_group_t group = {0, ranks};
  for (int l = 0; l < level && group.size > 1; l++) {
    const int half = group.size / 2;
    if (rank < group.first + half) {
      group.size = half;
    } else {
      group.first += half;
      group.size -= half;
    }
  }
  return group;
}

static int small_size(int ranks, int level) { return ranks >> level > 0 ? ranks >> level : 1; }

static bool has_large(int ranks, int level) { return ranks >> level > 0 && ranks % (1 << level) != 0; }

/* ---- costs ---- */

static double cost_of(const nps_jobs_t *jobs, int job, int size) {
  return jobs->bytes(jobs->ctx, job, size) <= jobs->memory ? jobs->seconds(jobs->ctx, job, size) : INFINITY;
}

static double least_cost(const scheduler_t *s, int job, int level) {
  const cost_t *cost = &s->cost[(int64_t)job * s->levels + level];
  return fmin(cost->seconds[SMALL], cost->seconds[LARGE]);
}

static void find_costs(scheduler_t *s, int job) {
  const int ranks = s->jobs->ranks;
  s->deepest[job] = -1;
  for (int l = 0; l < s->levels; l++) {
    cost_t *cost = &s->cost[(int64_t)job * s->levels + l];
    const int size = small_size(ranks, l);
    cost->seconds[SMALL] = cost_of(s->jobs, job, size);
    cost->seconds[LARGE] = has_large(ranks, l) ? cost_of(s->jobs, job, size + 1) : INFINITY;
    if (isfinite(least_cost(s, job, l))) s->deepest[job] = l;
  }
  if (s->deepest[job] >= 0) s->longest[job] = least_cost(s, job, s->deepest[job]);
}

typedef struct {
  double seconds;
  int job;
} length_t;

static int longest_first(const void *a, const void *b) {
  const length_t *x = a, *y = b;
  if (x->seconds != y->seconds) return x->seconds < y->seconds ? 1 : -1;
  return x->job - y->job;
}

static void sort_jobs(scheduler_t *s) {
  const int count = s->jobs->count;
  length_t *length = nps_xcalloc((size_t)count + 1, sizeof *length);
  for (int i = 0; i < count; i++) length[i] = (length_t){s->longest[i], i};
  qsort(length, (size_t)count, sizeof *length, longest_first);
  for (int i = 0; i < count; i++) s->by_length[i] = length[i].job;
  free(length);
}

/* ---- the groups of a level, those that are free earliest at the top of a heap ---- */

typedef struct {
  double free;
  nps_group_t group;
} place_t;

typedef struct {
  place_t *heap;
  int count;
} queue_t;

static bool earlier(const place_t *a, const place_t *b) {
  return a->free != b->free ? a->free < b->free : a->group.first < b->group.first;
}

static void sink(queue_t *q, int at) {
  for (int child; (child = 2 * at + 1) < q->count; at = child) {
    if (child + 1 < q->count && earlier(&q->heap[child + 1], &q->heap[child])) child++;
    if (!earlier(&q->heap[child], &q->heap[at])) return;
    const place_t moved = q->heap[at];
    q->heap[at] = q->heap[child];
    q->heap[child] = moved;
  }
}

static void line_up(const scheduler_t *s, int level, const double *finish, queue_t queue[SIZES]) {
  const int ranks = s->jobs->ranks;
  nps_group_t group;
  for (int rank = 0; rank < ranks; rank += group.size) {
    group = nps_schedule_group(ranks, rank, level);
    queue_t *q = &queue[group.size == small_size(ranks, level) ? SMALL : LARGE];
    q->heap[q->count++] = (place_t){finish[group.first], group};
  }
  for (int k = 0; k < SIZES; k++)
    for (int at = queue[k].count / 2; at >= 0; at--) sink(&queue[k], at);
}

/* Gives a job to the group of a level that ends it earliest. */
static void place(const scheduler_t *s, queue_t queue[SIZES], int job, nps_schedule_t *out) {
  const cost_t *cost = &s->cost[(int64_t)job * s->levels + out->level[job]];
  double end[SIZES];
  for (int k = 0; k < SIZES; k++) end[k] = queue[k].count ? queue[k].heap[0].free + cost->seconds[k] : INFINITY;
  queue_t *q = &queue[end[SMALL] < end[LARGE] || (end[SMALL] == end[LARGE] &&
                                                  queue[SMALL].heap[0].group.first < queue[LARGE].heap[0].group.first)
                          ? SMALL
                          : LARGE];
  out->group[job] = q->heap[0].group;
  q->heap[0].free += cost->seconds[q - queue];
  sink(q, 0);
}

/* ---- one schedule: the level of every job is given ---- */

static void summarise(nps_schedule_t *out) {
  out->longest = out->mean = 0;
  for (int r = 0; r < out->ranks; r++) {
    out->longest = fmax(out->longest, out->finish[r]);
    out->mean += out->finish[r] / out->ranks;
  }
}

static void fill(const scheduler_t *s, nps_schedule_t *out) {
  const int ranks = out->ranks;
  int placed = 0;
  queue_t queue[SIZES];
  for (int k = 0; k < SIZES; k++) queue[k].heap = nps_xcalloc((size_t)ranks, sizeof(place_t));
  memset(out->finish, 0, (size_t)ranks * sizeof *out->finish);
  for (int l = 0; l < s->levels; l++) {
    queue[SMALL].count = queue[LARGE].count = 0;
    line_up(s, l, out->finish, queue);
    for (int i = 0; i < out->jobs; i++) {
      if (out->level[s->by_length[i]] != l) continue;
      out->order[placed++] = s->by_length[i];
      place(s, queue, s->by_length[i], out);
    }
    for (int k = 0; k < SIZES; k++)
      for (int i = 0; i < queue[k].count; i++)
        for (int r = 0; r < queue[k].heap[i].group.size; r++)
          out->finish[queue[k].heap[i].group.first + r] = queue[k].heap[i].free;
  }
  for (int k = 0; k < SIZES; k++) free(queue[k].heap);
  summarise(out);
}

static nps_schedule_t *allocate(const nps_jobs_t *jobs) {
  nps_schedule_t *out = nps_xcalloc(1, sizeof *out);
  out->ranks = jobs->ranks;
  out->jobs = jobs->count;
  out->group = nps_xcalloc((size_t)jobs->count + 1, sizeof *out->group);
  out->level = nps_xcalloc((size_t)jobs->count + 1, sizeof *out->level);
  out->order = nps_xcalloc((size_t)jobs->count + 1, sizeof *out->order);
  out->finish = nps_xcalloc((size_t)jobs->ranks, sizeof *out->finish);
  out->bytes = nps_xcalloc((size_t)jobs->ranks, sizeof *out->bytes);
  return out;
}

void nps_schedule_free(nps_schedule_t *schedule) {
  if (!schedule) return;
  free(schedule->group);
  free(schedule->level);
  free(schedule->order);
  free(schedule->finish);
  free(schedule->bytes);
  free(schedule);
}

/* ---- the best of several ---- */

/* The deepest level at which a job takes no longer than `bound`; where none does, the one at which it is shortest. */
static int level_within(const scheduler_t *s, int job, double bound) {
  int shortest = s->deepest[job];
  for (int l = s->deepest[job]; l >= 0; l--) {
    if (least_cost(s, job, l) <= bound) return l;
    if (least_cost(s, job, l) < least_cost(s, job, shortest)) shortest = l;
  }
  return shortest;
}

/* Takes a trial where it ends clearly earlier than the best so far. */
static bool take_better(nps_schedule_t **best, nps_schedule_t **trial, double gain) {
  if (!((*trial)->longest < gain * (*best)->longest)) return false;
  nps_schedule_t *worse = *best;
  *best = *trial;
  *trial = worse;
  return true;
}

/* Tries bounds on the time of a job. */
static void try_bounds(const scheduler_t *s, nps_schedule_t **best, nps_schedule_t **trial) {
  double bound = (*best)->mean / 4, gain = GAIN;
  for (int k = 0; k < BOUNDS; k++, bound *= BOUND_STEP) {
    for (int i = 0; i < s->jobs->count; i++) (*trial)->level[i] = level_within(s, i, bound);
    fill(s, *trial);
    if (take_better(best, trial, gain)) gain = 1;
  }
}

/* The job of the rank that ends last whose part of the time is nearest above what the rank is behind the mean; or its
 * longest. -1: none that a larger group could do. */
static int job_to_raise(const scheduler_t *s, const nps_schedule_t *schedule) {
  int last = 0, found = -1;
  for (int r = 1; r < schedule->ranks; r++)
    if (schedule->finish[r] > schedule->finish[last]) last = r;
  const double behind = schedule->longest - schedule->mean;
  for (int i = 0; i < schedule->jobs; i++) {
    const int job = s->by_length[i];
    const nps_group_t group = schedule->group[job];
    const int level = schedule->level[job] - 1;
    if (last < group.first || last >= group.first + group.size) continue;
    if (level < 0 || !isfinite(least_cost(s, job, level))) continue;
    if (found < 0 || s->longest[job] >= behind) found = job;
  }
  return found;
}

/* Evens out the end: gives jobs of the last rank to larger groups, while that helps. */
static void even_out(const scheduler_t *s, nps_schedule_t **best, nps_schedule_t **trial) {
  for (int k = 0; k < MOST_RAISES; k++) {
    const int job = job_to_raise(s, *best);
    if (job < 0) return;
    memcpy((*trial)->level, (*best)->level, (size_t)s->jobs->count * sizeof *(*trial)->level);
    (*trial)->level[job]--;
    fill(s, *trial);
    if (!take_better(best, trial, GAIN)) return;
  }
}

static void find_bytes(const nps_jobs_t *jobs, nps_schedule_t *schedule) {
  for (int i = 0; i < jobs->count; i++) {
    const nps_group_t group = schedule->group[i];
    const int64_t bytes = jobs->bytes(jobs->ctx, i, group.size);
    for (int r = group.first; r < group.first + group.size; r++)
      if (bytes > schedule->bytes[r]) schedule->bytes[r] = bytes;
  }
}

static nps_schedule_t *find_best(const scheduler_t *s) {
  nps_schedule_t *best = allocate(s->jobs), *trial = allocate(s->jobs);
  memcpy(best->level, s->deepest, (size_t)s->jobs->count * sizeof *best->level);
  fill(s, best);
  if (s->jobs->ranks > 1 && s->jobs->count > 0) {
    even_out(s, &best, &trial);
    try_bounds(s, &best, &trial);
    even_out(s, &best, &trial);
  }
  nps_schedule_free(trial);
  find_bytes(s->jobs, best);
  return best;
}

/* ---- what does not fit ---- */

int64_t nps_schedule_least_bytes(const nps_jobs_t *jobs, int job) {
  int64_t least = INT64_MAX;
  for (int l = 0; l < nps_schedule_levels(jobs->ranks); l++)
    for (int k = 0; k <= has_large(jobs->ranks, l); k++) {
      const int64_t bytes = jobs->bytes(jobs->ctx, job, small_size(jobs->ranks, l) + k);
      if (bytes < least) least = bytes;
    }
  return least;
}

int nps_schedule_least_ranks(const nps_jobs_t *jobs, int job) {
  const int most = 1 << 20;
  int too_few = 0, enough = 1;
  while (enough <= most && jobs->bytes(jobs->ctx, job, enough) > jobs->memory) {
    too_few = enough;
    enough *= 2;
  }
  if (enough > most) return 0;
  while (enough - too_few > 1) {
    const int middle = too_few + (enough - too_few) / 2;
    if (jobs->bytes(jobs->ctx, job, middle) > jobs->memory)
      too_few = middle;
    else
      enough = middle;
  }
  return enough;
}

static int find_misfit(const scheduler_t *s) {
  int misfit = -1;
  int64_t most = 0;
  for (int i = 0; i < s->jobs->count; i++) {
    if (s->deepest[i] >= 0) continue;
    const int64_t least = nps_schedule_least_bytes(s->jobs, i);
    if (misfit < 0 || least > most) {
      misfit = i;
      most = least;
    }
  }
  return misfit;
}

nps_err_t nps_schedule_make(const nps_jobs_t *jobs, nps_schedule_t **out, int *misfit) {
  scheduler_t s = {.jobs = jobs, .levels = nps_schedule_levels(jobs->ranks)};
  const size_t count = (size_t)jobs->count + 1;
  s.cost = nps_xcalloc(count * (size_t)s.levels, sizeof *s.cost);
  s.by_length = nps_xcalloc(count, sizeof *s.by_length);
  s.deepest = nps_xcalloc(count, sizeof *s.deepest);
  s.longest = nps_xcalloc(count, sizeof *s.longest);
  for (int i = 0; i < jobs->count; i++) find_costs(&s, i);
  const int found = find_misfit(&s);
  if (misfit) *misfit = found;
  *out = NULL;
  if (found < 0) {
    sort_jobs(&s);
    *out = find_best(&s);
  }
  free(s.cost);
  free(s.by_length);
  free(s.deepest);
  free(s.longest);
  return found < 0 ? NPS_OK : NPS_ERR_CONFIG;
}

/* ---- jobs of one rank ---- */

static double given_seconds(const void *ctx, int job, int ranks) {
  (void)ranks;
  return ((const double *)ctx)[job];
}

static int64_t bytes_of_one(const void *ctx, int job, int ranks) {
  (void)ctx;
  (void)job;
  return ranks == 1 ? 0 : INT64_MAX;
}

void nps_schedule_assign(const double *seconds, int count, int ranks, int *owner) {
  nps_schedule_t *schedule = NULL;
  const nps_jobs_t jobs = {
      .count = count, .ranks = ranks, .seconds = given_seconds, .bytes = bytes_of_one, .ctx = seconds};
  if (nps_schedule_make(&jobs, &schedule, NULL) != NPS_OK) nps_fatal("a schedule without groups failed");
  for (int i = 0; i < count; i++) owner[i] = schedule->group[i].first;
  nps_schedule_free(schedule);
}
