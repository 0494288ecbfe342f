#include "search_internal.h"

#include "nps/archive.h"

#include <stdlib.h>
#include <string.h>

/* ---- writing ---- */

/* A dataset of a search: one row an evaluation, or a point of a path. @param columns  0: no second dimension */
static nps_err_t put(nps_h5_t *file, const char *group, const char *name, nps_dtype_t dtype, const void *data,
                     int64_t rows, int columns) {
  const int64_t shape[2] = {rows, columns};
  char *path = nps_xstrf("%s/%s", group, name);
  nps_err_t err = nps_h5_put(file, path, dtype, data, columns > 0 ? 2 : 1, shape);
  free(path);
  return err;
}

static nps_err_t write_history(const nps_search_history_t *h, nps_h5_t *file, const char *group) {
  const int64_t rows = h->evaluations;
  NPS_TRY(nps_h5_make_group(file, group));
  NPS_TRY(put(file, group, "genome", NPS_F64, h->genome, rows, h->variables));
  NPS_TRY(put(file, group, "generation", NPS_I32, h->generation, rows, 0));
  NPS_TRY(put(file, group, "candidate", NPS_I32, h->candidate, rows, 0));
  NPS_TRY(put(file, group, "correct", NPS_I64, h->correct, rows, h->task_count));
  NPS_TRY(put(file, group, "total", NPS_I64, h->total, rows, h->task_count));
  NPS_TRY(put(file, group, "nll_sum", NPS_F64, h->nll_sum, rows, h->task_count));
  NPS_TRY(put(file, group, "held_fitness", NPS_F64, h->held_fitness, rows, 0));
  NPS_TRY(nps_h5_put_attr_texts(file, group, "columns", (const char *const *)h->columns, h->variables));
  NPS_TRY(nps_h5_put_attr_texts(file, group, "tasks", h->tasks, h->task_count));
  NPS_TRY(nps_h5_put_attr_i64(file, group, "best", h->best));
  NPS_TRY(nps_h5_put_attr_i64(file, group, "start", h->start));
  return nps_h5_put_attr_text(file, group, "stop", h->stop);
}

static nps_err_t put_scores(nps_h5_t *file, const char *group, const nps_search_path_t *path) {
  const int64_t points = path->points, cells = points * path->task_count;
  int64_t *correct = nps_xcalloc((size_t)cells, sizeof *correct), *total = nps_xcalloc((size_t)cells, sizeof *total);
  double *nll = nps_xcalloc((size_t)cells, sizeof *nll);
  for (int64_t i = 0; i < cells; i++) {
    correct[i] = path->scores[i].correct;
    total[i] = path->scores[i].total;
    nll[i] = path->scores[i].nll_sum;
  }
  nps_err_t err = put(file, group, "correct", NPS_I64, correct, points, path->task_count);
  if (err == NPS_OK) err = put(file, group, "total", NPS_I64, total, points, path->task_count);
  if (err == NPS_OK) err = put(file, group, "nll_sum", NPS_F64, nll, points, path->task_count);
  free(correct);
  free(total);
  free(nll);
  return err;
}

static nps_err_t write_path(const nps_search_path_t *path, nps_h5_t *file, const char *group) {
  NPS_TRY(nps_h5_make_group(file, group));
  NPS_TRY(put(file, group, "lambda", NPS_F64, path->lambda, path->points, 0));
  NPS_TRY(put_scores(file, group, path));
  NPS_TRY(put(file, group, "own", NPS_F64, path->learnt, path->points, 0));
  NPS_TRY(put(file, group, "general", NPS_F64, path->general, path->points, 0));
  NPS_TRY(put(file, group, "h_score", NPS_F64, path->h_score, path->points, 0));
  NPS_TRY(nps_h5_put_attr_texts(file, group, "tasks", path->tasks, path->task_count));
  NPS_TRY(nps_h5_put_attr_i64(file, group, "own_tasks", path->own));
  NPS_TRY(nps_h5_put_attr_i64(file, group, "best", path->best));
  return nps_h5_put_attr_i64(file, group, "knee", path->knee);
}

static nps_err_t write_paths(const nps_search_t *search, nps_h5_t *file) {
  for (int i = 0; i < search->path_count; i++) {
    char *group = nps_xstrf("/transfer/%s", search->paths[i].name);
    nps_err_t err = write_path(&search->paths[i], file, group);
    free(group);
    NPS_TRY(err);
  }
  return NPS_OK;
}

static nps_err_t write_timing(const nps_search_t *search, nps_h5_t *file) {
  const char *group = "/timing";
  const double seconds = search->seconds > 0 ? search->seconds : 1;
  NPS_TRY(nps_h5_make_group(file, group));
  NPS_TRY(nps_h5_put_attr_f64(file, group, "seconds", search->seconds));
  NPS_TRY(nps_h5_put_attr_i64(file, group, "evaluations", search->evaluations));
  NPS_TRY(nps_h5_put_attr_f64(file, group, "evaluations_per_second", (double)search->evaluations / seconds));
  NPS_TRY(nps_h5_put_attr_f64(file, group, "gflops_per_second", 1e-9 * search->flops / seconds));
  return nps_h5_put_attr_i64(file, group, "ranks", search->ranks);
}

/* Copies row `from` of a history to row `to` of another with room for it. */
static void copy_row(const nps_search_history_t *h, int64_t from, nps_search_history_t *out, int64_t to) {
  const size_t n = (size_t)h->variables, tasks = (size_t)h->task_count;
  memcpy(out->genome + to * h->variables, h->genome + from * h->variables, n * sizeof *h->genome);
  memcpy(out->correct + to * h->task_count, h->correct + from * h->task_count, tasks * sizeof *h->correct);
  memcpy(out->total + to * h->task_count, h->total + from * h->task_count, tasks * sizeof *h->total);
  memcpy(out->nll_sum + to * h->task_count, h->nll_sum + from * h->task_count, tasks * sizeof *h->nll_sum);
  out->generation[to] = h->generation[from];
  out->candidate[to] = h->candidate[from];
  out->held_fitness[to] = h->held_fitness[from];
}

/* A history with its start and its best alone, if they are two. */
static nps_err_t write_ends(const nps_search_history_t *h, nps_h5_t *file, const char *group) {
  const size_t n = (size_t)h->variables, tasks = (size_t)h->task_count;
  nps_search_history_t ends = *h;
  ends.genome = nps_xcalloc(2 * n + 1, sizeof *ends.genome);
  ends.correct = nps_xcalloc(2 * tasks + 1, sizeof *ends.correct);
  ends.total = nps_xcalloc(2 * tasks + 1, sizeof *ends.total);
  ends.nll_sum = nps_xcalloc(2 * tasks + 1, sizeof *ends.nll_sum);
  int32_t generation[2], candidate[2];
  double held_fitness[2];
  ends.generation = generation;
  ends.candidate = candidate;
  ends.held_fitness = held_fitness;
  copy_row(h, h->start, &ends, 0);
  copy_row(h, h->best, &ends, 1);
  ends.start = 0;
  ends.best = h->best != h->start;
  ends.evaluations = ends.best + 1;
  const nps_err_t err = write_history(&ends, file, group);
  free(ends.genome);
  free(ends.correct);
  free(ends.total);
  free(ends.nll_sum);
  return err;
}

nps_err_t nps_search_write(const nps_search_t *search, bool brief, nps_h5_t *file) {
  NPS_TRY(write_paths(search, file));
  if (search->history_count == 0) return NPS_OK;
  for (int i = 0; i < search->history_count; i++) {
    char *group = nps_xstrf("/search/%s", search->histories[i].path);
    nps_err_t err = (brief ? write_ends : write_history)(&search->histories[i], file, group);
    free(group);
    NPS_TRY(err);
  }
  return write_timing(search, file);
}

/* ---- reading the best genome ---- */

/* A search in a file, as far as it is looked at. */
typedef struct {
  char **columns;
  int variables;
  double *genome;
  int64_t best;
} stored_t;

static nps_err_t damaged(const char *file, const char *group, const char *what) {
  return nps_fail(NPS_ERR_INPUT, "%s: %s: %s", file, group, what);
}

static nps_err_t read_genome(nps_h5_t *h5, const char *file, const char *group, stored_t *stored) {
  int64_t shape[NPS_MAX_DIMS];
  int ndim = 0;
  bool found = false;
  void *data = NULL;
  NPS_TRY(nps_h5_get_attr_texts(h5, group, "columns", &stored->columns, &stored->variables));
  NPS_TRY(nps_h5_get_attr_i64(h5, group, "best", &stored->best, &found));
  if (!found) return damaged(file, group, "expected an attribute best, found none");
  char *path = nps_xstrf("%s/genome", group);
  nps_err_t err = nps_h5_read(h5, path, NPS_F64, &ndim, shape, &data);
  free(path);
  stored->genome = data;
  NPS_TRY(err);
  if (ndim == 2 && shape[1] == stored->variables && stored->best >= 0 && stored->best < shape[0]) return NPS_OK;
  return damaged(file, group,
                 "expected a genome with a column for each of the attribute columns, and best among its "
                 "rows");
}

static int take_columns(const stored_t *stored, char *const *columns, int n, double *x) {
  const double *best = stored->genome + stored->best * stored->variables;
  int found = 0;
  for (int i = 0; i < n; i++)
    for (int c = 0; c < stored->variables; c++)
      if (strcmp(columns[i], stored->columns[c]) == 0) {
        x[i] = best[c];
        found++;
      }
  return found;
}

static nps_err_t look_up(nps_h5_t *h5, const char *file, const char *path, char *const *columns, int n, double *x,
                         int *found) {
  char *format = NULL, **members = NULL, *group = nps_xstrf("/search/%s", path);
  int count = 0;
  stored_t stored = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_h5_get_attr_text(h5, "/", "format", &format));
  if (!format || (strcmp(format, "nps-merged") != 0 && strcmp(format, NPS_ARCHIVE_FORMAT) != 0))
    NPS_GOTO(nps_fail(NPS_ERR_INPUT,
                      "search.start_from: %s: expected a merged file or an archive (attribute format nps-merged "
                      "or " NPS_ARCHIVE_FORMAT "), found %s",
                      file, format ? format : "none"));
  NPS_GOTO(nps_h5_list(h5, group, &members, &count));
  if (count == 0) goto done;
  NPS_GOTO(read_genome(h5, file, group, &stored));
  *found = take_columns(&stored, columns, n, x);
done:
  nps_h5_free_names(members, count);
  nps_h5_free_names(stored.columns, stored.variables);
  free(stored.genome);
  free(format);
  free(group);
  return err;
}

nps_err_t nps_search_look_up(const char *file, const char *path, char *const *columns, int n, double *x, int *found) {
  nps_h5_t *h5 = NULL;
  *found = 0;
  NPS_TRY(nps_h5_open(file, &h5));
  nps_err_t err = look_up(h5, file, path, columns, n, x, found);
  nps_h5_abandon(h5);
  return err;
}

nps_err_t nps_search_read_best(const char *file, const char *path, char *const *columns, int n, double *x) {
  int found = 0;
  NPS_TRY(nps_search_look_up(file, path, columns, n, x, &found));
  if (found > 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: expected the search %s with some of these variables, found none", file, path);
}
