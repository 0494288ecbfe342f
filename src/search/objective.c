#include "search_internal.h"

#include <math.h>
#include <stdlib.h>

/* A score of which more is better. */
static double score_of(const nps_recipe_fitness_t *fitness, const nps_score_t *s) {
  return fitness->metric == NPS_METRIC_ACCURACY ? nps_score_accuracy(s) : -nps_score_nll(s);
}

/* Between θ0 and the fine-tuned model on the same samples; where that is no gain, the difference from θ0. */
static void normalise(nps_goal_t *goal, const nps_search_task_t *task, int t, int part, const nps_score_t *base,
                      const nps_score_t *tuned) {
  if (isnan(base->nll_sum))
    nps_note("fitness.objective normalized: task '%s': the base could not be scored; scores count as they are",
             task->name);
  if (base->total == 0) return;
  const double from = score_of(goal->fitness, base);
  const double gain = tuned->total > 0 ? score_of(goal->fitness, tuned) - from : 0;
  if (isfinite(from)) goal->offset[part][t] = from;
  if (gain > 0 && isfinite(gain))
    goal->scale[part][t] = gain;
  else if (part == NPS_PART_SEEN)
    nps_note("fitness.objective normalized: task '%s': %s; its gain over the base counts as it is", task->name,
             tuned->total > 0        ? "its model is not better than the base"
             : isnan(tuned->nll_sum) ? "its model could not be scored"
                                     : "it has no fine-tuned model");
}

nps_goal_t *nps_goal_new(const nps_search_spec_t *spec, const nps_score_t (*base)[NPS_PARTS],
                         const nps_score_t (*tuned)[NPS_PARTS]) {
  const size_t tasks = (size_t)spec->task_count;
  nps_goal_t *goal = nps_xcalloc(1, sizeof *goal);
  goal->fitness = spec->fitness;
  goal->tasks = spec->tasks;
  for (int p = 0; p < NPS_PARTS; p++) {
    goal->offset[p] = nps_xcalloc(tasks, sizeof(double));
    goal->scale[p] = nps_xcalloc(tasks, sizeof(double));
    for (size_t t = 0; t < tasks; t++) goal->scale[p][t] = 1;
  }
  if (spec->fitness->objective == NPS_OBJECTIVE_NORMALIZED)
    for (int t = 0; t < spec->task_count; t++)
      for (int p = 0; p < NPS_PARTS; p++) normalise(goal, &spec->tasks[t], t, p, &base[t][p], &tuned[t][p]);
  return goal;
}

void nps_goal_free(nps_goal_t *goal) {
  if (!goal) return;
  for (int p = 0; p < NPS_PARTS; p++) {
    free(goal->offset[p]);
    free(goal->scale[p]);
  }
  free(goal);
}

static double gain_of(const nps_goal_t *goal, int part, int task, const nps_score_t *score) {
  return (score_of(goal->fitness, score) - goal->offset[part][task]) / goal->scale[part][task];
}

double nps_h_score(double learnt, double general) {
  return learnt + general > 0 ? 2 * learnt * general / (learnt + general) : learnt + general;
}

static double mean_of(double sum, int n) { return n > 0 ? sum / n : NAN; }

/* NaN where there is no task of one kind. */
static double h_score_of(const nps_goal_t *goal, const int *tasks, int count, const nps_score_t *scores) {
  double sum[2] = {0, 0};
  int n[2] = {0, 0};
  for (int k = 0; k < count; k++) {
    const bool general = goal->tasks[tasks[k]].model < 0;
    if (scores[k].total == 0) continue;
    sum[general] += nps_score_accuracy(&scores[k]);
    n[general]++;
  }
  return nps_h_score(mean_of(sum[0], n[0]), mean_of(sum[1], n[1]));
}

nps_fitness_value_t nps_goal_value(const nps_goal_t *goal, int part, const int *tasks, int count,
                                   const nps_score_t *scores) {
  const bool by_accuracy = goal->fitness->metric == NPS_METRIC_ACCURACY;
  double sum = 0, worst = INFINITY, accuracy = 0, nll = 0;
  int n = 0;
  if (nps_score_has_failed(scores, count))
    return (nps_fitness_value_t){.failed = true, .primary = NAN, .secondary = NAN};
  for (int k = 0; k < count; k++) {
    if (scores[k].total == 0) continue;
    const double gain = gain_of(goal, part, tasks[k], &scores[k]);
    sum += gain;
    if (gain < worst) worst = gain;
    accuracy += nps_score_accuracy(&scores[k]);
    nll += nps_score_nll(&scores[k]);
    n++;
  }
  double aim = mean_of(sum, n);
  if (goal->fitness->objective == NPS_OBJECTIVE_WORST) aim = worst;
  if (goal->fitness->objective == NPS_OBJECTIVE_H_SCORE) aim = h_score_of(goal, tasks, count, scores);
  if (!isfinite(aim) || !isfinite(nll)) return (nps_fitness_value_t){.failed = true, .primary = NAN, .secondary = NAN};
  return (nps_fitness_value_t){.primary = -aim, .secondary = by_accuracy ? nll / n : -accuracy / n};
}

bool nps_goal_is_gain(const nps_goal_t *goal, int part, const int *tasks, int count, const nps_score_t *scores,
                      const nps_score_t *than) {
  double sum = 0, squares = 0;
  int n = 0;
  for (int k = 0; k < count; k++) {
    if (scores[k].total == 0) continue;
    const double more = gain_of(goal, part, tasks[k], &scores[k]) - gain_of(goal, part, tasks[k], &than[k]);
    sum += more;
    squares += more * more;
    n++;
  }
  const nps_objective_t objective = goal->fitness->objective;
  if (n < 2 || objective == NPS_OBJECTIVE_WORST || objective == NPS_OBJECTIVE_H_SCORE) return true;
  const double mean = sum / n, variance = fmax(squares - n * mean * mean, 0) / (n - 1);
  return mean > 2 * sqrt(variance / n);
}

bool nps_fitness_is_loss(const nps_recipe_fitness_t *fitness) {
  return fitness->metric == NPS_METRIC_NLL || (fitness->metric == NPS_METRIC_VALUE && fitness->less_is_better);
}

double nps_fitness_shown(const nps_recipe_fitness_t *fitness, double primary) {
  const bool is_gain = fitness->objective == NPS_OBJECTIVE_NORMALIZED;
  return nps_fitness_is_loss(fitness) && !is_gain ? primary : -primary;
}
