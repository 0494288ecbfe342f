/* What travels with the merged tensors: config.json, model card, tokenizer files. */
#include "run_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The names transformers uses. */
static const char *torch_name(nps_dtype_t dtype) {
  return dtype == NPS_BF16 ? "bfloat16" : dtype == NPS_F16 ? "float16" : dtype == NPS_F64 ? "float64" : "float32";
}

/* The input whose head tensors are in the layout, or -1. */
static int head_input(const nps_run_output_t *output) {
  const nps_layout_t *layout = output->layout;
  for (int t = 0; t < layout->count; t++)
    for (int i = 0; layout->targets[t].action == NPS_ACTION_HEAD && i < output->input_count; i++)
      if (layout->targets[t].source[i] >= 0) return i;
  return -1;
}

/* A model with a task's head is described by that task's labels. */
static void take_head_keys(json_t *config, const char *head_json) {
  static const char *const keys[] = {"architectures", "id2label", "label2id", "num_labels", "problem_type"};
  json_t *head = nps_json_of(head_json);
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
  char *text = nps_json_print(value, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
  json_t *again = nps_json_of(text);
  if (!json_equal(value, again)) {
    free(text);
    text = nps_json_print(value, JSON_INDENT(2));
  }
  json_decref(again);
  char *line = nps_xstrf("%s\n", text);
  free(text);
  return line;
}

char *nps_run_typed_config(const char *text, nps_dtype_t type) {
  json_t *config = nps_json_of(text);
  if (!json_is_object(config)) {
    json_decref(config);
    return nps_xstrdup(text);
  }
  set_type(config, torch_name(type));
  char *out = write_json(config);
  json_decref(config);
  return out;
}

static nps_err_t make_config(const nps_run_state_t *run, nps_run_output_t *output) {
  const char *text = output->inputs[output->base >= 0 ? output->base : output->models[0].input]->config_json;
  const int head = head_input(output);
  json_t *config = NULL;
  if (!text && head >= 0) text = output->inputs[head]->config_json;
  if (!text) return NPS_OK;
  if (output->adapter) {
    output->config_json = nps_xstrdup(text);
    return NPS_OK;
  }
  NPS_TRY(nps_json_parse_python(text, strlen(text), "config.json", &config));
  if (head >= 0) take_head_keys(config, output->inputs[head]->config_json);
  if (run->recipe->has_out_dtype) set_type(config, torch_name(run->recipe->out_dtype));
  output->config_json = write_json(config);
  json_decref(config);
  return NPS_OK;
}

/* A model as the config writes it. */
static const char *as_written(const nps_recipe_t *recipe, const char *name) {
  for (int m = 0; m < recipe->model_count; m++)
    if (strcmp(recipe->models[m].name, name) == 0) return recipe->models[m].model;
  return name;
}

static void add_number(nps_text_t *card, double number) {
  if (isnan(number))
    nps_text_add(card, " |");
  else
    nps_text_add(card, " %.4f |", number);
}

/* Scores of one row, or averages of all, on all samples: those that the search saw and those held out. */
static void add_score_line(nps_text_t *card, const char *name, const nps_search_t *rows, bool with_nll) {
  static const size_t which[] = {offsetof(nps_search_row_t, base), offsetof(nps_search_row_t, tuned),
                                 offsetof(nps_search_row_t, merged)};
  nps_text_add(card, "| %s |", name);
  for (size_t i = 0; i < sizeof which / sizeof *which; i++) {
    add_number(card, nps_search_mean_score(rows, which[i], 2));
    if (with_nll) add_number(card, nps_search_mean_nll(rows, which[i], 2));
  }
  nps_text_add(card, "\n");
}

/* The scores of every task, where there are some; of an output that is one model's, those of its tasks. */
static void add_scores(nps_text_t *card, const nps_run_state_t *run, const nps_run_output_t *output) {
  const nps_search_t *search = run->search;
  if (!search) return;
  const bool values = search->metric == NPS_METRIC_VALUE;
  const bool with_nll = search->by_command ? search->metric == NPS_METRIC_NLL : true;
  nps_text_add(card, "\n## Scores\n\n%s%s on the calibration data.\n\n", values ? "Values" : "Accuracy",
               with_nll ? " and nll" : "");
  nps_text_add(card, with_nll
                         ? "| task | base | nll | fine-tuned | nll | merged | nll |\n|---|---|---|---|---|---|---|\n"
                         : "| task | base | fine-tuned | merged |\n|---|---|---|---|\n");
  for (int r = 0; r < search->row_count; r++) {
    const nps_search_row_t *row = &search->rows[r];
    nps_search_t alone = *search;
    alone.rows += r;
    alone.row_count = 1;
    if (row->model < 0 || row->model == output->first_model)
      add_score_line(card, run->recipe->fitness.tasks[row->task].name, &alone, with_nll);
  }
  if (search->row_count > 0 && search->rows[0].model < 0) add_score_line(card, "average", search, with_nll);
}

static void list_models(nps_text_t *card, const nps_recipe_t *recipe, const nps_run_output_t *output) {
  for (int m = 0; recipe->slice_count > 0 && m < recipe->model_count; m++)
    if (!recipe->base_model || strcmp(recipe->models[m].model, recipe->base_model) != 0)
      nps_text_add(card, "- %s\n", recipe->models[m].model);
  for (int m = 0; recipe->slice_count == 0 && m < output->model_count; m++)
    if (output->models[m].input != output->base)
      nps_text_add(card, "- %s\n", as_written(recipe, output->models[m].name));
}

static void make_card(const nps_run_state_t *run, nps_run_output_t *output) {
  nps_text_t card = {0};
  nps_text_add(&card,
               "---\nlibrary_name: %s\ntags:\n- merge\n- nps-merge\n---\n# Merged %s\n\n"
               "Made with nps-merge by the method `%s`: %s.\n\n## Models\n\n",
               output->adapter ? "peft" : "transformers", output->adapter ? "adapter" : "model", run->method->name,
               run->method->summary);
  if (run->recipe->base_model) nps_text_add(&card, "- %s (base)\n", run->recipe->base_model);
  list_models(&card, run->recipe, output);
  add_scores(&card, run, output);
  nps_text_add(&card, "\n## Recipe\n\n```yaml\n%s```\n", run->recipe_text);
  output->model_card = card.text;
}

nps_err_t nps_run_dress(nps_run_state_t *run, nps_run_output_t *output) {
  NPS_TRY(make_config(run, output));
  make_card(run, output);
  return NPS_OK;
}
