/* What travels with the merged tensors: config.json, model card, tokenizer files. */
#include "run_internal.h"

#include <stdlib.h>
#include <string.h>

/* The names transformers uses. */
static const char *torch_name(nps_dtype_t dtype) {
  return dtype == NPS_BF16 ? "bfloat16" : dtype == NPS_F16 ? "float16" : dtype == NPS_F64 ? "float64" : "float32";
}

/* The input whose head tensors are in the layout, or -1. */
static int head_input(const nps_run_state_t *run) {
  for (int t = 0; t < run->layout->count; t++)
    for (int i = 0; run->layout->targets[t].action == NPS_ACTION_HEAD && i < run->input_count; i++)
      if (run->layout->targets[t].source[i] >= 0) return i;
  return -1;
}

/* A model with a task's head is described by that task's labels. */
static void take_head_keys(json_t *config, const char *head_json) {
  static const char *const keys[] = {"architectures", "id2label", "label2id", "num_labels", "problem_type"};
  json_t *head = head_json ? json_loads(head_json, 0, NULL) : NULL;
  for (size_t i = 0; head && i < sizeof keys / sizeof *keys; i++) {
    json_t *value = json_object_get(head, keys[i]);
    if (value)
      json_object_set(config, keys[i], value);
    else
      json_object_del(config, keys[i]);
  }
  json_decref(head);
}

static void set_type(json_t *config, const char *type) {
  const bool has_new = json_object_get(config, "dtype"), has_old = json_object_get(config, "torch_dtype");
  if (has_new) json_object_set_new(config, "dtype", json_string(type));
  if (has_old || !has_new) json_object_set_new(config, "torch_dtype", json_string(type));
}

/* Numbers as people write them (1e-05), with all 17 digits only where fewer would change one. */
static char *write_json(const json_t *value) {
  char *text = json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
  json_t *again = json_loads(text, 0, NULL);
  if (!json_equal(value, again)) {
    free(text);
    text = json_dumps(value, JSON_INDENT(2));
  }
  json_decref(again);
  char *line = nps_xstrf("%s\n", text);
  free(text);
  return line;
}

static nps_err_t make_config(nps_run_state_t *run) {
  const char *text = run->inputs[run->base >= 0 ? run->base : run->models[0].input]->config_json;
  const int head = head_input(run);
  json_t *config = NULL;
  if (!text && head >= 0) text = run->inputs[head]->config_json;
  if (!text) return NPS_OK;
  NPS_TRY(nps_json_parse(text, strlen(text), "config.json", &config));
  if (head >= 0) take_head_keys(config, run->inputs[head]->config_json);
  if (run->recipe->has_out_dtype) set_type(config, torch_name(run->recipe->out_dtype));
  run->config_json = write_json(config);
  json_decref(config);
  return NPS_OK;
}

/* A model as the config writes it. */
static const char *as_written(const nps_recipe_t *recipe, const char *name) {
  for (int m = 0; m < recipe->model_count; m++)
    if (strcmp(recipe->models[m].name, name) == 0) return recipe->models[m].model;
  return name;
}

static void make_card(nps_run_state_t *run) {
  nps_text_t card = {0};
  nps_text_add(&card,
               "---\nlibrary_name: transformers\ntags:\n- merge\n- nps-merge\n---\n# Merged model\n\n"
               "Made with nps-merge by the method `%s`: %s.\n\n## Models\n\n",
               run->method->name, run->method->summary);
  if (run->recipe->base_model) nps_text_add(&card, "- %s (base)\n", run->recipe->base_model);
  for (int m = 0; m < run->model_count; m++)
    if (run->models[m].input != run->base) nps_text_add(&card, "- %s\n", as_written(run->recipe, run->models[m].name));
  nps_text_add(&card, "\n## Recipe\n\n```yaml\n%s```\n", run->recipe_text);
  run->model_card = card.text;
}

nps_err_t nps_run_dress(nps_run_state_t *run) {
  NPS_TRY(make_config(run));
  make_card(run);
  if (nps_comm_rank(run->comm) != 0) return NPS_OK;
  const int source = run->base >= 0 ? run->base : run->models[0].input;
  return nps_sidecars_read(run->inputs[source], &run->sidecars, &run->sidecar_count);
}
