/* When a run ends. */
#include "cmaes_internal.h"

#include <math.h>
#include <string.h>

/* Generations. */
enum { FLAT_LIMIT = 5, FAILED_LIMIT = 20 };

#define MOST_CONDITION 1e14
#define MOST_GROWTH 1e3

const char *nps_cmaes_stop_text(nps_cmaes_stop_t stop) {
  static const char *const texts[] = {
#define X(name, text) text,
      NPS_CMAES_STOPS(X)
#undef X
  };
  return texts[stop];
}

/* W: generations within which a gain may be hoped for. */
static int window(const nps_cmaes_t *c) { return 10 + (int)ceil(30.0 * c->params.n / c->params.lambda); }

void nps_cmaes_observe(nps_cmaes_t *c, const nps_fitness_value_t *values, const int *order, bool all_failed) {
  nps_cmaes_watch_t *w = &c->watch;
  w->failed = all_failed ? w->failed + 1 : 0;
  if (all_failed) return;
  const nps_fitness_value_t *first = &values[order[0]], *late = &values[order[3 * c->params.lambda / 4]];
  w->flat = !late->failed && first->primary == late->primary ? w->flat + 1 : 0;
  if (w->has_best && nps_fitness_compare(first, &w->best) >= 0) return;
  w->ever_improved |= w->has_best && first->primary < w->best.primary;
  w->has_best = true;
  w->best = *first;
  w->improved = c->generation;
}

static double deviation(const nps_cmaes_t *c, int i) {
  return sqrt(c->covariance[c->diagonal ? i : i * c->params.n + i]);
}

/* σ max √C_ii, and σ max |p_c,i|. */
static void find_steps(const nps_cmaes_t *c, double *spread, double *path) {
  *spread = *path = 0;
  for (int i = 0; i < c->params.n; i++) {
    *spread = fmax(*spread, c->sigma * deviation(c, i));
    *path = fmax(*path, c->sigma * fabs(c->path_c[i]));
  }
}

nps_cmaes_stop_t nps_cmaes_check(const nps_cmaes_t *c) {
  const nps_cmaes_options_t *o = &c->options;
  const nps_cmaes_watch_t *w = &c->watch;
  double spread, path;
  if (w->failed >= FAILED_LIMIT) return NPS_CMAES_STOP_FAILED;
  if (o->max_generations && c->told >= o->max_generations) return NPS_CMAES_STOP_GENERATIONS;
  if (o->max_evaluations && c->evaluations >= o->max_evaluations) return NPS_CMAES_STOP_EVALUATIONS;
  if (o->kind != NPS_CMAES_RANDOM) {
    const double least = (o->noisy ? 1e-4 : 1e-12) * o->sigma;
    find_steps(c, &spread, &path);
    if (spread < least && path < least) return NPS_CMAES_STOP_TOLX;
    if (spread > MOST_GROWTH * o->sigma) return NPS_CMAES_STOP_TOLUPX;
    if (c->condition > MOST_CONDITION) return NPS_CMAES_STOP_CONDITION;
    if (w->flat >= (w->ever_improved ? FLAT_LIMIT : window(c))) return NPS_CMAES_STOP_FLAT;
  }
  const int patience = o->patience ? o->patience : 2 * window(c);
  return c->generation - w->improved > patience ? NPS_CMAES_STOP_PATIENCE : NPS_CMAES_STOP_NONE;
}

bool nps_cmaes_may_restart(const nps_cmaes_t *c, nps_cmaes_stop_t stop) {
  const bool worth = stop == NPS_CMAES_STOP_TOLX || stop == NPS_CMAES_STOP_FLAT || stop == NPS_CMAES_STOP_PATIENCE ||
                     stop == NPS_CMAES_STOP_CONDITION;
  return worth && c->options.kind != NPS_CMAES_RANDOM && c->restart < c->options.restarts;
}
