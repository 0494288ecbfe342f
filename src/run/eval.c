#include "nps/eval.h"

#include "open_model.h"
#include "run_internal.h"

#include "nps/blas.h"

#include <stdlib.h>
#include <string.h>

/* What is known of a task before it is scored. */
typedef struct {
  const char *head; /* as given, or NULL: the model's own */
  nps_model_t *head_model;
  nps_dataset_t *data;
  nps_net_t *net;
  int64_t batches;
} task_t;

typedef struct {
  const nps_comm_t *comm;
  const nps_eval_request_t *request;
  nps_report_t *report;
  nps_model_t *model;
  task_t *tasks;
  nps_eval_t *eval;
  nps_pulse_t *pulse;
  int64_t done; /* bytes of samples */
  bool stopped; /* another rank has failed */
} work_t;

/* ---- what is asked for ---- */

static int find_task(const nps_eval_t *eval, const char *group, size_t length) {
  for (int t = 0; t < eval->task_count; t++)
    if (strlen(eval->tasks[t].group) == length && memcmp(eval->tasks[t].group, group, length) == 0) return t;
  return -1;
}

static void add_task(nps_eval_t *eval, const char *group) {
  eval->tasks = nps_xrealloc(eval->tasks, (size_t)eval->task_count + 1, sizeof *eval->tasks);
  eval->tasks[eval->task_count++] = (nps_eval_task_t){.group = nps_xstrdup(group)};
}

static nps_err_t take_groups(const nps_eval_request_t *request, nps_eval_t *eval) {
  for (int i = 0; i < request->group_count; i++) {
    if (find_task(eval, request->groups[i], strlen(request->groups[i])) >= 0)
      return nps_fail(NPS_ERR_CONFIG, "option --group: %s is given twice", request->groups[i]);
    add_task(eval, request->groups[i]);
  }
  return NPS_OK;
}

static nps_err_t list_groups(const char *path, char ***names, int *count) {
  NPS_TRY(nps_dataset_groups(path, names, count));
  if (*count > 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: expected groups of samples, found none", path);
}

/* Rank 0 lists the file's groups for all. */
static nps_err_t take_all_groups(work_t *w) {
  char **names = NULL;
  int count = 0;
  const bool root = nps_comm_rank(w->comm) == 0;
  nps_err_t err = nps_comm_agree(w->comm, root ? list_groups(w->request->data, &names, &count) : NPS_OK);
  nps_comm_bcast(w->comm, &count, sizeof count);
  for (int i = 0; err == NPS_OK && i < count; i++) {
    char *name = root ? names[i] : NULL;
    nps_comm_bcast_text(w->comm, &name);
    add_task(w->eval, name);
    if (!root) free(name);
  }
  if (root) nps_h5_free_names(names, count);
  return err;
}

static nps_err_t take_head(work_t *w, const char *text, const char **general) {
  const size_t length = strcspn(text, "=/");
  if (text[length] != '=') {
    if (*general) return nps_fail(NPS_ERR_CONFIG, "option --head: %s and %s are both for all groups", *general, text);
    *general = text;
    return NPS_OK;
  }
  const int t = find_task(w->eval, text, length);
  if (t < 0)
    return nps_fail(NPS_ERR_CONFIG,
                    "option --head %s: no group %.*s is scored (a path with '=' can be given as ./PATH)", text,
                    (int)length, text);
  if (w->tasks[t].head)
    return nps_fail(NPS_ERR_CONFIG, "option --head: group %s is given twice", w->eval->tasks[t].group);
  w->tasks[t].head = text + length + 1;
  return NPS_OK;
}

static nps_err_t take_heads(work_t *w) {
  const char *general = NULL;
  nps_err_t err = NPS_OK;
  for (int i = 0; i < w->request->head_count; i++)
    err = nps_err_worse(err, take_head(w, w->request->heads[i], &general));
  for (int t = 0; t < w->eval->task_count; t++)
    if (!w->tasks[t].head) w->tasks[t].head = general;
  return err;
}

static nps_err_t check_batch(int batch) {
  if (batch <= NPS_NET_MOST_BATCH) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "option --batch: expected at most %d, found %d", NPS_NET_MOST_BATCH, batch);
}

static nps_err_t read_request(work_t *w) {
  NPS_TRY(nps_comm_agree(w->comm, check_batch(w->request->batch)));
  if (w->request->group_count > 0)
    NPS_TRY(nps_comm_agree(w->comm, take_groups(w->request, w->eval)));
  else
    NPS_TRY(take_all_groups(w));
  w->tasks = nps_xcalloc((size_t)w->eval->task_count, sizeof *w->tasks);
  return nps_comm_agree(w->comm, take_heads(w));
}

/* ---- checking ---- */

/* Every head model is opened by itself, also where two tasks name the same: catalogues are small. */
static nps_err_t open_models(work_t *w) {
  NPS_TRY(nps_run_open_model(w->comm, w->request->model, &w->model));
  for (int t = 0; t < w->eval->task_count; t++)
    if (w->tasks[t].head) NPS_TRY(nps_run_open_model(w->comm, w->tasks[t].head, &w->tasks[t].head_model));
  return NPS_OK;
}

static nps_err_t prepare_task(work_t *w, int t) {
  task_t *task = &w->tasks[t];
  NPS_TRY(nps_net_new_with_head(w->model, task->head_model, &task->net));
  NPS_TRY(nps_dataset_read(w->request->data, w->eval->tasks[t].group, &task->data));
  task->batches = (task->data->samples + w->request->batch - 1) / w->request->batch;
  return nps_net_check_data(task->net, task->data);
}

static nps_err_t prepare(work_t *w) {
  nps_err_t err = NPS_OK;
  for (int t = 0; t < w->eval->task_count && err == NPS_OK; t++) err = prepare_task(w, t);
  return nps_comm_agree(w->comm, err);
}

/* ---- scoring ---- */

/* Scores of every batch of all tasks, each made by one rank; 0 elsewhere. */
typedef struct {
  int64_t *counts; /* [slots][2]: correct, total */
  double *nll;     /* [slots] */
} slots_t;

static void score_batch(work_t *w, const task_t *task, float **weights, int64_t batch, void *scratch, int64_t counts[2],
                        double *nll) {
  const int64_t first = batch * w->request->batch, left = task->data->samples - first;
  const int n = left < w->request->batch ? (int)left : w->request->batch;
  int64_t samples[NPS_NET_MOST_BATCH], total = 0;
  for (int i = 0; i < n; i++) samples[i] = first + i;
  const nps_score_t score = nps_net_score(task->net, (const float *const *)weights, task->data, samples, n, scratch);
  counts[0] = score.correct;
  counts[1] = score.total;
  *nll = score.nll_sum;
  w->done += n * nps_dataset_sample_bytes(task->data);
  w->stopped = !nps_pulse_beat(w->pulse, w->done, &total);
  nps_report_progress(w->report, total);
}

/* This rank's batches of a task, whose first slot is `slot`: slots are dealt out to the ranks in turn. */
static nps_err_t score_task(work_t *w, const task_t *task, int64_t slot, const slots_t *slots) {
  const int64_t ranks = nps_comm_size(w->comm), rank = nps_comm_rank(w->comm);
  const int64_t mine = (rank - slot % ranks + ranks) % ranks;
  const int batch = task->data->samples < w->request->batch ? (int)task->data->samples : w->request->batch;
  float **weights = NULL;
  void *scratch = NULL;
  nps_err_t err = NPS_OK;
  if (mine >= task->batches) return NPS_OK;
  NPS_GOTO(nps_net_read_weights(task->net, false, &weights));
  NPS_GOTO(nps_buffer_alloc(nps_net_scratch_bytes(task->net, task->data, batch), "a forward pass", &scratch));
  for (int64_t b = mine; b < task->batches && !w->stopped; b += ranks)
    score_batch(w, task, weights, b, scratch, slots->counts + 2 * (slot + b), slots->nll + slot + b);
done:
  nps_net_free_weights(task->net, weights);
  free(scratch);
  return err;
}

static void show_total(void *report, int64_t total) { nps_report_progress(report, total); }

static nps_err_t score_tasks(work_t *w, const slots_t *slots) {
  int64_t bytes = 0, slot = 0;
  nps_err_t err = NPS_OK;
  for (int t = 0; t < w->eval->task_count; t++)
    bytes += w->tasks[t].data->samples * nps_dataset_sample_bytes(w->tasks[t].data);
  nps_report_phase(w->report, "scoring", bytes);
  w->pulse = nps_pulse_start(w->comm);
  for (int t = 0; t < w->eval->task_count && err == NPS_OK && !w->stopped; t++) {
    err = score_task(w, &w->tasks[t], slot, slots);
    slot += w->tasks[t].batches;
  }
  err = nps_pulse_end(w->pulse, w->done, err, show_total, w->report);
  if (err == NPS_OK) nps_report_progress(w->report, bytes);
  nps_report_phase_end(w->report);
  return err;
}

static void sum_slots(const work_t *w, const slots_t *slots) {
  int64_t slot = 0;
  for (int t = 0; t < w->eval->task_count; t++) {
    nps_score_t *score = &w->eval->tasks[t].score;
    for (int64_t b = 0; b < w->tasks[t].batches; b++, slot++) {
      score->correct += slots->counts[2 * slot];
      score->total += slots->counts[2 * slot + 1];
      score->nll_sum += slots->nll[slot];
    }
  }
}

static nps_err_t score_all(work_t *w) {
  int64_t count = 0;
  for (int t = 0; t < w->eval->task_count; t++) count += w->tasks[t].batches;
  const slots_t slots = {nps_xcalloc((size_t)count, 2 * sizeof(int64_t)), nps_xcalloc((size_t)count, sizeof(double))};
  nps_err_t err = score_tasks(w, &slots);
  if (err == NPS_OK) {
    nps_comm_sum_i64(w->comm, slots.counts, 2 * count);
    nps_comm_sum_f64(w->comm, slots.nll, count); /* one rank's is not zero: exact */
    sum_slots(w, &slots);
  }
  free(slots.counts);
  free(slots.nll);
  return err;
}

static void free_tasks(const work_t *w) {
  for (int t = 0; w->tasks && t < w->eval->task_count; t++) {
    nps_net_free(w->tasks[t].net);
    nps_dataset_free(w->tasks[t].data);
    nps_model_free(w->tasks[t].head_model);
  }
  free(w->tasks);
}

static nps_err_t score_natively(const nps_comm_t *comm, const nps_eval_request_t *request, nps_report_t *report,
                                nps_eval_t *eval) {
  nps_err_t err = NPS_OK;
  work_t w = {.comm = comm, .request = request, .report = report, .eval = eval};
  eval->known[NPS_FIGURE_ACCURACY] = eval->known[NPS_FIGURE_NLL] = true;
  nps_blas_start();
  NPS_GOTO(read_request(&w));
  NPS_GOTO(open_models(&w));
  NPS_GOTO(prepare(&w));
  NPS_GOTO(score_all(&w));
done:
  free_tasks(&w);
  nps_model_free(w.model);
  return err;
}

nps_err_t nps_eval_scores(const nps_comm_t *comm, const nps_eval_request_t *request, nps_report_t *report,
                          nps_eval_t **out) {
  nps_eval_t *eval = nps_xcalloc(1, sizeof *eval);
  const nps_err_t err =
      request->config ? nps_eval_ask(comm, request, report, eval) : score_natively(comm, request, report, eval);
  *out = err == NPS_OK ? eval : NULL;
  if (err != NPS_OK) nps_eval_free(eval);
  return err;
}

void nps_eval_free(nps_eval_t *eval) {
  if (!eval) return;
  for (int t = 0; t < eval->task_count; t++) free(eval->tasks[t].group);
  free(eval->tasks);
  free(eval);
}
