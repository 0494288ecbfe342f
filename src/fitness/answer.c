/* The scores that a command answers with. */
#include "nps/command.h"

#include <math.h>
#include <stdlib.h>

/* What is wrong with a task's score. */
static char *wrong(const char *task, const char *what) { return nps_xstrf("task '%s': %s", task, what); }

static char *read_total(const json_t *score, const char *task, int64_t *total) {
  const json_t *value = json_object_get(score, "total");
  const json_int_t most = (json_int_t)1 << 53; /* a double holds it exactly */
  if (!json_is_integer(value) || json_integer_value(value) < 1)
    return wrong(task, "expected \"total\", a whole number of samples from 1 on");
  if (json_integer_value(value) > most) return wrong(task, "expected \"total\", at most 2^53");
  *total = json_integer_value(value);
  return NULL;
}

static char *read_correct(const json_t *score, const char *task, int64_t total, int64_t *correct) {
  const json_t *value = json_object_get(score, "correct");
  if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > total)
    return nps_xstrf("task '%s': expected \"correct\", a whole number from 0 to its \"total\", %lld", task,
                     (long long)total);
  *correct = json_integer_value(value);
  return NULL;
}

static char *read_number(const json_t *score, const char *task, const char *key, double *out) {
  const json_t *value = json_object_get(score, key);
  if (!json_is_number(value) || !isfinite(json_number_value(value)))
    return nps_xstrf("task '%s': expected \"%s\", a finite number", task, key);
  *out = json_number_value(value);
  return NULL;
}

/* {"correct", "total"}; "nll_sum" decides between equals, where it is given. */
static char *read_accuracy(const json_t *score, const char *task, nps_score_t *out) {
  char *why = read_correct(score, task, out->total, &out->correct);
  if (!why && json_object_get(score, "nll_sum")) why = read_number(score, task, "nll_sum", &out->nll_sum);
  return why;
}

/* {"nll_sum", "total"}; "correct" decides between equals, where it is given. */
static char *read_nll(const json_t *score, const char *task, nps_score_t *out) {
  char *why = read_number(score, task, "nll_sum", &out->nll_sum);
  if (!why && json_object_get(score, "correct")) why = read_correct(score, task, out->total, &out->correct);
  return why;
}

/* {"value", "total"}, or where more is better {"correct", "total"}, whose value is the accuracy. */
static char *read_value(const json_t *score, const char *task, bool less, nps_score_t *out) {
  double value = 0;
  char *why = NULL;
  if (!json_object_get(score, "value") && json_object_get(score, "correct") && !less) {
    why = read_correct(score, task, out->total, &out->correct);
    out->nll_sum = -(double)out->correct;
    return why;
  }
  why = read_number(score, task, "value", &value);
  out->nll_sum = (less ? value : -value) * (double)out->total;
  return why || isfinite(out->nll_sum) ? why : wrong(task, "\"value\" times \"total\" is no finite number");
}

static char *read_score(const json_t *score, const nps_expected_t *expected, const char *task, nps_score_t *out) {
  if (!json_is_object(score)) return wrong(task, "expected an object in \"scores\"");
  char *why = read_total(score, task, &out->total);
  if (why) return why;
  switch (expected->metric) {
  case NPS_METRIC_NLL:
    return read_nll(score, task, out);
  case NPS_METRIC_VALUE:
    return read_value(score, task, expected->less_is_better, out);
  default:
    return read_accuracy(score, task, out);
  }
}

char *nps_command_scores(const json_t *answer, const nps_expected_t *expected, const char *const *tasks, int count,
                         nps_score_t *scores) {
  const json_t *all = json_object_get(answer, "scores");
  if (!json_is_object(all)) return nps_xstrdup("expected \"scores\", an object with a member for every task");
  for (int i = 0; i < count; i++) {
    scores[i] = (nps_score_t){0};
    char *why = read_score(json_object_get(all, tasks[i]), expected, tasks[i], &scores[i]);
    if (why) return why;
  }
  return NULL;
}
