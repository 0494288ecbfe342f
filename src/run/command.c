/* What a run gives to the command that scores its candidates. */
#include "run_internal.h"

#include "nps/command.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

void nps_run_share_handover(nps_run_state_t *run) {
  nps_recipe_fitness_t *fitness = &run->recipe->fitness;
  nps_comm_bcast_text(run->comm, &fitness->directory);           /* no part of the recipe that all ranks have */
  double in_memory = nps_handover_in_memory(fitness->directory); /* on this host */
  nps_comm_max_f64(run->comm, &in_memory, 1);
  run->handed_in_memory = in_memory > 0;
}

int64_t nps_run_handed_bytes(const nps_run_state_t *run) {
  const nps_layout_t *layout = run->layout;
  int64_t bytes = 0;
  if (!run->handed_in_memory) return 0;
  for (int t = 0; t < layout->count; t++) {
    size_t width = nps_dtype_size(layout->targets[t].dtype);
    for (int i = 0; layout->targets[t].action == NPS_ACTION_MERGE && i < run->input_count; i++) {
      const int source = layout->targets[t].source[i];
      if (source >= 0 && nps_dtype_size(run->inputs[i]->tensors[source].dtype) > width) width = sizeof(float);
    }
    bytes += layout->targets[t].count * (int64_t)(run->recipe->fitness.sharpness_samples > 0 ? sizeof(float) : width);
  }
  return bytes;
}

/* ---- what the command is told of tasks ---- */

/* A path that is good in any folder; one that is no UTF-8 is left out. */
static void put_path(json_t *about, const char *key, const char *path) {
  char real[PATH_MAX];
  json_t *text = path ? json_string(realpath(path, real) ? real : path) : NULL;
  if (text) json_object_set_new(about, key, text);
}

static json_t *tell_of_task(const nps_run_state_t *run, int i) {
  const nps_recipe_task_t *recipe = &run->recipe->fitness.tasks[i];
  const nps_model_t *head = nps_run_head_of(run, &run->tasks[i]);
  json_t *about = json_pack("{s:s}", "group", recipe->group);
  put_path(about, "data", run->tasks[i].data);
  put_path(about, "head", head ? head->path : NULL);
  if (recipe->model) json_object_set_new(about, "model", json_string(recipe->model));
  return about;
}

static json_t *tell_of_tasks(const nps_run_state_t *run) {
  json_t *all = json_object();
  for (int i = 0; i < run->recipe->fitness.task_count; i++)
    json_object_set_new(all, run->recipe->fitness.tasks[i].name, tell_of_task(run, i));
  return all;
}

/* ---- files of all models ---- */

/* Makes all ranks have the files that rank 0 has read. Collective. */
static void share_sidecars(nps_run_state_t *run) {
  const bool root = nps_comm_rank(run->comm) == 0;
  nps_comm_bcast(run->comm, &run->sidecar_count, sizeof run->sidecar_count);
  if (!root) run->sidecars = nps_xcalloc((size_t)run->sidecar_count + 1, sizeof *run->sidecars);
  for (int i = 0; i < run->sidecar_count; i++) {
    nps_sidecar_t *file = &run->sidecars[i];
    nps_comm_bcast_text(run->comm, &file->name);
    nps_comm_bcast(run->comm, &file->size, sizeof file->size);
    if (!root) file->data = nps_xcalloc(file->size + 1, 1);
    nps_comm_bcast(run->comm, file->data, file->size);
  }
}

/* In the type of candidates, which is that of the output, or wide enough for perturbed ones. @return owned, or NULL */
static char *make_config(const nps_run_state_t *run) {
  const char *text = run->inputs[run->base]->config_json;
  const nps_recipe_t *recipe = run->recipe;
  if (!text) return NULL;
  if (recipe->fitness.sharpness_samples > 0) return nps_run_typed_config(text, NPS_F32);
  if (!recipe->has_out_dtype) return nps_xstrdup(text);
  return nps_run_typed_config(text, recipe->out_dtype == NPS_F64 ? NPS_F32 : recipe->out_dtype);
}

void nps_run_make_command(nps_run_state_t *run, nps_search_command_t *out) {
  nps_recipe_fitness_t *fitness = &run->recipe->fitness;
  share_sidecars(run);
  *out = (nps_search_command_t){.words = fitness->command,
                                .word_count = fitness->command_count,
                                .timeout = fitness->timeout,
                                .directory = fitness->directory,
                                .layout = run->layout,
                                .base = run->inputs[run->base],
                                .base_input = run->base,
                                .config_json = make_config(run),
                                .sidecars = run->sidecars,
                                .sidecar_count = run->sidecar_count,
                                .about = tell_of_tasks(run)};
}

void nps_run_free_command(nps_search_command_t *command) {
  json_decref((json_t *)command->about);
  free((char *)command->config_json);
}
