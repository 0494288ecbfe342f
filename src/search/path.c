/* The way from θ0 along a pruned task vector: what a model learns of its tasks, and what it loses of the general ones. */
#include "search_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* λ is 0, 0.1, … 1.5. */
enum { POINTS = 16, POINTS_TO_ONE = 10 };

/* ---- the knee ---- */

static int find_largest(const double *x, int n) {
  int largest = 0;
  for (int i = 1; i < n; i++)
    if (x[i] > x[largest] || isnan(x[largest])) largest = i;
  return largest;
}

int nps_path_knee(const double *learnt, const double *general, int points) {
  const int end = find_largest(learnt, points);
  const double gain = learnt[end] - learnt[0], loss = general[0] - general[end];
  double most = 1e-9; /* rounding is no knee */
  int knee = -1;
  if (!(gain > 0)) return -1;
  if (!(loss > 0)) return end;
  for (int p = 1; p < end; p++) {
    const double above = (learnt[p] - learnt[0]) / gain + (general[p] - general[end]) / loss - 1;
    if (!(above > most)) continue;
    most = above;
    knee = p;
  }
  return knee;
}

/* ---- scoring ---- */

/* Lists a model's tasks, then the general ones. @return how many are the model's */
static int list_tasks(const nps_search_spec_t *spec, int model, int *tasks, int *count) {
  int own = 0;
  *count = 0;
  for (int t = 0; t < spec->task_count; t++)
    if (spec->tasks[t].model == model) tasks[(*count)++] = t;
  own = *count;
  for (int t = 0; t < spec->task_count; t++)
    if (spec->tasks[t].model < 0) tasks[(*count)++] = t;
  return own;
}

static void begin_path(const nps_search_spec_t *spec, int model, const int *tasks, int count, int own,
                       nps_search_path_t *path) {
  *path =
      (nps_search_path_t){.name = nps_xstrdup(spec->models[model]), .task_count = count, .own = own, .points = POINTS};
  path->tasks = nps_xcalloc((size_t)count, sizeof *path->tasks);
  path->lambda = nps_xcalloc(POINTS, sizeof *path->lambda);
  path->learnt = nps_xcalloc(POINTS, sizeof *path->learnt);
  path->general = nps_xcalloc(POINTS, sizeof *path->general);
  path->h_score = nps_xcalloc(POINTS, sizeof *path->h_score);
  path->scores = nps_xcalloc((size_t)(POINTS * count), sizeof *path->scores);
  for (int k = 0; k < count; k++) path->tasks[k] = spec->tasks[tasks[k]].name;
  for (int p = 0; p < POINTS; p++) path->lambda[p] = (double)p / POINTS_TO_ONE;
}

void nps_path_free(nps_search_path_t *path) {
  free(path->name);
  free(path->tasks);
  free(path->lambda);
  free(path->scores);
  free(path->learnt);
  free(path->general);
  free(path->h_score);
}

/* θ0 + λq of one model. */
static nps_weighting_t *weighting_at(const nps_searching_t *s, int model, double lambda) {
  nps_weighting_t *w = nps_weighting_copy(s->current);
  w->normalize = NPS_NORMALIZE_NONE;
  for (int i = 0; i < w->models; i++) w->lambda[i] = i == model ? lambda : 0;
  return w;
}

/* Scores all samples: those of both parts. */
static nps_err_t score_points(const nps_searching_t *s, int model, const int *tasks, nps_search_path_t *path) {
  const int count = path->task_count, items = POINTS * count;
  nps_job_t *jobs = nps_xcalloc((size_t)(NPS_PARTS * POINTS), sizeof *jobs);
  nps_score_t *scores = nps_xcalloc((size_t)(NPS_PARTS * items), sizeof *scores);
  for (int p = 0; p < POINTS; p++) {
    const nps_weighting_t *w = weighting_at(s, model, path->lambda[p]);
    for (int part = 0; part < NPS_PARTS; part++)
      jobs[NPS_PARTS * p + part] = (nps_job_t){.weighting = w,
                                               .model = -1,
                                               .tasks = tasks,
                                               .task_count = count,
                                               .part = part,
                                               .what = "a point of the path"};
  }
  nps_err_t err = nps_scorer_run(s->scorer, jobs, NPS_PARTS * POINTS, scores);
  for (int i = 0; i < NPS_PARTS * items; i++)
    nps_score_add(&path->scores[i / (NPS_PARTS * count) * count + i % count], &scores[i]);
  for (int p = 0; p < POINTS; p++) nps_weighting_free((nps_weighting_t *)jobs[NPS_PARTS * p].weighting);
  free(scores);
  free(jobs);
  return err;
}

static double mean_accuracy(const nps_score_t *scores, int count) {
  double sum = 0;
  for (int k = 0; k < count; k++) sum += nps_score_accuracy(&scores[k]);
  return sum / count;
}

static void judge(nps_search_path_t *path) {
  for (int p = 0; p < path->points; p++) {
    const nps_score_t *scores = path->scores + (int64_t)p * path->task_count;
    path->learnt[p] = mean_accuracy(scores, path->own);
    path->general[p] = mean_accuracy(scores + path->own, path->task_count - path->own);
    path->h_score[p] = nps_h_score(path->learnt[p], path->general[p]);
  }
  path->best = find_largest(path->h_score, path->points);
  path->knee = nps_path_knee(path->learnt, path->general, path->points);
}

nps_err_t nps_paths_score(nps_searching_t *s) {
  const nps_search_spec_t *spec = s->spec;
  int *tasks = nps_xcalloc((size_t)spec->task_count + 1, sizeof *tasks), count = 0;
  nps_err_t err = NPS_OK;
  if (spec->application != NPS_APPLICATION_TRANSFER) goto done;
  if (spec->command && spec->fitness->metric != NPS_METRIC_ACCURACY) goto done; /* accuracies are not known */
  s->search->paths = nps_xcalloc((size_t)spec->start->models, sizeof *s->search->paths);
  for (int model = 0; err == NPS_OK && model < spec->start->models; model++) {
    const int own = list_tasks(spec, model, tasks, &count);
    if (own == 0 || own == count) continue;
    nps_search_path_t *path = &s->search->paths[s->search->path_count++];
    begin_path(spec, model, tasks, count, own, path);
    err = score_points(s, model, tasks, path);
    judge(path);
  }
done:
  free(tasks);
  return err;
}

/* ---- for people, and in the log ---- */

static void add_row(const nps_search_path_t *path, int p, const char **cells, char texts[4][32]) {
  snprintf(texts[0], sizeof texts[0], "%.1f", path->lambda[p]);
  nps_format_score(path->learnt[p], texts[1]);
  nps_format_score(path->general[p], texts[2]);
  nps_format_score(path->h_score[p], texts[3]);
  for (int c = 0; c < 4; c++) cells[c] = texts[c];
  cells[4] = p != path->best ? p == path->knee ? "knee" : "" : p == path->knee ? "best H-score, knee" : "best H-score";
}

static void show_path(const nps_search_path_t *path, nps_report_t *report) {
  enum { COLUMNS = 5 };
  const char *cells[(POINTS + 1) * COLUMNS] = {"λ", "its tasks", "general tasks", "H-score", ""};
  char texts[POINTS][4][32];
  for (int p = 0; p < POINTS; p++) add_row(path, p, cells + (p + 1) * COLUMNS, texts[p]);
  nps_report_line(report, "accuracies of base + λ × the pruned task vector of %s:", path->name);
  nps_report_table(report, cells, POINTS + 1, COLUMNS);
}

static json_t *numbers(const double *x, int n) {
  json_t *list = json_array();
  for (int i = 0; i < n; i++) json_array_append_new(list, nps_search_number(x[i]));
  return list;
}

static void log_path(const nps_search_path_t *path, nps_report_t *report) {
  json_t *fields = json_object();
  json_object_set_new(fields, "model", json_string(path->name));
  json_object_set_new(fields, "lambda", numbers(path->lambda, path->points));
  json_object_set_new(fields, "own", numbers(path->learnt, path->points));
  json_object_set_new(fields, "general", numbers(path->general, path->points));
  json_object_set_new(fields, "h_score", numbers(path->h_score, path->points));
  json_object_set_new(fields, "best", json_real(path->lambda[path->best]));
  json_object_set_new(fields, "knee", path->knee < 0 ? json_null() : json_real(path->lambda[path->knee]));
  nps_report_event(report, "path", fields);
}

void nps_paths_show(const nps_search_t *search, nps_report_t *report) {
  for (int i = 0; i < search->path_count; i++) {
    show_path(&search->paths[i], report);
    log_path(&search->paths[i], report);
  }
}
