/* Scores of candidates and stored models on all ranks. The batches of all jobs stand in one line, of which groups of ranks take
 * pieces; each batch has a slot that one rank fills, so that sums do not depend on who did what. */
#include "search_internal.h"

#include "nps/schedule.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is known of a task in advance. */
typedef struct {
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
  nps_rules_t *rules;
  nps_candidate_t *candidate;
  nps_runner_t *runner;
  nps_memo_t *memo;   /* the same on every rank */
  char *last_failure; /* of a command; rank 0 only; or NULL */
};

/* ---- samples ---- */

bool nps_sample_is_held(int64_t i, double holdout) {
  return floor((double)(i + 1) * holdout) > floor((double)i * holdout);
}

/* A command is asked for all of a part at once. */
static void split_samples(const nps_dataset_t *data, double holdout, task_t *task) {
  task->count[NPS_PART_SEEN] = data ? 0 : 1;
  task->count[NPS_PART_HELD] = data ? 0 : holdout > 0;
  if (!data) return;
  for (int p = 0; p < NPS_PARTS; p++) task->samples[p] = nps_xcalloc((size_t)data->samples, sizeof(int64_t));
  for (int64_t i = 0; i < data->samples; i++) {
    const int p = nps_sample_is_held(i, holdout) ? NPS_PART_HELD : NPS_PART_SEEN;
    task->samples[p][task->count[p]++] = i;
  }
}

/* ---- preparing ---- */

static nps_err_t check_tensors(const nps_search_spec_t *spec, const nps_search_task_t *task) {
  nps_err_t err = NPS_OK;
  for (int i = 0; i < nps_net_tensor_count(task->net); i++) {
    const nps_net_tensor_t *tensor = nps_net_tensor(task->net, i);
    const bool own = task->own && task->own[i];
    const int place = own ? -1 : nps_store_find(spec->store, tensor->name);
    if (own || (place >= 0 && nps_store_count(spec->store, place) == tensor->count)) continue;
    err = nps_fail(NPS_ERR_INPUT,
                   "task '%s': the network needs tensor %s of %lld elements, but neither the merged model nor the "
                   "task's head has it",
                   task->name, tensor->name, (long long)tensor->count);
  }
  return err;
}

static nps_err_t prepare_tasks(nps_scorer_t *s) {
  const nps_search_spec_t *spec = s->spec;
  nps_err_t err = NPS_OK;
  s->tasks = nps_xcalloc((size_t)spec->task_count, sizeof *s->tasks);
  for (int t = 0; t < spec->task_count; t++) {
    split_samples(spec->tasks[t].data, spec->fitness->holdout, &s->tasks[t]);
    if (!spec->command) err = nps_err_worse(err, check_tensors(spec, &spec->tasks[t]));
  }
  return err;
}

static nps_err_t prepare_candidate(nps_scorer_t *s) {
  const nps_search_spec_t *spec = s->spec;
  if (!spec->factors) {
    NPS_TRY(nps_subspaces_new(s->comm, spec->store, spec->start->subspaces, spec->start->scope, &s->subspaces));
    s->rules = nps_rules_new(s->comm, spec->group.ranks, spec->store, s->subspaces);
  }
  return nps_comm_agree(s->comm, nps_candidate_new(spec->store, s->subspaces, s->rules, spec->factors, spec->round,
                                                   spec->value_bits, &s->candidate));
}

nps_err_t nps_scorer_new(const nps_comm_t *comm, const nps_search_spec_t *spec, nps_scorer_t **out) {
  nps_scorer_t *s = nps_xcalloc(1, sizeof *s);
  nps_err_t err = NPS_OK;
  s->comm = comm;
  s->spec = spec;
  s->batch = spec->command ? 1 : spec->fitness->batch;
  s->memo = nps_memo_new();
  *out = NULL;
  NPS_GOTO(nps_comm_agree(comm, prepare_tasks(s)));
  NPS_GOTO(prepare_candidate(s));
  NPS_GOTO(nps_runner_new(comm, spec, s->candidate, &s->runner));
  *out = s;
  s = NULL;
done:
  nps_scorer_free(s);
  return err;
}

void nps_scorer_free(nps_scorer_t *s) {
  if (!s) return;
  nps_runner_free(s->runner);
  nps_candidate_free(s->candidate);
  nps_rules_free(s->rules);
  nps_subspaces_free(s->subspaces);
  for (int t = 0; s->tasks && t < s->spec->task_count; t++) {
    for (int p = 0; p < NPS_PARTS; p++) free(s->tasks[t].samples[p]);
  }
  free(s->tasks);
  free(s->last_failure);
  nps_memo_free(s->memo);
  free(s);
}

double nps_scorer_flops(const nps_scorer_t *s) { return s->runner->flops; }

/* ---- the line of batches ---- */

/* A batch, and where its score goes. */
typedef struct {
  nps_slot_t slot;
  int item;                 /* (job, task) */
  const nps_score_t *known; /* NULL: to be scored */
} batch_t;

typedef void batch_fn(void *ctx, const batch_t *batch);

static nps_memo_key_t key_of_job(const nps_job_t *job) {
  nps_memo_key_t key = {{1, 2}};
  if (!job->weighting) return nps_memo_key(key, &job->model, sizeof job->model);
  for (int i = 0; i < 2; i++) key.half[i] = nps_weighting_hash(job->weighting, key.half[i]);
  return key;
}

/* Calls a function for every batch of a model in order. */
static void walk_model(const nps_scorer_t *s, batch_t b, nps_memo_key_t key, batch_fn *each, void *ctx) {
  const nps_job_t *job = b.slot.job;
  for (int k = 0; k < job->task_count; k++, b.item++) {
    const task_t *task = &s->tasks[job->tasks[k]];
    const int64_t samples = task->count[job->part];
    b.slot.task = job->tasks[k];
    for (int64_t first = 0; first < samples; first += s->batch) {
      const int64_t place[3] = {b.slot.task, job->part, first};
      b.slot.samples = task->samples[job->part] ? task->samples[job->part] + first : NULL;
      b.slot.count = (int)(samples - first < s->batch ? samples - first : s->batch);
      b.slot.key = nps_memo_key(key, place, sizeof place);
      b.known = nps_memo_find(s->memo, b.slot.key);
      each(ctx, &b);
    }
  }
}

/* Calls a function for every batch in order. */
static void walk(const nps_scorer_t *s, const nps_job_t *jobs, int count, batch_fn *each, void *ctx) {
  batch_t b = {0};
  for (int j = 0; j < count; j++) {
    const nps_memo_key_t key = key_of_job(&jobs[j]);
    b.slot.job = &jobs[j];
    b.slot.shake = -1;
    if (!jobs[j].shaken) walk_model(s, b, key, each, ctx);
    for (int k = 0; jobs[j].shaken && k < s->spec->fitness->sharpness_samples; k++) {
      b.slot.shake = k;
      walk_model(s, b, nps_memo_key(key, &k, sizeof k), each, ctx);
    }
    b.item += jobs[j].task_count;
  }
}

/* One round of scoring: what is not known yet, shared out anew. */
typedef struct {
  nps_scorer_t *scorer;
  double until;      /* by nps_now(): no wave is begun after it */
  bool stop;         /* this rank was asked to stop */
  nps_slot_t *slots; /* [count] to be scored */
  int64_t count, room;
  nps_score_t *scores; /* [count] found by this rank */
  bool *done;          /* [count] */
} scoring_t;

static void collect(void *ctx, const batch_t *b) {
  scoring_t *w = ctx;
  const nps_search_task_t *task = &w->scorer->spec->tasks[b->slot.task];
  if (b->known) return;
  if (w->count == w->room) {
    w->room = w->room ? 2 * w->room : 64;
    w->slots = nps_xrealloc(w->slots, (size_t)w->room, sizeof *w->slots);
  }
  w->slots[w->count] = b->slot;
  w->slots[w->count++].flops = task->net ? nps_net_flops(task->net, task->data, b->slot.count) : 0;
}

static bool is_stopped(void *ctx) {
  scoring_t *w = ctx;
  const nps_search_keep_t *keep = &w->scorer->spec->keep;
  w->stop = w->stop || (keep->stop && keep->stop(keep->ctx));
  return w->stop;
}

static bool may_go_on(void *ctx) {
  const scoring_t *w = ctx;
  return !is_stopped(ctx) && nps_now() < w->until && nps_candidate_error(w->scorer->candidate) == NPS_OK;
}

/* Finds what the candidates of all slots keep. @return false: some rank was asked to stop */
static bool find_rules(scoring_t *w) {
  const nps_weighting_t **weightings = nps_xcalloc((size_t)w->count, sizeof *weightings);
  int count = 0;
  for (int64_t i = 0; i < w->count; i++) {
    const nps_weighting_t *weighting = w->slots[i].job->weighting;
    const bool is_next = count == 0 || weightings[count - 1] != weighting;
    if (weighting && is_next && nps_weighting_has_result(weighting)) weightings[count++] = weighting;
  }
  const bool found = !w->scorer->rules || nps_rules_find(w->scorer->rules, weightings, count, is_stopped, w);
  free(weightings);
  return found;
}

/* Pieces of batches for networks; a command gets the tasks of a model together. @param[out] cut  [count + 1] */
static int64_t cut_line(const scoring_t *w, int64_t *cut) {
  const nps_search_spec_t *spec = w->scorer->spec;
  int64_t pieces = 0;
  if (!spec->command) {
    double *work = nps_xcalloc((size_t)w->count, sizeof *work);
    for (int64_t i = 0; i < w->count; i++) work[i] = w->slots[i].flops;
    pieces = nps_schedule_deal(work, w->count, spec->group.count, cut);
    free(work);
    return pieces;
  }
  for (int64_t i = 0; i < w->count; i++)
    if (i == 0 || !nps_slot_is_of_same_model(&w->slots[i], &w->slots[i - 1])) cut[pieces++] = i;
  cut[pieces] = w->count;
  return pieces;
}

/* Scores for a while what is not known. */
static void score_slots(scoring_t *w) {
  int64_t *cut = nps_xcalloc((size_t)w->count + 1, sizeof *cut);
  w->until = nps_now() + ROUND_SECONDS;
  nps_runner_run(w->scorer->runner, &(nps_round_t){.slots = w->slots,
                                                   .count = w->count,
                                                   .pieces = cut_line(w, cut),
                                                   .cut = cut,
                                                   .may_go_on = may_go_on,
                                                   .is_stopped = is_stopped,
                                                   .ctx = w,
                                                   .scores = w->scores,
                                                   .done = w->done});
  free(cut);
}

static void add_up(void *ctx, const batch_t *b) { nps_score_add((nps_score_t *)ctx + b->item, b->known); }

static nps_err_t save(const nps_scorer_t *s) {
  const nps_search_keep_t *keep = &s->spec->keep;
  int64_t kept = 0;
  if (!s->spec->command) nps_memo_settle(s->memo); /* what cannot be made is no better another time */
  for (int64_t i = 0; i < nps_memo_count(s->memo); i++) kept += nps_memo_keeps(s->memo, i);
  if (!keep->snapshot || kept == 0) return NPS_OK;
  const bool leads = nps_comm_rank(s->comm) == 0;
  return nps_comm_agree(s->comm, leads ? nps_snapshot_write(keep->snapshot, keep->identity, s->memo) : NPS_OK);
}

static nps_err_t tell_stopped(const nps_scorer_t *s) {
  const char *snapshot = s->spec->keep.snapshot;
  if (!snapshot) return nps_fail(NPS_ERR_RUNTIME, "stopped as asked; there is no snapshot to go on from");
  return nps_fail(NPS_ERR_STOPPED, "stopped as asked; run again with --resume to go on from %s", snapshot);
}

/* ---- what commands failed to score ---- */

/* @return the text behind the slot's number */
static const char *read_failure(const char *entry, int64_t *slot) {
  char *end;
  *slot = strtoll(entry, &end, 10);
  return end + 1;
}

static int compare_failures(const void *a, const void *b) {
  int64_t x, y;
  read_failure(*(const char *const *)a, &x);
  read_failure(*(const char *const *)b, &y);
  return x < y ? -1 : x > y;
}

/* Tells on rank 0 what models could not be scored and why, in their order, and remembers the last reason. */
static void tell_failures(const scoring_t *w, const nps_text_t *all) {
  enum { MOST_TOLD = 8 };
  nps_scorer_t *s = w->scorer;
  const char **entries = nps_xcalloc(all->size + 1, sizeof *entries);
  int64_t count = 0, slot;
  for (size_t at = 0; at < all->size; at += strlen(all->text + at) + 1) entries[count++] = all->text + at;
  qsort(entries, (size_t)count, sizeof *entries, compare_failures);
  for (int64_t i = 0; i < count; i++) {
    const char *why = read_failure(entries[i], &slot);
    if (i < MOST_TOLD) nps_note("%s counts as the worst: %s", w->slots[slot].job->what, why);
    free(s->last_failure);
    s->last_failure = nps_xstrdup(why);
  }
  if (count > MOST_TOLD) nps_note("%lld more models count as the worst", (long long)(count - MOST_TOLD));
  free(entries);
}

/* Brings the failures of all ranks to rank 0. Collective. */
static void gather_failures(const scoring_t *w) {
  const nps_comm_t *comm = w->scorer->comm;
  const nps_text_t *mine = &w->scorer->runner->failures;
  const int ranks = nps_comm_size(comm), rank = nps_comm_rank(comm);
  int64_t *sizes = nps_xcalloc((size_t)ranks, sizeof *sizes);
  nps_text_t all = {0};
  sizes[rank] = (int64_t)mine->size;
  nps_comm_sum_i64(comm, sizes, ranks);
  for (int r = 0; r < ranks; r++) {
    if (sizes[r] == 0) continue;
    char *text = nps_xcalloc((size_t)sizes[r], 1);
    if (r == rank) memcpy(text, mine->text, mine->size);
    nps_comm_bcast_from(comm, r, text, (size_t)sizes[r]);
    if (rank == 0) nps_text_add_bytes(&all, text, (size_t)sizes[r]);
    free(text);
  }
  if (all.size > 0) tell_failures(w, &all);
  free(all.text);
  free(sizes);
}

const char *nps_scorer_last_failure(const nps_scorer_t *s) { return s->last_failure; }

void nps_score_add(nps_score_t *sum, const nps_score_t *score) {
  sum->correct += score->correct;
  sum->total += score->total;
  sum->nll_sum += score->nll_sum;
}

double nps_score_accuracy(const nps_score_t *score) { return (double)score->correct / (double)score->total; }

double nps_score_nll(const nps_score_t *score) { return score->nll_sum / (double)score->total; }

bool nps_score_has_failed(const nps_score_t *scores, int count) {
  for (int k = 0; k < count; k++)
    if (isnan(scores[k].nll_sum)) return true;
  return false;
}

/* ---- rounds ---- */

/* Brings what every rank has found to all, and remembers it. @param[out] left  batches still to be scored
 * @return whether some rank was asked to stop */
static bool exchange(scoring_t *w, int64_t *left) {
  const nps_comm_t *comm = w->scorer->comm;
  int64_t(*counts)[3] = nps_xcalloc((size_t)w->count + 1, sizeof *counts); /* correct, total, 1 where scored */
  double *nll = nps_xcalloc((size_t)w->count, sizeof *nll);
  for (int64_t i = 0; i < w->count; i++) {
    if (!w->done[i]) continue;
    counts[i][0] = w->scores[i].correct;
    counts[i][1] = w->scores[i].total;
    counts[i][2] = 1;
    nll[i] = w->scores[i].nll_sum;
  }
  counts[w->count][0] = is_stopped(w); /* not all ranks are asked while they score */
  nps_comm_sum_i64(comm, counts[0], 3 * (w->count + 1));
  nps_comm_sum_f64(comm, nll, w->count); /* one rank's is not zero: exact */
  *left = 0;
  for (int64_t i = 0; i < w->count; i++) {
    const double found = isnan(nll[i]) ? NAN : nll[i]; /* one NaN of the many, in the history's bytes */
    if (counts[i][2])
      nps_memo_add(w->scorer->memo, w->slots[i].key, (nps_score_t){counts[i][0], counts[i][1], found});
    else
      (*left)++;
  }
  const bool stop = counts[w->count][0] > 0;
  free(counts);
  free(nll);
  return stop;
}

/* Scores for a while, and brings what was found to all ranks. @param[out] left  batches still to be scored */
static nps_err_t run_round(nps_scorer_t *s, const nps_job_t *jobs, int count, int64_t *left) {
  scoring_t w = {.scorer = s};
  walk(s, jobs, count, collect, &w);
  *left = 0;
  if (w.count == 0) return NPS_OK;
  w.scores = nps_xcalloc((size_t)w.count, sizeof *w.scores);
  w.done = nps_xcalloc((size_t)w.count, sizeof *w.done);
  if (find_rules(&w)) score_slots(&w);
  const bool stop = exchange(&w, left);
  if (s->spec->command) gather_failures(&w);
  free(w.slots);
  free(w.scores);
  free(w.done);
  NPS_TRY(nps_comm_agree(s->comm, nps_candidate_error(s->candidate)));
  NPS_TRY(save(s)); /* what has been scored counts, whatever a command has met since */
  NPS_TRY(nps_comm_agree(s->comm, s->runner->err));
  return stop && *left > 0 ? tell_stopped(s) : NPS_OK;
}

nps_err_t nps_scorer_run(nps_scorer_t *s, const nps_job_t *jobs, int count, nps_score_t *scores) {
  int64_t left = 1;
  int items = 0;
  nps_memo_settle(s->memo); /* whoever goes on has made do with the failures so far */
  while (left > 0) NPS_TRY(run_round(s, jobs, count, &left));
  for (int j = 0; j < count; j++) items += jobs[j].task_count;
  for (int i = 0; i < items; i++) scores[i] = (nps_score_t){0};
  walk(s, jobs, count, add_up, scores);
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
