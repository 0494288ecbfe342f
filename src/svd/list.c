/* Many matrices over many ranks. */
#include "nps/svd.h"

#include "nps/schedule.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- what a matrix takes ---- */

static int64_t count_of(const nps_svd_job_t *job) {
  const int64_t all = nps_min64(job->rows, job->columns), leading = job->options.leading;
  return leading > 0 ? nps_min64(leading, all) : all;
}

static nps_svd_method_t method_of(const nps_svd_job_t *job) {
  return job->values_only ? NPS_SVD_GRAM : nps_svd_choose(job->rows, job->columns, &job->options);
}

static double job_seconds(const void *ctx, int i, int ranks) {
  const nps_svd_job_t *job = &((const nps_svd_list_t *)ctx)->jobs[i];
  const int64_t leading = job->values_only && ranks == 1 ? 1 : job->options.leading;
  const double seconds = nps_svd_grid_seconds(job->rows, job->columns, leading, method_of(job), ranks);
  return ranks > 1 ? seconds + NPS_MEETING_SECONDS : seconds;
}

static int64_t job_bytes(const void *ctx, int i, int ranks) {
  const nps_svd_job_t *job = &((const nps_svd_list_t *)ctx)->jobs[i];
  const int64_t k = job->values_only && ranks == 1 ? 0 : count_of(job);
  const int64_t vectors = nps_dmat_most_local(k, job->rows, ranks) + nps_dmat_most_local(k, job->columns, ranks);
  const int64_t svd = nps_svd_grid_bytes(job->rows, job->columns, job->options.leading, method_of(job), ranks);
  const int64_t matrix = 8 * nps_dmat_most_local(job->rows, job->columns, ranks), found = 8 * vectors + svd;
  if (ranks == 1) return matrix + found;
  const int64_t rows = 8 * ((job->rows + ranks - 1) / ranks) * job->columns;
  const int64_t loading = rows + nps_dmat_exchange_bytes(job->rows, job->columns, ranks);
  return matrix + (loading > found ? loading : found);
}

static nps_err_t fail_misfit(const nps_svd_list_t *list, const nps_jobs_t *jobs, int misfit) {
  const nps_svd_job_t *job = &list->jobs[misfit];
  const int ranks = nps_schedule_least_ranks(jobs, misfit);
  char have[32], more[64] = "";
  if (ranks > 0) snprintf(more, sizeof more, ", or %d ranks that share it", ranks);
  return nps_fail(
      NPS_ERR_CONFIG,
      "%s (%lld × %lld): its decomposition needs at least %lld MiB a rank on %d ranks%s, but a rank may use %s",
      job->options.name ? job->options.name : "a matrix", (long long)job->rows, (long long)job->columns,
      (long long)((nps_schedule_least_bytes(jobs, misfit) + ((1 << 20) - 1)) >> 20), jobs->ranks, more,
      nps_format_bytes((double)list->memory, have));
}

/* ---- one matrix ---- */

/* Fills a matrix with this rank's rows and the others'. Collective over the grid, agreed. */
static nps_err_t load_rows(const nps_svd_list_t *list, int i, int rank, nps_dmat_t *a) {
  const int ranks = nps_grid_ranks(a->grid);
  const int64_t first = a->rows * rank / ranks, count = a->rows * (rank + 1) / ranks - first;
  if (ranks == 1) return list->load(list->ctx, i, 0, a->rows, a->local);
  double *rows = NULL;
  nps_err_t err = nps_buffer_alloc((size_t)(count * a->columns) * sizeof *rows, "rows of a matrix", &rows);
  if (err == NPS_OK) err = list->load(list->ctx, i, first, count, rows);
  err = nps_comm_agree(nps_grid_comm(a->grid), err);
  if (err == NPS_OK) err = nps_dmat_put_rows(a, sizeof *rows, first, count, rows, a->local);
  free(rows);
  return err;
}

static nps_err_t find_values(const nps_svd_job_t *job, const nps_dmat_t *a, nps_dsvd_t *svd) {
  svd->svd = (nps_svd_t){.rows = job->rows, .columns = job->columns, .count = nps_min64(job->rows, job->columns)};
  svd->svd.sigma = nps_xcalloc((size_t)svd->svd.count + 1, sizeof *svd->svd.sigma);
  return nps_svd_values(a->local, job->rows, job->columns, job->options.name, svd->svd.sigma);
}

/* Collective over the grid, agreed. */
static nps_err_t factorise(const nps_svd_list_t *list, int i, const nps_grid_t *grid) {
  const nps_svd_job_t *job = &list->jobs[i];
  const int rank = nps_grid_ranks(grid) > 1 ? nps_comm_rank(nps_grid_comm(grid)) : 0;
  nps_dmat_t a = {0};
  nps_dsvd_t svd = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(grid, job->rows, job->columns, &a));
  NPS_GOTO(load_rows(list, i, rank, &a));
  if (job->values_only && nps_grid_ranks(grid) == 1)
    NPS_GOTO(find_values(job, &a, &svd));
  else
    NPS_GOTO(nps_svd_on_grid(&a, &job->options, &svd));
  nps_dmat_free(&a);
  err = list->done(list->ctx, i, rank, &svd);
  if (nps_grid_ranks(grid) > 1) err = nps_comm_agree(nps_grid_comm(grid), err);
done:
  nps_dsvd_free(&svd);
  nps_dmat_free(&a);
  return err;
}

/* ---- all of them ---- */

typedef struct {
  const nps_svd_list_t *list;
  const nps_schedule_t *schedule;
  nps_groups_t *groups;
  nps_pulse_t *pulse;
  int rank;
  int64_t done;
  bool stopped; /* another rank has failed */
} worker_t;

static void tell_progress(void *ctx, int64_t total) {
  const worker_t *w = ctx;
  if (w->list->progress) w->list->progress(w->list->ctx, total);
}

/* The ranks of a group begin a matrix together, or none does. */
static void meet(worker_t *w, const nps_grid_t *grid) {
  double stopped = w->stopped;
  if (nps_grid_ranks(grid) == 1) return;
  nps_comm_max_f64(nps_grid_comm(grid), &stopped, 1);
  w->stopped = stopped > 0;
}

static void beat(worker_t *w, int i) {
  const nps_group_t group = w->schedule->group[i];
  const int64_t work = w->list->jobs[i].work, at = w->rank - group.first;
  int64_t total = 0;
  w->done += work * (at + 1) / group.size - work * at / group.size;
  if (!nps_pulse_beat(w->pulse, w->done, &total)) w->stopped = true;
  tell_progress(w, total);
}

static nps_err_t work_off(worker_t *w) {
  nps_err_t err = NPS_OK;
  /* Only meeting decides to stop: a rank that hears of a failure earlier than its group would leave it waiting. */
  for (int k = 0; k < w->schedule->jobs && err == NPS_OK; k++) {
    const int i = w->schedule->order[k];
    const nps_group_t group = w->schedule->group[i];
    if (w->rank < group.first || w->rank >= group.first + group.size) continue;
    const nps_grid_t *grid = nps_groups_grid(w->groups, i);
    meet(w, grid);
    if (w->stopped) break;
    err = factorise(w->list, i, grid);
    if (err == NPS_OK) beat(w, i);
  }
  return err;
}

static int64_t work_of(const nps_svd_list_t *list) {
  int64_t work = 0;
  for (int i = 0; i < list->count; i++) work += list->jobs[i].work;
  return work;
}

nps_err_t nps_svd_list(const nps_comm_t *comm, const nps_svd_list_t *list) {
  const nps_jobs_t jobs = {.count = list->count,
                           .ranks = nps_comm_size(comm),
                           .memory = list->memory,
                           .seconds = job_seconds,
                           .bytes = job_bytes,
                           .ctx = list};
  nps_schedule_t *schedule = NULL;
  int misfit = -1;
  if (nps_schedule_make(&jobs, &schedule, &misfit) != NPS_OK)
    return nps_comm_agree(comm, fail_misfit(list, &jobs, misfit));
  worker_t w = {.list = list, .schedule = schedule, .rank = nps_comm_rank(comm)};
  w.groups = nps_groups_new(comm, schedule);
  w.pulse = nps_pulse_start(comm);
  nps_err_t err = work_off(&w);
  err = nps_pulse_end(w.pulse, w.done, err, tell_progress, &w);
  if (err == NPS_OK) tell_progress(&w, work_of(list));
  nps_groups_free(w.groups);
  nps_schedule_free(schedule);
  return err;
}
