/* Scoring by a command. The first rank of a group keeps the command's process; the group writes a model into the folder that is
 * handed over, each rank the tensors that it holds, by way of the first; then the process is asked for all tasks at once. */
#include "search_internal.h"

#include "nps/command.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Elements of a tensor that are made and sent at a time. */
#define PART ((int64_t)1 << 18)

/* Numbers before a part: the first is 1 where it could not be made. */
enum { MARK = 16 };

/* One tensor of the model that is handed over. */
typedef struct {
  int tensor;   /* of the store; −1: copied from the base */
  int owner;    /* rank of the group that makes it */
  void *copied; /* its bytes, on the first rank */
} entry_t;

typedef struct {
  const nps_search_command_t *what;
  nps_target_t *targets; /* [count] */
  entry_t *entries;      /* [count] */
  int count;
  float *values;            /* MARK and [PART] */
  char *narrow;             /* the same of a narrower type */
  int64_t id;               /* of the last request */
  bool retries;             /* the last model could not be written, and is written once more */
  nps_handover_t *handover; /* this and what follows: first rank of a group only */
  nps_command_t *command;
  int64_t *totals; /* [tasks][parts] of the first answer; 0: none yet */
} asker_t;

int64_t nps_ask_work_bytes(void) { return 2 * (MARK + PART) * (int64_t)sizeof(float); }

/* ---- what is handed over ---- */

static void list_tensors(const nps_search_spec_t *spec, asker_t *a) {
  const nps_layout_t *layout = a->what->layout;
  a->targets = nps_xcalloc((size_t)layout->count + 1, sizeof *a->targets);
  a->entries = nps_xcalloc((size_t)layout->count + 1, sizeof *a->entries);
  for (int t = 0; t < layout->count; t++) {
    const nps_target_t *target = &layout->targets[t];
    if (target->action == NPS_ACTION_HEAD) continue; /* candidates have the tasks' heads, not the output's */
    a->targets[a->count] = *target;
    a->entries[a->count++].tensor = target->action == NPS_ACTION_MERGE ? nps_store_find(spec->store, target->name) : -1;
  }
}

/* Finds which rank of the group makes each tensor. Collective over the group. */
static void find_owners(const nps_runner_t *r, asker_t *a) {
  int64_t *owner = nps_xcalloc((size_t)a->count + 1, sizeof *owner);
  for (int i = 0; i < a->count; i++)
    if (a->entries[i].tensor >= 0 && nps_store_counts(r->spec->store, a->entries[i].tensor)) owner[i] = r->rank;
  nps_comm_sum_i64(r->spec->group.ranks, owner, a->count);
  for (int i = 0; i < a->count; i++) a->entries[i].owner = (int)owner[i];
  free(owner);
}

static nps_err_t read_copied(asker_t *a) {
  nps_reader_t *reader = nps_reader_new(a->what->base, NULL);
  nps_err_t err = NPS_OK;
  for (int i = 0; i < a->count && err == NPS_OK; i++) {
    const nps_target_t *target = &a->targets[i];
    if (a->entries[i].tensor >= 0) continue;
    err = nps_buffer_alloc((size_t)target->count * nps_dtype_size(target->dtype), target->name, &a->entries[i].copied);
    if (err == NPS_OK)
      err = nps_reader_read(reader, target->source[a->what->base_input], 0, target->count, a->entries[i].copied);
  }
  nps_reader_free(reader);
  return err;
}

/* Bytes of the largest model that may be handed over. */
static int64_t most_bytes(const nps_runner_t *r, const asker_t *a) {
  enum { HEADER = 256 }; /* of a tensor */
  int64_t bytes = 0;
  for (int i = 0; i < a->count; i++) {
    size_t width = nps_dtype_size(a->targets[i].dtype);
    for (int m = -1; a->entries[i].tensor >= 0 && m < nps_store_models(r->spec->store); m++) {
      nps_candidate_take(r->candidate, m);
      if (nps_dtype_size(nps_candidate_dtype(r->candidate, a->entries[i].tensor)) > width) width = sizeof(float);
    }
    if (r->spec->fitness->sharpness_samples > 0 && width < sizeof(float)) width = sizeof(float);
    bytes += a->targets[i].count * (int64_t)width + HEADER + (int64_t)strlen(a->targets[i].name);
  }
  return bytes;
}

static nps_err_t keep_files(asker_t *a) {
  const nps_search_command_t *c = a->what;
  if (c->config_json) NPS_TRY(nps_handover_keep(a->handover, "config.json", c->config_json, strlen(c->config_json)));
  for (int i = 0; i < c->sidecar_count; i++)
    NPS_TRY(nps_handover_keep(a->handover, c->sidecars[i].name, c->sidecars[i].data, c->sidecars[i].size));
  return NPS_OK;
}

/* @param group  of all; @param neighbours  groups with a first rank on this host */
static nps_err_t start(const nps_runner_t *r, asker_t *a, int group, int neighbours) {
  const nps_search_command_t *c = a->what;
  char host[256] = "", key[288];
  gethostname(host, sizeof host - 1);
  snprintf(key, sizeof key, "fitness.command on %s", host);
  NPS_TRY(nps_command_check(c->words, c->word_count, key));
  a->totals = nps_xcalloc((size_t)(NPS_PARTS * r->spec->task_count), sizeof *a->totals);
  NPS_TRY(read_copied(a));
  NPS_TRY(nps_handover_new(c->directory, neighbours * most_bytes(r, a), &a->handover));
  NPS_TRY(keep_files(a));
  a->command = nps_command_new(&(nps_command_options_t){.words = c->words,
                                                        .word_count = c->word_count,
                                                        .timeout = c->timeout,
                                                        .group = group,
                                                        .folder = nps_handover_path(a->handover)});
  return NPS_OK;
}

/* Finds which group this first rank has, and how many are on its host. Collective over all ranks. */
static void count_groups(const nps_runner_t *r, int *group, int *neighbours) {
  nps_comm_t *first = NULL, *here = NULL;
  *group = *neighbours = 0;
  nps_comm_split(r->comm, r->spec->group.ranks && r->rank == 0 ? 0 : -1, &first);
  if (first) {
    nps_comm_split_host(first, &here);
    *group = nps_comm_rank(first);
    *neighbours = nps_comm_size(here);
  }
  nps_comm_free(here);
  nps_comm_free(first);
}

static nps_err_t begin(nps_runner_t *r) {
  asker_t *a = r->own = nps_xcalloc(1, sizeof *a);
  int group, neighbours;
  a->what = r->spec->command;
  count_groups(r, &group, &neighbours);
  if (!r->spec->group.ranks) return NPS_OK;
  list_tensors(r->spec, a);
  find_owners(r, a);
  NPS_TRY(nps_buffer_alloc((size_t)(MARK + PART) * sizeof *a->values, "a part of a tensor", &a->values));
  NPS_TRY(nps_buffer_alloc((size_t)(MARK + PART) * sizeof *a->values, "a part of a tensor", &a->narrow));
  return r->rank == 0 ? start(r, a, group, neighbours) : NPS_OK;
}

static void end(nps_runner_t *r) {
  asker_t *a = r->own;
  nps_command_free(a->command);
  nps_handover_free(a->handover);
  for (int i = 0; i < a->count; i++) free(a->entries[i].copied);
  free(a->targets);
  free(a->entries);
  free(a->values);
  free(a->narrow);
  free(a->totals);
  free(a);
}

/* ---- handing over ---- */

/* A part of a tensor, with its mark before it. */
typedef struct {
  float *numbers;
  size_t bytes; /* without the mark */
} part_t;

static const void *content_of(const part_t *part) { return part->numbers + MARK; }

/* Exact: the values are of that type already. */
static void narrow(const float *values, int64_t n, nps_dtype_t dtype, char *out) {
  double wide[NPS_CHUNK];
  const int64_t size = (int64_t)nps_dtype_size(dtype);
  for (int64_t at = 0; at < n; at += NPS_CHUNK) {
    const int64_t count = nps_min64(NPS_CHUNK, n - at);
    nps_tensor_widen(NPS_F32, values + at, count, wide);
    nps_tensor_narrow(wide, count, dtype, out + at * size);
  }
}

/* Makes elements [first, first + n) of a tensor. */
static part_t make_part(const nps_runner_t *r, const asker_t *a, int tensor, nps_dtype_t dtype, int64_t first,
                        int64_t n) {
  part_t part = {a->values, (size_t)n * nps_dtype_size(dtype)};
  const bool good = nps_candidate_make(r->candidate, tensor, first, n, a->values + MARK);
  if (good && dtype != NPS_F32) {
    part.numbers = (float *)(void *)a->narrow;
    narrow(a->values + MARK, n, dtype, (char *)(part.numbers + MARK));
  }
  part.numbers[0] = !good;
  nps_comm_progress(r->comm);
  return part;
}

static part_t receive_part(const nps_runner_t *r, const asker_t *a, int owner, nps_dtype_t dtype, int64_t n) {
  const part_t part = {a->values, (size_t)n * nps_dtype_size(dtype)};
  nps_message_wait(nps_comm_receive(r->spec->group.ranks, owner, part.numbers, MARK * sizeof(float) + part.bytes));
  return part;
}

/* What the other ranks do: they send what they hold, in the order in which the first writes it. */
static void send_tensors(const nps_runner_t *r, const asker_t *a) {
  for (int i = 0; i < a->count; i++) {
    const entry_t *e = &a->entries[i];
    if (e->tensor < 0 || e->owner != r->rank) continue;
    const nps_dtype_t dtype = nps_candidate_dtype(r->candidate, e->tensor);
    for (int64_t at = 0; at < a->targets[i].count; at += PART) {
      const part_t part = make_part(r, a, e->tensor, dtype, at, nps_min64(PART, a->targets[i].count - at));
      nps_message_wait(nps_comm_send(r->spec->group.ranks, 0, part.numbers, MARK * sizeof(float) + part.bytes));
    }
  }
}

/* Writes a tensor; goes on to receive when something has failed. @param[in,out] good  all values are finite */
static nps_err_t write_tensor(const nps_runner_t *r, asker_t *a, int i, int64_t offset, nps_err_t err, bool *good) {
  const entry_t *e = &a->entries[i];
  const nps_target_t *target = &a->targets[i];
  const int64_t size = (int64_t)nps_dtype_size(target->dtype);
  if (e->tensor < 0)
    return err != NPS_OK ? err : nps_handover_write(a->handover, e->copied, (size_t)(target->count * size), offset);
  for (int64_t at = 0; at < target->count; at += PART) {
    const int64_t n = nps_min64(PART, target->count - at);
    if (e->owner == r->rank && !(*good && err == NPS_OK)) break;
    const part_t part = e->owner == r->rank ? make_part(r, a, e->tensor, target->dtype, at, n)
                                            : receive_part(r, a, e->owner, target->dtype, n);
    *good = *good && part.numbers[0] == 0;
    if (*good && err == NPS_OK)
      err = nps_handover_write(a->handover, content_of(&part), part.bytes, offset + at * size);
  }
  return err;
}

/* Writes the model. @param[out] good  all values are finite */
static nps_err_t hand_over(const nps_runner_t *r, asker_t *a, const char **model, bool *good) {
  nps_safetensors_t plan;
  for (int i = 0; i < a->count; i++)
    if (a->entries[i].tensor >= 0) a->targets[i].dtype = nps_candidate_dtype(r->candidate, a->entries[i].tensor);
  nps_err_t err = nps_safetensors_plan(a->targets, a->count, &plan);
  if (err == NPS_OK) err = nps_handover_begin(a->handover, ++a->id, model);
  if (err == NPS_OK) err = nps_handover_write(a->handover, plan.header, plan.header_size, 0);
  *good = true;
  for (int i = 0; i < a->count; i++) err = write_tensor(r, a, i, plan.offset[i], err, good);
  nps_safetensors_free(&plan);
  return err == NPS_OK ? nps_handover_close(a->handover) : err;
}

/* ---- asking ---- */

/* Slots of one model that are asked for together. */
typedef struct {
  const nps_runner_t *runner;
  const nps_round_t *round;
  int64_t first, count;
} question_t;

static const nps_slot_t *slot_of(const question_t *q, int64_t i) { return &q->round->slots[q->first + i]; }

static const char *task_of(const question_t *q, int64_t i) { return q->runner->spec->tasks[slot_of(q, i)->task].name; }

static bool go_on(void *ctx) {
  const question_t *q = ctx;
  nps_comm_progress(q->runner->comm);
  return !q->round->is_stopped(q->round->ctx);
}

/* Scores of other samples cannot be compared: each task has as many as in the first answer.
 * @return what is wrong, or NULL */
static char *check_totals(const question_t *q, const asker_t *a) {
  for (int64_t i = 0; i < q->count; i++) {
    const nps_slot_t *slot = slot_of(q, i);
    const int64_t found = q->round->scores[q->first + i].total;
    int64_t *first = &a->totals[NPS_PARTS * slot->task + slot->job->part];
    if (*first == 0) *first = found;
    if (*first != found)
      return nps_xstrf("task '%s': expected \"total\": %lld, as in the first answer", task_of(q, i), (long long)*first);
  }
  return NULL;
}

/* @param[out] why  FAILED: owned text */
static nps_asked_t ask(question_t *q, asker_t *a, const char *model, char **why) {
  const nps_search_spec_t *spec = q->runner->spec;
  const char **names = nps_xcalloc((size_t)q->count, sizeof *names);
  for (int64_t i = 0; i < q->count; i++) names[i] = task_of(q, i);
  const nps_question_t question = {.id = a->id,
                                   .model = model,
                                   .tasks = names,
                                   .count = (int)q->count,
                                   .about = spec->command->about,
                                   .holdout = spec->fitness->holdout,
                                   .held = slot_of(q, 0)->job->part == NPS_PART_HELD,
                                   .expected = {spec->fitness->metric, spec->fitness->less_is_better}};
  nps_asked_t how = nps_command_ask_scores(a->command, &question, go_on, q, q->round->scores + q->first, NULL, why);
  char *wrong = how == NPS_ASKED_ANSWERED ? check_totals(q, a) : NULL;
  if (wrong) {
    *why = nps_command_refuse(a->command, wrong);
    how = NPS_ASKED_FAILED;
  }
  free(names);
  return how;
}

/* No sample at all, and NaN. */
static void fail_slots(const question_t *q) {
  for (int64_t i = 0; i < q->count; i++) q->round->scores[q->first + i] = (nps_score_t){.nll_sum = NAN};
}

static void score(nps_runner_t *r, question_t *q, asker_t *a, const char *model) {
  char *why = NULL;
  nps_asked_t how = ask(q, a, model, &why);
  if (how == NPS_ASKED_FAILED && nps_command_cannot_run(a->command)) { /* no fault of the model */
    r->err = nps_fail(NPS_ERR_RUNTIME, "fitness.command cannot be run: %s", why);
    how = NPS_ASKED_GIVEN_UP;
  }
  if (how == NPS_ASKED_FAILED) {
    fail_slots(q);
    nps_runner_note_failure(r, q->first, why);
  }
  for (int64_t i = 0; i < q->count && how != NPS_ASKED_GIVEN_UP; i++) q->round->done[q->first + i] = true;
  free(why);
}

static int64_t size(const nps_runner_t *r, const nps_round_t *round, int64_t first, int64_t end) {
  int64_t count = 1;
  (void)r;
  while (first + count < end && nps_slot_is_of_same_model(&round->slots[first], &round->slots[first + count])) count++;
  return count;
}

/* The command may have filled the place: without it, and what it holds, there may be room. */
static void make_room(nps_runner_t *r, asker_t *a) {
  nps_handover_end(a->handover);
  nps_command_distrust(a->command);
  nps_problem_clear();
  r->err = NPS_OK;
  r->again = a->retries = true;
}

static void run(nps_runner_t *r, const nps_round_t *round, int64_t first, int64_t count) {
  asker_t *a = r->own;
  question_t q = {r, round, first, count};
  const char *model = NULL;
  bool good;
  nps_slot_become(&round->slots[first], r->spec, r->candidate);
  if (r->rank > 0) {
    send_tensors(r, a);
    return;
  }
  r->err = hand_over(r, a, &model, &good);
  if (r->err == NPS_ERR_IO && !a->retries) {
    make_room(r, a);
    return;
  }
  a->retries = false;
  if (r->err == NPS_OK && good)
    score(r, &q, a, model);
  else if (r->err == NPS_OK) {
    fail_slots(&q);
    for (int64_t i = 0; i < count; i++) round->done[first + i] = true;
  }
  nps_handover_end(a->handover);
}

const nps_evaluator_kind_t nps_evaluator_command = {.begin = begin, .end = end, .size = size, .run = run};
