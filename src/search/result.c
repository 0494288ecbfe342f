#include "search_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the models that searches are compared with ---- */

/* Scores of θ0 on every task, and of every task's model. */
typedef struct {
  nps_score_t (*base)[NPS_PARTS]; /* [task_count] owned */
  nps_score_t (*tuned)[NPS_PARTS];
} stored_t;

static void free_stored(stored_t *stored) {
  free(stored->base);
  free(stored->tuned);
}

static int *all_tasks(const nps_search_spec_t *spec) {
  int *tasks = nps_xcalloc((size_t)spec->task_count + 1, sizeof *tasks);
  for (int t = 0; t < spec->task_count; t++) tasks[t] = t;
  return tasks;
}

/* A command that scores none of the models as they are is of no use. Collective. */
static nps_err_t check_any(const nps_searching_t *s, const nps_score_t *scores, int count) {
  const char *why = nps_scorer_last_failure(s->scorer);
  bool any = count == 0;
  for (int i = 0; i < count && !any; i++) any = scores[i].total > 0 && !nps_score_has_failed(&scores[i], 1);
  const nps_err_t err = any ? NPS_OK
                            : nps_fail(NPS_ERR_RUNTIME, "neither the base nor any of the models could be scored%s%s",
                                       why ? ": " : "", why ? why : "");
  return nps_comm_agree(s->comm, err);
}

static nps_err_t score_stored(const nps_searching_t *s, stored_t *out) {
  const nps_search_spec_t *spec = s->spec;
  const int tasks = spec->task_count;
  int *all = all_tasks(spec), count = 0;
  nps_job_t *jobs = nps_xcalloc((size_t)(NPS_PARTS * (tasks + 1)), sizeof *jobs);
  const int items = 2 * NPS_PARTS * tasks; /* or less: some tasks are no model's */
  nps_score_t *scores = nps_xcalloc((size_t)items + 1, sizeof *scores), *next = scores;
  out->base = nps_xcalloc((size_t)tasks + 1, sizeof *out->base);
  out->tuned = nps_xcalloc((size_t)tasks + 1, sizeof *out->tuned);
  for (int p = 0; p < NPS_PARTS; p++)
    jobs[count++] = (nps_job_t){.model = -1, .tasks = all, .task_count = tasks, .part = p, .what = "the base"};
  for (int t = 0; t < tasks; t++)
    for (int p = 0; spec->tasks[t].model >= 0 && p < NPS_PARTS; p++) {
      nps_job_t *job = &jobs[count++];
      *job = (nps_job_t){.model = spec->tasks[t].model, .tasks = &all[t], .task_count = 1, .part = p};
      snprintf(job->what, sizeof job->what, "the model %s", spec->models[job->model]);
    }
  nps_err_t err = nps_scorer_run(s->scorer, jobs, count, scores);
  if (err == NPS_OK && spec->command) err = check_any(s, scores, items);
  for (int p = 0; p < NPS_PARTS; p++)
    for (int t = 0; t < tasks; t++) out->base[t][p] = *next++;
  for (int t = 0; t < tasks; t++)
    for (int p = 0; spec->tasks[t].model >= 0 && p < NPS_PARTS; p++) out->tuned[t][p] = *next++;
  free(scores);
  free(jobs);
  free(all);
  return err;
}

/* ---- rows ---- */

/* Numbers of triples and entries that are kept, of d. */
static double stored_fraction(const nps_search_spec_t *spec, const nps_weighting_t *weighting, int model) {
  const int list = spec->of_sum ? 0 : model;
  nps_taking_t *taking = nps_taking_new(spec->factors);
  nps_taking_make(taking, weighting, 0);
  const int64_t stored = nps_taking_stored(taking, list) + nps_rest_kept(spec->factors, list);
  nps_taking_free(taking);
  return (double)stored / (double)nps_store_elements(spec->store);
}

/* ⌊r·d⌋ of d; by tensors Σ⌊r·n⌋ of d. */
static double kept_fraction(const nps_search_spec_t *spec, const nps_weighting_t *weighting, int model) {
  const nps_store_t *store = spec->store;
  if (spec->factors) return stored_fraction(spec, weighting, model);
  const double density = spec->start->density[model], elements = (double)nps_store_elements(store);
  double kept = 0;
  if (spec->start->scope == NPS_SCOPE_MODEL) return floor(density * elements) / elements;
  for (int t = 0; t < nps_store_tensors(store); t++) kept += floor(density * (double)nps_store_count(store, t));
  return kept / elements;
}

static void add_row(const nps_searching_t *s, const stored_t *stored, int task, int output) {
  const nps_search_spec_t *spec = s->spec;
  const int model = output >= 0 ? output : spec->tasks[task].model;
  nps_search_row_t *row = &s->search->rows[s->search->row_count++];
  *row = (nps_search_row_t){.task = task,
                            .model = output,
                            .general = spec->tasks[task].model < 0,
                            .kept = model >= 0 ? kept_fraction(spec, s->current, model) : NAN};
  memcpy(row->base, stored->base[task], sizeof row->base);
  memcpy(row->tuned, stored->tuned[task], sizeof row->tuned);
}

/* Transfer and compression make a model of each task vector: it is scored on its own tasks, and on those of no model. */
static void add_rows(const nps_searching_t *s, const stored_t *stored) {
  const nps_search_spec_t *spec = s->spec;
  const bool each = nps_application_is_of_each(spec->application);
  const int models = spec->start->models;
  s->search->rows = nps_xcalloc((size_t)(spec->task_count * models) + 1, sizeof *s->search->rows);
  for (int t = 0; !each && t < spec->task_count; t++) add_row(s, stored, t, -1);
  for (int i = 0; each && i < models; i++)
    for (int t = 0; t < spec->task_count; t++)
      if (spec->tasks[t].model == i || spec->tasks[t].model < 0) add_row(s, stored, t, i);
}

/* The weighting of what is written: under transfer one model alone. */
static nps_weighting_t *output_weighting(const nps_weighting_t *weighting, int output) {
  nps_weighting_t *w = nps_weighting_copy(weighting);
  for (int i = 0; output >= 0 && i < w->models; i++)
    if (i != output) w->lambda[i] = 0;
  return w;
}

/* Scores the models that a weighting makes, all rows. */
static nps_err_t score_rows(const nps_searching_t *s, const nps_weighting_t *weighting, size_t which) {
  nps_search_t *out = s->search;
  const int rows = out->row_count;
  nps_job_t *jobs = nps_xcalloc((size_t)(NPS_PARTS * rows) + 1, sizeof *jobs);
  nps_score_t *scores = nps_xcalloc((size_t)(NPS_PARTS * rows) + 1, sizeof *scores);
  nps_weighting_t **made = nps_xcalloc((size_t)rows + 1, sizeof *made);
  for (int r = 0; r < rows; r++) {
    const nps_search_row_t *row = &out->rows[r];
    const bool same = r > 0 && row->model == out->rows[r - 1].model;
    made[r] = same ? NULL : output_weighting(weighting, row->model);
    for (int p = 0; p < NPS_PARTS; p++)
      jobs[NPS_PARTS * r + p] = (nps_job_t){.weighting = same ? jobs[NPS_PARTS * r - 1].weighting : made[r],
                                            .model = -1,
                                            .tasks = &row->task,
                                            .task_count = 1,
                                            .part = p,
                                            .what = "the result"};
  }
  nps_err_t err = nps_scorer_run(s->scorer, jobs, NPS_PARTS * rows, scores);
  for (int r = 0; r < rows; r++) {
    memcpy((char *)&out->rows[r] + which, scores + NPS_PARTS * r, NPS_PARTS * sizeof *scores);
    nps_weighting_free(made[r]);
  }
  free(made);
  free(scores);
  free(jobs);
  return err;
}

/* General tasks have no model of their own: there the row's model is what its slim form is compared with. */
static nps_err_t score_tuned(const nps_searching_t *s) {
  nps_search_t *out = s->search;
  const size_t most = (size_t)(NPS_PARTS * out->row_count) + 1;
  nps_job_t *jobs = nps_xcalloc(most, sizeof *jobs);
  nps_score_t *scores = nps_xcalloc(most, sizeof *scores), *next = scores;
  int count = 0;
  for (int r = 0; r < out->row_count; r++)
    for (int p = 0; out->rows[r].model >= 0 && out->rows[r].general && p < NPS_PARTS; p++)
      jobs[count++] = (nps_job_t){.model = out->rows[r].model,
                                  .tasks = &out->rows[r].task,
                                  .task_count = 1,
                                  .part = p,
                                  .what = "a fine-tuned model on a general task"};
  nps_err_t err = nps_scorer_run(s->scorer, jobs, count, scores);
  for (int r = 0; r < out->row_count; r++)
    for (int p = 0; out->rows[r].model >= 0 && out->rows[r].general && p < NPS_PARTS; p++)
      out->rows[r].tuned[p] = *next++;
  free(scores);
  free(jobs);
  return err;
}

/* ---- the run ---- */

static nps_err_t search_stages(nps_searching_t *s) {
  nps_search_t *out = s->search;
  const double started = nps_now(), before = nps_scorer_flops(s->scorer);
  if (!nps_search_wanted(s->spec)) return NPS_OK;
  nps_err_t err = nps_stages_run(s);
  nps_report_steps_end(s->report);
  out->seconds = nps_now() - started;
  out->flops = nps_scorer_flops(s->scorer) - before;
  if (err != NPS_OK) return err;
  nps_comm_sum_f64(s->comm, &out->flops, 1);
  nps_report_detail(s->report, "search: %lld evaluations in %.1f s, %.1f evaluations/s, %.1f GFLOP/s a rank",
                    (long long)out->evaluations, out->seconds, (double)out->evaluations / out->seconds,
                    1e-9 * out->flops / out->seconds / nps_comm_size(s->comm));
  return NPS_OK;
}

static nps_err_t run(nps_searching_t *s) {
  stored_t stored = {0};
  nps_err_t err = NPS_OK;
  int64_t known = 0;
  NPS_TRY(nps_scorer_new(s->comm, s->spec, &s->scorer));
  NPS_TRY(nps_scorer_resume(s->scorer, &known));
  if (known > 0)
    nps_report_line(s->report, "going on from %s, which holds the scores of %lld batches", s->spec->keep.snapshot,
                    (long long)known);
  NPS_GOTO(score_stored(s, &stored));
  s->goal = nps_goal_new(s->spec, (const nps_score_t(*)[NPS_PARTS])stored.base,
                         (const nps_score_t(*)[NPS_PARTS])stored.tuned);
  NPS_GOTO(search_stages(s));
  add_rows(s, &stored);
  NPS_GOTO(score_rows(s, s->began, offsetof(nps_search_row_t, start)));
  NPS_GOTO(score_rows(s, s->current, offsetof(nps_search_row_t, merged)));
  NPS_GOTO(score_tuned(s));
  NPS_GOTO(nps_paths_score(s));
  s->search->weighting = nps_weighting_copy(s->current);
  s->search->ranks = nps_comm_size(s->comm);
done:
  free_stored(&stored);
  return err;
}

nps_err_t nps_search_run(const nps_comm_t *comm, const nps_search_spec_t *spec, nps_report_t *report,
                         nps_search_t **out) {
  nps_searching_t s = {.comm = comm,
                       .spec = spec,
                       .report = report,
                       .current = nps_weighting_copy(spec->start),
                       .began = nps_weighting_copy(spec->start),
                       .search = nps_xcalloc(1, sizeof *s.search)};
  s.search->by_command = spec->command != NULL;
  s.search->metric = spec->fitness->metric;
  s.search->less_is_better = spec->fitness->less_is_better;
  const nps_err_t err = run(&s);
  *out = err == NPS_OK ? s.search : NULL;
  if (err != NPS_OK) nps_search_free(s.search);
  nps_scorer_free(s.scorer);
  nps_goal_free(s.goal);
  nps_weighting_free(s.current);
  nps_weighting_free(s.began);
  return err;
}

void nps_search_free(nps_search_t *search) {
  if (!search) return;
  for (int i = 0; i < search->history_count; i++) nps_history_free(&search->histories[i]);
  free(search->histories);
  free(search->rows);
  for (int i = 0; i < search->path_count; i++) nps_path_free(&search->paths[i]);
  free(search->paths);
  nps_weighting_free(search->weighting);
  free(search);
}

/* ---- averages ---- */

static nps_score_t part_of(const nps_search_row_t *row, size_t which, int part) {
  nps_score_t s[NPS_PARTS];
  memcpy(s, (const char *)row + which, sizeof s);
  if (part < NPS_PARTS) return s[part];
  nps_score_add(&s[NPS_PART_SEEN], &s[NPS_PART_HELD]);
  return s[NPS_PART_SEEN];
}

static double mean_over_rows(const nps_search_t *search, size_t which, int part, double (*of)(const nps_score_t *)) {
  double sum = 0;
  int n = 0;
  for (int r = 0; r < search->row_count; r++) {
    const nps_score_t s = part_of(&search->rows[r], which, part);
    if (search->by_command && isnan(s.nll_sum)) return NAN; /* no average of the other tasks alone */
    if (s.total == 0) continue;
    sum += of(&s);
    n++;
  }
  return n > 0 ? sum / n : NAN;
}

double nps_search_mean_accuracy(const nps_search_t *search, size_t which, int part) {
  if (search->by_command && search->metric != NPS_METRIC_ACCURACY) return NAN;
  return mean_over_rows(search, which, part, nps_score_accuracy);
}

double nps_search_h_score(const nps_search_t *search, int model, size_t which, int part) {
  nps_search_row_t *rows = nps_xcalloc((size_t)search->row_count + 1, sizeof *rows);
  double mean[2];
  for (int general = 0; general < 2; general++) {
    nps_search_t of_kind = {.rows = rows, .by_command = search->by_command, .metric = search->metric};
    for (int r = 0; r < search->row_count; r++)
      if (search->rows[r].model == model && search->rows[r].general == (general > 0))
        rows[of_kind.row_count++] = search->rows[r];
    mean[general] = nps_search_mean_accuracy(&of_kind, which, part);
  }
  free(rows);
  return nps_h_score(mean[0], mean[1]);
}

double nps_search_mean_nll(const nps_search_t *search, size_t which, int part) {
  if (search->by_command && search->metric != NPS_METRIC_NLL) return NAN;
  return mean_over_rows(search, which, part, nps_score_nll);
}

double nps_search_mean_score(const nps_search_t *search, size_t which, int part) {
  if (search->metric != NPS_METRIC_VALUE) return nps_search_mean_accuracy(search, which, part);
  const double loss = mean_over_rows(search, which, part, nps_score_nll);
  return search->less_is_better ? loss : -loss;
}
