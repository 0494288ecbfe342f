#include "search_internal.h"

#include <math.h>

/* Averages over the searches of a stage, or one search. */
typedef struct {
  double best;        /* of all rows so far */
  double mean, sigma; /* of the generation, over the searches that still run */
  int searches, running;
  int64_t evaluations;
  int generation;
} state_t;

/* Mean primary fitness of the candidates from a row on; NaN where all failed. */
static double mean_from(const nps_search_history_t *h, int64_t first) {
  double sum = 0;
  int64_t n = 0;
  for (int64_t row = first; row < h->evaluations; row++) {
    if (isnan(h->fitness[row])) continue;
    sum += h->fitness[row];
    n++;
  }
  return n > 0 ? sum / (double)n : NAN;
}

static void add_state(const nps_track_t *track, int64_t first, state_t *state) {
  const nps_search_history_t *h = track->history;
  state->best += h->fitness[nps_track_best(track, 0, h->evaluations)];
  state->evaluations += h->evaluations;
  state->searches++;
  if (track->generation > state->generation) state->generation = track->generation;
  if (track->point_count == 0) return;
  state->mean += mean_from(h, first);
  state->sigma += nps_cmaes_sigma(track->cmaes);
  state->running++;
}

static void log_state(const nps_searching_t *s, const nps_track_t *track, const state_t *state) {
  const nps_recipe_fitness_t *fitness = s->spec->fitness;
  json_t *fields = json_object();
  json_object_set_new(fields, "stage", json_string(nps_stage_name(track->stage)));
  json_object_set_new(fields, "model", track->model < 0 ? json_null() : json_string(s->spec->models[track->model]));
  json_object_set_new(fields, "generation", json_integer(track->generation));
  json_object_set_new(fields, "best", nps_search_number(nps_fitness_shown(fitness, state->best)));
  json_object_set_new(fields, "mean", nps_search_number(nps_fitness_shown(fitness, state->mean)));
  json_object_set_new(fields, "sigma", nps_search_number(state->sigma));
  json_object_set_new(fields, "evaluations", json_integer(state->evaluations));
  nps_report_event(s->report, "generation", fields);
}

static void show_state(const nps_searching_t *s, nps_stage_t stage, const state_t *state, double seconds) {
  char best[32], mean[32], left[32];
  const nps_recipe_fitness_t *fitness = s->spec->fitness;
  const int generations = s->spec->search->generations;
  const double each = seconds / (state->generation + 1); /* with generation 0 */
  nps_report_step(s->report, nps_stage_name(stage), state->generation, generations,
                  "%d/%d  best %s  mean %s  σ %.3f  %.1f evaluations/s  %s left", state->generation, generations,
                  nps_format_score(nps_fitness_shown(fitness, state->best / state->searches), best),
                  nps_format_score(nps_fitness_shown(fitness, state->mean / state->running), mean),
                  state->sigma / state->running, (double)state->evaluations / seconds,
                  nps_format_seconds(each * (generations - state->generation), left));
}

void nps_tracks_show(const nps_searching_t *s, const nps_track_t *tracks, int count, const int64_t *first,
                     double started) {
  state_t all = {0};
  for (int i = 0; i < count; i++) {
    state_t one = {0};
    add_state(&tracks[i], first[i], &all);
    add_state(&tracks[i], first[i], &one);
    if (one.running > 0) log_state(s, &tracks[i], &one);
  }
  show_state(s, tracks[0].stage, &all, nps_now() - started);
}
