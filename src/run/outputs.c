/* What a run writes: one output of all models, under transfer one of each, under compression one file of them. */
#include "run_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The configs' numbers of a model: its own row, else the row of all. NULL: none is given. */
static const nps_recipe_row_t *find_row(const nps_recipe_row_t *rows, int count, const char *model) {
  const nps_recipe_row_t *all = NULL;
  for (int i = 0; i < count; i++) {
    if (!rows[i].model)
      all = &rows[i];
    else if (strcmp(rows[i].model, model) == 0)
      return &rows[i];
  }
  return all;
}

/* Subspace weights and priorities as the config gives them. */
static void make_weighting(const nps_run_state_t *run, nps_run_output_t *output) {
  const nps_recipe_nps_t *nps = &run->recipe->nps;
  nps_weighting_t *w = nps_weighting_new(output->model_count, nps->subspaces);
  w->scope = nps->scope;
  for (int i = 0; i < output->model_count; i++) {
    const nps_recipe_row_t *row = find_row(nps->weights, nps->weight_rows, output->models[i].name);
    const double *weights = row ? row->numbers : NULL;
    if (row && row->count > nps->subspaces) w->rest[i] = row->numbers[nps->subspaces];
    row = find_row(nps->priorities, nps->priority_rows, output->models[i].name);
    const double *priorities = row ? row->numbers : NULL;
    for (int m = 0; m < nps->subspaces; m++) {
      const int at = i * nps->subspaces + m;
      if (weights) w->weight[at] = weights[m];
      w->priority[at] = fabs(priorities ? priorities[m] : w->weight[at]); /* of −0 too: scores are compared as bits */
    }
  }
  output->nps = (nps_merge_nps_t){.weighting = w,
                                  .density = nps->density,
                                  .sum = nps->sum,
                                  .exclude = (const char *const *)nps->exclude,
                                  .exclude_count = nps->exclude_count};
}

char *nps_run_fill_in_name(const char *path, const char *name) {
  const char *at = strstr(path, "{name}");
  return at ? nps_xstrf("%.*s%s%s", (int)(at - path), path, name, at + strlen("{name}")) : nps_xstrdup(path);
}

static void add_input(nps_run_output_t *output, const nps_run_state_t *run, int input, int *index) {
  for (int i = 0; i < output->input_count; i++)
    if (output->inputs[i] == run->inputs[input]) {
      *index = i;
      return;
    }
  *index = output->input_count;
  output->inputs[output->input_count++] = run->inputs[input];
}

/* Fills an output made of models [first, first + count) of the run, and of the base. */
static void choose_inputs(const nps_run_state_t *run, nps_run_output_t *output, int first, int count) {
  output->inputs = nps_xcalloc((size_t)run->input_count + 1, sizeof *output->inputs);
  output->models = nps_xcalloc((size_t)count + 1, sizeof *output->models);
  output->first_model = first;
  output->model_count = count;
  output->base = output->head = -1;
  if (count == run->model_count) { /* all inputs, those too that only tell which tensors there are */
    for (int i = 0; i < run->input_count; i++) output->inputs[i] = run->inputs[i];
    output->input_count = run->input_count;
  }
  if (run->base >= 0) add_input(output, run, run->base, &output->base);
  for (int m = 0; m < count; m++) {
    output->models[m] = run->models[first + m];
    add_input(output, run, output->models[m].input, &output->models[m].input);
  }
  if (run->head >= 0) add_input(output, run, run->head, &output->head);
}

/* A base that the method does not merge only tells which tensors there are: its merged ones are not read. */
static void leave_base_unread(const nps_run_state_t *run, nps_run_output_t *output) {
  for (int m = 0; m < output->model_count; m++)
    if (output->models[m].input == output->base) return;
  if (output->base < 0 || run->method->base == NPS_BASE_TASK_VECTORS) return;
  nps_layout_t *layout = output->layout;
  for (int t = 0; t < layout->count; t++)
    if (layout->targets[t].action == NPS_ACTION_MERGE)
      layout->source[(size_t)t * (size_t)layout->inputs + (size_t)output->base] = -1;
}

/* What a method writes beside the tensors has no place in a folder. */
static nps_err_t check_parts(const nps_run_state_t *run, const nps_run_output_t *output) {
  int parts = 0;
  nps_merge_parts(output->merge, &parts);
  if (parts == 0 || !output->path || nps_output_is_hdf5(output->path)) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG,
                  "%s: %s writes experts and routers beside the tensors, for which a Hugging Face folder has no place: "
                  "expected an output whose name ends in .h5",
                  output->path, run->method->name);
}

static nps_err_t check_adapter(const nps_run_output_t *output) {
  if (!output->adapter || !output->path || !nps_output_is_hdf5(output->path)) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG,
                  "%s: merged adapters are an adapter, a folder: expected a name that does not end in .h5",
                  output->path);
}

static nps_err_t make_output(const nps_run_state_t *run, nps_run_output_t *output, int first, int count) {
  const nps_recipe_t *recipe = run->recipe;
  choose_inputs(run, output, first, count);
  static const nps_dtype_t update_type = NPS_F32;
  const bool updates = nps_run_is_compression(run); /* which are quantised before they are written */
  const nps_dtype_t *dtype = updates ? &update_type : recipe->has_out_dtype ? &recipe->out_dtype : NULL;
  NPS_TRY(nps_layout_match(output->inputs, output->input_count, output->base, output->head, dtype, &output->layout));
  output->adapter = output->inputs[0]->form == NPS_FORM_ADAPTER;
  NPS_TRY(check_adapter(output));
  leave_base_unread(run, output);
  NPS_TRY(nps_run_fit_history(run, output->layout));
  const bool nps = strcmp(run->method->name, "nps") == 0;
  if (nps) make_weighting(run, output);
  nps_merge_spec_t spec = {
      .method = run->method,
      .inputs = output->inputs,
      .input_count = output->input_count,
      .base = output->base,
      .models = output->models,
      .model_count = output->model_count,
      .slices = run->slices,
      .slice_count = recipe->slice_count,
      .module = &recipe->module,
      .settings = &recipe->parameters,
      .config_file = recipe->file,
      .seed = recipe->seed,
      .layout = output->layout,
      .updates = updates,
      .nps = nps ? &output->nps : NULL,
      .history = {run->history.updates, run->history.models, run->history.norm_mean},
  };
  NPS_TRY(nps_merge_new(&spec, &output->merge));
  return nps_err_worse(nps_run_check_history(run, output->merge), check_parts(run, output));
}

/* Matches all models with each other where every output has one only; its notes are about heads, which outputs copy. */
static nps_err_t match_all(nps_run_state_t *run) {
  const nps_recipe_t *recipe = run->recipe;
  if (run->output_count == 1 && !nps_run_is_compression(run)) {
    run->layout = run->outputs[0].layout;
    return NPS_OK;
  }
  nps_note_mute(true);
  nps_err_t err = nps_layout_match((const nps_model_t *const *)run->inputs, run->input_count, run->base, -1,
                                   recipe->has_out_dtype ? &recipe->out_dtype : NULL, &run->layout);
  nps_note_mute(false);
  return err;
}

nps_err_t nps_run_make_outputs(nps_run_state_t *run) {
  const char *path = run->options->out ? run->options->out : run->recipe->output_path;
  const bool nps = strcmp(run->method->name, "nps") == 0, compression = nps_run_is_compression(run);
  const bool transfer = nps && run->recipe->nps.application == NPS_APPLICATION_TRANSFER;
  const bool each = nps && nps_application_is_of_each(run->recipe->nps.application);
  if (compression && path && !nps_output_is_hdf5(path))
    return nps_fail(NPS_ERR_CONFIG, "%s: compression writes an HDF5 file: expected a name that ends in .h5", path);
  if (transfer && run->model_count > 1 && path && !strstr(path, "{name}"))
    return nps_fail(NPS_ERR_CONFIG, "%s: transfer writes one output for each of %d models: expected {name} in the path",
                    path, run->model_count);
  run->output_count = each && run->model_count > 0 ? run->model_count : 1;
  run->outputs = nps_xcalloc((size_t)run->output_count, sizeof *run->outputs);
  for (int i = 0; i < run->output_count; i++) {
    nps_run_output_t *output = &run->outputs[i];
    if (path) output->path = transfer ? nps_run_fill_in_name(path, run->models[i].name) : nps_xstrdup(path);
    /* What is to be said of the config holds for every output: the first tells. */
    if (i > 0) nps_note_mute(true);
    nps_err_t err = make_output(run, output, i, each ? 1 : run->model_count);
    if (i > 0) nps_note_mute(false);
    if (err != NPS_OK) return err;
  }
  return match_all(run);
}

void nps_run_free_outputs(nps_run_state_t *run) {
  if (run->output_count > 0 && run->layout != run->outputs[0].layout) nps_layout_free(run->layout);
  for (int i = 0; i < run->output_count; i++) {
    nps_run_output_t *output = &run->outputs[i];
    nps_lock_free(output->lock);
    nps_plan_free(output->plan);
    nps_run_free_factors(output);
    nps_merge_free(output->merge);
    nps_weighting_free(output->nps.weighting);
    nps_layout_free(output->layout);
    free(output->path);
    free(output->inputs);
    free(output->models);
    free(output->config_json);
    free(output->model_card);
  }
  free(run->outputs);
}
