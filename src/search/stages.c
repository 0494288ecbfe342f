/* The stages: searches in lockstep, generation by generation. Rank 0 leads CMA-ES; the others follow its candidates. */
#include "search_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Common factors that generation 0 tries: (first + p) / parts for point p. */
typedef struct {
  nps_variable_t kind; /* what they are factors of */
  int first, parts, count;
} factors_t;

const char *nps_stage_name(nps_stage_t stage) {
  static const char *const names[] = {
      [NPS_STAGE_PRUNE] = "prune", [NPS_STAGE_FUSE] = "fuse", [NPS_STAGE_JOINT] = "joint"};
  return names[stage];
}

bool nps_search_wanted(const nps_search_spec_t *spec) {
  return spec->search && spec->search->algorithm != NPS_ALGORITHM_NONE;
}

static bool leads(const nps_searching_t *s) { return nps_comm_rank(s->comm) == 0; }

/* ---- where a search starts ---- */

static void set_frame(const nps_searching_t *s, nps_track_t *track) {
  nps_weighting_t *frame = track->frame = nps_weighting_copy(s->current);
  if (track->stage != NPS_STAGE_PRUNE) return;
  frame->normalize = NPS_NORMALIZE_NONE;
  for (int i = 0; i < frame->models; i++) frame->lambda[i] = i == track->model ? 1 : 0;
}

static void set_point_count(nps_track_t *track, int count) {
  track->point_count = count;
  track->points = nps_xrealloc(track->points, (size_t)(count * track->genome->count) + 1, sizeof *track->points);
}

/* Where λ is searched: 0.1, 0.2 … 1.0 times the models'. Where a model is made of each: 1, 1.25 … 3 times the start's weights,
 * as the norm that the dropped entries had is missed. Nothing where an earlier search tells the start. */
static factors_t factors_of(const nps_searching_t *s, const nps_track_t *track) {
  const nps_search_spec_t *spec = s->spec;
  const bool prune = track->stage == NPS_STAGE_PRUNE;
  if (track->from_file || spec->of_sum) return (factors_t){.count = 1};
  if (!prune) return (factors_t){NPS_VARIABLE_LAMBDA, 1, 10, 10};
  if (!spec->search->vary_weight || !nps_application_is_of_each(spec->application)) return (factors_t){.count = 1};
  return (factors_t){NPS_VARIABLE_WEIGHT, 4, 4, 9};
}

/* Generation 0: the start; with common factors of it, where there are some to try. */
static void set_first_points(const nps_searching_t *s, nps_track_t *track) {
  const nps_genome_t *g = track->genome;
  const int64_t limit = s->spec->search->max_evaluations;
  const factors_t f = factors_of(s, track);
  set_point_count(track, limit > 0 && limit < f.count ? (int)limit : f.count);
  for (int p = 0; p < track->point_count; p++) {
    double *x = track->points + (int64_t)p * g->count;
    memcpy(x, g->start, (size_t)g->count * sizeof *x);
    for (int i = 0; f.count > 1 && i < g->count; i++) {
      const bool is_lambda = g->genes[i].kind == NPS_VARIABLE_LAMBDA;
      if (g->genes[i].kind == f.kind)
        x[i] = (is_lambda ? s->spec->start->lambda[g->genes[i].model] : x[i]) * (f.first + p) / f.parts;
    }
    nps_genome_clip(g, x);
  }
}

static nps_cmaes_kind_t kind_of(nps_algorithm_t algorithm) {
  if (algorithm == NPS_ALGORITHM_SEP_CMA_ES) return NPS_CMAES_SEP;
  return algorithm == NPS_ALGORITHM_RANDOM ? NPS_CMAES_RANDOM : NPS_CMAES_FULL;
}

static void start_cmaes(const nps_searching_t *s, nps_track_t *track) {
  const nps_recipe_search_t *search = s->spec->search;
  const nps_search_history_t *h = track->history;
  track->cmaes = nps_cmaes_new(&(nps_cmaes_options_t){
      .kind = kind_of(search->algorithm),
      .variables = track->genome->count,
      .population = search->population,
      .sigma = search->sigma,
      .start = h->genome + h->start * h->variables,
      .lower = track->genome->lower,
      .upper = track->genome->upper,
      .seed = s->spec->seed,
      .stream = ((uint64_t)track->stage << 32) + (uint64_t)(track->model + 1),
      .noisy = s->spec->fitness->metric != NPS_METRIC_NLL,
      .max_generations = search->generations,
      .max_evaluations = search->max_evaluations > 0 ? search->max_evaluations - h->evaluations : 0,
      .patience = search->patience,
      .restarts = search->restarts,
  });
}

/* Scores generation 0 and begins CMA-ES at the best of it. */
static nps_err_t start_tracks(nps_searching_t *s, nps_track_t *tracks, int count) {
  for (int i = 0; i < count; i++) {
    set_frame(s, &tracks[i]);
    set_first_points(s, &tracks[i]);
  }
  NPS_TRY(nps_tracks_score(s, tracks, count, false));
  for (int i = 0; i < count; i++) {
    nps_search_history_t *h = tracks[i].history;
    const int64_t limit = s->spec->search->max_evaluations;
    h->start = nps_track_best(&tracks[i], 0, h->evaluations);
    if (limit > 0 && h->evaluations >= limit)
      tracks[i].why = NPS_CMAES_STOP_EVALUATIONS;
    else if (leads(s))
      start_cmaes(s, &tracks[i]);
  }
  return NPS_OK;
}

/* ---- generations ---- */

/* Rank 0 draws the candidates of a search, or learns why it has ended. */
static nps_err_t ask(nps_track_t *track) {
  track->why = nps_cmaes_stopped(track->cmaes);
  set_point_count(track, track->why == NPS_CMAES_STOP_NONE ? nps_cmaes_population(track->cmaes) : 0);
  return track->point_count > 0 ? nps_cmaes_ask(track->cmaes, track->points) : NPS_OK;
}

static void follow(const nps_comm_t *comm, nps_track_t *track) {
  int state[2] = {(int)track->why, track->point_count};
  nps_comm_bcast(comm, state, sizeof state);
  track->why = (nps_cmaes_stop_t)state[0];
  if (nps_comm_rank(comm) != 0) set_point_count(track, state[1]);
  if (track->point_count == 0) return;
  nps_comm_bcast(comm, track->points, (size_t)(track->point_count * track->genome->count) * sizeof(double));
  track->generation++;
}

/* Gets the next candidates of all searches. @param[out] any  some search goes on */
static nps_err_t ask_all(nps_searching_t *s, nps_track_t *tracks, int count, bool *any) {
  nps_err_t err = NPS_OK;
  for (int i = 0; i < count; i++) {
    tracks[i].point_count = 0;
    if (leads(s) && tracks[i].why == NPS_CMAES_STOP_NONE) err = nps_err_worse(err, ask(&tracks[i]));
  }
  NPS_TRY(nps_comm_agree(s->comm, err));
  *any = false;
  for (int i = 0; i < count; i++) {
    follow(s->comm, &tracks[i]);
    *any = *any || tracks[i].point_count > 0;
  }
  return NPS_OK;
}

/* Adds the mean that CMA-ES has moved to. */
static void add_mean(nps_track_t *track) {
  const int n = track->genome->count;
  double *mean = nps_xcalloc((size_t)n, sizeof *mean);
  if (!track->mean_sum) track->mean_sum = nps_xcalloc((size_t)n, sizeof *track->mean_sum);
  nps_cmaes_mean(track->cmaes, mean);
  for (int i = 0; i < n; i++) track->mean_sum[i] += mean[i];
  free(mean);
}

static void tell_all(nps_track_t *tracks, int count, const int64_t *first) {
  for (int i = 0; i < count; i++) {
    if (tracks[i].point_count == 0) continue;
    nps_cmaes_tell(tracks[i].cmaes, tracks[i].values + first[i]);
    add_mean(&tracks[i]);
  }
}

static nps_err_t run_generations(nps_searching_t *s, nps_track_t *tracks, int count, double started) {
  int64_t *first = nps_xcalloc((size_t)count, sizeof *first);
  bool any = true;
  nps_err_t err = NPS_OK;
  for (;;) {
    NPS_GOTO(ask_all(s, tracks, count, &any));
    if (!any) break;
    for (int i = 0; i < count; i++) first[i] = tracks[i].history->evaluations;
    NPS_GOTO(nps_tracks_score(s, tracks, count, false));
    if (leads(s)) tell_all(tracks, count, first);
    if (leads(s)) nps_tracks_show(s, tracks, count, first, started);
  }
done:
  free(first);
  return err;
}

/* Scores the last mean of every search, and the average of its means over the generations: both generalise better than the
 * best of many candidates. */
static nps_err_t score_means(nps_searching_t *s, nps_track_t *tracks, int count) {
  for (int i = 0; i < count; i++) {
    const bool learnt = s->spec->search->algorithm != NPS_ALGORITHM_RANDOM && tracks[i].generation > 0;
    const int n = tracks[i].genome->count;
    set_point_count(&tracks[i], learnt ? 2 : 0);
    if (!learnt) continue;
    if (leads(s)) {
      nps_cmaes_mean(tracks[i].cmaes, tracks[i].points);
      for (int k = 0; k < n; k++) tracks[i].points[n + k] = tracks[i].mean_sum[k] / tracks[i].generation;
    }
    nps_comm_bcast(s->comm, tracks[i].points, (size_t)(2 * n) * sizeof(double));
  }
  return nps_tracks_score(s, tracks, count, true);
}

static nps_err_t check_result(const nps_track_t *track) {
  const nps_search_history_t *h = track->history;
  if (track->why == NPS_CMAES_STOP_FAILED)
    return nps_fail(NPS_ERR_RUNTIME, "search %s: %s", h->path, nps_cmaes_stop_text(track->why));
  if (!track->values[h->best].failed) return NPS_OK;
  return nps_fail(NPS_ERR_RUNTIME, "search %s: every one of %lld candidates failed: no finite nll", h->path,
                  (long long)h->evaluations);
}

/* What the searches of a stage have found, and where they began. Collective. */
static void take_results(nps_searching_t *s, const nps_track_t *tracks, int count) {
  nps_weighting_free(s->began);
  s->began = nps_weighting_copy(s->current);
  for (int i = 0; i < count; i++) {
    const nps_search_history_t *h = tracks[i].history;
    nps_genome_put_alike(s->comm, tracks[i].genome, h->genome + h->start * h->variables, s->began);
    nps_genome_put_alike(s->comm, tracks[i].genome, h->genome + h->best * h->variables, s->current);
  }
}

static nps_err_t run_stage(nps_searching_t *s, nps_track_t *tracks, int count) {
  const double started = nps_now();
  nps_err_t err = NPS_OK;
  NPS_TRY(start_tracks(s, tracks, count));
  NPS_TRY(run_generations(s, tracks, count, started));
  NPS_TRY(score_means(s, tracks, count));
  NPS_TRY(nps_tracks_choose(s, tracks, count));
  for (int i = 0; i < count; i++) {
    tracks[i].history->stop = nps_cmaes_stop_text(tracks[i].why);
    err = nps_err_worse(err, check_result(&tracks[i]));
  }
  NPS_TRY(nps_comm_agree(s->comm, err));
  take_results(s, tracks, count);
  return NPS_OK;
}

/* ---- all stages ---- */

static int searches_in(const nps_searching_t *s, nps_stage_t stage) {
  return stage == NPS_STAGE_PRUNE ? s->spec->start->models : 1;
}

static nps_err_t check_tasks(const nps_search_spec_t *spec, const nps_track_t *track) {
  if (track->task_count > 0) return NPS_OK;
  if (track->model < 0) return nps_fail(NPS_ERR_CONFIG, "search: fitness.tasks names no task to score candidates on");
  return nps_fail(NPS_ERR_CONFIG,
                  "search: the stage prune scores candidates of model '%s' on its tasks, but fitness.tasks has none "
                  "whose model it is",
                  spec->models[track->model]);
}

/* The names of more variables do not fit into an attribute of the output. */
static nps_err_t check_variables(const nps_track_t *track) {
  enum { MOST = 4000 };
  if (track->genome->count <= MOST) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "search %s: expected at most %d variables, found %d: use fewer subspaces",
                  track->history->path, MOST, track->genome->count);
}

static nps_err_t begin_tracks(nps_searching_t *s, nps_track_t *tracks) {
  nps_err_t err = NPS_OK;
  for (int g = 0; g < s->spec->search->stage_count; g++) {
    const nps_stage_t stage = s->spec->search->stages[g];
    for (int i = 0; i < searches_in(s, stage); i++) {
      nps_track_t *track = &tracks[s->search->history_count];
      nps_track_begin(s->spec, stage, stage == NPS_STAGE_PRUNE ? i : -1,
                      &s->search->histories[s->search->history_count++], track);
      err = nps_err_worse(err, check_tasks(s->spec, track));
      err = nps_err_worse(err, check_variables(track));
    }
    s->search->has_lambda = s->search->has_lambda || (stage != NPS_STAGE_PRUNE && !s->spec->of_sum);
  }
  return nps_comm_agree(s->comm, err);
}

/* Starts at the best genomes of an earlier file, where it has the search and the column. */
static nps_err_t look_up_starts(nps_searching_t *s, nps_track_t *tracks, int count) {
  const char *file = s->spec->search->start_from;
  int any = 0;
  nps_err_t err = NPS_OK;
  if (!file) return NPS_OK;
  for (int i = 0; leads(s) && i < count && err == NPS_OK; i++) {
    nps_genome_t *g = tracks[i].genome;
    int found = 0;
    err = nps_search_look_up(file, tracks[i].history->path, g->columns, g->count, g->start, &found);
    nps_genome_clip(g, g->start);
    tracks[i].from_file = found > 0;
    any += found;
  }
  if (leads(s) && err == NPS_OK && any == 0)
    err = nps_fail(NPS_ERR_INPUT, "search.start_from: %s: none of this search's variables is in it", file);
  NPS_TRY(nps_comm_agree(s->comm, err));
  for (int i = 0; i < count; i++) {
    nps_comm_bcast(s->comm, &tracks[i].from_file, sizeof tracks[i].from_file);
    nps_comm_bcast(s->comm, tracks[i].genome->start, (size_t)tracks[i].genome->count * sizeof(double));
  }
  return NPS_OK;
}

nps_err_t nps_stages_run(nps_searching_t *s) {
  const nps_recipe_search_t *search = s->spec->search;
  int count = 0, at = 0;
  nps_err_t err = NPS_OK;
  for (int g = 0; g < search->stage_count; g++) count += searches_in(s, search->stages[g]);
  nps_track_t *tracks = nps_xcalloc((size_t)count, sizeof *tracks);
  s->search->histories = nps_xcalloc((size_t)count, sizeof *s->search->histories);
  NPS_GOTO(begin_tracks(s, tracks));
  NPS_GOTO(look_up_starts(s, tracks, count));
  for (int g = 0; g < search->stage_count; g++) {
    const int searches = searches_in(s, search->stages[g]);
    NPS_GOTO(run_stage(s, tracks + at, searches));
    at += searches;
  }
done:
  for (int i = 0; i < s->search->history_count; i++) nps_track_end(&tracks[i]);
  free(tracks);
  return err;
}
