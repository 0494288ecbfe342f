/* Scores of candidates and stored models on all ranks. The batches of all jobs stand in one line, which is cut into one
 * stretch a rank; each batch has a slot that one rank fills, so that sums do not depend on who did what. */
#include "search_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* What is known of a task in advance. */
typedef struct {
  int *place;                  /* [tensors of the net] in the store, or -1: the task's own */
  int64_t *samples[NPS_PARTS]; /* [count] */
  int64_t count[NPS_PARTS];
} task_t;

/* Ranks score at most so long before they bring together and save what they have. */
#define ROUND_SECONDS 60.0

struct nps_scorer {
  const nps_comm_t *comm;
  const nps_search_spec_t *spec;
  int64_t batch;
  task_t *tasks; /* [task_count] */
  nps_subspaces_t *subspaces;
  nps_candidate_t *candidate;
  const float **weights; /* room for the pointers of any net */
  void *scratch;
  nps_memo_t *memo; /* the same on every rank */
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
  s->memo = nps_memo_new();
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
  nps_memo_free(s->memo);
  free(s);
}

double nps_scorer_flops(const nps_scorer_t *s) { return s->flops; }

/* ---- the line of batches ---- */

/* A batch: what it is known by, and its samples. */
typedef struct {
  int64_t slot; /* among those that are not known */
  int item;     /* (job, task) */
  const nps_job_t *job;
  int task; /* index into the spec's */
  const int64_t *samples;
  int count;
  int64_t before; /* samples of all batches before it that are not known */
  nps_memo_key_t key;
  const nps_score_t *known; /* NULL: to be scored */
} batch_t;

typedef void batch_fn(void *ctx, const batch_t *batch);

static nps_memo_key_t key_of_job(const nps_job_t *job) {
  nps_memo_key_t key = {{1, 2}};
  if (!job->weighting) return nps_memo_key(key, &job->model, sizeof job->model);
  for (int i = 0; i < 2; i++) key.half[i] = nps_weighting_hash(job->weighting, key.half[i]);
  return key;
}

/* Calls a function for every batch in order. */
static void walk(const nps_scorer_t *s, const nps_job_t *jobs, int count, batch_fn *each, void *ctx) {
  batch_t b = {0};
  for (int j = 0; j < count; j++) {
    const nps_memo_key_t key = key_of_job(&jobs[j]);
    for (int k = 0; k < jobs[j].task_count; k++, b.item++) {
      const task_t *task = &s->tasks[jobs[j].tasks[k]];
      const int64_t samples = task->count[jobs[j].part];
      b.job = &jobs[j];
      b.task = jobs[j].tasks[k];
      for (int64_t first = 0; first < samples; first += s->batch) {
        const int64_t place[3] = {b.task, jobs[j].part, first};
        b.samples = task->samples[jobs[j].part] + first;
        b.count = (int)(samples - first < s->batch ? samples - first : s->batch);
        b.key = nps_memo_key(key, place, sizeof place);
        b.known = nps_memo_find(s->memo, b.key);
        each(ctx, &b);
        if (b.known) continue;
        b.slot++;
        b.before += b.count;
      }
    }
  }
}

/* One round of scoring: what is not known yet, shared out anew. */
typedef struct {
  nps_scorer_t *scorer;
  double until;           /* by nps_now(): no batch is begun after it */
  bool stop;              /* this rank was asked to stop */
  int64_t slots, samples; /* to be scored */
  nps_memo_key_t *keys;   /* [slots] */
  int64_t *counts;        /* [slots][3]: correct, total, 1 where scored */
  double *nll;            /* [slots] */
  const nps_job_t *built; /* whose model the candidate holds, or could not be made to */
  bool good;
  double flops;        /* of this rank */
  nps_score_t *scores; /* [items] */
} scoring_t;

static void measure(void *ctx, const batch_t *b) {
  scoring_t *w = ctx;
  if (b->known) return;
  w->slots++;
  w->samples += b->count;
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

static bool may_go_on(scoring_t *w) {
  const nps_search_keep_t *keep = &w->scorer->spec->keep;
  w->stop = w->stop || (keep->stop && keep->stop(keep->ctx));
  return !w->stop && nps_now() < w->until;
}

static void fill(void *ctx, const batch_t *b) {
  scoring_t *w = ctx;
  if (b->known) return;
  w->keys[b->slot] = b->key;
  if (!is_mine(w, b) || !may_go_on(w)) return;
  build(w, b->job);
  const nps_score_t found = w->good ? score(w->scorer, b) : (nps_score_t){.total = b->count, .nll_sum = NAN};
  w->counts[3 * b->slot] = found.correct;
  w->counts[3 * b->slot + 1] = found.total;
  w->counts[3 * b->slot + 2] = 1;
  w->nll[b->slot] = found.nll_sum;
  w->flops += nps_net_flops(w->scorer->spec->tasks[b->task].net, w->scorer->spec->tasks[b->task].data, b->count);
}

/* Remembers what all ranks together have scored. @return batches still to be scored */
static int64_t remember(const scoring_t *w) {
  int64_t left = 0;
  for (int64_t i = 0; i < w->slots; i++) {
    const double nll = isnan(w->nll[i]) ? NAN : w->nll[i]; /* one NaN of the many, in the history's bytes */
    if (w->counts[3 * i + 2])
      nps_memo_add(w->scorer->memo, w->keys[i], (nps_score_t){w->counts[3 * i], w->counts[3 * i + 1], nll});
    else
      left++;
  }
  return left;
}

static void add_up(void *ctx, const batch_t *b) {
  scoring_t *w = ctx;
  nps_score_t *score_of_item = &w->scores[b->item];
  score_of_item->correct += b->known->correct;
  score_of_item->total += b->known->total;
  score_of_item->nll_sum += b->known->nll_sum;
}

/* ---- rounds ---- */

static nps_err_t save(const nps_scorer_t *s) {
  const nps_search_keep_t *keep = &s->spec->keep;
  if (!keep->snapshot || nps_memo_count(s->memo) == 0) return NPS_OK;
  const bool leads = nps_comm_rank(s->comm) == 0;
  return nps_comm_agree(s->comm, leads ? nps_snapshot_write(keep->snapshot, keep->identity, s->memo) : NPS_OK);
}

static nps_err_t tell_stopped(const nps_scorer_t *s) {
  const char *snapshot = s->spec->keep.snapshot;
  if (!snapshot) return nps_fail(NPS_ERR_RUNTIME, "stopped as asked; there is no snapshot to go on from");
  return nps_fail(NPS_ERR_STOPPED, "stopped as asked; run again with --resume to go on from %s", snapshot);
}

/* Brings what every rank has found to all. @return whether some rank was asked to stop */
static bool exchange(scoring_t *w) {
  const nps_comm_t *comm = w->scorer->comm;
  w->counts[3 * w->slots] = w->stop;
  nps_comm_sum_i64(comm, w->counts, 3 * w->slots + 1);
  nps_comm_sum_f64(comm, w->nll, w->slots); /* one rank's is not zero: exact */
  return w->counts[3 * w->slots] > 0;
}

/* Scores for a while, and brings what was found to all ranks. @param[out] left  batches still to be scored */
static nps_err_t run_round(nps_scorer_t *s, const nps_job_t *jobs, int count, int64_t *left) {
  scoring_t w = {.scorer = s, .until = nps_now() + ROUND_SECONDS};
  walk(s, jobs, count, measure, &w);
  *left = 0;
  if (w.slots == 0) return NPS_OK;
  w.keys = nps_xcalloc((size_t)w.slots, sizeof *w.keys);
  w.counts = nps_xcalloc((size_t)w.slots * 3 + 1, sizeof *w.counts);
  w.nll = nps_xcalloc((size_t)w.slots, sizeof *w.nll);
  walk(s, jobs, count, fill, &w);
  const bool stop = exchange(&w);
  *left = remember(&w);
  s->flops += w.flops;
  free(w.keys);
  free(w.counts);
  free(w.nll);
  NPS_TRY(nps_comm_agree(s->comm, nps_candidate_error(s->candidate)));
  NPS_TRY(save(s));
  return stop && *left > 0 ? tell_stopped(s) : NPS_OK;
}

nps_err_t nps_scorer_run(nps_scorer_t *s, const nps_job_t *jobs, int count, nps_score_t *scores) {
  scoring_t w = {.scorer = s, .scores = scores};
  int64_t left = 1;
  int items = 0;
  while (left > 0) NPS_TRY(run_round(s, jobs, count, &left));
  for (int j = 0; j < count; j++) items += jobs[j].task_count;
  for (int i = 0; i < items; i++) scores[i] = (nps_score_t){0};
  walk(s, jobs, count, add_up, &w);
  return NPS_OK;
}

/* Who forgets --resume loses nothing. */
static void put_aside(const char *snapshot) {
  char *old = nps_xstrf("%s.old", snapshot);
  if (rename(snapshot, old) == 0)
    nps_note("%s: a snapshot of an earlier search, which --resume would have gone on from, is kept as %s", snapshot,
             old);
  free(old);
}

nps_err_t nps_scorer_resume(nps_scorer_t *s, int64_t *known) {
  const nps_search_keep_t *keep = &s->spec->keep;
  const bool leads = nps_comm_rank(s->comm) == 0;
  nps_err_t err = NPS_OK;
  *known = 0;
  if (!keep->snapshot) return NPS_OK;
  if (!keep->resume) {
    if (leads) put_aside(keep->snapshot);
    return NPS_OK;
  }
  if (leads) err = nps_snapshot_read(keep->snapshot, keep->identity, s->memo);
  NPS_TRY(nps_comm_agree(s->comm, err));
  *known = nps_memo_count(s->memo);
  nps_comm_bcast(s->comm, known, sizeof *known);
  nps_memo_entry_t *entries = nps_xcalloc((size_t)*known + 1, sizeof *entries);
  for (int64_t i = 0; leads && i < *known; i++) entries[i] = *nps_memo_entry(s->memo, i);
  nps_comm_bcast(s->comm, entries, (size_t)*known * sizeof *entries);
  for (int64_t i = 0; !leads && i < *known; i++) nps_memo_add(s->memo, entries[i].key, entries[i].score);
  free(entries);
  return NPS_OK;
}
