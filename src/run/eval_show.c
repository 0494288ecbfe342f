#include "nps/eval.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  double accuracy, nll;
} mean_t;

static mean_t mean_of(const nps_score_t *score) {
  return (mean_t){(double)score->correct / (double)score->total, score->nll_sum / (double)score->total};
}

static mean_t average_of(const nps_eval_t *eval) {
  mean_t sum = {0, 0};
  for (int t = 0; t < eval->task_count; t++) {
    const mean_t mean = mean_of(&eval->tasks[t].score);
    sum.accuracy += mean.accuracy;
    sum.nll += mean.nll;
  }
  return (mean_t){sum.accuracy / eval->task_count, sum.nll / eval->task_count};
}

static void set_mean(json_t *object, mean_t mean) {
  json_object_set_new(object, "accuracy", json_real(mean.accuracy));
  json_object_set_new(object, "nll", isfinite(mean.nll) ? json_real(mean.nll) : json_null());
}

json_t *nps_eval_json(const nps_eval_t *eval) {
  json_t *root = json_object(), *tasks = json_object(), *average = json_object();
  for (int t = 0; t < eval->task_count; t++) {
    const nps_score_t *score = &eval->tasks[t].score;
    json_t *task = json_object();
    json_object_set_new(task, "correct", json_integer(score->correct));
    json_object_set_new(task, "total", json_integer(score->total));
    set_mean(task, mean_of(score));
    json_object_set_new(tasks, eval->tasks[t].group, task);
  }
  set_mean(average, average_of(eval));
  json_object_set_new(root, "tasks", tasks);
  json_object_set_new(root, "average", average);
  return root;
}

enum { COLUMNS = 4 };

static void fill_row(char **cells, const char *name, char *samples, mean_t mean) {
  cells[0] = nps_xstrdup(name);
  cells[1] = samples;
  cells[2] = nps_xstrf("%.4f", mean.accuracy);
  cells[3] = isfinite(mean.nll) ? nps_xstrf("%.4f", mean.nll) : nps_xstrdup("not finite");
}

void nps_eval_show(const nps_eval_t *eval, nps_report_t *report) {
  const int rows = eval->task_count + 2;
  const size_t count = (size_t)rows * COLUMNS;
  char **cells = nps_xcalloc(count, sizeof *cells);
  static const char *const header[COLUMNS] = {"task", "samples", "accuracy", "nll"};
  for (int c = 0; c < COLUMNS; c++) cells[c] = nps_xstrdup(header[c]);
  for (int t = 0; t < eval->task_count; t++) {
    const nps_eval_task_t *task = &eval->tasks[t];
    fill_row(cells + (t + 1) * COLUMNS, task->group, nps_xstrf("%" PRId64, task->score.total), mean_of(&task->score));
  }
  fill_row(cells + (rows - 1) * COLUMNS, "average", nps_xstrdup(""), average_of(eval));
  nps_report_table(report, (const char *const *)cells, rows, COLUMNS);
  for (size_t i = 0; i < count; i++) free(cells[i]);
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
