#include "nps/eval.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  double of[NPS_FIGURE_COUNT];
} mean_t;

static const char *const names[NPS_FIGURE_COUNT] = {"accuracy", "nll", "value"};

static mean_t mean_of(const nps_eval_t *eval, const nps_score_t *score) {
  const double total = (double)score->total, loss = score->nll_sum / total;
  return (mean_t){{(double)score->correct / total, loss, eval->less_is_better || loss == 0 ? loss : -loss}};
}

static mean_t average_of(const nps_eval_t *eval) {
  mean_t sum = {{0}};
  for (int t = 0; t < eval->task_count; t++) {
    const mean_t mean = mean_of(eval, &eval->tasks[t].score);
    for (int f = 0; f < NPS_FIGURE_COUNT; f++) sum.of[f] += mean.of[f];
  }
  for (int f = 0; f < NPS_FIGURE_COUNT; f++) sum.of[f] /= eval->task_count;
  return sum;
}

static void set_mean(const nps_eval_t *eval, json_t *object, mean_t mean) {
  for (int f = 0; f < NPS_FIGURE_COUNT; f++)
    if (eval->known[f])
      json_object_set_new(object, names[f], isfinite(mean.of[f]) ? json_real(mean.of[f]) : json_null());
}

json_t *nps_eval_json(const nps_eval_t *eval) {
  json_t *root = json_object(), *tasks = json_object(), *average = json_object();
  for (int t = 0; t < eval->task_count; t++) {
    const nps_score_t *score = &eval->tasks[t].score;
    json_t *task = json_object();
    if (eval->known[NPS_FIGURE_ACCURACY]) json_object_set_new(task, "correct", json_integer(score->correct));
    json_object_set_new(task, "total", json_integer(score->total));
    set_mean(eval, task, mean_of(eval, score));
    json_object_set_new(tasks, eval->tasks[t].group, task);
  }
  set_mean(eval, average, average_of(eval));
  json_object_set_new(root, "tasks", tasks);
  json_object_set_new(root, "average", average);
  return root;
}

/* @param samples  owned @return cells filled */
static int fill_row(const nps_eval_t *eval, char **cells, const char *name, char *samples, mean_t mean) {
  int n = 0;
  cells[n++] = nps_xstrdup(name);
  cells[n++] = samples;
  for (int f = 0; f < NPS_FIGURE_COUNT; f++)
    if (eval->known[f])
      cells[n++] = isfinite(mean.of[f]) ? nps_xstrf(f == NPS_FIGURE_VALUE ? "%.6g" : "%.4f", mean.of[f])
                                        : nps_xstrdup("not finite");
  return n;
}

static int fill_header(const nps_eval_t *eval, char **cells) {
  int n = 0;
  cells[n++] = nps_xstrdup("task");
  cells[n++] = nps_xstrdup("samples");
  for (int f = 0; f < NPS_FIGURE_COUNT; f++)
    if (eval->known[f]) cells[n++] = nps_xstrdup(names[f]);
  return n;
}

void nps_eval_show(const nps_eval_t *eval, nps_report_t *report) {
  const int rows = eval->task_count + 2;
  char **cells = nps_xcalloc((size_t)rows * (2 + NPS_FIGURE_COUNT), sizeof *cells);
  const int columns = fill_header(eval, cells);
  int n = columns;
  for (int t = 0; t < eval->task_count; t++) {
    const nps_eval_task_t *task = &eval->tasks[t];
    n += fill_row(eval, cells + n, task->group, nps_xstrf("%" PRId64, task->score.total), mean_of(eval, &task->score));
  }
  n += fill_row(eval, cells + n, "average", nps_xstrdup(""), average_of(eval));
  nps_report_table(report, (const char *const *)cells, rows, columns);
  for (int i = 0; i < n; i++) free(cells[i]);
  free(cells);
}

static nps_err_t print_json(const nps_eval_t *eval) {
  json_t *json = nps_eval_json(eval);
  int failed = json_dumpf(json, stdout, JSON_INDENT(2)) != 0 || fputc('\n', stdout) == EOF || fflush(stdout) != 0;
  json_decref(json);
  return failed ? nps_fail(NPS_ERR_IO, "standard output: the JSON text cannot be written") : NPS_OK;
}

static nps_err_t tell(const nps_eval_t *eval, bool as_json, nps_report_t *report) {
  if (as_json) return print_json(eval);
  nps_eval_show(eval, report);
  return NPS_OK;
}

nps_err_t nps_eval_run(const nps_comm_t *comm, const nps_eval_request_t *request, bool as_json, nps_report_t *report) {
  nps_eval_t *eval = NULL;
  NPS_TRY(nps_eval_scores(comm, request, report, &eval));
  nps_err_t err = nps_comm_agree(comm, nps_comm_rank(comm) == 0 ? tell(eval, as_json, report) : NPS_OK);
  nps_eval_free(eval);
  return err;
}
