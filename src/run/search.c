/* The search phase: models in memory, the search over their subspaces, and what it found handed to the outputs. */
#include "run_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What the search borrows while it runs. */
typedef struct {
  int *input_of; /* [model_count] */
  const char **names;
  nps_store_t *store;
  nps_weighting_t *start;
  nps_search_task_t *tasks;
  nps_run_groups_t groups;
  nps_search_command_t command; /* evaluator command */
} work_t;

static bool searches(const nps_run_state_t *run) {
  return run->recipe->search.given && run->recipe->search.algorithm != NPS_ALGORITHM_NONE;
}

/* A parameter as one number: candidates are weighed as a whole. */
static nps_err_t plain_value(const nps_run_state_t *run, const nps_run_output_t *output, const char *name, int model,
                             double *value) {
  if (nps_merge_plain_value(output->merge, name, model, value)) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG,
                  "%s: parameter '%s' varies over the tensors, but candidates are scored with one number",
                  run->recipe->file, name);
}

/* Weights, priorities, densities and λ of all models, as the outputs have them. */
static nps_err_t collect_start(const nps_run_state_t *run, work_t *work) {
  const int subspaces = run->recipe->nps.subspaces;
  nps_weighting_t *start = work->start = nps_weighting_new(run->model_count, subspaces);
  start->scope = run->recipe->nps.scope;
  for (int o = 0; o < run->output_count; o++) {
    const nps_run_output_t *output = &run->outputs[o];
    double normalize, lambda, weight;
    NPS_TRY(plain_value(run, output, "normalize", 0, &normalize));
    NPS_TRY(plain_value(run, output, "lambda", 0, &lambda));
    start->normalize = (nps_normalize_t)normalize;
    for (int i = 0; i < output->model_count; i++) {
      const int model = output->first_model + i;
      NPS_TRY(plain_value(run, output, "weight", i, &weight));
      NPS_TRY(plain_value(run, output, "density", i, &start->density[model]));
      start->lambda[model] = lambda * weight;
      memcpy(start->weight + model * subspaces, output->nps.weighting->weight + i * subspaces,
             (size_t)subspaces * sizeof(double));
      memcpy(start->priority + model * subspaces, output->nps.weighting->priority + i * subspaces,
             (size_t)subspaces * sizeof(double));
      start->rest[model] = output->nps.weighting->rest[i];
    }
  }
  return NPS_OK;
}

/* The index of a task's model among the models of the run, or -1. */
static int model_index(const nps_run_state_t *run, const char *name) {
  for (int m = 0; name && m < run->model_count; m++)
    if (strcmp(run->models[m].name, name) == 0) return m;
  return -1;
}

static nps_err_t prepare(const nps_run_state_t *run, work_t *work) {
  work->input_of = nps_xcalloc((size_t)run->model_count, sizeof *work->input_of);
  work->names = nps_xcalloc((size_t)run->model_count, sizeof *work->names);
  for (int m = 0; m < run->model_count; m++) {
    work->input_of[m] = run->models[m].input;
    work->names[m] = run->models[m].name;
  }
  return collect_start(run, work);
}

static nps_err_t load(const nps_run_state_t *run, work_t *work) {
  const nps_recipe_fitness_t *fitness = &run->recipe->fitness;
  work->tasks = nps_xcalloc((size_t)fitness->task_count, sizeof *work->tasks);
  NPS_TRY(nps_store_load(run->layout, (const nps_model_t *const *)run->inputs, run->base, work->input_of,
                         run->model_count, &work->groups.part, NULL, &work->store));
  for (int i = 0; i < fitness->task_count; i++) {
    nps_run_task_t *task = &run->tasks[i];
    if (task->net) NPS_TRY(nps_net_read_weights(task->net, true, &task->own));
    work->tasks[i] = (nps_search_task_t){.name = fitness->tasks[i].name,
                                         .model = model_index(run, fitness->tasks[i].model),
                                         .net = task->net,
                                         .data = task->dataset,
                                         .own = task->own};
  }
  return NPS_OK;
}

static void unload(work_t *work) {
  nps_run_leave_group(&work->groups);
  nps_store_free(work->store);
  nps_weighting_free(work->start);
  free(work->input_of);
  free(work->names);
  free(work->tasks);
  nps_run_free_command(&work->command);
}

/* Hands what was found to the outputs: each takes the rows of its models. */
static void take_result(nps_run_state_t *run) {
  const nps_weighting_t *found = run->search->weighting;
  const int subspaces = found->subspaces;
  for (int o = 0; o < run->output_count; o++) {
    nps_run_output_t *output = &run->outputs[o];
    nps_weighting_t *w = output->nps.weighting;
    const int first = output->first_model;
    const size_t cells = (size_t)(output->model_count * subspaces) * sizeof(double);
    memcpy(w->weight, found->weight + first * subspaces, cells);
    memcpy(w->priority, found->priority + first * subspaces, cells);
    memcpy(w->lambda, found->lambda + first, (size_t)output->model_count * sizeof(double));
    memcpy(w->rest, found->rest + first, (size_t)output->model_count * sizeof(double));
    output->nps.has_lambda = run->search->has_lambda;
  }
}

static nps_err_t search(nps_run_state_t *run, const work_t *work, const char *identity, const char *snapshot) {
  const nps_recipe_t *recipe = run->recipe;
  nps_recipe_search_t settings = recipe->search;
  settings.start_from = run->start_from;
  const nps_search_spec_t spec = {
      .store = work->store,
      .group = work->groups.group,
      .factors = run->factors,
      .of_sum = recipe->nps.sum,
      .models = work->names,
      .start = work->start,
      .given_priorities = recipe->nps.priority_rows > 0,
      .application = recipe->nps.application,
      .round = true,
      .value_bits = nps_run_is_compression(run) ? recipe->archive.value_bits : 0,
      .tasks = work->tasks,
      .task_count = recipe->fitness.task_count,
      .command = nps_run_asks_command(run) ? &work->command : NULL,
      .search = searches(run) ? &settings : NULL,
      .fitness = &recipe->fitness,
      .seed = recipe->seed,
      .keep = {.snapshot = snapshot,
               .identity = identity,
               .resume = run->options->resume,
               .stop = nps_run_should_stop,
               .ctx = run},
  };
  NPS_TRY(nps_search_run(run->comm, &spec, run->report, &run->search));
  take_result(run);
  if (run->report) nps_search_show(run->search, &spec, run->report);
  return NPS_OK;
}

static void guard(const nps_run_state_t *run, const char *snapshot) {
  if (nps_comm_rank(run->comm) == 0 && run->options->guard_search) run->options->guard_search(snapshot);
}

/* With a snapshot where there is a search to go on with. */
static nps_err_t search_kept(nps_run_state_t *run, const work_t *work) {
  char *identity = NULL, *snapshot = searches(run) ? nps_run_keep_path(run) : NULL;
  double most = run->recipe->search.max_time; /* no part of the recipe that all ranks have */
  nps_comm_bcast(run->comm, &most, sizeof most);
  run->deadline = most > 0 ? run->started + most : HUGE_VAL;
  nps_lock_t *lock = NULL; /* other outputs may have the same snapshot */
  nps_err_t err = snapshot && nps_comm_rank(run->comm) == 0 ? nps_lock_new(snapshot, &lock) : NPS_OK;
  err = nps_comm_agree(run->comm, err);
  if (err == NPS_OK && snapshot) err = nps_run_keep_identity(run, &identity);
  guard(run, snapshot);
  if (err == NPS_OK) err = search(run, work, identity, snapshot);
  guard(run, NULL);
  nps_lock_free(lock);
  free(identity);
  free(snapshot);
  return err;
}

nps_err_t nps_run_plan_search(const nps_run_state_t *run, int64_t limit) {
  const nps_recipe_t *recipe = run->recipe;
  const int ranks = run->options->ranks ? run->options->ranks : nps_comm_size(run->comm);
  double flops = 0;
  const bool by_command = nps_run_asks_command(run);
  const int candidates = recipe->fitness.sharpness_samples > 0 ? recipe->fitness.sharpness_samples : 1;
  int64_t samples = 0;
  if (!nps_run_has_tasks(run) || nps_comm_rank(run->comm) != 0) return NPS_OK; /* rank 0 has opened the tasks */
  for (int i = 0; !by_command && i < recipe->fitness.task_count; i++) {
    samples += run->tasks[i].dataset->samples;
    flops += candidates * nps_net_flops(run->tasks[i].net, run->tasks[i].dataset, run->tasks[i].dataset->samples);
  }
  nps_report_line(run->report, "%s", "");
  if (searches(run))
    nps_report_line(run->report, "search: at most %d generations in each search", recipe->search.generations);
  if (by_command)
    nps_report_line(run->report, "scores: %d tasks, by the command %s, one process a group", recipe->fitness.task_count,
                    recipe->fitness.command[0]);
  else
    nps_report_line(run->report, "scores: %d tasks, %lld samples, %.3g GFLOP in one evaluation of all of them",
                    recipe->fitness.task_count, (long long)samples, 1e-9 * flops);
  nps_run_groups_t groups = {0};
  nps_err_t err = nps_run_find_groups(run, ranks, recipe->search.ranks_per_model, limit, &groups);
  nps_run_show_groups(run, ranks, &groups);
  if (nps_run_is_singular(run)) nps_run_show_factors(run, groups.spill);
  nps_run_leave_group(&groups);
  return err;
}

/* The groups, the models' weights and what else is needed. Collective. */
static nps_err_t make_ready(nps_run_state_t *run, work_t *work) {
  const int64_t limit = nps_run_memory_limit(run, nps_run_ranks_per_node(run));
  int given = run->recipe->search.ranks_per_model; /* no part of the recipe that all ranks have */
  nps_comm_bcast(run->comm, &given, sizeof given);
  NPS_TRY(nps_comm_agree(run->comm, nps_run_find_groups(run, nps_comm_size(run->comm), given, limit, &work->groups)));
  nps_run_join_group(run, &work->groups);
  NPS_TRY(nps_comm_agree(run->comm, prepare(run, work)));
  if (nps_run_asks_command(run)) nps_run_make_command(run, &work->command);
  if (nps_run_is_singular(run)) NPS_TRY(nps_run_factorise_all(run, work->start, work->input_of, &work->groups));
  return nps_comm_agree(run->comm, load(run, work));
}

nps_err_t nps_run_search(nps_run_state_t *run) {
  work_t work = {0};
  if (!nps_run_has_tasks(run)) return NPS_OK;
  nps_err_t err = make_ready(run, &work);
  if (err == NPS_OK) err = search_kept(run, &work);
  unload(&work);
  return err;
}
