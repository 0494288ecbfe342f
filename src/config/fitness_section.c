/* `fitness:` */
#include "level.h"
#include "section.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

enum { MAX_TASKS = 1000, MAX_WORDS = 1000 };

/* What the native evaluators take, which are above this module (NPS_NET_MOST_BATCH). */
enum { MAX_BATCH = 4096 };

#define DEFAULT_TIMEOUT 600.0

static const nps_word_t evaluators[] = {
    {"native", NPS_EVALUATOR_NATIVE}, {"command", NPS_EVALUATOR_COMMAND}, {"none", NPS_EVALUATOR_NONE}};
static const nps_word_t metrics[] = {
    {"accuracy", NPS_METRIC_ACCURACY}, {"nll", NPS_METRIC_NLL}, {"value", NPS_METRIC_VALUE}};
static const nps_word_t directions[] = {{"max", false}, {"min", true}};
static const nps_word_t objectives[] = {{"mean", NPS_OBJECTIVE_MEAN},
                                        {"worst", NPS_OBJECTIVE_WORST},
                                        {"normalized", NPS_OBJECTIVE_NORMALIZED},
                                        {"h_score", NPS_OBJECTIVE_H_SCORE}};

static nps_recipe_fitness_t *section(void *target) { return &((nps_recipe_t *)target)->fitness; }

static void read_evaluator(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, evaluators, COUNT(evaluators), &word))
    section(target)->evaluator = (nps_evaluator_t)word;
}

static void read_metric(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, metrics, COUNT(metrics), &word)) section(target)->metric = (nps_metric_t)word;
}

static void read_objective(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, objectives, COUNT(objectives), &word))
    section(target)->objective = (nps_objective_t)word;
}

static void read_holdout(void *target, const nps_node_t *value, const char *what) {
  double part;
  if (!nps_number_read(value, what, 0, false, 1, &part)) return;
  if (part < 1)
    section(target)->holdout = part;
  else
    nps_place_fail(value->place, "%s: expected a number below 1, as the search needs samples, found 1", what);
}

static void read_batch(void *target, const nps_node_t *value, const char *what) {
  int64_t batch;
  if (nps_count_read(value, what, 1, MAX_BATCH, &batch)) section(target)->batch = (int)batch;
}

static void read_command(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_fitness_t *fitness = section(target);
  char found[96];
  if (value->kind != NPS_NODE_LIST || value->count > MAX_WORDS) {
    nps_place_fail(value->place, "%s: expected a list, [program, arguments, …], found %s", what,
                   nps_node_describe(value, found));
    return;
  }
  fitness->command = nps_xcalloc((size_t)value->count + 1, sizeof *fitness->command);
  fitness->command_count = value->count;
  for (int i = 0; i < value->count; i++) {
    char *inner = nps_xstrf("%s.%d", what, i);
    nps_text_read(value->entries[i].value, inner, &fitness->command[i]);
    free(inner);
  }
}

static void read_timeout(void *target, const nps_node_t *value, const char *what) {
  double seconds;
  if (nps_number_read(value, what, 0, true, 1e9, &seconds)) section(target)->timeout = seconds;
}

static void read_direction(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, directions, COUNT(directions), &word)) section(target)->less_is_better = word;
}

static void read_directory(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &section(target)->directory);
}

static void read_sharpness_samples(void *target, const nps_node_t *value, const char *what) {
  int64_t samples;
  if (nps_count_read(value, what, 0, 1000, &samples)) section(target)->sharpness_samples = (int)samples;
}

static void read_rho(void *target, const nps_node_t *value, const char *what) {
  double rho;
  if (nps_number_read(value, what, 0, true, HUGE_VAL, &rho)) section(target)->sharpness_rho = rho;
}

static void read_sharpness(void *target, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"samples", NPS_KEY_READ, read_sharpness_samples, NULL},
                                   {"rho", NPS_KEY_READ, read_rho, NULL}};
  nps_level_read(value, what, keys, COUNT(keys), target);
}

static void read_task_name(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &((nps_recipe_task_t *)target)->name);
}

static void read_task_model(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &((nps_recipe_task_t *)target)->model);
}

static void read_task_data(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &((nps_recipe_task_t *)target)->data);
}

static void read_task_group(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &((nps_recipe_task_t *)target)->group);
}

static void read_task_head(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &((nps_recipe_task_t *)target)->head);
}

static void read_task(nps_recipe_task_t *task, const nps_node_t *node, const char *what) {
  static const nps_key_t keys[] = {{"name", NPS_KEY_READ, read_task_name, NULL},
                                   {"model", NPS_KEY_READ, read_task_model, NULL},
                                   {"data", NPS_KEY_READ, read_task_data, NULL},
                                   {"group", NPS_KEY_READ, read_task_group, NULL},
                                   {"head", NPS_KEY_READ, read_task_head, NULL}};
  task->line = node->place.line;
  nps_level_read(node, what, keys, COUNT(keys), task);
  if (node->kind != NPS_NODE_MAPPING) return;
  const nps_entry_t *name = nps_node_find(node, "name");
  if (!name || nps_node_is_null(name->value)) nps_place_fail(node->place, "%s: 'name' is missing", what);
  if (!task->group && task->name) task->group = nps_xstrdup(task->name);
}

static void check_unique(const nps_recipe_fitness_t *fitness, const nps_node_t *list, const char *what) {
  for (int i = 0; i < fitness->task_count; i++)
    for (int j = 0; j < i; j++)
      if (fitness->tasks[i].name && fitness->tasks[j].name &&
          strcmp(fitness->tasks[i].name, fitness->tasks[j].name) == 0) {
        nps_place_fail(list->entries[i].value->place, "%s.%d.name: '%s' is the name of %s.%d already", what, i,
                       fitness->tasks[i].name, what, j);
        break;
      }
}

static void read_tasks(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_fitness_t *fitness = section(target);
  char found[96];
  if (value->kind != NPS_NODE_LIST || value->count == 0 || value->count > MAX_TASKS) {
    nps_place_fail(value->place, "%s: expected a list of 1 to %d tasks, found %s", what, MAX_TASKS,
                   nps_node_describe(value, found));
    return;
  }
  fitness->tasks = nps_xcalloc((size_t)value->count, sizeof *fitness->tasks);
  fitness->task_count = value->count;
  for (int i = 0; i < value->count; i++) {
    char *inner = nps_xstrf("%s.%d", what, i);
    read_task(&fitness->tasks[i], value->entries[i].value, inner);
    free(inner);
  }
  check_unique(fitness, value, what);
}

/* ---- what belongs to which evaluator ---- */

static bool is_given(const nps_node_t *section, const char *key) {
  const nps_entry_t *entry = nps_node_find(section, key);
  return entry && !nps_node_is_null(entry->value);
}

static nps_place_t place_of(const nps_node_t *section, const char *key) {
  const nps_entry_t *entry = nps_node_find(section, key);
  return entry ? entry->place : section->place;
}

static void check_data(const nps_node_t *value, const char *what) {
  const nps_entry_t *tasks = nps_node_find(value, "tasks");
  for (int i = 0; tasks && tasks->value->kind == NPS_NODE_LIST && i < tasks->value->count; i++) {
    const nps_node_t *task = tasks->value->entries[i].value;
    if (task->kind == NPS_NODE_MAPPING && !is_given(task, "data"))
      nps_place_fail(task->place, "%s.tasks.%d: 'data' is missing, expected the path of calibration data", what, i);
  }
}

/* The command scores samples that this program does not know: none are held out unless it is asked for. */
static void settle_command(nps_recipe_fitness_t *f, const nps_node_t *value, const char *what) {
  const nps_entry_t *command = nps_node_find(value, "command");
  const bool is_empty = command && command->value->kind == NPS_NODE_LIST && command->value->count == 0;
  if (!is_given(value, "command") || is_empty)
    nps_place_fail(place_of(value, "evaluator"), "%s.command: is missing, expected [program, arguments, …]", what);
  if (f->less_is_better && f->metric != NPS_METRIC_VALUE)
    nps_place_fail(place_of(value, "direction"),
                   "%s.direction: min belongs to metric value; of accuracy more is better, of nll less", what);
  if (!is_given(value, "holdout")) f->holdout = 0;
}

static void refuse_command(const nps_recipe_fitness_t *f, const nps_node_t *value, const char *what) {
  if (f->command_count > 0)
    nps_place_fail(place_of(value, "command"), "%s.command: belongs to evaluator command", what);
  if (f->timeout != DEFAULT_TIMEOUT)
    nps_place_fail(place_of(value, "timeout"), "%s.timeout: belongs to evaluator command", what);
  if (f->less_is_better)
    nps_place_fail(place_of(value, "direction"), "%s.direction: belongs to evaluator command", what);
  if (f->directory) nps_place_fail(place_of(value, "directory"), "%s.directory: belongs to evaluator command", what);
  if (f->metric == NPS_METRIC_VALUE)
    nps_place_fail(place_of(value, "metric"), "%s.metric: value belongs to evaluator command", what);
}

void nps_fitness_read(nps_recipe_t *recipe, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {
      {"evaluator", NPS_KEY_READ, read_evaluator, NULL}, {"metric", NPS_KEY_READ, read_metric, NULL},
      {"objective", NPS_KEY_READ, read_objective, NULL}, {"holdout", NPS_KEY_READ, read_holdout, NULL},
      {"batch", NPS_KEY_READ, read_batch, NULL},         {"sharpness", NPS_KEY_READ, read_sharpness, NULL},
      {"command", NPS_KEY_READ, read_command, NULL},     {"timeout", NPS_KEY_READ, read_timeout, NULL},
      {"direction", NPS_KEY_READ, read_direction, NULL}, {"directory", NPS_KEY_READ, read_directory, NULL},
      {"tasks", NPS_KEY_READ, read_tasks, NULL}};
  nps_recipe_fitness_t *f = &recipe->fitness;
  f->given = true;
  f->timeout = DEFAULT_TIMEOUT;
  nps_level_read(value, what, keys, COUNT(keys), recipe);
  if (value->kind != NPS_NODE_MAPPING) return;
  if (f->evaluator == NPS_EVALUATOR_COMMAND)
    settle_command(f, value, what);
  else {
    refuse_command(f, value, what);
    check_data(value, what);
  }
}
