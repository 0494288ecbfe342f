/* The tasks that candidates are scored on: their data, heads and networks, found on rank 0 and then known to all. */
#include "run_internal.h"

#include "nps/command.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool nps_run_has_tasks(const nps_run_state_t *run) {
  return run->recipe->fitness.task_count > 0 && run->recipe->fitness.evaluator != NPS_EVALUATOR_NONE;
}

bool nps_run_asks_command(const nps_run_state_t *run) {
  return run->recipe->fitness.evaluator == NPS_EVALUATOR_COMMAND;
}

/* Looks a file up in the config's folder, then in the current one. */
static nps_err_t locate_file(const nps_run_state_t *run, const char *what, const char *name, char **path) {
  char *folder = nps_run_config_folder(run);
  char *beside = folder && name[0] != '/' ? nps_xstrf("%s/%s", folder, name) : NULL;
  nps_err_t err = NPS_OK;
  *path = NULL;
  if (beside && access(beside, F_OK) == 0)
    *path = nps_xstrdup(beside);
  else if (access(name, F_OK) == 0)
    *path = nps_xstrdup(name);
  else
    err = nps_fail(NPS_ERR_INPUT, "%s: %s: there is no such file (tried %s%s%s)", what, name, beside ? beside : "",
                   beside ? ", " : "", name);
  free(beside);
  free(folder);
  return err;
}

/* The input of a listed model, or -1. */
static int find_model(const nps_run_state_t *run, const char *name) {
  for (int m = 0; name && m < run->recipe->model_count; m++)
    if (strcmp(run->recipe->models[m].name, name) == 0) return run->input_of[m];
  return -1;
}

const nps_model_t *nps_run_head_of(const nps_run_state_t *run, const nps_run_task_t *task) {
  if (task->head < 0) return NULL;
  return task->head < run->input_count ? run->inputs[task->head] : run->extras[task->head - run->input_count];
}

/* A head from a model that takes no part in the merge. */
static nps_err_t add_extra(nps_run_state_t *run, const char *head, int *index) {
  char *folder = nps_run_config_folder(run), *path = NULL;
  nps_model_t *catalogue = NULL;
  nps_err_t err = nps_model_locate(head, folder, &path);
  if (err == NPS_OK) err = nps_model_open(path, head, &catalogue);
  if (catalogue) {
    run->extras = nps_xrealloc(run->extras, (size_t)run->extra_count + 1, sizeof *run->extras);
    run->extras[run->extra_count] = catalogue;
    *index = run->input_count + run->extra_count++;
  }
  free(path);
  free(folder);
  return err;
}

static nps_err_t find_head(nps_run_state_t *run, const nps_recipe_task_t *recipe, nps_run_task_t *task) {
  task->head = find_model(run, recipe->head ? recipe->head : recipe->model);
  return recipe->head && task->head < 0 ? add_extra(run, recipe->head, &task->head) : NPS_OK;
}

/* Makes the network of a task and reads its data. */
static nps_err_t open_task(const nps_run_state_t *run, const nps_recipe_task_t *recipe, nps_run_task_t *task) {
  NPS_TRY(nps_net_new(run->inputs[run->base], nps_run_head_of(run, task), &task->net));
  NPS_TRY(nps_dataset_read(task->data, recipe->group, &task->dataset));
  return nps_net_check_data(task->net, task->dataset);
}

static nps_err_t find_task(nps_run_state_t *run, const nps_recipe_task_t *recipe, nps_run_task_t *task) {
  char *what = nps_xstrf("task '%s'", recipe->name);
  nps_err_t err = recipe->data ? locate_file(run, what, recipe->data, &task->data) : NPS_OK;
  free(what);
  err = nps_err_worse(err, find_head(run, recipe, task));
  return err == NPS_OK && !nps_run_asks_command(run) ? open_task(run, recipe, task) : err;
}

nps_err_t nps_run_find_tasks(nps_run_state_t *run) {
  const nps_recipe_fitness_t *fitness = &run->recipe->fitness;
  nps_err_t err = NPS_OK;
  if (!nps_run_has_tasks(run) || run->base < 0) return NPS_OK;
  if (run->recipe->search.start_from)
    err = locate_file(run, "search.start_from", run->recipe->search.start_from, &run->start_from);
  if (nps_run_asks_command(run)) {
    err = nps_err_worse(err, nps_command_check(fitness->command, fitness->command_count, "fitness.command"));
    err = nps_err_worse(err, nps_handover_check(fitness->directory));
  }
  run->tasks = nps_xcalloc((size_t)fitness->task_count, sizeof *run->tasks);
  for (int i = 0; i < fitness->task_count; i++)
    err = nps_err_worse(err, find_task(run, &fitness->tasks[i], &run->tasks[i]));
  return err;
}

/* The other ranks open what rank 0 has found good. */
static nps_err_t open_tasks(nps_run_state_t *run) {
  for (int i = 0; !nps_run_asks_command(run) && i < run->recipe->fitness.task_count; i++)
    if (!run->tasks[i].net) NPS_TRY(open_task(run, &run->recipe->fitness.tasks[i], &run->tasks[i]));
  return NPS_OK;
}

nps_err_t nps_run_share_tasks(nps_run_state_t *run) {
  const bool root = nps_comm_rank(run->comm) == 0;
  nps_err_t err = NPS_OK;
  if (!nps_run_has_tasks(run)) return NPS_OK;
  if (!root) run->tasks = nps_xcalloc((size_t)run->recipe->fitness.task_count, sizeof *run->tasks);
  if (nps_run_asks_command(run)) nps_run_share_handover(run);
  nps_comm_bcast_text(run->comm, &run->start_from);
  nps_comm_bcast(run->comm, &run->extra_count, sizeof run->extra_count);
  if (!root) run->extras = nps_xcalloc((size_t)run->extra_count, sizeof *run->extras);
  for (int i = 0; i < run->extra_count; i++) {
    char *packed = root ? nps_model_pack(run->extras[i]) : NULL;
    nps_comm_bcast_text(run->comm, &packed);
    if (!root && err == NPS_OK) err = nps_model_unpack(packed, &run->extras[i]);
    free(packed);
  }
  for (int i = 0; i < run->recipe->fitness.task_count; i++) {
    nps_comm_bcast_text(run->comm, &run->tasks[i].data);
    nps_comm_bcast(run->comm, &run->tasks[i].head, sizeof run->tasks[i].head);
  }
  if (err == NPS_OK && !run->options->check && !run->options->plan) err = open_tasks(run);
  return nps_comm_agree(run->comm, err);
}

void nps_run_free_tasks(nps_run_state_t *run) {
  for (int i = 0; run->tasks && i < run->recipe->fitness.task_count; i++) {
    nps_run_task_t *task = &run->tasks[i];
    if (task->own) nps_net_free_weights(task->net, task->own);
    nps_net_free(task->net);
    nps_dataset_free(task->dataset);
    free(task->data);
  }
  free(run->tasks);
  for (int i = 0; i < run->extra_count; i++) nps_model_free(run->extras[i]);
  free(run->extras);
  free(run->start_from);
}
