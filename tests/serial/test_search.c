#include "../../src/search/search_internal.h"
#include "../nps_check.h"

#include <math.h>

enum { MODELS = 3, SUBSPACES = 2, TASKS = 3 };

static const char *const models[MODELS] = {"x", "y", "z"};
static nps_search_task_t tasks[TASKS] = {
    {.name = "x", .model = 0}, {.name = "y", .model = 1}, {.name = "w", .model = -1}};
static nps_recipe_search_t search;
static nps_recipe_fitness_t fitness;
static nps_weighting_t *start;
static nps_search_spec_t spec;

static void set_up(void) {
  search = (nps_recipe_search_t){.vary_weight = true, .bounds = {{-5, 5}, {-4, 4}, {-2, 2}}, .start_weight = 0.5};
  fitness = (nps_recipe_fitness_t){.metric = NPS_METRIC_ACCURACY, .objective = NPS_OBJECTIVE_MEAN};
  start = nps_weighting_new(MODELS, SUBSPACES);
  start->lambda[1] = 0.7;
  start->lambda[2] = 3;
  spec = (nps_search_spec_t){
      .models = models, .start = start, .tasks = tasks, .task_count = TASKS, .search = &search, .fitness = &fitness};
}

static void tear_down(void) { nps_weighting_free(start); }

/* ---- held-out samples ---- */

START_TEST(every_fourth_sample_is_held) {
  for (int64_t i = 0; i < 100; i++) ck_assert_int_eq(nps_sample_is_held(i, 0.25), i % 4 == 3);
  for (int64_t i = 0; i < 100; i++) ck_assert(!nps_sample_is_held(i, 0));
}
END_TEST

START_TEST(any_part_can_be_held) {
  for (int percent = 1; percent < 100; percent += 7) {
    int held = 0;
    for (int64_t i = 0; i < 10000; i++) held += nps_sample_is_held(i, percent / 100.0);
    ck_assert_int_le(abs(held - 100 * percent), 1);
  }
}
END_TEST

/* ---- genomes ---- */

static void ck_columns(const nps_genome_t *g, int count, const char *const *columns) {
  ck_assert_int_eq(g->count, count);
  for (int i = 0; i < count; i++) ck_assert_str_eq(g->columns[i], columns[i]);
}

START_TEST(prune_searches_the_weights_of_one_model) {
  static const char *const columns[] = {"weight[0]", "weight[1]"};
  nps_genome_t *g = nps_genome_new(&spec, NPS_STAGE_PRUNE, 1);
  nps_weighting_t *w = nps_weighting_copy(start);
  ck_columns(g, 2, columns);
  ck_assert(g->start[0] == 0.5 && g->lower[0] == -5 && g->upper[1] == 5);
  nps_genome_put(g, (double[]){-0.25, 2}, w);
  for (int m = 0; m < MODELS; m++) ck_assert(w->weight[m * SUBSPACES] == (m == 1 ? -0.25 : 1));
  ck_assert_msg(w->priority[2] == 0.25 && w->priority[3] == 2, "priorities follow the weights");
  ck_assert(w->lambda[1] == 0.7);
  nps_weighting_free(w);
  nps_genome_free(g);
}
END_TEST

START_TEST(priorities_are_kept_or_searched) {
  static const char *const columns[] = {"weight[0]", "weight[1]", "log_priority[0]", "log_priority[1]"};
  spec.given_priorities = true;
  nps_genome_t *g = nps_genome_new(&spec, NPS_STAGE_PRUNE, 0);
  nps_weighting_t *w = nps_weighting_copy(start);
  nps_genome_put(g, (double[]){-0.25, 2}, w);
  ck_assert(w->weight[0] == -0.25 && w->priority[0] == 1);
  nps_genome_free(g);
  spec.given_priorities = false;
  search.vary_density = true;
  g = nps_genome_new(&spec, NPS_STAGE_PRUNE, 0);
  ck_columns(g, 4, columns);
  ck_assert(g->start[2] == 0 && g->lower[2] == -4);
  nps_genome_put(g, (double[]){-0.25, 2, -1, 0}, w);
  ck_assert(w->weight[0] == -0.25 && w->priority[0] == exp(-1) && w->priority[1] == 1);
  nps_genome_free(g);
  nps_weighting_free(w);
}
END_TEST

START_TEST(fuse_searches_lambdas_within_bounds) {
  static const char *const columns[] = {"lambda[x]", "lambda[y]", "lambda[z]"};
  nps_genome_t *g = nps_genome_new(&spec, NPS_STAGE_FUSE, -1);
  double x[] = {-7, 0.3, 7};
  ck_columns(g, 3, columns);
  ck_assert(g->start[0] == 1 && g->start[1] == 0.7 && g->start[2] == 2);
  nps_genome_clip(g, x);
  ck_assert(x[0] == -2 && x[1] == 0.3 && x[2] == 2);
  nps_genome_free(g);
}
END_TEST

START_TEST(joint_shares_weights_or_not) {
  static const char *const shared[] = {"weight[0]", "weight[1]", "lambda[x]", "lambda[y]", "lambda[z]"};
  static const char *const own[] = {"weight[x,0]", "weight[x,1]", "weight[y,0]", "weight[y,1]", "weight[z,0]",
                                    "weight[z,1]", "lambda[x]",   "lambda[y]",   "lambda[z]"};
  nps_weighting_t *w = nps_weighting_copy(start);
  nps_genome_t *g = nps_genome_new(&spec, NPS_STAGE_JOINT, -1);
  ck_columns(g, 5, shared);
  nps_genome_put(g, (double[]){1.5, -1, 0.1, 0.2, 0.3}, w);
  for (int m = 0; m < MODELS; m++) ck_assert(w->weight[2 * m] == 1.5 && w->priority[2 * m + 1] == 1);
  ck_assert(w->lambda[0] == 0.1 && w->lambda[2] == 0.3);
  nps_genome_free(g);
  search.per_model = true;
  g = nps_genome_new(&spec, NPS_STAGE_JOINT, -1);
  ck_columns(g, 9, own);
  nps_genome_put(g, (double[]){1, 2, 3, 4, 5, 6, 7, 8, 9}, w);
  for (int i = 0; i < MODELS * SUBSPACES; i++) ck_assert(w->weight[i] == i + 1);
  nps_genome_free(g);
  nps_weighting_free(w);
}
END_TEST

/* ---- fitness of scores ---- */

static const nps_score_t base[TASKS][NPS_PARTS] = {{{5, 10, 10}}, {{2, 10, 20}}, {{5, 10, 5}}};
static const nps_score_t tuned[TASKS][NPS_PARTS] = {{{9, 10, 2}}, {{10, 10, 10}}, {{0, 0, 0}}};
static const nps_score_t merged[TASKS] = {{7, 10, 6}, {8, 10, 12}, {6, 10, 4}};
static const int all[TASKS] = {0, 1, 2};

static nps_fitness_value_t value_of(nps_metric_t metric, nps_objective_t objective, const nps_score_t *scores) {
  fitness.metric = metric;
  fitness.objective = objective;
  nps_note_mute(true);
  nps_goal_t *goal = nps_goal_new(&spec, base, tuned);
  nps_note_mute(false);
  const nps_fitness_value_t value = nps_goal_value(goal, NPS_PART_SEEN, all, TASKS, scores);
  nps_goal_free(goal);
  return value;
}

static void ck_near(double found, double expected) {
  ck_assert_msg(fabs(found - expected) < 1e-14, "expected %.17g, found %.17g", expected, found);
}

START_TEST(objectives_put_tasks_together) {
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_MEAN, merged).primary, -0.7);
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_MEAN, merged).secondary, 2.2 / 3);
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_WORST, merged).primary, -0.6);
  ck_near(value_of(NPS_METRIC_NLL, NPS_OBJECTIVE_MEAN, merged).primary, 2.2 / 3);
  ck_near(value_of(NPS_METRIC_NLL, NPS_OBJECTIVE_MEAN, merged).secondary, -0.7);
  ck_near(value_of(NPS_METRIC_NLL, NPS_OBJECTIVE_WORST, merged).primary, 1.2);
  /* (7 − 5)/(9 − 5), (8 − 2)/(10 − 2), and 0.6 − 0.5 of the task without a model */
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_NORMALIZED, merged).primary, -(0.5 + 0.75 + 0.1) / 3);
  ck_near(value_of(NPS_METRIC_NLL, NPS_OBJECTIVE_NORMALIZED, merged).primary, -(0.5 + 0.8 + 0.1) / 3);
}
END_TEST

/* Accuracies of x and y 0.7, 0.8, of w, which is no model's, 0.6: 2 · 0.75 · 0.6 / 1.35 = 2/3 */
START_TEST(the_h_score_is_of_both_kinds_of_tasks) {
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_H_SCORE, merged).primary, -2.0 / 3);
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_H_SCORE, merged).secondary, 2.2 / 3);
  nps_score_t scores[TASKS] = {merged[0], merged[1], {0, 10, 4}};
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_H_SCORE, scores).primary, 0);
  scores[0].correct = scores[1].correct = 0;
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_H_SCORE, scores).primary, 0);
  scores[2] = (nps_score_t){0, 0, 0};
  ck_assert(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_H_SCORE, scores).failed);
}
END_TEST

/* The way up to where most is learnt; beyond it nothing counts. */
START_TEST(a_knee_is_farthest_above_the_line) {
  const double learnt[] = {0.5, 0.7, 0.8, 0.85, 0.9, 0.6}, general[] = {0.9, 0.89, 0.87, 0.8, 0.7, 0.1};
  const double same[] = {0.9, 0.9, 0.9, 0.9, 0.95, 0.1}, line[] = {0.9, 0.8, 0.75, 0.725, 0.7, 0.9};
  const double worse[] = {0.5, 0.4, 0.3, 0.2, 0.5, 0.1};
  ck_assert_int_eq(nps_path_knee(learnt, general, 6), 2); /* above by 0.45, 0.6, 0.375 */
  ck_assert_msg(nps_path_knee(learnt, same, 6) == 4, "nothing is lost up to the end");
  ck_assert_msg(nps_path_knee(learnt, line, 6) == -1, "a straight line has no knee");
  ck_assert_msg(nps_path_knee(worse, general, 6) == -1, "nothing is learnt");
}
END_TEST

START_TEST(general_tasks_belong_to_every_search_by_h_score) {
  nps_track_t track;
  for (int wanted = 1; wanted <= 2; wanted++) {
    nps_search_history_t history;
    fitness.objective = wanted == 1 ? NPS_OBJECTIVE_MEAN : NPS_OBJECTIVE_H_SCORE;
    nps_track_begin(&spec, NPS_STAGE_PRUNE, 1, &history, &track);
    ck_assert_int_eq(track.task_count, wanted);
    ck_assert_int_eq(track.tasks[0], 1);
    if (wanted == 2) ck_assert_int_eq(track.tasks[1], 2);
    nps_track_end(&track);
    nps_history_free(&history);
  }
}
END_TEST

START_TEST(scores_without_a_number_have_failed) {
  nps_score_t scores[TASKS] = {merged[0], merged[1], merged[2]};
  scores[1].nll_sum = NAN;
  ck_assert(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_MEAN, scores).failed);
  scores[1] = (nps_score_t){0, 0, NAN}; /* as of a command: it is no task without samples */
  ck_assert(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_MEAN, scores).failed);
  ck_assert(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_H_SCORE, scores).failed);
  scores[1] = (nps_score_t){0, 0, 0};
  ck_near(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_MEAN, scores).primary, -0.65);
  const nps_score_t none[TASKS] = {{0, 0, 0}};
  ck_assert(value_of(NPS_METRIC_ACCURACY, NPS_OBJECTIVE_MEAN, none).failed);
}
END_TEST

/* Gains in accuracy .1, .1, .2 over the tasks: mean .133, standard error .033; with .1, .1, −.1: .033 ± .067. */
START_TEST(gains_within_chance_are_doubted) {
  nps_score_t more[TASKS] = {{8, 10, 6}, {9, 10, 12}, {8, 10, 4}};
  fitness.metric = NPS_METRIC_ACCURACY;
  nps_goal_t *goal = nps_goal_new(&spec, base, tuned);
  ck_assert(nps_goal_is_gain(goal, NPS_PART_HELD, all, TASKS, more, merged));
  ck_assert(!nps_goal_is_gain(goal, NPS_PART_HELD, all, TASKS, merged, more));
  more[2].correct = 5;
  ck_assert(!nps_goal_is_gain(goal, NPS_PART_HELD, all, TASKS, more, merged));
  ck_assert_msg(nps_goal_is_gain(goal, NPS_PART_HELD, all, 1, merged, more), "one task has no standard error");
  fitness.objective = NPS_OBJECTIVE_WORST;
  ck_assert(nps_goal_is_gain(goal, NPS_PART_HELD, all, TASKS, merged, more));
  fitness.objective = NPS_OBJECTIVE_H_SCORE;
  ck_assert(nps_goal_is_gain(goal, NPS_PART_HELD, all, TASKS, merged, more));
  nps_goal_free(goal);
}
END_TEST

START_TEST(fitness_is_shown_as_people_read_it) {
  fitness.metric = NPS_METRIC_ACCURACY;
  ck_assert(nps_fitness_shown(&fitness, -0.7) == 0.7);
  fitness.metric = NPS_METRIC_NLL;
  ck_assert(nps_fitness_shown(&fitness, 0.7) == 0.7);
  fitness.objective = NPS_OBJECTIVE_NORMALIZED;
  ck_assert(nps_fitness_shown(&fitness, -0.7) == 0.7);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("search");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, every_fourth_sample_is_held);
  tcase_add_test(cases, any_part_can_be_held);
  tcase_add_test(cases, prune_searches_the_weights_of_one_model);
  tcase_add_test(cases, priorities_are_kept_or_searched);
  tcase_add_test(cases, fuse_searches_lambdas_within_bounds);
  tcase_add_test(cases, joint_shares_weights_or_not);
  tcase_add_test(cases, objectives_put_tasks_together);
  tcase_add_test(cases, the_h_score_is_of_both_kinds_of_tasks);
  tcase_add_test(cases, a_knee_is_farthest_above_the_line);
  tcase_add_test(cases, general_tasks_belong_to_every_search_by_h_score);
  tcase_add_test(cases, scores_without_a_number_have_failed);
  tcase_add_test(cases, gains_within_chance_are_doubted);
  tcase_add_test(cases, fitness_is_shown_as_people_read_it);
  return run_tests("search", cases);
}
