/* nps, search and fitness together: defaults, what must fit, and how they are written. */
#include "section.h"

#include "emit.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* All defaults of the sections but of `stages` and what depends on them. */
void nps_sections_default(nps_recipe_t *recipe) {
  recipe->nps = (nps_recipe_nps_t){
      .application = NPS_APPLICATION_FUSION,
      .subspaces = 8,
      .scope = NPS_SCOPE_MODEL,
      .density = 0.1,
  };
  recipe->search = (nps_recipe_search_t){
      .algorithm = NPS_ALGORITHM_CMA_ES,
      .vary_weight = true,
      .bounds =
          {[NPS_VARIABLE_WEIGHT] = {-5, 5}, [NPS_VARIABLE_LOG_PRIORITY] = {-5, 5}, [NPS_VARIABLE_LAMBDA] = {-2, 2}},
      .start_weight = 1,
      .generations = 20,
      .sigma = 0.3,
  };
  recipe->archive = (nps_recipe_archive_t){.value_bits = 8};
  recipe->fitness = (nps_recipe_fitness_t){
      .evaluator = NPS_EVALUATOR_NATIVE,
      .metric = NPS_METRIC_ACCURACY,
      .objective = NPS_OBJECTIVE_MEAN,
      .holdout = 0.25,
      .sharpness_rho = 0.05,
      .batch = 64,
  };
}

static void default_stages(nps_recipe_t *recipe) {
  nps_recipe_search_t *s = &recipe->search;
  if (s->stage_count > 0) return;
  s->stages[0] = nps_application_is_of_each(recipe->nps.application) ? NPS_STAGE_PRUNE : NPS_STAGE_JOINT;
  s->stage_count = 1;
}

/* ---- checks ---- */

/* Where a key of a section was written, else the section, else the config. */
static nps_place_t place_of(const nps_node_t *root, const char *section, const char *key) {
  const nps_entry_t *outer = nps_node_find(root, section);
  const nps_entry_t *inner = outer && key ? nps_node_find(outer->value, key) : NULL;
  return inner ? inner->place : outer ? outer->place : root->place;
}

static bool is_given(const nps_node_t *section, const char *key) {
  const nps_entry_t *entry = nps_node_find(section, key);
  return entry && !nps_node_is_null(entry->value);
}

static bool has_stage(const nps_recipe_t *recipe, nps_stage_t stage) {
  for (int i = 0; i < recipe->search.stage_count; i++)
    if (recipe->search.stages[i] == stage) return true;
  return false;
}

/* Prune and fuse search as in the paper, joint in a way that generalises better: docs/search.md has measurements. */
static void default_joint(nps_recipe_t *recipe, const nps_node_t *root) {
  const nps_entry_t *entry = nps_node_find(root, "search");
  const nps_node_t *given = entry && entry->value->kind == NPS_NODE_MAPPING ? entry->value : NULL;
  const bool joint = has_stage(recipe, NPS_STAGE_JOINT);
  nps_recipe_search_t *s = &recipe->search;
  if (!given || !is_given(given, "final"))
    s->final = joint || recipe->fitness.holdout > 0 ? NPS_FINAL_AVERAGE : NPS_FINAL_BEST;
  if (joint && !(given && is_given(given, "sigma"))) s->sigma = 0.1;
  if (joint && !(given && is_given(given, "generations"))) s->generations = 12;
}

static const char *find_model(const nps_recipe_t *recipe, const char *name, const char **near) {
  const char **names = nps_xcalloc((size_t)recipe->model_count + 1, sizeof *names);
  const char *found = NULL;
  int count = 0;
  for (int m = 0; m < recipe->model_count; m++) {
    if (!recipe->models[m].name) continue;
    names[count++] = recipe->models[m].name;
    if (strcmp(recipe->models[m].name, name) == 0) found = recipe->models[m].name;
  }
  *near = found ? NULL : nps_nearest(name, names, count);
  free(names);
  return found;
}

static void fail_model(nps_place_t place, const char *what, const char *name, const char *near) {
  char shown[72];
  nps_place_fail(place, "%s: expected the name of a listed model, found '%s'%s%s%s", what, nps_show(name, shown),
                 near ? ", did you mean '" : "", near ? near : "", near ? "'?" : "");
}

/* @param with_rest  there may be one more number, for the tensors that are not split into bands */
static void check_rows(const nps_recipe_t *recipe, const nps_node_t *root, const char *key,
                       const nps_recipe_row_t *rows, int count, bool with_rest) {
  const nps_place_t place = place_of(root, "nps", key);
  const char *near;
  for (int i = 0; i < count; i++) {
    char *what = rows[i].model ? nps_xstrf("nps.%s.%s", key, rows[i].model) : nps_xstrf("nps.%s", key);
    if (rows[i].count != recipe->nps.subspaces && !(with_rest && rows[i].count == recipe->nps.subspaces + 1))
      nps_place_fail(place, "%s: expected %d numbers, one a subspace%s, found %d", what, recipe->nps.subspaces,
                     with_rest ? ", or one more for the tensors that are no matrices" : "", rows[i].count);
    if (rows[i].model && recipe->nps.sum)
      nps_place_fail(place, "%s: the sum (nps.of: sum) has no models: expected one list of numbers", what);
    if (rows[i].model && !find_model(recipe, rows[i].model, &near)) fail_model(place, what, rows[i].model, near);
    free(what);
  }
}

static const char *application_name(nps_application_t application) {
  static const char *const names[] = {"fusion", "transfer", "compression"};
  return names[application];
}

/* The keys of the singular partition against each other. */
static void check_partition(const nps_recipe_t *recipe, const nps_node_t *root) {
  const nps_recipe_nps_t *nps = &recipe->nps;
  if (nps->sum && !nps->singular)
    nps_place_fail(place_of(root, "nps", "of"), "nps.of: sum goes with nps.partition: singular only");
  if (nps->exclude_count > 0 && !nps->singular)
    nps_place_fail(place_of(root, "nps", "spectral_exclude"),
                   "nps.spectral_exclude: goes with nps.partition: singular only");
  if (nps->sum && nps_application_is_of_each(nps->application))
    nps_place_fail(place_of(root, "nps", "of"),
                   "nps.of: sum makes one model of all, but nps.application is %s: expected each",
                   application_name(nps->application));
}

/* What an archive cannot be made of. */
static void check_archive(const nps_recipe_t *recipe, const nps_node_t *root) {
  const bool wanted = recipe->nps.application == NPS_APPLICATION_COMPRESSION;
  if (recipe->archive.given && !wanted)
    nps_place_fail(place_of(root, "archive", NULL), "archive: goes with nps.application: compression only, this is %s",
                   application_name(recipe->nps.application));
  if (wanted && recipe->output_head)
    nps_place_fail(place_of(root, "output", "head"),
                   "output.head: an archive holds every model's own head, expected none");
}

/* Whose task it is: the model of that name where none is said. */
static void settle_tasks(nps_recipe_t *recipe, const nps_node_t *root) {
  const char *near;
  for (int i = 0; i < recipe->fitness.task_count; i++) {
    nps_recipe_task_t *task = &recipe->fitness.tasks[i];
    if (task->model && !find_model(recipe, task->model, &near)) {
      char *what = nps_xstrf("fitness.tasks.%d.model", i);
      const nps_place_t place = {root->place.source, task->line};
      fail_model(place, what, task->model, near);
      free(what);
    }
    if (!task->model && task->name && find_model(recipe, task->name, &near)) task->model = nps_xstrdup(task->name);
  }
}

static bool has_task(const nps_recipe_t *recipe, const char *model) {
  for (int i = 0; i < recipe->fitness.task_count; i++)
    if (recipe->fitness.tasks[i].model && strcmp(recipe->fitness.tasks[i].model, model) == 0) return true;
  return false;
}

/* The base among the models has no task vector; paths that only links make the same are left to the run. */
static bool is_base(const nps_recipe_t *recipe, int m) {
  const char *base = recipe->base_model, *model = recipe->models[m].model;
  if (!base || !model) return false;
  while (strncmp(base, "./", 2) == 0) base += 2;
  while (strncmp(model, "./", 2) == 0) model += 2;
  size_t base_size = strlen(base), size = strlen(model);
  while (base_size > 1 && base[base_size - 1] == '/') base_size--;
  while (size > 1 && model[size - 1] == '/') size--;
  return size == base_size && memcmp(base, model, size) == 0;
}

static int count_task_vectors(const nps_recipe_t *recipe) {
  int count = 0;
  for (int m = 0; m < recipe->model_count; m++) count += !is_base(recipe, m);
  return count;
}

static void check_tasks_of_models(const nps_recipe_t *recipe, const nps_node_t *root) {
  const nps_place_t place = place_of(root, "search", "stages");
  for (int m = 0; m < recipe->model_count; m++)
    if (recipe->models[m].name && !is_base(recipe, m) && !has_task(recipe, recipe->models[m].name))
      nps_place_fail(place, "search.stages: prune needs a task for every model, '%s' has none in fitness.tasks",
                     recipe->models[m].name);
}

/* The H-score is of accuracies, of what models have learnt and of what the base could do before. */
static void check_objective(const nps_recipe_t *recipe, const nps_node_t *root) {
  const nps_recipe_fitness_t *f = &recipe->fitness;
  const nps_place_t place = place_of(root, "fitness", "objective");
  int general = 0;
  if (f->objective != NPS_OBJECTIVE_H_SCORE || f->task_count == 0) return;
  for (int i = 0; i < f->task_count; i++) general += !f->tasks[i].model;
  if (f->evaluator == NPS_EVALUATOR_COMMAND && f->metric != NPS_METRIC_ACCURACY)
    nps_place_fail(place, "fitness.objective: h_score is of accuracies: a command gives them with metric accuracy");
  if (general == 0)
    nps_place_fail(place, "fitness.objective: h_score needs general tasks, whose name and model are no listed model's, "
                          "fitness.tasks has none");
  if (general == f->task_count)
    nps_place_fail(place, "fitness.objective: h_score needs a task of a listed model, fitness.tasks has none");
  if (f->metric != NPS_METRIC_ACCURACY)
    nps_place_fail(place, "fitness.objective: h_score is a mean of accuracies, but fitness.metric is nll");
}

static void check_stages(const nps_recipe_t *recipe, const nps_node_t *root) {
  const nps_recipe_search_t *s = &recipe->search;
  const nps_place_t place = place_of(root, "search", "stages");
  const bool each = nps_application_is_of_each(recipe->nps.application);
  if (each && (s->stage_count != 1 || s->stages[0] != NPS_STAGE_PRUNE))
    nps_place_fail(place, "search.stages: expected [prune], the only stage of %s",
                   application_name(recipe->nps.application));
  if (recipe->nps.sum && (s->stage_count != 1 || s->stages[0] != NPS_STAGE_JOINT))
    nps_place_fail(place, "search.stages: expected [joint], the only stage with nps.of: sum");
  if (recipe->nps.sum && s->per_model)
    nps_place_fail(place_of(root, "search", "per_model"),
                   "search.per_model: the sum (nps.of: sum) has no models, expected false");
  if (s->per_model && !has_stage(recipe, NPS_STAGE_JOINT))
    nps_place_fail(place_of(root, "search", "per_model"), "search.per_model: holds for the stage joint only");
  if (has_stage(recipe, NPS_STAGE_PRUNE)) check_tasks_of_models(recipe, root);
  if (!has_stage(recipe, NPS_STAGE_PRUNE) && !has_stage(recipe, NPS_STAGE_JOINT)) return;
  if (recipe->nps.weight_rows)
    nps_place_fail(place_of(root, "nps", "weights"), "nps.weights: the stages prune and joint search them, give "
                                                     "search.start instead");
  if (recipe->nps.priority_rows && s->vary_density)
    nps_place_fail(place_of(root, "nps", "priorities"), "nps.priorities: search.variables has density, which searches "
                                                        "them");
}

static void check_start(const nps_recipe_t *recipe, const nps_node_t *root) {
  const nps_recipe_search_t *s = &recipe->search;
  const double *weight = s->bounds[NPS_VARIABLE_WEIGHT], *priority = s->bounds[NPS_VARIABLE_LOG_PRIORITY];
  if (s->start_weight < weight[0] || s->start_weight > weight[1])
    nps_place_fail(place_of(root, "search", "start"), "search.start.weight: %g lies outside of the bounds [%g, %g]",
                   s->start_weight, weight[0], weight[1]);
  if (s->start_log_priority < priority[0] || s->start_log_priority > priority[1])
    nps_place_fail(place_of(root, "search", "start"),
                   "search.start.log_priority: %g lies outside of the bounds [%g, %g]", s->start_log_priority,
                   priority[0], priority[1]);
}

static void check_search(const nps_recipe_t *recipe, const nps_node_t *root) {
  const nps_recipe_search_t *s = &recipe->search;
  if (!s->given || s->algorithm == NPS_ALGORITHM_NONE) return;
  if (recipe->fitness.evaluator == NPS_EVALUATOR_NONE)
    nps_place_fail(place_of(root, "search", NULL), "search: needs an evaluator, but fitness.evaluator is none");
  else if (!recipe->fitness.given)
    nps_place_fail(place_of(root, "search", NULL), "search: needs fitness.tasks, as candidates are scored on them");
  else if (recipe->fitness.task_count > 0)
    check_stages(recipe, root);
  check_start(recipe, root);
}

/* The sections mean nothing to other methods. */
static void refuse_sections(const nps_recipe_t *recipe, const nps_node_t *root) {
  static const char *const names[] = {"nps", "archive", "search", "fitness"};
  const bool given[] = {recipe->nps.given, recipe->archive.given, recipe->search.given, recipe->fitness.given};
  for (int i = 0; i < COUNT(names); i++)
    if (given[i])
      nps_place_fail(place_of(root, names[i], NULL), "%s: belongs to merge_method nps, this is %s", names[i],
                     recipe->merge_method);
}

void nps_sections_check(nps_recipe_t *recipe, const nps_node_t *root) {
  default_stages(recipe);
  default_joint(recipe, root);
  if (!recipe->merge_method) return;
  if (strcmp(recipe->merge_method, "nps") != 0) {
    refuse_sections(recipe, root);
    return;
  }
  check_partition(recipe, root);
  check_archive(recipe, root);
  check_rows(recipe, root, "weights", recipe->nps.weights, recipe->nps.weight_rows, recipe->nps.singular);
  check_rows(recipe, root, "priorities", recipe->nps.priorities, recipe->nps.priority_rows, false);
  settle_tasks(recipe, root);
  const nps_entry_t *fitness = nps_node_find(root, "fitness");
  if (fitness && fitness->value->kind == NPS_NODE_MAPPING && recipe->fitness.evaluator != NPS_EVALUATOR_NONE &&
      !is_given(fitness->value, "tasks"))
    nps_place_fail(place_of(root, "fitness", NULL), "fitness: 'tasks' is missing, expected a list of tasks");
  if (recipe->nps.application == NPS_APPLICATION_TRANSFER && count_task_vectors(recipe) > 1 && recipe->output_path &&
      !strstr(recipe->output_path, "{name}"))
    nps_place_fail(place_of(root, "output", "path"),
                   "output.path: transfer writes one output a model, expected {name} in the path, found '%s'",
                   recipe->output_path);
  check_objective(recipe, root);
  check_search(recipe, root);
}

/* ---- writing ---- */

static void emit_numbers(nps_text_t *out, const double *numbers, int count) {
  for (int i = 0; i < count; i++) {
    nps_text_add(out, "%s", i ? ", " : "[");
    nps_emit_number(out, numbers[i]);
  }
  nps_text_add(out, "]");
}

static void emit_rows(nps_text_t *out, const char *key, const nps_recipe_row_t *rows, int count) {
  if (count == 0) return;
  nps_text_add(out, "  %s: ", key);
  if (!rows[0].model) emit_numbers(out, rows[0].numbers, rows[0].count);
  for (int i = 0; rows[0].model && i < count; i++) {
    nps_text_add(out, "\n    ");
    nps_emit_text(out, rows[i].model);
    nps_text_add(out, ": ");
    emit_numbers(out, rows[i].numbers, rows[i].count);
  }
  nps_text_add(out, "\n");
}

static void emit_pair(nps_text_t *out, const char *key, double value) {
  nps_text_add(out, "  %s: ", key);
  nps_emit_number(out, value);
  nps_text_add(out, "\n");
}

static void emit_spectral(nps_text_t *out, const nps_recipe_nps_t *nps) {
  nps_text_add(out, "  of: %s\n  spectral_exclude: [", nps->sum ? "sum" : "each");
  for (int i = 0; i < nps->exclude_count; i++) {
    nps_text_add(out, "%s", i ? ", " : "");
    nps_emit_text(out, nps->exclude[i]);
  }
  nps_text_add(out, "]\n");
}

static void emit_nps(nps_text_t *out, const nps_recipe_nps_t *nps) {
  nps_text_add(out, "nps:\n  application: %s\n  subspaces: %d\n  scope: %s\n", application_name(nps->application),
               nps->subspaces, nps->scope == NPS_SCOPE_TENSOR ? "tensor" : "model");
  emit_pair(out, "density", nps->density);
  nps_text_add(out, "  partition: %s\n", nps->singular ? "singular" : "magnitude");
  if (nps->singular) emit_spectral(out, nps);
  emit_rows(out, "weights", nps->weights, nps->weight_rows);
  emit_rows(out, "priorities", nps->priorities, nps->priority_rows);
}

static void emit_bounds(nps_text_t *out, const nps_recipe_search_t *s) {
  static const char *const names[NPS_VARIABLES] = {"weight", "log_priority", "lambda"};
  nps_text_add(out, "  bounds: {");
  for (int i = 0; i < NPS_VARIABLES; i++) {
    nps_text_add(out, "%s%s: ", i ? ", " : "", names[i]);
    emit_numbers(out, s->bounds[i], 2);
  }
  nps_text_add(out, "}\n  start: {weight: ");
  nps_emit_number(out, s->start_weight);
  nps_text_add(out, ", log_priority: ");
  nps_emit_number(out, s->start_log_priority);
  nps_text_add(out, "}\n");
}

static void emit_search(nps_text_t *out, const nps_recipe_search_t *s) {
  static const char *const algorithms[] = {"cma-es", "sep-cma-es", "random", "none"};
  static const char *const stages[] = {"prune", "fuse", "joint"}, *const finals[] = {"best", "mean", "average"};
  nps_text_add(out, "search:\n  algorithm: %s\n  stages: [%s%s%s]\n  variables: [%s%s%s]\n  per_model: %s\n",
               algorithms[s->algorithm], stages[s->stages[0]], s->stage_count > 1 ? ", " : "",
               s->stage_count > 1 ? stages[s->stages[1]] : "", s->vary_weight ? "weight" : "",
               s->vary_weight && s->vary_density ? ", " : "", s->vary_density ? "density" : "",
               s->per_model ? "true" : "false");
  emit_bounds(out, s);
  if (s->start_from) {
    nps_text_add(out, "  start_from: ");
    nps_emit_text(out, s->start_from);
    nps_text_add(out, "\n");
  }
  nps_text_add(out,
               "  final: %s\n  restarts: %d\n  generations: %d\n  population: %d\n  max_evaluations: %" PRId64
               "\n  patience: %d\n",
               finals[s->final], s->restarts, s->generations, s->population, s->max_evaluations, s->patience);
  emit_pair(out, "sigma", s->sigma);
}

static void emit_field(nps_text_t *out, const char *before, const char *key, const char *text) {
  if (!text) return;
  nps_text_add(out, "%s%s: ", before, key);
  nps_emit_text(out, text);
}

static void emit_command(nps_text_t *out, const nps_recipe_fitness_t *f) {
  nps_text_add(out, "  command: [");
  for (int i = 0; i < f->command_count; i++) {
    nps_text_add(out, "%s", i ? ", " : "");
    nps_emit_text(out, f->command[i]);
  }
  nps_text_add(out, "]\n  direction: %s\n", f->less_is_better ? "min" : "max");
  emit_pair(out, "timeout", f->timeout);
}

static void emit_fitness(nps_text_t *out, const nps_recipe_fitness_t *f) {
  static const char *const objectives[] = {"mean", "worst", "normalized", "h_score"}, *const metrics[] = {
                                                                                          "accuracy", "nll", "value"};
  static const char *const evaluators[] = {"native", "none", "command"};
  nps_text_add(out, "fitness:\n  evaluator: %s\n  metric: %s\n  objective: %s\n  batch: %d\n", evaluators[f->evaluator],
               metrics[f->metric], objectives[f->objective], f->batch);
  if (f->evaluator == NPS_EVALUATOR_COMMAND) emit_command(out, f);
  emit_pair(out, "holdout", f->holdout);
  if (f->sharpness_samples > 0) {
    nps_text_add(out, "  sharpness: {samples: %d, rho: ", f->sharpness_samples);
    nps_emit_number(out, f->sharpness_rho);
    nps_text_add(out, "}\n");
  }
  if (f->task_count) nps_text_add(out, "  tasks:\n");
  for (int i = 0; i < f->task_count; i++) {
    const nps_recipe_task_t *task = &f->tasks[i];
    emit_field(out, "    - {", "name", task->name);
    emit_field(out, ", ", "model", task->model);
    emit_field(out, ", ", "data", task->data);
    emit_field(out, ", ", "group", task->group);
    emit_field(out, ", ", "head", task->head);
    nps_text_add(out, "}\n");
  }
}

void nps_sections_emit(nps_text_t *out, const nps_recipe_t *recipe) {
  if (strcmp(recipe->merge_method, "nps") != 0) return;
  emit_nps(out, &recipe->nps);
  if (recipe->nps.application == NPS_APPLICATION_COMPRESSION)
    nps_text_add(out, "archive: {value_bits: %d, embed_base: %s}\n", recipe->archive.value_bits,
                 recipe->archive.embed_base ? "true" : "false");
  if (recipe->search.given) emit_search(out, &recipe->search);
  if (recipe->fitness.given) emit_fitness(out, &recipe->fitness);
}

static void free_rows(nps_recipe_row_t *rows, int count) {
  for (int i = 0; i < count; i++) {
    free(rows[i].model);
    free(rows[i].numbers);
  }
  free(rows);
}

void nps_sections_free(nps_recipe_t *recipe) {
  for (int i = 0; i < recipe->nps.exclude_count; i++) free(recipe->nps.exclude[i]);
  free(recipe->nps.exclude);
  free_rows(recipe->nps.weights, recipe->nps.weight_rows);
  free_rows(recipe->nps.priorities, recipe->nps.priority_rows);
  free(recipe->search.start_from);
  free(recipe->search.snapshot);
  for (int i = 0; i < recipe->fitness.task_count; i++) {
    nps_recipe_task_t *task = &recipe->fitness.tasks[i];
    free(task->name);
    free(task->model);
    free(task->data);
    free(task->group);
    free(task->head);
  }
  free(recipe->fitness.tasks);
  for (int i = 0; i < recipe->fitness.command_count; i++) free(recipe->fitness.command[i]);
  free(recipe->fitness.command);
  free(recipe->fitness.directory);
}
