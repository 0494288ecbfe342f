/* Searches on their way: their histories, and the choice of their final genomes. */
#include "search_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The H-score is also of the tasks that the base could do before. */
static bool belongs(const nps_search_spec_t *spec, int task, int model) {
  const int owner = spec->tasks[task].model;
  return model < 0 || owner == model || (owner < 0 && spec->fitness->objective == NPS_OBJECTIVE_H_SCORE);
}

static void take_tasks(const nps_search_spec_t *spec, nps_track_t *track) {
  track->tasks = nps_xcalloc((size_t)spec->task_count, sizeof *track->tasks);
  for (int t = 0; t < spec->task_count; t++)
    if (belongs(spec, t, track->model)) track->tasks[track->task_count++] = t;
}

void nps_track_begin(const nps_search_spec_t *spec, nps_stage_t stage, int model, nps_search_history_t *history,
                     nps_track_t *track) {
  *track = (nps_track_t){.stage = stage, .model = model, .history = history};
  track->genome = nps_genome_new(spec, stage, model);
  take_tasks(spec, track);
  const char *name = nps_stage_name(stage);
  *history = (nps_search_history_t){.variables = track->genome->count, .task_count = track->task_count};
  history->path = model < 0 ? nps_xstrdup(name) : nps_xstrf("%s/%s", name, spec->models[model]);
  history->columns = nps_xcalloc((size_t)history->variables, sizeof *history->columns);
  for (int i = 0; i < history->variables; i++) history->columns[i] = nps_xstrdup(track->genome->columns[i]);
  history->tasks = nps_xcalloc((size_t)track->task_count + 1, sizeof *history->tasks);
  for (int k = 0; k < track->task_count; k++) history->tasks[k] = spec->tasks[track->tasks[k]].name;
  history->stop = nps_cmaes_stop_text(NPS_CMAES_STOP_NONE);
}

void nps_track_end(nps_track_t *track) {
  nps_genome_free(track->genome);
  nps_weighting_free(track->frame);
  nps_cmaes_free(track->cmaes);
  free(track->tasks);
  free(track->values);
  free(track->points);
  free(track->mean_sum);
}

void nps_history_free(nps_search_history_t *h) {
  for (int i = 0; i < h->variables; i++) free(h->columns[i]);
  free(h->path);
  free(h->columns);
  free(h->tasks);
  free(h->genome);
  free(h->generation);
  free(h->candidate);
  free(h->correct);
  free(h->total);
  free(h->nll_sum);
  free(h->fitness);
  free(h->held_fitness);
}

/* ---- scoring points ---- */

static void make_room(nps_track_t *track, int more) {
  nps_search_history_t *h = track->history;
  const size_t rows = (size_t)h->evaluations + (size_t)more, cells = rows * (size_t)h->task_count;
  h->genome = nps_xrealloc(h->genome, rows * (size_t)h->variables, sizeof *h->genome);
  h->generation = nps_xrealloc(h->generation, rows, sizeof *h->generation);
  h->candidate = nps_xrealloc(h->candidate, rows, sizeof *h->candidate);
  h->correct = nps_xrealloc(h->correct, cells, sizeof *h->correct);
  h->total = nps_xrealloc(h->total, cells, sizeof *h->total);
  h->nll_sum = nps_xrealloc(h->nll_sum, cells, sizeof *h->nll_sum);
  h->fitness = nps_xrealloc(h->fitness, rows, sizeof *h->fitness);
  h->held_fitness = nps_xrealloc(h->held_fitness, rows, sizeof *h->held_fitness);
  track->values = nps_xrealloc(track->values, rows, sizeof *track->values);
}

static void add_row(const nps_searching_t *s, nps_track_t *track, int point, bool means, const nps_score_t *scores) {
  nps_search_history_t *h = track->history;
  const int64_t row = h->evaluations++, first = row * h->task_count;
  const nps_fitness_value_t value = nps_goal_value(s->goal, NPS_PART_SEEN, track->tasks, track->task_count, scores);
  memcpy(h->genome + row * h->variables, track->points + (int64_t)point * h->variables,
         (size_t)h->variables * sizeof *h->genome);
  h->generation[row] = track->generation;
  h->candidate[row] = means ? -1 - point : point;
  for (int k = 0; k < h->task_count; k++) {
    h->correct[first + k] = scores[k].correct;
    h->total[first + k] = scores[k].total;
    h->nll_sum[first + k] = scores[k].nll_sum;
  }
  track->values[row] = value;
  h->fitness[row] = value.failed ? NAN : value.primary;
  h->held_fitness[row] = NAN;
}

/* Appends the candidate of a genome to a list of jobs. Collective. @return it, to be named */
static nps_job_t *add_job(const nps_searching_t *s, const nps_track_t *track, const double *x, int part,
                          nps_job_t *jobs, int *count) {
  nps_weighting_t *w = nps_weighting_copy(track->frame);
  nps_job_t *job = &jobs[(*count)++];
  nps_genome_put_alike(s->comm, track->genome, x, w);
  *job = (nps_job_t){.weighting = w,
                     .tasks = track->tasks,
                     .task_count = track->task_count,
                     .part = part,
                     .shaken = s->spec->fitness->sharpness_samples > 0};
  return job;
}

static void name_job(const nps_track_t *track, int generation, int candidate, nps_job_t *job) {
  const char *path = track->history->path;
  if (candidate < 0)
    snprintf(job->what, sizeof job->what, "%s of %s", candidate == -1 ? "the last mean" : "the average of the means",
             path);
  else
    snprintf(job->what, sizeof job->what, "candidate %d of generation %d of %s", candidate, generation, path);
}

/* Scores jobs and forgets their weightings. @param[out] scores  freed with free(), after errors too */
static nps_err_t run_jobs(nps_scorer_t *scorer, nps_job_t *jobs, int count, nps_score_t **scores) {
  size_t items = 1;
  for (int j = 0; j < count; j++) items += (size_t)jobs[j].task_count;
  *scores = nps_xcalloc(items, sizeof **scores);
  nps_err_t err = nps_scorer_run(scorer, jobs, count, *scores);
  for (int j = 0; j < count; j++) nps_weighting_free((nps_weighting_t *)jobs[j].weighting);
  free(jobs);
  return err;
}

/* Whether a command could score none of the candidates that a search has tried last. A start alone is no generation. */
static bool has_failed_wholly(const nps_track_t *track) {
  const int64_t rows = track->history->evaluations;
  int64_t failed = 0;
  for (int64_t row = rows - track->point_count; row < rows; row++) failed += track->values[row].failed;
  return failed == track->point_count && failed > (track->generation == 0);
}

/* Nothing can be learnt from a command that scores nothing. Collective. */
static nps_err_t check_generation(const nps_searching_t *s, const nps_track_t *tracks, int count) {
  const char *why = nps_scorer_last_failure(s->scorer);
  nps_err_t err = NPS_OK;
  for (int i = 0; i < count && err == NPS_OK; i++)
    if (has_failed_wholly(&tracks[i]))
      err = nps_fail(NPS_ERR_RUNTIME, "search %s: every candidate of generation %d failed%s%s", tracks[i].history->path,
                     tracks[i].generation, why ? ": " : "", why ? why : "");
  return nps_comm_agree(s->comm, err);
}

nps_err_t nps_tracks_score(nps_searching_t *s, nps_track_t *tracks, int count, bool means) {
  int points = 0, job_count = 0;
  for (int i = 0; i < count; i++) points += tracks[i].point_count;
  nps_job_t *jobs = nps_xcalloc((size_t)points + 1, sizeof *jobs);
  for (int i = 0; i < count; i++)
    for (int p = 0; p < tracks[i].point_count; p++)
      name_job(&tracks[i], tracks[i].generation, means ? -1 - p : p,
               add_job(s, &tracks[i], tracks[i].points + (int64_t)p * tracks[i].genome->count, NPS_PART_SEEN, jobs,
                       &job_count));
  nps_score_t *scores = NULL;
  nps_err_t err = run_jobs(s->scorer, jobs, job_count, &scores);
  const nps_score_t *next = scores;
  for (int i = 0; err == NPS_OK && i < count; i++) {
    make_room(&tracks[i], tracks[i].point_count);
    for (int p = 0; p < tracks[i].point_count; p++, next += tracks[i].task_count)
      add_row(s, &tracks[i], p, means, next);
    s->search->evaluations += tracks[i].point_count;
  }
  free(scores);
  if (err == NPS_OK && s->spec->command && !means) err = check_generation(s, tracks, count);
  return err;
}

/* ---- the choice ---- */

int64_t nps_track_best(const nps_track_t *track, int64_t first, int64_t end) {
  int64_t best = first;
  for (int64_t row = first + 1; row < end; row++)
    if (nps_fitness_compare(&track->values[row], &track->values[best]) < 0) best = row;
  return best;
}

static bool has_held(const nps_searching_t *s, const nps_track_t *track) {
  if (s->spec->command) return s->spec->fitness->holdout > 0;
  for (int k = 0; k < track->task_count; k++)
    for (int64_t i = 0; i < s->spec->tasks[track->tasks[k]].data->samples; i++)
      if (nps_sample_is_held(i, s->spec->fitness->holdout)) return true;
  return false;
}

/* The rows that may become the final genome: the best of each generation, which of generation 0 is the start, and the
 * means. Ascending. */
static int find_finalists(const nps_track_t *track, int64_t *rows) {
  const nps_search_history_t *h = track->history;
  int64_t first = 0;
  int count = 0;
  for (int64_t row = 0; row < h->evaluations; row++) {
    const int64_t next = row + 1;
    if (next < h->evaluations && h->generation[next] == h->generation[row] && h->candidate[next] >= 0) continue;
    rows[count] = nps_track_best(track, first, next);
    if (!track->values[rows[count]].failed) count++;
    first = next;
  }
  return count;
}

static const nps_score_t *scores_of(const nps_track_t *track, const int64_t *rows, int count, int64_t row,
                                    const nps_score_t *scores) {
  for (int i = 0; i < count; i++)
    if (rows[i] == row) return scores + (int64_t)i * track->task_count;
  return NULL;
}

/* The best finalist on held-out samples; of equals the earlier. */
static void choose_held(const nps_searching_t *s, nps_track_t *track, const int64_t *rows, int count,
                        const nps_score_t *scores) {
  nps_search_history_t *h = track->history;
  nps_fitness_value_t best = {.failed = true};
  for (int i = 0; i < count; i++) {
    const nps_fitness_value_t value = nps_goal_value(s->goal, NPS_PART_HELD, track->tasks, track->task_count,
                                                     scores + (int64_t)i * track->task_count);
    h->held_fitness[rows[i]] = value.failed ? NAN : value.primary;
    if (nps_fitness_compare(&value, &best) >= 0) continue;
    best = value;
    h->best = rows[i];
  }
}

/* What search.final names, where it has a finite score, on held-out samples too. */
static void choose_mean(const nps_searching_t *s, const nps_track_t *track, const int64_t *rows, int count,
                        const nps_score_t *scores) {
  nps_search_history_t *h = track->history;
  const int32_t wanted = s->spec->search->final == NPS_FINAL_MEAN ? -1 : -2;
  for (int64_t row = 0; row < h->evaluations; row++) {
    const nps_score_t *held = scores_of(track, rows, count, row, scores);
    const bool failed = track->values[row].failed || (held && nps_score_has_failed(held, track->task_count));
    if (h->candidate[row] == wanted && !failed) h->best = row;
  }
}

/* Back to the start, unless held-out samples show a gain beyond doubt. A start without a score shows nothing. */
static void doubt(const nps_searching_t *s, const nps_track_t *track, const int64_t *rows, int count,
                  const nps_score_t *scores) {
  nps_search_history_t *h = track->history;
  const nps_score_t *found = scores_of(track, rows, count, h->best, scores);
  const nps_score_t *start = scores_of(track, rows, count, h->start, scores);
  if (!found || !start || found == start || nps_score_has_failed(start, track->task_count)) return;
  if (nps_score_has_failed(found, track->task_count) ||
      !nps_goal_is_gain(s->goal, NPS_PART_HELD, track->tasks, track->task_count, found, start))
    h->best = h->start;
}

nps_err_t nps_tracks_choose(nps_searching_t *s, nps_track_t *tracks, int count) {
  int job_count = 0, *finalists = nps_xcalloc((size_t)count, sizeof *finalists);
  int64_t **rows = nps_xcalloc((size_t)count, sizeof *rows);
  nps_job_t *jobs = nps_xcalloc(1, sizeof *jobs);
  for (int i = 0; i < count; i++) {
    const nps_track_t *track = &tracks[i];
    track->history->best = nps_track_best(track, 0, track->history->evaluations);
    rows[i] = nps_xcalloc((size_t)track->history->evaluations, sizeof(int64_t));
    if (has_held(s, track)) finalists[i] = find_finalists(track, rows[i]);
    jobs = nps_xrealloc(jobs, (size_t)(job_count + finalists[i]) + 1, sizeof *jobs);
    for (int r = 0; r < finalists[i]; r++) {
      const nps_search_history_t *h = track->history;
      const int64_t row = rows[i][r];
      name_job(track, h->generation[row], h->candidate[row],
               add_job(s, track, h->genome + row * h->variables, NPS_PART_HELD, jobs, &job_count));
    }
  }
  nps_score_t *scores = NULL;
  nps_err_t err = run_jobs(s->scorer, jobs, job_count, &scores);
  const nps_score_t *next = scores;
  for (int i = 0; err == NPS_OK && i < count; i++) {
    choose_held(s, &tracks[i], rows[i], finalists[i], next);
    if (s->spec->search->final != NPS_FINAL_BEST) choose_mean(s, &tracks[i], rows[i], finalists[i], next);
    doubt(s, &tracks[i], rows[i], finalists[i], next);
    next += (int64_t)finalists[i] * tracks[i].task_count;
  }
  for (int i = 0; i < count; i++) free(rows[i]);
  free(scores);
  free(rows);
  free(finalists);
  return err;
}
