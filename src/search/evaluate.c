/* Scores of candidates and stored models on all ranks. The batches of all jobs stand in one line, which is cut into one
 * stretch a rank; each batch has a slot that one rank fills, so that sums do not depend on who did what. */
#include "search_internal.h"

#include <math.h>
#include <stdlib.h>

/* What is known of a task in advance. */
typedef struct {
  int *place;                  /* [tensors of the net] in the store, or -1: the task's own */
  int64_t *samples[NPS_PARTS]; /* [count] */
  int64_t count[NPS_PARTS];
} task_t;

struct nps_scorer {
  const nps_comm_t *comm;
  const nps_search_spec_t *spec;
  int64_t batch;
  task_t *tasks; /* [task_count] */
  nps_subspaces_t *subspaces;
  nps_candidate_t *candidate;
  const float **weights; /* room for the pointers of any net */
  void *scratch;
  double flops;
};

/* ---- samples ---- */

bool nps_sample_is_held(int64_t i, double holdout) {
  return floor((double)(i + 1) * holdout) > floor((double)i * holdout);
}

static void split_samples(const nps_dataset_t *data, double holdout, task_t *task) {
  for (int p = 0; p < NPS_PARTS; p++) task->samples[p] = nps_xcalloc((size_t)data->samples, sizeof(int64_t));
  for (int64_t i = 0; i < data->samples; i++) {
    const int p = nps_sample_is_held(i, holdout) ? NPS_PART_HELD : NPS_PART_SEEN;
    task->samples[p][task->count[p]++] = i;
  }
}

/* ---- preparing ---- */

static nps_err_t find_tensors(const nps_search_spec_t *spec, const nps_search_task_t *task, int *place) {
  nps_err_t err = NPS_OK;
  for (int i = 0; i < nps_net_tensor_count(task->net); i++) {
    const nps_net_tensor_t *tensor = nps_net_tensor(task->net, i);
    const bool own = task->own && task->own[i];
    place[i] = own ? -1 : nps_store_find(spec->store, tensor->name);
    if (own || (place[i] >= 0 && nps_store_count(spec->store, place[i]) == tensor->count)) continue;
    err = nps_fail(NPS_ERR_INPUT,
                   "task '%s': the network needs tensor %s of %lld elements, but neither the merged model nor the "
                   "task's head has it",
                   task->name, tensor->name, (long long)tensor->count);
  }
  return err;
}

static nps_err_t prepare_tasks(nps_scorer_t *s) {
  const nps_search_spec_t *spec = s->spec;
  int most_tensors = 1;
  size_t most_bytes = 0;
  nps_err_t err = NPS_OK;
  s->tasks = nps_xcalloc((size_t)spec->task_count, sizeof *s->tasks);
  for (int t = 0; t < spec->task_count; t++) {
    const nps_search_task_t *task = &spec->tasks[t];
    const int tensors = nps_net_tensor_count(task->net);
    const int64_t batch = task->data->samples < s->batch ? task->data->samples : s->batch;
    const size_t bytes = nps_net_scratch_bytes(task->net, task->data, (int)batch);
    split_samples(task->data, spec->fitness->holdout, &s->tasks[t]);
    s->tasks[t].place = nps_xcalloc((size_t)tensors, sizeof(int));
    err = nps_err_worse(err, find_tensors(spec, task, s->tasks[t].place));
    if (tensors > most_tensors) most_tensors = tensors;
    if (bytes > most_bytes) most_bytes = bytes;
  }
  s->weights = nps_xcalloc((size_t)most_tensors, sizeof *s->weights);
  if (err == NPS_OK) err = nps_buffer_alloc(most_bytes, "a forward pass", &s->scratch);
  return err;
}

nps_err_t nps_scorer_new(const nps_comm_t *comm, const nps_search_spec_t *spec, nps_scorer_t **out) {
  nps_scorer_t *s = nps_xcalloc(1, sizeof *s);
  nps_err_t err = NPS_OK;
  s->comm = comm;
  s->spec = spec;
  s->batch = spec->fitness->batch;
  *out = NULL;
  NPS_GOTO(nps_comm_agree(comm, prepare_tasks(s)));
  if (!spec->factors)
    NPS_GOTO(nps_subspaces_new(comm, spec->store, spec->start->subspaces, spec->start->scope, &s->subspaces));
  NPS_GOTO(
      nps_comm_agree(comm, nps_candidate_new(spec->store, s->subspaces, spec->factors, spec->round, &s->candidate)));
  *out = s;
  s = NULL;
done:
  nps_scorer_free(s);
  return err;
}

void nps_scorer_free(nps_scorer_t *s) {
  if (!s) return;
  nps_candidate_free(s->candidate);
  nps_subspaces_free(s->subspaces);
  for (int t = 0; s->tasks && t < s->spec->task_count; t++) {
    for (int p = 0; p < NPS_PARTS; p++) free(s->tasks[t].samples[p]);
    free(s->tasks[t].place);
  }
  free(s->tasks);
  free(s->weights);
  free(s->scratch);
  free(s);
}

nps_err_t nps_scorer_check(const nps_scorer_t *s) { return nps_comm_agree(s->comm, nps_candidate_error(s->candidate)); }

double nps_scorer_flops(const nps_scorer_t *s) { return s->flops; }

/* ---- the line of batches ---- */

/* A batch: where it stands, and its samples. */
typedef struct {
  int64_t slot;
  int item; /* (job, task) */
  const nps_job_t *job;
  int task; /* index into the spec's */
  const int64_t *samples;
  int count;
  int64_t before; /* samples of all batches before it */
} batch_t;

typedef void batch_fn(void *ctx, const batch_t *batch);

/* Calls a function for every batch in order. */
static void walk(const nps_scorer_t *s, const nps_job_t *jobs, int count, batch_fn *each, void *ctx) {
  batch_t b = {0};
  for (int j = 0; j < count; j++)
    for (int k = 0; k < jobs[j].task_count; k++, b.item++) {
      const task_t *task = &s->tasks[jobs[j].tasks[k]];
      const int64_t samples = task->count[jobs[j].part];
      b.job = &jobs[j];
      b.task = jobs[j].tasks[k];
      for (int64_t first = 0; first < samples; first += s->batch, b.slot++) {
        b.samples = task->samples[jobs[j].part] + first;
        b.count = (int)(samples - first < s->batch ? samples - first : s->batch);
        each(ctx, &b);
        b.before += b.count;
      }
    }
}

/* What a run of jobs needs. */
typedef struct {
  nps_scorer_t *scorer;
  int64_t slots, samples; /* of all jobs */
  int64_t *counts;        /* [slots][2]: correct, total */
  double *nll;            /* [slots] */
  const nps_job_t *built; /* whose model the candidate holds, or could not be made to */
  bool good;
  nps_score_t *scores;
} scoring_t;

static void measure(void *ctx, const batch_t *b) {
  scoring_t *w = ctx;
  w->slots++;
  w->samples += b->count;
  const nps_search_task_t *task = &w->scorer->spec->tasks[b->task];
  w->scorer->flops += nps_net_flops(task->net, task->data, b->count);
}

static void build(scoring_t *w, const nps_job_t *job) {
  const nps_job_t *last = w->built;
  if (last && last->weighting == job->weighting && (job->weighting || last->model == job->model)) return;
  w->built = job;
  w->good = true;
  if (job->weighting)
    w->good = nps_candidate_build(w->scorer->candidate, job->weighting);
  else
    nps_candidate_take(w->scorer->candidate, job->model);
}

static nps_score_t score(nps_scorer_t *s, const batch_t *b) {
  const nps_search_task_t *task = &s->spec->tasks[b->task];
  const int *place = s->tasks[b->task].place;
  for (int i = 0; i < nps_net_tensor_count(task->net); i++)
    s->weights[i] = place[i] < 0 ? task->own[i] : nps_candidate_tensor(s->candidate, place[i]);
  return nps_net_score(task->net, s->weights, task->data, b->samples, b->count, s->scratch);
}

/* A batch belongs to the rank in whose stretch its middle lies. */
static bool is_mine(const scoring_t *w, const batch_t *b) {
  const int64_t ranks = nps_comm_size(w->scorer->comm);
  return (2 * b->before + b->count) * ranks / (2 * w->samples) == nps_comm_rank(w->scorer->comm);
}

static void fill(void *ctx, const batch_t *b) {
  scoring_t *w = ctx;
  if (!is_mine(w, b)) return;
  build(w, b->job);
  const nps_score_t found = w->good ? score(w->scorer, b) : (nps_score_t){.total = b->count, .nll_sum = NAN};
  w->counts[2 * b->slot] = found.correct;
  w->counts[2 * b->slot + 1] = found.total;
  w->nll[b->slot] = found.nll_sum;
}

static void add_up(void *ctx, const batch_t *b) {
  scoring_t *w = ctx;
  nps_score_t *score_of_item = &w->scores[b->item];
  score_of_item->correct += w->counts[2 * b->slot];
  score_of_item->total += w->counts[2 * b->slot + 1];
  score_of_item->nll_sum += w->nll[b->slot];
}

void nps_scorer_run(nps_scorer_t *s, const nps_job_t *jobs, int count, nps_score_t *scores) {
  scoring_t w = {.scorer = s, .scores = scores};
  int items = 0;
  for (int j = 0; j < count; j++) items += jobs[j].task_count;
  walk(s, jobs, count, measure, &w);
  w.counts = nps_xcalloc((size_t)w.slots * 2 + 1, sizeof *w.counts);
  w.nll = nps_xcalloc((size_t)w.slots + 1, sizeof *w.nll);
  walk(s, jobs, count, fill, &w);
  nps_comm_sum_i64(s->comm, w.counts, 2 * w.slots);
  nps_comm_sum_f64(s->comm, w.nll, w.slots);
  for (int i = 0; i < items; i++) scores[i] = (nps_score_t){0};
  walk(s, jobs, count, add_up, &w);
  for (int i = 0; i < items; i++)
    if (isnan(scores[i].nll_sum)) scores[i].nll_sum = NAN; /* one NaN of the many, in the history's bytes */
  free(w.counts);
  free(w.nll);
}
