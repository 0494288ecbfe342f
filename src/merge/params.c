/* Checks a merge's models and parameters, and evaluates every parameter for every tensor and model. */
#include "merge_internal.h"

#include "nps/fitness.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *nps_merge_where(const nps_merge_t *merge, const nps_setting_t *setting, char out[NPS_WHERE]) {
  if (setting->line > 0)
    snprintf(out, NPS_WHERE, "%s:%d: ", merge->spec.config_file, setting->line);
  else
    snprintf(out, NPS_WHERE, "--set: ");
  return out;
}

const nps_param_t *nps_merge_find_param(const nps_merge_method_t *method, const char *name) {
  for (int i = 0; i < method->param_count; i++)
    if (strcmp(method->params[i].name, name) == 0) return &method->params[i];
  return NULL;
}

static nps_err_t unknown_param(const nps_merge_t *merge, const nps_setting_t *setting) {
  char where[NPS_WHERE];
  const nps_merge_method_t *method = merge->spec.method;
  const char *names[NPS_MAX_PARAMS];
  for (int i = 0; i < method->param_count; i++) names[i] = method->params[i].name;
  const char *nearest = nps_nearest(setting->name, names, method->param_count);
  nps_merge_where(merge, setting, where);
  if (nearest)
    return nps_fail(NPS_ERR_CONFIG, "%sunknown parameter '%s' of %s, did you mean '%s'?", where, setting->name,
                    method->name, nearest);
  return nps_fail(NPS_ERR_CONFIG, "%sunknown parameter '%s' of %s", where, setting->name, method->name);
}

static nps_err_t check_names(const nps_merge_t *merge, const nps_settings_t *settings, bool of_model) {
  char where[NPS_WHERE];
  nps_err_t err = NPS_OK;
  for (int i = 0; settings && i < settings->count; i++) {
    const nps_setting_t *setting = &settings->items[i];
    const nps_param_t *param = nps_merge_find_param(merge->spec.method, setting->name);
    if (merge->spec.nps && strcmp(setting->name, "scope") == 0)
      err = nps_fail(NPS_ERR_CONFIG, "%sparameter 'scope' belongs under nps.scope",
                     nps_merge_where(merge, setting, where));
    else if (param && of_model && !param->per_model)
      err = nps_fail(NPS_ERR_CONFIG, "%sparameter '%s' holds for all models: it belongs under the top-level parameters",
                     nps_merge_where(merge, setting, where), setting->name);
    else if (!param && nps_merge_param_known(setting->name))
      nps_note("%sparameter '%s' has no effect with %s", nps_merge_where(merge, setting, where), setting->name,
               merge->spec.method->name);
    else if (!param)
      err = unknown_param(merge, setting);
  }
  return err;
}

/* The value of a text or boolean among a parameter's choices, or -1. The numbers 0 and 1 are booleans, as in mergekit. */
static int find_choice(const nps_param_t *param, const nps_value_t *value) {
  const char *text = nps_value_text(value);
  double number = 0;
  if (!text && nps_value_is_plain(value) && nps_value_number(value, NULL, 0, &number) && (number == 0 || number == 1))
    text = number == 1 ? "true" : "false";
  for (int i = 0; text && param->choices[i]; i++)
    if (strcmp(param->choices[i], text) == 0) return i;
  return -1;
}

static nps_err_t check_choice(const nps_merge_t *merge, const nps_param_t *param, const nps_setting_t *setting) {
  if (find_choice(param, setting->value) >= 0) return NPS_OK;
  char where[NPS_WHERE];
  nps_text_t list = {0};
  for (int i = 0; param->choices[i]; i++) nps_text_add(&list, i ? ", %s" : "%s", param->choices[i]);
  const char *text = nps_value_text(setting->value);
  nps_err_t err = nps_fail(NPS_ERR_CONFIG, "%sparameter '%s' must be one of %s, found %s%s%s",
                           nps_merge_where(merge, setting, where), setting->name, list.text, text ? "'" : "",
                           text ? text : "another kind of value", text ? "'" : "");
  free(list.text);
  return err;
}

static nps_err_t check_value(const nps_merge_t *merge, const nps_param_t *param, const nps_setting_t *setting) {
  char where[NPS_WHERE];
  if (param->kind == NPS_PARAM_CHOICE) return check_choice(merge, param, setting);
  const bool boolean = nps_value_is_boolean(setting->value);
  if (nps_value_is_numeric(setting->value) && !boolean) return NPS_OK;
  const char *text = nps_value_text(setting->value);
  return nps_fail(NPS_ERR_CONFIG, "%sparameter '%s' must be a number, found %s%s%s",
                  nps_merge_where(merge, setting, where), setting->name, text ? "'" : "",
                  boolean ? "a boolean"
                  : text  ? text
                          : "a text",
                  text ? "'" : "");
}

static nps_err_t check_values(const nps_merge_t *merge, const nps_settings_t *settings) {
  nps_err_t err = NPS_OK;
  for (int i = 0; settings && i < settings->count; i++) {
    const nps_param_t *param = nps_merge_find_param(merge->spec.method, settings->items[i].name);
    if (param && check_value(merge, param, &settings->items[i]) != NPS_OK) err = NPS_ERR_CONFIG;
  }
  return err;
}

/* "1 model", "2 models"; besides the base, or with it among them. */
static char *count_of(const nps_merge_method_t *method, int count) {
  const char *base = method->base == NPS_BASE_TASK_VECTORS ? " besides the base"
                     : count > 1                           ? " (the base counts)"
                                                           : "";
  return nps_xstrf("%d model%s%s", count, count > 1 ? "s" : "", base);
}

/* Of a slice, or of the models. */
static nps_err_t check_count(const nps_merge_t *merge, int count, const char *in) {
  const nps_merge_spec_t *spec = &merge->spec;
  const nps_merge_method_t *method = spec->method;
  const bool few = count < method->min_models, many = method->max_models && count > method->max_models;
  if (!few && !many) return NPS_OK;
  char *wanted = count_of(method, few ? method->min_models : method->max_models);
  const nps_err_t err = nps_fail(NPS_ERR_CONFIG, "%s: %s %s %s, found %d%s", spec->config_file, method->name,
                                 few ? "needs at least" : "takes", wanted, count, in);
  free(wanted);
  return err;
}

/* What counts models over all tensors, or names them, has them everywhere. */
static nps_err_t check_same_counts(const nps_merge_t *merge) {
  const nps_merge_spec_t *spec = &merge->spec;
  const nps_merge_method_t *method = spec->method;
  for (int s = 0; s < spec->slice_count; s++)
    if (spec->slices[s].models != spec->model_count &&
        (method->subspaces || method->keeps_updates || method->plan_parts))
      return nps_fail(NPS_ERR_CONFIG, "%s: %s needs as many models in every slice, found %d and %d", spec->config_file,
                      method->name, spec->model_count, spec->slices[s].models);
  return NPS_OK;
}

static nps_err_t check_counts(const nps_merge_t *merge) {
  const nps_merge_spec_t *spec = &merge->spec;
  const nps_merge_method_t *method = spec->method;
  if (method->base != NPS_BASE_LISTED && spec->base < 0)
    return nps_fail(NPS_ERR_CONFIG, "%s: %s needs base_model", spec->config_file, method->name);
  if (spec->slice_count == 0) return check_count(merge, spec->model_count, "");
  nps_err_t err = check_same_counts(merge);
  for (int s = 0; s < spec->slice_count; s++) {
    char *in = nps_xstrf(" in slice %d", s);
    err = nps_err_worse(err, check_count(merge, spec->slices[s].models, in));
    free(in);
  }
  return err;
}

/* A model's own settings for a tensor. */
static const nps_settings_t *settings_of(const nps_merge_spec_t *spec, int model, const nps_target_t *target) {
  return spec->slice_count > 0 ? spec->slices[target->slice].of_model[model] : spec->models[model].settings;
}

/* The name that filters are compared with: in slices, where layers change their numbers, a model's parameters see its own
 * names. */
static const char *name_for(const nps_merge_spec_t *spec, const nps_param_t *param, int model,
                            const nps_target_t *target) {
  const int input = spec->models[model].input;
  if (!param->per_model || spec->slice_count == 0) return target->name;
  return nps_model_origin(spec->inputs[input], target->source[input]);
}

/* Looks a parameter up for one tensor: in the model's settings, its slice's, the module's, then globally. */
static const nps_setting_t *look_up(const nps_merge_t *merge, const nps_param_t *param, int model,
                                    const nps_target_t *target, double *value) {
  const nps_merge_spec_t *spec = &merge->spec;
  const nps_settings_t *levels[] = {param->per_model ? settings_of(spec, model, target) : NULL,
                                    spec->slice_count > 0 ? spec->slices[target->slice].settings : NULL, spec->module,
                                    spec->settings};
  for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
    const nps_setting_t *setting = levels[i] ? nps_settings_find(levels[i], param->name) : NULL;
    if (!setting) continue;
    if (param->kind == NPS_PARAM_CHOICE) {
      *value = find_choice(param, setting->value);
      return setting;
    }
    if (nps_value_number(setting->value, name_for(spec, param, model, target), target->layer, value)) return setting;
  }
  return NULL;
}

static double fallback_of(const nps_merge_t *merge, const nps_param_t *param) {
  if (!isnan(param->fallback)) return param->fallback;
  assert(merge->spec.nps);
  return merge->spec.nps->density;
}

static nps_err_t evaluate(const nps_merge_t *merge, const nps_param_t *param, int model, const nps_target_t *target,
                          double *value) {
  char where[NPS_WHERE];
  const nps_merge_spec_t *spec = &merge->spec;
  const nps_setting_t *setting = look_up(merge, param, model, target, value);
  if (!setting) {
    *value = fallback_of(merge, param);
    if (!param->required) return NPS_OK;
    if (!param->per_model)
      return nps_fail(NPS_ERR_CONFIG, "%s: %s needs the parameter '%s' (tensor %s has none)", spec->config_file,
                      spec->method->name, param->name, target->name);
    return nps_fail(NPS_ERR_CONFIG, "%s: %s needs the parameter '%s' for model '%s' (tensor %s has none)",
                    spec->config_file, spec->method->name, param->name, spec->models[model].name, target->name);
  }
  if (param->kind == NPS_PARAM_NUMBER && !(*value >= param->least && *value <= param->most))
    return nps_fail(NPS_ERR_CONFIG, "%sparameter '%s' must lie in [%g, %g], found %g for tensor %s",
                    nps_merge_where(merge, setting, where), param->name, param->least, param->most, *value,
                    target->name);
  return NPS_OK;
}

/* Evaluates one parameter everywhere; one message for a parameter and model is enough. */
static nps_err_t evaluate_param(nps_merge_t *merge, int p) {
  const nps_layout_t *layout = merge->spec.layout;
  const nps_param_t *param = &merge->spec.method->params[p];
  const int models = merge->spec.model_count, rows = param->per_model ? models : 1;
  nps_err_t err = NPS_OK;
  for (int m = 0; m < rows; m++)
    for (int t = 0; t < layout->count; t++) {
      if (layout->targets[t].action != NPS_ACTION_MERGE || m >= merge->tensors[t].models) continue;
      double *values = merge->values + ((int64_t)p * layout->count + t) * models;
      merge->tensors[t].param[p] = values;
      if (evaluate(merge, param, m, &layout->targets[t], &values[m]) == NPS_OK) continue;
      err = NPS_ERR_CONFIG;
      break;
    }
  return err;
}

typedef struct {
  const char *name;
  int target;
} named_t;

static int by_name(const void *a, const void *b) {
  return strcmp(((const named_t *)a)->name, ((const named_t *)b)->name);
}

static void describe_shape(const nps_target_t *target, nps_merge_tensor_t *tensor) {
  tensor->count = target->count;
  tensor->row_length = nps_merge_row_length(target);
  if (target->ndim != 2 || target->shape[0] < 2 || target->shape[1] < 2) return;
  tensor->rows = target->shape[0];
  tensor->columns = target->shape[1];
}

static nps_merge_tensor_t *find_named(const nps_merge_t *merge, const named_t *named, int count, const char *name) {
  const named_t key = {name, 0};
  const named_t *found = bsearch(&key, named, (size_t)count, sizeof *named, by_name);
  return found ? &merge->tensors[found->target] : NULL;
}

/* The weights of linear layers, and the biases beside them. */
static void find_roles(nps_merge_t *merge, const named_t *named, int count) {
  const nps_merge_spec_t *spec = &merge->spec;
  const char *config = spec->inputs[spec->base >= 0 ? spec->base : spec->models[0].input]->config_json;
  const char **names = nps_xcalloc((size_t)count + 1, sizeof *names);
  int *ndim = nps_xcalloc((size_t)count + 1, sizeof *ndim);
  bool *linear = nps_xcalloc((size_t)count + 1, sizeof *linear);
  for (int i = 0; i < count; i++) {
    names[i] = named[i].name;
    ndim[i] = spec->layout->targets[named[i].target].ndim;
  }
  merge->family_known = nps_net_find_linear(config, names, ndim, count, linear);
  for (int i = 0; i < count; i++) {
    if (!linear[i] || merge->tensors[named[i].target].rows == 0) continue;
    char *bias = nps_xstrf("%.*s.bias", (int)(strlen(names[i]) - strlen(".weight")), names[i]);
    nps_merge_tensor_t *beside = find_named(merge, named, count, bias);
    merge->tensors[named[i].target].role = NPS_ROLE_LINEAR;
    if (beside) beside->role = NPS_ROLE_LINEAR_BIAS;
    free(bias);
  }
  free(names);
  free(ndim);
  free(linear);
}

/* Models that have a part in a tensor: the first ones. */
static int count_models(const nps_merge_spec_t *spec, const nps_target_t *target) {
  int count = 0;
  while (count < spec->model_count && target->source[spec->models[count].input] >= 0) count++;
  return count;
}

static void describe_tensors(nps_merge_t *merge) {
  const nps_layout_t *layout = merge->spec.layout;
  named_t *named = nps_xcalloc((size_t)layout->count, sizeof *named);
  int merged = 0;
  int64_t elements = 0;
  for (int t = 0; t < layout->count; t++)
    if (layout->targets[t].action == NPS_ACTION_MERGE) {
      if (merge->first < 0) merge->first = t;
      named[merged++] = (named_t){layout->targets[t].name, t};
      elements += layout->targets[t].count;
    }
  qsort(named, (size_t)merged, sizeof *named, by_name);
  for (int i = 0; i < merged; i++) {
    nps_merge_tensor_t *tensor = &merge->tensors[named[i].target];
    tensor->name = named[i].name;
    describe_shape(&layout->targets[named[i].target], tensor);
    tensor->models = count_models(&merge->spec, &layout->targets[named[i].target]);
    tensor->key = merge->spec.seed ^ nps_name_hash(tensor->name);
    tensor->has_history = merge->spec.history.updates != NULL;
    tensor->order = i;
    tensor->tensor_count = merged;
    tensor->model_elements = elements;
    tensor->nps = merge->spec.nps;
  }
  find_roles(merge, named, merged);
  free(named);
}

static nps_err_t check_tensors(const nps_merge_t *merge) {
  const nps_merge_method_t *method = merge->spec.method;
  char why[160];
  for (int t = 0; method->check && t < merge->spec.layout->count; t++) {
    const nps_merge_tensor_t *tensor = &merge->tensors[t];
    if (tensor->name && !method->check(tensor, &merge->tensors[merge->first], why))
      return nps_fail(NPS_ERR_CONFIG, "%s: %s, tensor %s: %s", merge->spec.config_file, method->name, tensor->name,
                      why);
  }
  return NPS_OK;
}

static nps_err_t check_level(const nps_merge_t *merge, const nps_settings_t *settings, bool of_model) {
  const nps_err_t err = check_names(merge, settings, of_model);
  return nps_err_worse(err, check_values(merge, settings));
}

static nps_err_t check_settings(const nps_merge_t *merge) {
  const nps_merge_spec_t *spec = &merge->spec;
  nps_err_t err = check_level(merge, spec->settings, false);
  err = nps_err_worse(err, check_level(merge, spec->module, false));
  for (int m = 0; m < spec->model_count; m++)
    err = nps_err_worse(err, check_level(merge, spec->models[m].settings, true));
  for (int s = 0; s < spec->slice_count; s++) {
    const nps_merge_slice_t *slice = &spec->slices[s];
    err = nps_err_worse(err, check_level(merge, slice->settings, false));
    for (int m = 0; m < slice->models; m++) err = nps_err_worse(err, check_level(merge, slice->of_model[m], true));
  }
  return err;
}

static nps_err_t prepare(nps_merge_t *merge) {
  const nps_merge_spec_t *spec = &merge->spec;
  NPS_TRY(nps_err_worse(check_counts(merge), check_settings(merge)));
  nps_merge_note_filters(merge);
  describe_tensors(merge);
  nps_err_t err = NPS_OK;
  for (int p = 0; p < spec->method->param_count; p++) err = nps_err_worse(err, evaluate_param(merge, p));
  if (err != NPS_OK || merge->first < 0) return err;
  NPS_TRY(check_tensors(merge));
  const nps_merge_method_t *method = spec->method;
  merge->passes = method->passes ? method->passes(merge->tensors, spec->layout->count) : 0;
  merge->whole_model =
      merge->passes > 0 && method->whole_model && method->whole_model(merge->tensors, spec->layout->count);
  return NPS_OK;
}

/* ---- what the planner must know of tensors that stay whole ---- */

static double whole_seconds(const void *ctx, int target, int ranks) {
  const nps_merge_t *merge = ctx;
  return merge->spec.method->whole_seconds(&merge->tensors[target], ranks);
}

/* Of one rank: θ0 and the update in float64, the task vectors, and what the method needs. */
static int64_t bytes_here(const nps_merge_t *merge, const nps_merge_tensor_t *tensor) {
  return (16 + 4 * (int64_t)tensor->models) * tensor->count + merge->spec.method->whole_bytes(tensor, 1);
}

/* Of each rank of a group: θ0 of its rows, the task vectors as rows and as pieces, the update's piece and then its rows. */
static int64_t bytes_on_grid(const nps_merge_t *merge, const nps_merge_tensor_t *tensor, int ranks) {
  const int64_t rows = (tensor->rows + ranks - 1) / ranks * tensor->columns;
  const int64_t piece = nps_dmat_most_local(tensor->rows, tensor->columns, ranks), more = rows > piece ? rows : piece;
  const int64_t working = merge->spec.method->whole_bytes(tensor, ranks);
  if (working == INT64_MAX) return working;
  const int64_t besides = working > 8 * rows ? working : 8 * rows;
  return 8 * rows + 4 * more * (tensor->models + 1) + 8 * piece + besides +
         nps_dmat_exchange_bytes(tensor->rows, tensor->columns, ranks);
}

static int64_t whole_bytes(const void *ctx, int target, int ranks) {
  const nps_merge_t *merge = ctx;
  const nps_merge_tensor_t *tensor = &merge->tensors[target];
  if (!nps_merge_is_whole(merge, target)) return ranks == 1 ? 0 : INT64_MAX;
  if (ranks == 1) return bytes_here(merge, tensor);
  return tensor->rows > 0 ? bytes_on_grid(merge, tensor, ranks) : INT64_MAX;
}

nps_extent_t nps_merge_extent(const nps_layout_t *layout) {
  nps_extent_t most = {1, 1, 1};
  for (int t = 0; t < layout->count; t++) {
    const nps_target_t *target = &layout->targets[t];
    if (target->action != NPS_ACTION_MERGE || target->count == 0) continue;
    most.row = nps_max64(most.row, nps_merge_row_length(target));
    most.rows = nps_max64(most.rows, target->count / nps_merge_row_length(target));
    most.count = nps_max64(most.count, target->count);
  }
  return most;
}

int nps_merge_one_pass(const nps_merge_tensor_t *tensors, int count) {
  (void)tensors;
  (void)count;
  return 1;
}

bool nps_merge_always_rows(const nps_merge_tensor_t *tensor) { return tensor != NULL; }

/* The least that has whole blocks, and whole rows where the method wants them. */
static int64_t row_unit(const void *ctx, int target) {
  const nps_merge_t *merge = ctx;
  const nps_merge_tensor_t *tensor = &merge->tensors[target];
  if (!merge->spec.method->whole_rows(tensor)) return NPS_BLOCK;
  const int64_t row = nps_max64(tensor->row_length, 1), common = nps_min64(row & -row, NPS_BLOCK);
  return NPS_BLOCK / common * row;
}

nps_err_t nps_merge_new(const nps_merge_spec_t *spec, nps_merge_t **out) {
  const size_t targets = (size_t)spec->layout->count, params = (size_t)spec->method->param_count;
  nps_merge_t *merge = nps_xcalloc(1, sizeof *merge);
  merge->spec = *spec;
  merge->history = spec->history;
  merge->first = -1;
  merge->tensors = nps_xcalloc(targets, sizeof *merge->tensors);
  merge->values = nps_xcalloc(params * targets, (size_t)spec->model_count * sizeof(double));
  nps_err_t err = prepare(merge);
  if (err == NPS_OK && spec->method->plan_parts) err = nps_merge_plan_parts(merge);
  if (err != NPS_OK) {
    nps_merge_free(merge);
    return err;
  }
  *out = merge;
  return NPS_OK;
}

void nps_merge_free(nps_merge_t *merge) {
  if (!merge) return;
  free(merge->tensors);
  free(merge->values);
  free(merge->parts);
  free(merge->part_target);
  free(merge->part_bytes);
  nps_merge_subspaces_clear(&merge->subspaces);
  free(merge);
}

nps_demand_t nps_merge_demand(const nps_merge_t *merge) {
  const nps_merge_method_t *method = merge->spec.method;
  return (nps_demand_t){
      .whole_pieces = merge->passes > 0 && !merge->whole_model,
      .whole_model = merge->whole_model,
      .passes = merge->passes,
      .seconds = method->merge_whole ? whole_seconds : NULL,
      .bytes = whole_bytes,
      .ctx = merge,
      .target_parts = merge->part_bytes,
      .held_width = method->scale ? 16 : 0, /* θ0 and the update in float64 */
      .kept_width = method->keeps_updates ? 8 : 0,
      .unit = method->whole_rows ? row_unit : NULL,
      .state_memory = merge->passes > 0 ? (int64_t)method->state_bytes(&merge->spec) : 0,
  };
}

int64_t nps_merge_work(const nps_merge_t *merge) {
  const nps_merge_spec_t *spec = &merge->spec;
  int64_t work = 0;
  for (int t = 0; t < spec->layout->count; t++) {
    const nps_target_t *target = &spec->layout->targets[t];
    int sweeps = merge->whole_model && target->action == NPS_ACTION_MERGE ? merge->passes + 1 : 1;
    work += sweeps * target->count * nps_plan_input_width(target, spec->inputs, spec->input_count);
  }
  return work;
}

bool nps_merge_plain_value(const nps_merge_t *merge, const char *name, int model, double *value) {
  const nps_param_t *param = nps_merge_find_param(merge->spec.method, name);
  if (!param || merge->first < 0) return false;
  const int p = (int)(param - merge->spec.method->params), row = param->per_model ? model : 0;
  bool found = false;
  for (int t = 0; t < merge->spec.layout->count; t++) {
    const nps_merge_tensor_t *tensor = &merge->tensors[t];
    if (!tensor->name || row >= tensor->models) continue;
    if (found && tensor->param[p][row] != *value) return false;
    *value = tensor->param[p][row];
    found = true;
  }
  return found;
}

const nps_merge_subspaces_t *nps_merge_subspaces(const nps_merge_t *merge) {
  return merge->spec.method->subspaces ? &merge->subspaces : NULL;
}

nps_merge_history_t nps_merge_history(const nps_merge_t *merge) { return merge->history; }
nps_merge_balance_t nps_merge_balance(const nps_merge_t *merge) { return merge->balance; }

void nps_merge_subspaces_clear(nps_merge_subspaces_t *subspaces) {
  free(subspaces->thresholds);
  free(subspaces->entries);
  free(subspaces->kept);
  *subspaces = (nps_merge_subspaces_t){0};
}
