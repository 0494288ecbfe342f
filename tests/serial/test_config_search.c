#include "../nps_check.h"
#include "nps/config.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* All recorded problems, one a line; forgets them. */
static char *take_problems(void) {
  nps_text_t all = {0};
  nps_text_add(&all, "%s", "");
  for (int i = 0; i < nps_problem_count(); i++) {
    ck_assert_int_eq(nps_problem_code(i), NPS_ERR_CONFIG);
    nps_text_add(&all, "%s%s", i ? "\n" : "", nps_problem_text(i));
  }
  nps_problem_clear();
  return all.text;
}

static nps_recipe_t *parse(const char *text) {
  nps_recipe_t *recipe = NULL;
  nps_err_t err = nps_recipe_parse(text, "c.yaml", NULL, 0, &recipe);
  char *problems = take_problems();
  ck_assert_msg(strcmp(problems, "") == 0, "config:\n%s\nproblems:\n%s", text, problems);
  ck_assert_int_eq(err, NPS_OK);
  free(problems);
  return recipe;
}

static void expect_problems(const char *text, const char *expected) {
  nps_recipe_t *recipe = NULL;
  nps_err_t err = nps_recipe_parse(text, "c.yaml", NULL, 0, &recipe);
  char *problems = take_problems();
  ck_assert_msg(strcmp(problems, expected) == 0, "config:\n%s\nexpected:\n%s\nfound:\n%s", text, expected, problems);
  ck_assert_int_eq(err, NPS_ERR_CONFIG);
  ck_assert_ptr_null(recipe);
  free(problems);
}

/* Two models; the sections start on line 5. */
#define TWO "merge_method: nps\nbase_model: base\nmodels:\n- {model: m/a}\n"
#define PAIR "merge_method: nps\nbase_model: base\nmodels: [{model: m/a},\n {model: m/b}]\n"
#define TASKS "fitness: {tasks: [{name: a, data: d.h5}]}\n"

START_TEST(defaults_are_those_of_the_manual) {
  nps_recipe_t *r = parse(TWO);
  ck_assert(!r->nps.given && !r->search.given && !r->fitness.given);
  ck_assert_int_eq(r->nps.application, NPS_APPLICATION_FUSION);
  ck_assert_int_eq(r->nps.subspaces, 8);
  ck_assert_int_eq(r->nps.scope, NPS_SCOPE_MODEL);
  ck_assert(r->nps.density == 0.1);
  ck_assert_int_eq(r->nps.weight_rows, 0);
  ck_assert_int_eq(r->nps.priority_rows, 0);
  ck_assert_int_eq(r->search.algorithm, NPS_ALGORITHM_CMA_ES);
  ck_assert_int_eq(r->search.stage_count, 1);
  ck_assert_int_eq(r->search.stages[0], NPS_STAGE_JOINT);
  ck_assert_int_eq(r->search.final, NPS_FINAL_AVERAGE);
  ck_assert(r->search.vary_weight && !r->search.vary_density && !r->search.per_model);
  ck_assert(r->search.bounds[NPS_VARIABLE_WEIGHT][0] == -5 && r->search.bounds[NPS_VARIABLE_WEIGHT][1] == 5);
  ck_assert(r->search.bounds[NPS_VARIABLE_LOG_PRIORITY][0] == -5 &&
            r->search.bounds[NPS_VARIABLE_LOG_PRIORITY][1] == 5);
  ck_assert(r->search.bounds[NPS_VARIABLE_LAMBDA][0] == -2 && r->search.bounds[NPS_VARIABLE_LAMBDA][1] == 2);
  ck_assert(r->search.start_weight == 1 && r->search.start_log_priority == 0);
  ck_assert_ptr_null(r->search.start_from);
  ck_assert_int_eq(r->search.restarts, 0);
  ck_assert_int_eq(r->search.generations, 12);
  ck_assert_int_eq(r->search.population, 0);
  ck_assert(r->search.sigma == 0.1);
  ck_assert_int_eq(r->search.max_evaluations, 0);
  ck_assert_int_eq(r->search.patience, 0);
  ck_assert_int_eq(r->fitness.evaluator, NPS_EVALUATOR_NATIVE);
  ck_assert_int_eq(r->fitness.metric, NPS_METRIC_ACCURACY);
  ck_assert_int_eq(r->fitness.objective, NPS_OBJECTIVE_MEAN);
  ck_assert(r->fitness.holdout == 0.25);
  ck_assert_int_eq(r->fitness.batch, 64);
  ck_assert_int_eq(r->fitness.task_count, 0);
  nps_recipe_free(r);
}
END_TEST

START_TEST(defaults_of_other_stages_are_those_of_the_paper) {
  nps_recipe_t *r =
      parse(TWO "search: {stages: [prune, fuse]}\nfitness: {holdout: 0, tasks: [{name: a, data: d.h5}]}\n");
  ck_assert_int_eq(r->search.final, NPS_FINAL_BEST);
  ck_assert_int_eq(r->search.generations, 20);
  ck_assert(r->search.sigma == 0.3);
  nps_recipe_free(r);
  r = parse(TWO "search: {stages: [joint], sigma: 0.3, generations: 20, final: best}\n" TASKS);
  ck_assert_int_eq(r->search.final, NPS_FINAL_BEST);
  ck_assert_int_eq(r->search.generations, 20);
  ck_assert(r->search.sigma == 0.3);
  nps_recipe_free(r);
}
END_TEST

/* Every key with its default, those whose other values are not built included. */
START_TEST(written_defaults_are_accepted) {
  nps_recipe_t *r = parse(
      TWO "nps: {application: fusion, partition: magnitude, of: each, spectral_exclude: [], subspaces: 8,\n"
          "  scope: model, density: 0.1, weights: [], priorities: []}\n"
          "search: {algorithm: cma-es, stages: [prune, fuse], variables: [weight], per_model: false,\n"
          "  bounds: {weight: [-5, 5], log_priority: [-5, 5], lambda: [-2, 2]}, restarts: 0, race: false,\n"
          "  start: {weight: 1, log_priority: 0}, start_from: null, generations: 20, population: 0, sigma: 0.3,\n"
          "  max_evaluations: 0, max_time: 0, patience: 0, ranks_per_model: 0, snapshot: null}\n"
          "fitness: {evaluator: native, metric: accuracy, objective: mean, holdout: 0, batch: 64, command: [],\n"
          "  timeout: 600, direction: max, sharpness: {samples: 0, rho: 0.05}, tasks: [{name: a, data: d.h5}]}\n");
  ck_assert(r->nps.given && r->search.given && r->fitness.given);
  ck_assert_int_eq(r->nps.weight_rows, 0);
  ck_assert_int_eq(r->search.generations, 20);
  nps_recipe_free(r);
}
END_TEST

static const char full[] = "merge_method: nps\n"
                           "base_model: base\n"
                           "models:\n"
                           "- {model: m/a}\n"
                           "- {model: m/b, name: 'b: c'}\n"
                           "nps:\n"
                           "  subspaces: 3\n"
                           "  scope: tensor\n"
                           "  density: 0.30000000000000004\n"
                           "  weights: {a: [1, -0.5, 1e-300], 'b: c': [0, 2, 3]}\n"
                           "  priorities: [0, 1, 0.1]\n"
                           "search:\n"
                           "  algorithm: sep-cma-es\n"
                           "  stages: [fuse]\n"
                           "  variables: [density, weight]\n"
                           "  bounds: {weight: [-1, 4], log_priority: [-3.5, 2], lambda: [0, 1.25]}\n"
                           "  start: {weight: 0.7, log_priority: -1}\n"
                           "  start_from: 'old merge.h5'\n"
                           "  restarts: 2\n"
                           "  generations: 7\n"
                           "  population: 9\n"
                           "  sigma: 0.125\n"
                           "  max_evaluations: 5000000000\n"
                           "  patience: 4\n"
                           "fitness:\n"
                           "  metric: nll\n"
                           "  objective: worst\n"
                           "  holdout: 0.25\n"
                           "  batch: 16\n"
                           "  tasks:\n"
                           "  - {name: a, data: d.h5}\n"
                           "  - {name: second, model: 'b: c', data: 'e, f.h5', group: g, head: a}\n"
                           "  - {name: free, data: d.h5, head: ./other}\n";

START_TEST(every_key_is_read) {
  nps_recipe_t *r = parse(full);
  ck_assert_int_eq(r->nps.subspaces, 3);
  ck_assert_int_eq(r->nps.scope, NPS_SCOPE_TENSOR);
  ck_assert(r->nps.density == 0.30000000000000004);
  ck_assert_int_eq(r->nps.weight_rows, 2);
  ck_assert_str_eq(r->nps.weights[0].model, "a");
  ck_assert_int_eq(r->nps.weights[0].count, 3);
  ck_assert(r->nps.weights[0].numbers[1] == -0.5 && r->nps.weights[0].numbers[2] == 1e-300);
  ck_assert_str_eq(r->nps.weights[1].model, "b: c");
  ck_assert(r->nps.weights[1].numbers[2] == 3);
  ck_assert_int_eq(r->nps.priority_rows, 1);
  ck_assert_ptr_null(r->nps.priorities[0].model);
  ck_assert(r->nps.priorities[0].numbers[2] == 0.1);
  ck_assert_int_eq(r->search.algorithm, NPS_ALGORITHM_SEP_CMA_ES);
  ck_assert_int_eq(r->search.stage_count, 1);
  ck_assert_int_eq(r->search.stages[0], NPS_STAGE_FUSE);
  ck_assert(r->search.vary_weight && r->search.vary_density);
  ck_assert(r->search.bounds[NPS_VARIABLE_WEIGHT][0] == -1 && r->search.bounds[NPS_VARIABLE_WEIGHT][1] == 4);
  ck_assert(r->search.bounds[NPS_VARIABLE_LOG_PRIORITY][0] == -3.5);
  ck_assert(r->search.bounds[NPS_VARIABLE_LAMBDA][1] == 1.25);
  ck_assert(r->search.start_weight == 0.7 && r->search.start_log_priority == -1);
  ck_assert_str_eq(r->search.start_from, "old merge.h5");
  ck_assert_int_eq(r->search.restarts, 2);
  ck_assert_int_eq(r->search.generations, 7);
  ck_assert_int_eq(r->search.population, 9);
  ck_assert(r->search.sigma == 0.125);
  ck_assert_int_eq(r->search.max_evaluations, 5000000000);
  ck_assert_int_eq(r->search.patience, 4);
  ck_assert_int_eq(r->fitness.metric, NPS_METRIC_NLL);
  ck_assert_int_eq(r->fitness.objective, NPS_OBJECTIVE_WORST);
  ck_assert(r->fitness.holdout == 0.25);
  ck_assert_int_eq(r->fitness.batch, 16);
  nps_recipe_free(r);
}
END_TEST

START_TEST(tasks_have_models_groups_and_heads) {
  nps_recipe_t *r = parse(full);
  ck_assert_int_eq(r->fitness.task_count, 3);
  const nps_recipe_task_t *tasks = r->fitness.tasks;
  ck_assert_str_eq(tasks[0].model, "a");
  ck_assert_str_eq(tasks[0].group, "a");
  ck_assert_ptr_null(tasks[0].head);
  ck_assert_int_eq(tasks[0].line, 31);
  ck_assert_str_eq(tasks[1].name, "second");
  ck_assert_str_eq(tasks[1].model, "b: c");
  ck_assert_str_eq(tasks[1].data, "e, f.h5");
  ck_assert_str_eq(tasks[1].group, "g");
  ck_assert_str_eq(tasks[1].head, "a");
  ck_assert_ptr_null(tasks[2].model);
  ck_assert_str_eq(tasks[2].head, "./other");
  nps_recipe_free(r);
}
END_TEST

START_TEST(transfer_has_one_stage) {
  nps_recipe_t *r = parse(TWO "nps: {application: transfer}\nsearch: {}\n" TASKS "output: {path: out.h5}\n");
  ck_assert_int_eq(r->nps.application, NPS_APPLICATION_TRANSFER);
  ck_assert_int_eq(r->search.stage_count, 1);
  ck_assert_int_eq(r->search.stages[0], NPS_STAGE_PRUNE);
  nps_recipe_free(r);
  nps_recipe_free(parse(PAIR "nps: {application: transfer}\noutput: {path: 'out-{name}.h5'}\n"));
}
END_TEST

START_TEST(listed_base_needs_no_task) {
  nps_recipe_free(parse("merge_method: nps\nbase_model: ./m/base/\nmodels: [{model: m/base}, {model: m/a}]\n"
                        "nps: {application: transfer}\nsearch: {}\noutput: {path: out.h5}\n" TASKS));
  expect_problems("merge_method: nps\nbase_model: m/base\nmodels: [{model: m/based}, {model: m/a}]\nsearch: {stages: "
                  "[prune]}\n" TASKS,
                  "c.yaml:4: search.stages: prune needs a task for every model, 'based' has none in fitness.tasks");
}
END_TEST

START_TEST(joint_searches_what_it_is_told) {
  nps_recipe_t *r =
      parse(PAIR "search: {stages: [joint], variables: [density], per_model: true, algorithm: random}\n" TASKS);
  ck_assert_int_eq(r->search.stage_count, 1);
  ck_assert_int_eq(r->search.stages[0], NPS_STAGE_JOINT);
  ck_assert(!r->search.vary_weight && r->search.vary_density && r->search.per_model);
  ck_assert_int_eq(r->search.algorithm, NPS_ALGORITHM_RANDOM);
  nps_recipe_free(r);
}
END_TEST

/* Without a search the weights may be given and nothing needs to be scored. */
START_TEST(no_search_asks_for_no_tasks) {
  nps_recipe_t *r =
      parse(TWO "nps: {subspaces: 2, weights: [1, 2]}\nsearch: {algorithm: none}\nfitness: {evaluator: none}\n");
  ck_assert_int_eq(r->search.algorithm, NPS_ALGORITHM_NONE);
  ck_assert_int_eq(r->fitness.evaluator, NPS_EVALUATOR_NONE);
  nps_recipe_free(r);
}
END_TEST

START_TEST(overrides_reach_the_sections) {
  const nps_override_t changes[] = {{"nps.subspaces", "4"}, {"search.generations", "3"}, {"fitness.tasks.0.data", "x"}};
  nps_recipe_t *r = NULL;
  ck_assert_int_eq(nps_recipe_parse(TWO TASKS, "c.yaml", changes, COUNT(changes), &r), NPS_OK);
  ck_assert_int_eq(r->nps.subspaces, 4);
  ck_assert_int_eq(r->search.generations, 3);
  ck_assert_str_eq(r->fitness.tasks[0].data, "x");
  nps_recipe_free(r);
  const nps_override_t wrong = {"nps.density", "2"};
  ck_assert_int_eq(nps_recipe_parse(TWO, "c.yaml", &wrong, 1, &r), NPS_ERR_CONFIG);
  char *problems = take_problems();
  ck_assert_str_eq(problems, "--set nps.density: nps.density: expected a number of at least 0 and at most 1, found the "
                             "number 2");
  free(problems);
}
END_TEST

static void expect_same_text(const char *a, const char *b) {
  ck_assert_int_eq(!a, !b);
  if (a) ck_assert_str_eq(a, b);
}

static void expect_same_rows(const nps_recipe_row_t *a, int a_rows, const nps_recipe_row_t *b, int b_rows) {
  ck_assert_int_eq(a_rows, b_rows);
  for (int i = 0; i < a_rows; i++) {
    expect_same_text(a[i].model, b[i].model);
    ck_assert_int_eq(a[i].count, b[i].count);
    ck_assert(memcmp(a[i].numbers, b[i].numbers, (size_t)a[i].count * sizeof(double)) == 0);
  }
}

static void expect_same_nps(const nps_recipe_nps_t *a, const nps_recipe_nps_t *b) {
  ck_assert_int_eq(a->application, b->application);
  ck_assert_int_eq(a->subspaces, b->subspaces);
  ck_assert_int_eq(a->scope, b->scope);
  ck_assert(a->density == b->density);
  expect_same_rows(a->weights, a->weight_rows, b->weights, b->weight_rows);
  expect_same_rows(a->priorities, a->priority_rows, b->priorities, b->priority_rows);
}

static void expect_same_search(const nps_recipe_search_t *a, const nps_recipe_search_t *b) {
  ck_assert_int_eq(a->given, b->given);
  ck_assert_int_eq(a->algorithm, b->algorithm);
  ck_assert_int_eq(a->stage_count, b->stage_count);
  for (int i = 0; i < a->stage_count; i++) ck_assert_int_eq(a->stages[i], b->stages[i]);
  ck_assert_int_eq(a->vary_weight, b->vary_weight);
  ck_assert_int_eq(a->vary_density, b->vary_density);
  ck_assert_int_eq(a->per_model, b->per_model);
  ck_assert(memcmp(a->bounds, b->bounds, sizeof a->bounds) == 0);
  ck_assert(a->start_weight == b->start_weight && a->start_log_priority == b->start_log_priority);
  expect_same_text(a->start_from, b->start_from);
  ck_assert_int_eq(a->restarts, b->restarts);
  ck_assert_int_eq(a->generations, b->generations);
  ck_assert_int_eq(a->population, b->population);
  ck_assert(a->sigma == b->sigma);
  ck_assert_int_eq(a->max_evaluations, b->max_evaluations);
  ck_assert_int_eq(a->patience, b->patience);
}

static void expect_same_fitness(const nps_recipe_fitness_t *a, const nps_recipe_fitness_t *b) {
  ck_assert_int_eq(a->given, b->given);
  ck_assert_int_eq(a->evaluator, b->evaluator);
  ck_assert_int_eq(a->metric, b->metric);
  ck_assert_int_eq(a->objective, b->objective);
  ck_assert(a->holdout == b->holdout);
  ck_assert_int_eq(a->batch, b->batch);
  ck_assert_int_eq(a->command_count, b->command_count);
  for (int i = 0; i < a->command_count; i++) expect_same_text(a->command[i], b->command[i]);
  ck_assert(a->timeout == b->timeout);
  ck_assert_int_eq(a->less_is_better, b->less_is_better);
  ck_assert_int_eq(a->task_count, b->task_count);
  for (int i = 0; i < a->task_count; i++) {
    expect_same_text(a->tasks[i].name, b->tasks[i].name);
    expect_same_text(a->tasks[i].model, b->tasks[i].model);
    expect_same_text(a->tasks[i].data, b->tasks[i].data);
    expect_same_text(a->tasks[i].group, b->tasks[i].group);
    expect_same_text(a->tasks[i].head, b->tasks[i].head);
  }
}

START_TEST(emitted_sections_parse_to_the_same) {
  static const char *const configs[] = {
      full,
      TWO,
      TWO "search: {}\n" TASKS,
      TWO "nps: {weights: {}, density: 0}\nfitness: {evaluator: none, objective: normalized}\n",
      TWO "nps: {application: transfer}\nsearch: {algorithm: random, sigma: 1e-17}\n" TASKS,
      PAIR "search: {stages: [joint], variables: [density], per_model: true, sigma: 0.1}\n" TASKS,
      PAIR "nps: {subspaces: 1, weights: {b: [0.1]}, priorities: {b: [3]}}\nsearch: {algorithm: none}\n",
      TWO "search: {}\nfitness:\n  tasks: [{name: 'x, {y}', model: a, data: '# \"q\"', group: 'null', head: '3'}]\n",
      TWO "search: {}\nfitness: {evaluator: command, command: [python3, '-c', 'a: #\"'], timeout: 0.5, metric: value,\n"
          "  direction: min, tasks: [{name: a}]}\n",
  };
  for (int i = 0; i < COUNT(configs); i++) {
    nps_recipe_t *a = parse(configs[i]);
    char *text = nps_recipe_emit(a);
    nps_recipe_t *b = parse(text);
    char *again = nps_recipe_emit(b);
    ck_assert_str_eq(text, again);
    expect_same_nps(&a->nps, &b->nps);
    expect_same_search(&a->search, &b->search);
    expect_same_fitness(&a->fitness, &b->fitness);
    free(text);
    free(again);
    nps_recipe_free(a);
    nps_recipe_free(b);
  }
}
END_TEST

START_TEST(other_methods_emit_no_sections) {
  nps_recipe_t *r = parse("merge_method: ties\nmodels: [{model: a}]\n");
  char *text = nps_recipe_emit(r);
  ck_assert_ptr_null(strstr(text, "nps"));
  ck_assert_ptr_null(strstr(text, "search"));
  ck_assert_ptr_null(strstr(text, "fitness"));
  free(text);
  nps_recipe_free(r);
}
END_TEST

START_TEST(singular_partition_is_read_and_written) {
  nps_recipe_t *r = parse(TWO "nps: {partition: singular, of: sum, spectral_exclude: [embed, 'a: b'], subspaces: 2,\n"
                              "  weights: [1, 2, 3]}\n");
  char *text = nps_recipe_emit(r);
  nps_recipe_free(r);
  r = parse(text);
  ck_assert(r->nps.singular && r->nps.sum);
  ck_assert_int_eq(r->nps.exclude_count, 2);
  ck_assert_str_eq(r->nps.exclude[1], "a: b");
  ck_assert_int_eq(r->nps.weights[0].count, 3);
  free(text);
  nps_recipe_free(r);
}
END_TEST

START_TEST(problems_of_nps_are_named) {
  static const struct {
    const char *value, *problem;
  } cases[] = {
      {"3", "nps: expected a mapping, found the number 3"},
      {"{application: merge}",
       "nps.application: expected one of fusion, transfer, compression, found the text 'merge'"},
      {"{partition: [magnitude]}", "nps.partition: expected one of magnitude, singular, found a list"},
      {"{of: sum}", "nps.of: sum goes with nps.partition: singular only"},
      {"{of: all, partition: singular}", "nps.of: expected one of each, sum, found the text 'all'"},
      {"{spectral_exclude: [head]}", "nps.spectral_exclude: goes with nps.partition: singular only"},
      {"{partition: singular, spectral_exclude: head}",
       "nps.spectral_exclude: expected a list of parts of tensors' names, found the text 'head'"},
      {"{partition: singular, spectral_exclude: ['']}",
       "nps.spectral_exclude: expected a part of a tensor's name, found the text ''"},
      {"{partition: singular, of: sum, application: transfer}",
       "nps.of: sum makes one model of all, but nps.application is transfer: expected each"},
      {"{partition: singular, subspaces: 2, weights: [1, 2, 3, 4]}",
       "nps.weights: expected 2 numbers, one a subspace, or one more for the tensors that are no matrices, found 4"},
      {"{partition: singular, subspaces: 2, priorities: [1, 2, 3]}",
       "nps.priorities: expected 2 numbers, one a subspace, found 3"},
      {"{partition: singular, of: sum, subspaces: 1, weights: {a: [1]}}",
       "nps.weights.a: the sum (nps.of: sum) has no models: expected one list of numbers"},
      {"{subspaces: 0}", "nps.subspaces: expected a whole number from 1 to 256, found the number 0"},
      {"{subspaces: 257}", "nps.subspaces: expected a whole number from 1 to 256, found the number 257"},
      {"{subspaces: 2.5}", "nps.subspaces: expected a whole number from 1 to 256, found the number 2.5"},
      {"{subspaces: eight}", "nps.subspaces: expected a whole number from 1 to 256, found the text 'eight'"},
      {"{scope: layer}", "nps.scope: expected one of model, tensor, found the text 'layer'"},
      {"{density: 1.5}", "nps.density: expected a number of at least 0 and at most 1, found the number 1.5"},
      {"{density: -0.1}", "nps.density: expected a number of at least 0 and at most 1, found the number -0.1"},
      {"{density: .nan}", "nps.density: expected a number of at least 0 and at most 1, found the number .nan"},
      {"{density: [0.1]}", "nps.density: expected a number of at least 0 and at most 1, found a list"},
      {"{densty: 0.1}", "unknown key 'densty' in nps, did you mean 'density'?"},
      {"{weights: 3}", "nps.weights: expected a list of numbers, found the number 3"},
      {"{weights: [1, 2]}", "nps.weights: expected 8 numbers, one a subspace, found 2"},
      {"{subspaces: 2, weights: [1, x]}", "nps.weights: expected a finite number, found the text 'x'"},
      {"{subspaces: 2, weights: [1, .inf]}", "nps.weights: expected a finite number, found the number .inf"},
      {"{subspaces: 2, weights: {aa: [1, 2]}}",
       "nps.weights.aa: expected the name of a listed model, found 'aa', did you mean 'a'?"},
      {"{subspaces: 2, weights: {a: [1]}}", "nps.weights.a: expected 2 numbers, one a subspace, found 1"},
      {"{subspaces: 2, weights: {a: }}", "nps.weights.a: expected a list of numbers, found nothing"},
      {"{subspaces: 2, priorities: [1, -1]}", "nps.priorities: expected a number of at least 0, found the number -1"},
      {"{subspaces: 1, priorities: [[1]]}", "nps.priorities: expected a number of at least 0, found a list"},
  };
  for (int i = 0; i < COUNT(cases); i++) {
    char *text = nps_xstrf(TWO "nps: %s\n", cases[i].value);
    char *expected = nps_xstrf("c.yaml:5: %s", cases[i].problem);
    expect_problems(text, expected);
    free(text);
    free(expected);
  }
}
END_TEST

START_TEST(problems_of_search_are_named) {
  static const struct {
    const char *value, *problem;
  } cases[] = {
      {"[prune]", "search: expected a mapping, found a list"},
      {"{algorithm: cma}", "search.algorithm: expected one of cma-es, sep-cma-es, random, none, found the text 'cma'"},
      {"{algorithm: 3}", "search.algorithm: expected one of cma-es, sep-cma-es, random, none, found the number 3"},
      {"{stages: prune}", "search.stages: expected [prune], [fuse], [prune, fuse] or [joint], found the text 'prune'"},
      {"{stages: []}", "search.stages: expected [prune], [fuse], [prune, fuse] or [joint], found an empty list"},
      {"{stages: [fuse, prune]}",
       "search.stages: expected [prune], [fuse], [prune, fuse] or [joint], found [fuse, prune]"},
      {"{stages: [prune, joint]}",
       "search.stages: expected [prune], [fuse], [prune, fuse] or [joint], found [prune, joint]"},
      {"{stages: [prune, prune]}",
       "search.stages: expected [prune], [fuse], [prune, fuse] or [joint], found [prune, prune]"},
      {"{stages: [slim]}", "search.stages: expected one of prune, fuse, joint, found the text 'slim'"},
      {"{stages: [prune, fuse, joint]}",
       "search.stages: expected [prune], [fuse], [prune, fuse] or [joint], found a list"},
      {"{variables: []}", "search.variables: expected [weight], [density] or [weight, density], found an empty list"},
      {"{variables: [weights]}", "search.variables: expected one of weight, density, found the text 'weights'"},
      {"{variables: weight}",
       "search.variables: expected [weight], [density] or [weight, density], found the text 'weight'"},
      {"{variables: [weight, weight]}", "search.variables: 'weight' is listed twice"},
      {"{per_model: 1}", "search.per_model: expected true or false, found the number 1"},
      {"{stages: [fuse], per_model: true}", "search.per_model: holds for the stage joint only"},
      {"{bounds: [-1, 1]}", "search.bounds: expected a mapping, found a list"},
      {"{bounds: {weight: [5, -5]}}",
       "search.bounds.weight: expected [lower, upper] with lower < upper, found [5, -5]"},
      {"{bounds: {weight: [1, 1]}}", "search.bounds.weight: expected [lower, upper] with lower < upper, found [1, 1]"},
      {"{bounds: {lambda: [1]}}", "search.bounds.lambda: expected 2 numbers, found 1"},
      {"{bounds: {lambda: [-.inf, 1]}}", "search.bounds.lambda: expected a finite number, found the number -.inf"},
      {"{bounds: {weigth: [0, 2]}}", "unknown key 'weigth' in search.bounds, did you mean 'weight'?"},
      {"{bounds: {weight: [2, 3]}}", "search.start.weight: 1 lies outside of the bounds [2, 3]"},
      {"{start: {weight: 6}}", "search.start.weight: 6 lies outside of the bounds [-5, 5]"},
      {"{start: {log_priority: -5.5}}", "search.start.log_priority: -5.5 lies outside of the bounds [-5, 5]"},
      {"{start: 1}", "search.start: expected a mapping, found the number 1"},
      {"{start: {weight: one}}", "search.start.weight: expected a finite number, found the text 'one'"},
      {"{start_from: [a]}", "search.start_from: expected a text, found a list"},
      {"{restarts: -1}", "search.restarts: expected a whole number from 0 to 2147483647, found the number -1"},
      {"{race: true}", "search.race: true is not built yet"},
      {"{race: maybe}", "search.race: expected true or false, found the text 'maybe'"},
      {"{generations: 0}", "search.generations: expected a whole number from 1 to 2147483647, found the number 0"},
      {"{generations: 1.5}", "search.generations: expected a whole number from 1 to 2147483647, found the number 1.5"},
      {"{generations: 99999999999}",
       "search.generations: expected a whole number from 1 to 2147483647, found the number 99999999999"},
      {"{population: 1}", "search.population: expected 0 (4 + ⌊3 ln n⌋) or a whole number from 2 on, found 1"},
      {"{population: -4}", "search.population: expected a whole number from 0 to 2147483647, found the number -4"},
      {"{sigma: 0}", "search.sigma: expected a number above 0, found the number 0"},
      {"{sigma: -1}", "search.sigma: expected a number above 0, found the number -1"},
      {"{max_evaluations: -1}",
       "search.max_evaluations: expected a whole number from 0 to 9223372036854775807, found the number -1"},
      {"{max_time: -1}", "search.max_time: expected a number of at least 0, found the number -1"},
      {"{patience: x}", "search.patience: expected a whole number from 0 to 2147483647, found the text 'x'"},
      {"{ranks_per_model: -1}",
       "search.ranks_per_model: expected a whole number from 0 to 2147483647, found the number -1"},
      {"{snapshot: [s.h5]}", "search.snapshot: expected a text, found a list"},
      {"{generation: 3}", "unknown key 'generation' in search, did you mean 'generations'?"},
  };
  for (int i = 0; i < COUNT(cases); i++) {
    char *text = nps_xstrf(TWO "search: %s\n%s", cases[i].value, TASKS);
    char *expected = nps_xstrf("c.yaml:5: %s", cases[i].problem);
    expect_problems(text, expected);
    free(text);
    free(expected);
  }
}
END_TEST

START_TEST(problems_of_fitness_are_named) {
  static const struct {
    const char *value, *problem;
  } cases[] = {
      {"[]", "fitness: expected a mapping, found an empty list"},
      {"{tasks: []}", "fitness.tasks: expected a list of 1 to 1000 tasks, found an empty list"},
      {"{tasks: a}", "fitness.tasks: expected a list of 1 to 1000 tasks, found the text 'a'"},
      {"{}", "fitness: 'tasks' is missing, expected a list of tasks"},
      {"{batch: 3}", "fitness: 'tasks' is missing, expected a list of tasks"},
      {"{tasks: }", "fitness: 'tasks' is missing, expected a list of tasks"},
      {"{evaluator: command, tasks: [{name: a}]}", "fitness.command: is missing, expected [program, arguments, …]"},
      {"{evaluator: command, command: run x, tasks: [{name: a}]}",
       "fitness.command: expected a list, [program, arguments, …], found the text 'run x'"},
      {"{evaluator: command, command: [run, ''], tasks: [{name: a}]}",
       "fitness.command.1: expected a text, found an empty one"},
      {"{evaluator: command, command: [run], timeout: 0, tasks: [{name: a}]}",
       "fitness.timeout: expected a number above 0 and at most 1e+09, found the number 0"},
      {"{evaluator: command, command: [run], direction: up, metric: value, tasks: [{name: a}]}",
       "fitness.direction: expected one of max, min, found the text 'up'"},
      {"{evaluator: command, command: [run], direction: min, tasks: [{name: a}]}",
       "fitness.direction: min belongs to metric value; of accuracy more is better, of nll less"},
      {"{evaluator: command, command: [run]}", "fitness: 'tasks' is missing, expected a list of tasks"},
      {"{directory: d, tasks: [{name: a, data: d}]}", "fitness.directory: belongs to evaluator command"},
      {"{metric: value, tasks: [{name: a, data: d}]}", "fitness.metric: value belongs to evaluator command"},
      {"{evaluator: nativ, tasks: [{name: a, data: d}]}",
       "fitness.evaluator: expected one of native, command, none, found the text 'nativ'"},
      {"{metric: f1, tasks: [{name: a, data: d}]}",
       "fitness.metric: expected one of accuracy, nll, value, found the text 'f1'"},
      {"{objective: best, tasks: [{name: a, data: d}]}",
       "fitness.objective: expected one of mean, worst, normalized, h_score, found the text 'best'"},
      {"{objective: h_score, tasks: [{name: a, data: d}]}",
       "fitness.objective: h_score needs general tasks, whose name and model are no listed model's, fitness.tasks has "
       "none"},
      {"{objective: h_score, tasks: [{name: x, data: d}]}",
       "fitness.objective: h_score needs a task of a listed model, fitness.tasks has none"},
      {"{objective: h_score, metric: nll, tasks: [{name: a, data: d}, {name: x, data: d}]}",
       "fitness.objective: h_score is a mean of accuracies, but fitness.metric is nll"},
      {"{holdout: 1, tasks: [{name: a, data: d}]}",
       "fitness.holdout: expected a number below 1, as the search needs samples, found 1"},
      {"{holdout: -0.5, tasks: [{name: a, data: d}]}",
       "fitness.holdout: expected a number of at least 0 and at most 1, found the number -0.5"},
      {"{batch: 0, tasks: [{name: a, data: d}]}",
       "fitness.batch: expected a whole number from 1 to 4096, found the number 0"},
      {"{command: [run], tasks: [{name: a, data: d}]}", "fitness.command: belongs to evaluator command"},
      {"{timeout: 5, tasks: [{name: a, data: d}]}", "fitness.timeout: belongs to evaluator command"},
      {"{direction: min, tasks: [{name: a, data: d}]}", "fitness.direction: belongs to evaluator command"},
      {"{sharpness: {samples: -1}, tasks: [{name: a, data: d}]}",
       "fitness.sharpness.samples: expected a whole number from 0 to 1000, found the number -1"},
      {"{sharpness: {rho: 0}, tasks: [{name: a, data: d}]}",
       "fitness.sharpness.rho: expected a number above 0, found the number 0"},
      {"{sharpness: {rh: 1}, tasks: [{name: a, data: d}]}",
       "unknown key 'rh' in fitness.sharpness, did you mean 'rho'?"},
      {"{tasks: [a]}", "fitness.tasks.0: expected a mapping, found the text 'a'"},
      {"{tasks: [{data: d}]}", "fitness.tasks.0: 'name' is missing"},
      {"{tasks: [{name: a}]}", "fitness.tasks.0: 'data' is missing, expected the path of calibration data"},
      {"{tasks: [{name: a, data: d}, {name: a, data: e}]}",
       "fitness.tasks.1.name: 'a' is the name of fitness.tasks.0 already"},
      {"{tasks: [{name: [a], data: d}]}", "fitness.tasks.0.name: expected a text, found a list"},
      {"{tasks: [{name: a, data: ''}]}", "fitness.tasks.0.data: expected a text, found an empty one"},
      {"{tasks: [{name: a, data: d, model: aa}]}",
       "fitness.tasks.0.model: expected the name of a listed model, found 'aa', did you mean 'a'?"},
      {"{tasks: [{name: a, data: d, model: zebra}]}",
       "fitness.tasks.0.model: expected the name of a listed model, found 'zebra'"},
      {"{tasks: [{name: a, data: d, haed: a}]}", "unknown key 'haed' in fitness.tasks.0, did you mean 'head'?"},
  };
  for (int i = 0; i < COUNT(cases); i++) {
    char *text = nps_xstrf(TWO "fitness: %s\n", cases[i].value);
    char *expected = nps_xstrf("c.yaml:5: %s", cases[i].problem);
    expect_problems(text, expected);
    free(text);
    free(expected);
  }
}
END_TEST

START_TEST(sections_must_fit_each_other) {
  static const struct {
    const char *text, *problem;
  } cases[] = {
      {TWO "search: {}\n", "c.yaml:5: search: needs fitness.tasks, as candidates are scored on them"},
      {TWO "search: {}\nfitness: {evaluator: none}\n",
       "c.yaml:5: search: needs an evaluator, but fitness.evaluator is none"},
      {TWO "search: {}\nfitness: {batch: 2}\n", "c.yaml:6: fitness: 'tasks' is missing, expected a list of tasks"},
      {PAIR "search:\n  stages: [prune]\n" TASKS,
       "c.yaml:6: search.stages: prune needs a task for every model, 'b' has none in fitness.tasks"},
      {PAIR "search:\n" TASKS "nps: {weights: {zebra: [1]}}\n",
       "c.yaml:7: nps.weights.zebra: expected 8 numbers, one a subspace, found 1\n"
       "c.yaml:7: nps.weights.zebra: expected the name of a listed model, found 'zebra'"},
      {TWO "nps:\n  subspaces: 1\n  weights: [1]\nsearch: {}\n" TASKS,
       "c.yaml:7: nps.weights: the stages prune and joint search them, give search.start instead"},
      {TWO "nps: {subspaces: 1, weights: [1]}\nsearch: {stages: [joint]}\n" TASKS,
       "c.yaml:5: nps.weights: the stages prune and joint search them, give search.start instead"},
      {TWO "nps: {subspaces: 1, priorities: [1]}\nsearch: {variables: [density]}\n" TASKS,
       "c.yaml:5: nps.priorities: search.variables has density, which searches them"},
      {TWO "nps: {application: transfer}\nsearch: {stages: [prune, fuse]}\n" TASKS,
       "c.yaml:6: search.stages: expected [prune], the only stage of transfer"},
      {TWO "nps: {application: transfer}\nsearch: {stages: [joint]}\n" TASKS,
       "c.yaml:6: search.stages: expected [prune], the only stage of transfer"},
      {PAIR "nps: {application: transfer}\noutput:\n  path: out.h5\n",
       "c.yaml:7: output.path: transfer writes one output a model, expected {name} in the path, found 'out.h5'"},
      {"merge_method: ties\nmodels: [{model: a}]\nnps: {}\nsearch: {}\n" TASKS,
       "c.yaml:3: nps: belongs to merge_method nps, this is ties\n"
       "c.yaml:4: search: belongs to merge_method nps, this is ties\n"
       "c.yaml:5: fitness: belongs to merge_method nps, this is ties"},
      {TWO "serach: {}\n", "c.yaml:5: unknown key 'serach', did you mean 'search'?"},
      {TWO "archive: {}\n", "c.yaml:5: archive: goes with nps.application: compression only, this is fusion"},
      {TWO "nps: {application: compression}\narchive: {value_bits: 5}\n",
       "c.yaml:6: archive.value_bits: expected one of 4, 8, 16, found the number 5"},
      {TWO "nps: {application: compression}\noutput: {head: a}\n",
       "c.yaml:6: output.head: an archive holds every model's own head, expected none"},
      {TWO "nps: {application: compression}\nsearch: {stages: [fuse]}\nfitness: {tasks: [{name: a, data: d}]}\n",
       "c.yaml:6: search.stages: expected [prune], the only stage of compression"},
  };
  for (int i = 0; i < COUNT(cases); i++) expect_problems(cases[i].text, cases[i].problem);
}
END_TEST

START_TEST(all_problems_are_listed_together) {
  expect_problems("merge_method: nps\nnps:\n  density: 2\n  scope: x\nsearch:\n  sigma: 0\n  generation: 1\nfitness:\n"
                  "  tasks:\n  - {name: a}\n  - {data: d}\n",
                  "c.yaml:3: nps.density: expected a number of at least 0 and at most 1, found the number 2\n"
                  "c.yaml:4: nps.scope: expected one of model, tensor, found the text 'x'\n"
                  "c.yaml:6: search.sigma: expected a number above 0, found the number 0\n"
                  "c.yaml:7: unknown key 'generation' in search, did you mean 'generations'?\n"
                  "c.yaml:11: fitness.tasks.1: 'name' is missing\n"
                  "c.yaml:10: fitness.tasks.0: 'data' is missing, expected the path of calibration data\n"
                  "c.yaml:1: 'models' is missing, expected a list of models");
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("sections");
  tcase_add_test(cases, defaults_are_those_of_the_manual);
  tcase_add_test(cases, defaults_of_other_stages_are_those_of_the_paper);
  tcase_add_test(cases, written_defaults_are_accepted);
  tcase_add_test(cases, every_key_is_read);
  tcase_add_test(cases, tasks_have_models_groups_and_heads);
  tcase_add_test(cases, transfer_has_one_stage);
  tcase_add_test(cases, listed_base_needs_no_task);
  tcase_add_test(cases, joint_searches_what_it_is_told);
  tcase_add_test(cases, no_search_asks_for_no_tasks);
  tcase_add_test(cases, overrides_reach_the_sections);
  tcase_add_test(cases, emitted_sections_parse_to_the_same);
  tcase_add_test(cases, other_methods_emit_no_sections);
  tcase_add_test(cases, singular_partition_is_read_and_written);
  tcase_add_test(cases, problems_of_nps_are_named);
  tcase_add_test(cases, problems_of_search_are_named);
  tcase_add_test(cases, problems_of_fitness_are_named);
  tcase_add_test(cases, sections_must_fit_each_other);
  tcase_add_test(cases, all_problems_are_listed_together);
  return run_tests("config_search", cases);
}
