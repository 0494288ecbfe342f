/* `search:` */
#include "level.h"
#include "section.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static const nps_word_t algorithms[] = {{"cma-es", NPS_ALGORITHM_CMA_ES},
                                        {"sep-cma-es", NPS_ALGORITHM_SEP_CMA_ES},
                                        {"random", NPS_ALGORITHM_RANDOM},
                                        {"none", NPS_ALGORITHM_NONE}};
static const nps_word_t stages[] = {{"prune", NPS_STAGE_PRUNE}, {"fuse", NPS_STAGE_FUSE}, {"joint", NPS_STAGE_JOINT}};
enum { VARY_WEIGHT, VARY_DENSITY };
static const nps_word_t kinds[] = {{"weight", VARY_WEIGHT}, {"density", VARY_DENSITY}};

static const nps_word_t finals[] = {{"best", NPS_FINAL_BEST}, {"mean", NPS_FINAL_MEAN}, {"average", NPS_FINAL_AVERAGE}};

static nps_recipe_search_t *section(void *target) { return &((nps_recipe_t *)target)->search; }

static void read_algorithm(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, algorithms, COUNT(algorithms), &word))
    section(target)->algorithm = (nps_algorithm_t)word;
}

/* One of [prune], [fuse], [prune, fuse], [joint]. */
static void read_stages(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_search_t *s = section(target);
  char found[96];
  int list[2] = {0, 0};
  if (value->kind != NPS_NODE_LIST || value->count < 1 || value->count > 2) {
    nps_place_fail(value->place, "%s: expected [prune], [fuse], [prune, fuse] or [joint], found %s", what,
                   nps_node_describe(value, found));
    return;
  }
  for (int i = 0; i < value->count; i++)
    if (!nps_word_read(value->entries[i].value, what, stages, COUNT(stages), &list[i])) return;
  if (value->count == 2 && (list[0] != NPS_STAGE_PRUNE || list[1] != NPS_STAGE_FUSE)) {
    nps_place_fail(value->place, "%s: expected [prune], [fuse], [prune, fuse] or [joint], found [%s, %s]", what,
                   nps_word_text(stages, COUNT(stages), list[0]), nps_word_text(stages, COUNT(stages), list[1]));
    return;
  }
  s->stage_count = value->count;
  for (int i = 0; i < value->count; i++) s->stages[i] = (nps_stage_t)list[i];
}

static void read_variables(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_search_t *s = section(target);
  char found[96];
  bool vary[2] = {false, false};
  if (value->kind != NPS_NODE_LIST || value->count == 0) {
    nps_place_fail(value->place, "%s: expected [weight], [density] or [weight, density], found %s", what,
                   nps_node_describe(value, found));
    return;
  }
  for (int i = 0; i < value->count; i++) {
    int word;
    if (!nps_word_read(value->entries[i].value, what, kinds, COUNT(kinds), &word)) return;
    if (vary[word]) {
      nps_place_fail(value->place, "%s: '%s' is listed twice", what, kinds[word].text);
      return;
    }
    vary[word] = true;
  }
  s->vary_weight = vary[VARY_WEIGHT];
  s->vary_density = vary[VARY_DENSITY];
}

static void read_per_model(void *target, const nps_node_t *value, const char *what) {
  nps_boolean_read(value, what, &section(target)->per_model);
}

static void read_pair(double out[2], const nps_node_t *value, const char *what) {
  double *pair = NULL;
  int count;
  if (!nps_numbers_read(value, what, 2, -HUGE_VAL, &pair, &count)) return;
  if (pair[0] < pair[1])
    memcpy(out, pair, 2 * sizeof *out);
  else
    nps_place_fail(value->place, "%s: expected [lower, upper] with lower < upper, found [%g, %g]", what, pair[0],
                   pair[1]);
  free(pair);
}

static void read_weight_bounds(void *target, const nps_node_t *value, const char *what) {
  read_pair(section(target)->bounds[NPS_VARIABLE_WEIGHT], value, what);
}

static void read_priority_bounds(void *target, const nps_node_t *value, const char *what) {
  read_pair(section(target)->bounds[NPS_VARIABLE_LOG_PRIORITY], value, what);
}

static void read_lambda_bounds(void *target, const nps_node_t *value, const char *what) {
  read_pair(section(target)->bounds[NPS_VARIABLE_LAMBDA], value, what);
}

static void read_bounds(void *target, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"weight", NPS_KEY_READ, read_weight_bounds, NULL},
                                   {"log_priority", NPS_KEY_READ, read_priority_bounds, NULL},
                                   {"lambda", NPS_KEY_READ, read_lambda_bounds, NULL}};
  nps_level_read(value, what, keys, COUNT(keys), target);
}

static void read_start_weight(void *target, const nps_node_t *value, const char *what) {
  nps_number_read(value, what, -HUGE_VAL, false, HUGE_VAL, &section(target)->start_weight);
}

static void read_start_priority(void *target, const nps_node_t *value, const char *what) {
  nps_number_read(value, what, -HUGE_VAL, false, HUGE_VAL, &section(target)->start_log_priority);
}

static void read_start(void *target, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"weight", NPS_KEY_READ, read_start_weight, NULL},
                                   {"log_priority", NPS_KEY_READ, read_start_priority, NULL}};
  nps_level_read(value, what, keys, COUNT(keys), target);
}

static void read_start_from(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &section(target)->start_from);
}

static void read_int(const nps_node_t *value, const char *what, int64_t least, int *out) {
  int64_t count;
  if (nps_count_read(value, what, least, INT_MAX, &count)) *out = (int)count;
}

static void read_restarts(void *target, const nps_node_t *value, const char *what) {
  read_int(value, what, 0, &section(target)->restarts);
}

static void read_generations(void *target, const nps_node_t *value, const char *what) {
  read_int(value, what, 1, &section(target)->generations);
}

static void read_population(void *target, const nps_node_t *value, const char *what) {
  int *population = &section(target)->population;
  read_int(value, what, 0, population);
  if (*population != 1) return;
  nps_place_fail(value->place, "%s: expected 0 (4 + ⌊3 ln n⌋) or a whole number from 2 on, found 1", what);
  *population = 0;
}

static void read_patience(void *target, const nps_node_t *value, const char *what) {
  read_int(value, what, 0, &section(target)->patience);
}

static void read_final(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, finals, COUNT(finals), &word)) section(target)->final = (nps_final_t)word;
}

static void read_sigma(void *target, const nps_node_t *value, const char *what) {
  nps_number_read(value, what, 0, true, HUGE_VAL, &section(target)->sigma);
}

static void read_max_evaluations(void *target, const nps_node_t *value, const char *what) {
  nps_count_read(value, what, 0, INT64_MAX, &section(target)->max_evaluations);
}

static void read_race(void *target, const nps_node_t *value, const char *what) {
  bool race = false;
  (void)target;
  if (nps_boolean_read(value, what, &race) && race) nps_place_fail(value->place, "%s: true is not built yet", what);
}

static void read_max_time(void *target, const nps_node_t *value, const char *what) {
  nps_number_read(value, what, 0, false, HUGE_VAL, &section(target)->max_time);
}

static void read_ranks_per_model(void *target, const nps_node_t *value, const char *what) {
  read_int(value, what, 0, &section(target)->ranks_per_model);
}

static void read_snapshot(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_search_t *s = section(target);
  nps_text_read(value, what, &s->snapshot);
}

void nps_search_read(nps_recipe_t *recipe, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"algorithm", NPS_KEY_READ, read_algorithm, NULL},
                                   {"stages", NPS_KEY_READ, read_stages, NULL},
                                   {"variables", NPS_KEY_READ, read_variables, NULL},
                                   {"per_model", NPS_KEY_READ, read_per_model, NULL},
                                   {"bounds", NPS_KEY_READ, read_bounds, NULL},
                                   {"restarts", NPS_KEY_READ, read_restarts, NULL},
                                   {"race", NPS_KEY_READ, read_race, NULL},
                                   {"start", NPS_KEY_READ, read_start, NULL},
                                   {"start_from", NPS_KEY_READ, read_start_from, NULL},
                                   {"generations", NPS_KEY_READ, read_generations, NULL},
                                   {"population", NPS_KEY_READ, read_population, NULL},
                                   {"sigma", NPS_KEY_READ, read_sigma, NULL},
                                   {"final", NPS_KEY_READ, read_final, NULL},
                                   {"max_evaluations", NPS_KEY_READ, read_max_evaluations, NULL},
                                   {"max_time", NPS_KEY_READ, read_max_time, NULL},
                                   {"patience", NPS_KEY_READ, read_patience, NULL},
                                   {"ranks_per_model", NPS_KEY_READ, read_ranks_per_model, NULL},
                                   {"snapshot", NPS_KEY_READ, read_snapshot, NULL}};
  recipe->search.given = true;
  nps_level_read(value, what, keys, COUNT(keys), recipe);
}
