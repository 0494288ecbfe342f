/* Scoring within a group of ranks that hold the models together: each has some stages of the networks. The first rank takes
 * batches of a candidate in waves, the others follow; a rank makes the weights of a stage and runs the wave's batches through
 * it, stage by stage, and sends each batch on when it has come through the last of its own. */
#include "search_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Numbers before the state of a batch: the first is 1 where the candidate cannot be made. */
enum { MARK = 16 };

/* Memory for the states of a wave: so much, or a part of the models' memory. */
#define LEAST_ROOM ((int64_t)32 << 20)
#define ROOM_PART 20

/* A wave is to take so long, or so many times as long as making its weights, as the search can stop between waves only. */
#define WAVE_SECONDS 5.0
#define WAVE_BUILDS 10.0

/* Waves of each group of several ranks in a round, for each of its ranks: so few stand idle while the first ones come. */
#define WAVES_A_RANK 4

/* A tensor of the candidate that a stage needs whole. */
typedef struct {
  int tensor; /* of the store */
  int64_t at; /* in the buffer */
} piece_t;

typedef struct {
  piece_t *pieces; /* [count] */
  int count;
  int64_t numbers; /* of the buffer */
} stage_t;

/* A network's tensor that lies in the buffer. */
typedef struct {
  int stage, tensor;
  int64_t at;
} link_t;

typedef struct {
  const float **weights; /* [tensors of the net] */
  link_t *links;         /* [link_count] stage after stage */
  int link_count;
} task_t;

/* The native evaluator of a rank. */
typedef struct {
  const nps_comm_t *comm;
  const nps_search_spec_t *spec;
  nps_candidate_t *candidate;
  int rank, ranks; /* in the group */
  int first_step, end_step;
  stage_t *stages; /* [stages of the networks] */
  task_t *tasks;   /* [task_count] */
  int64_t wave;    /* most batches of one */
  int64_t room;    /* numbers of a batch's state, with MARK */
  int sets;        /* of states: with several ranks one is sent while the next is worked on */
  float *states;   /* [sets][wave][room] */
  float *buffer;   /* of a stage: the tensors that it needs whole, then a part of its table */
  void *scratch;
  nps_message_t **incoming, **outgoing;          /* [wave], [sets][wave] */
  int64_t turn;                                  /* waves so far */
  double build_seconds, run_seconds, wave_flops; /* of the last wave */
} native_t;

/* ---- what is needed ---- */

static int64_t batch_of(const nps_search_task_t *task, int batch) { return nps_min64(task->data->samples, batch); }

static int64_t most_room(const nps_search_task_t *tasks, int count, int batch) {
  int64_t most = 0;
  for (int t = 0; t < count; t++)
    most = nps_max64(most, nps_net_state(tasks[t].net, tasks[t].data, (int)batch_of(&tasks[t], batch)));
  return MARK + most;
}

static int64_t most_scratch(const nps_search_task_t *tasks, int count, int batch) {
  int64_t most = 0;
  for (int t = 0; t < count; t++)
    most = nps_max64(most, (int64_t)nps_net_step_bytes(tasks[t].net, tasks[t].data, (int)batch_of(&tasks[t], batch)));
  return most;
}

/* Batches of all tasks: a wave holds no more. */
static int64_t count_batches(const nps_search_task_t *tasks, int count, int batch) {
  int64_t batches = 0;
  for (int t = 0; t < count; t++) batches += tasks[t].data->samples / batch + NPS_PARTS;
  return batches;
}

/* Batches that a wave may have. @param held  bytes of the models that the rank holds */
static int64_t most_wave(const nps_search_task_t *tasks, int count, int batch, int sets, int64_t held) {
  const int64_t memory = nps_max64(LEAST_ROOM, held / ROOM_PART);
  const int64_t fit = memory / (sets * most_room(tasks, count, batch) * (int64_t)sizeof(float));
  return nps_max64(1, nps_min64(fit, count_batches(tasks, count, batch)));
}

/* Numbers of the tensors of the models that a stage needs whole. */
static int64_t whole_numbers(const nps_net_t *net, int stage) {
  int64_t numbers = 0;
  for (int i = 0; i < nps_net_tensor_count(net); i++)
    if (!nps_net_tensor(net, i)->of_head && nps_net_needs_whole(net, stage, i))
      numbers += nps_net_tensor(net, i)->count;
  return numbers;
}

/* Numbers of the largest part of a stage's table, where the models have it. */
static int64_t table_numbers(const nps_net_t *net, int stage) {
  int64_t most = 0;
  for (int i = 0; i < nps_net_steps(net); i++) {
    const nps_net_step_t *step = nps_net_step(net, i);
    if (step->stage == stage && step->table >= 0 && !nps_net_tensor(net, step->table)->of_head)
      most = nps_max64(most, step->count);
  }
  return most;
}

int64_t nps_search_work_bytes(const nps_search_task_t *tasks, int count, int batch, const nps_search_group_t *group) {
  const int sets = group->size > 1 ? 2 : 1;
  int64_t weights = 0;
  if (count > 0 && !tasks[0].net) return nps_ask_work_bytes();
  for (int t = 0; t < count; t++)
    for (int s = group->first; s < group->end; s++)
      weights = nps_max64(weights, whole_numbers(tasks[t].net, s) + table_numbers(tasks[t].net, s));
  const int64_t states = sets * most_wave(tasks, count, batch, sets, group->held) * most_room(tasks, count, batch);
  return (weights + states) * (int64_t)sizeof(float) + most_scratch(tasks, count, batch);
}

/* ---- preparing ---- */

/* Where a tensor lies in a stage's buffer. */
static int64_t place(stage_t *stage, const nps_store_t *store, int tensor) {
  for (int i = 0; i < stage->count; i++)
    if (stage->pieces[i].tensor == tensor) return stage->pieces[i].at;
  stage->pieces = nps_xrealloc(stage->pieces, (size_t)stage->count + 1, sizeof *stage->pieces);
  stage->pieces[stage->count++] = (piece_t){tensor, stage->numbers};
  stage->numbers += (nps_store_count(store, tensor) + MARK - 1) / MARK * MARK;
  return stage->pieces[stage->count - 1].at;
}

static void link_task(native_t *r, int t) {
  const nps_search_task_t *task = &r->spec->tasks[t];
  task_t *mine = &r->tasks[t];
  const int tensors = nps_net_tensor_count(task->net);
  mine->weights = nps_xcalloc((size_t)tensors, sizeof *mine->weights);
  mine->links = nps_xcalloc(2 * (size_t)tensors, sizeof *mine->links);
  for (int i = 0; i < tensors; i++)
    if (task->own && task->own[i]) mine->weights[i] = task->own[i];
  for (int s = r->spec->group.first; s < r->spec->group.end; s++)
    for (int i = 0; i < tensors; i++) {
      if (mine->weights[i] || !nps_net_needs_whole(task->net, s, i)) continue;
      const int tensor = nps_store_find(r->spec->store, nps_net_tensor(task->net, i)->name);
      mine->links[mine->link_count++] = (link_t){s, i, place(&r->stages[s], r->spec->store, tensor)};
    }
}

static bool has_same_steps(const nps_net_t *a, const nps_net_t *b) {
  if (nps_net_steps(a) != nps_net_steps(b)) return false;
  for (int i = 0; i < nps_net_steps(a); i++) {
    const nps_net_step_t *x = nps_net_step(a, i), *y = nps_net_step(b, i);
    if (x->stage != y->stage || (x->table < 0) != (y->table < 0) || x->begin != y->begin || x->count != y->count)
      return false;
  }
  return true;
}

/* Candidates go through the same stages with every task. */
static nps_err_t check_steps(const nps_search_spec_t *spec) {
  for (int t = 1; t < spec->task_count; t++)
    if (!has_same_steps(spec->tasks[0].net, spec->tasks[t].net))
      return nps_fail(NPS_ERR_INPUT, "tasks '%s' and '%s': their networks have different layers", spec->tasks[0].name,
                      spec->tasks[t].name);
  return NPS_OK;
}

static void find_own_steps(native_t *r) {
  const nps_net_t *net = r->spec->tasks[0].net;
  const nps_search_group_t *group = &r->spec->group;
  while (nps_net_step(net, r->first_step)->stage < group->first) r->first_step++;
  r->end_step = r->first_step;
  while (r->end_step < nps_net_steps(net) && nps_net_step(net, r->end_step)->stage < group->end) r->end_step++;
}

static nps_err_t make_room(native_t *r) {
  const nps_search_spec_t *spec = r->spec;
  const int batch = spec->fitness->batch;
  int64_t numbers = 1;
  for (int s = spec->group.first; s < spec->group.end; s++)
    for (int t = 0; t < spec->task_count; t++)
      numbers = nps_max64(numbers, r->stages[s].numbers + table_numbers(spec->tasks[t].net, s));
  r->sets = r->ranks > 1 ? 2 : 1;
  r->room = (most_room(spec->tasks, spec->task_count, batch) + MARK - 1) / MARK * MARK;
  r->wave = most_wave(spec->tasks, spec->task_count, batch, r->sets, spec->group.held);
  double least = -(double)r->wave;
  nps_comm_max_f64(spec->group.ranks, &least, 1);
  r->wave = (int64_t)-least;
  r->incoming = nps_xcalloc((size_t)r->wave, sizeof *r->incoming);
  r->outgoing = nps_xcalloc((size_t)(r->sets * r->wave), sizeof *r->outgoing);
  NPS_TRY(nps_buffer_alloc((size_t)numbers * sizeof(float), "the weights of a layer", &r->buffer));
  NPS_TRY(nps_buffer_alloc((size_t)(r->sets * r->wave * r->room) * sizeof(float), "activations", &r->states));
  return nps_buffer_alloc((size_t)most_scratch(spec->tasks, spec->task_count, batch), "a forward pass", &r->scratch);
}

static nps_err_t begin(nps_runner_t *runner) {
  const nps_search_spec_t *spec = runner->spec;
  native_t *r = runner->own = nps_xcalloc(1, sizeof *r);
  *r = (native_t){
      .comm = runner->comm, .spec = spec, .candidate = runner->candidate, .rank = runner->rank, .ranks = runner->ranks};
  NPS_TRY(check_steps(spec));
  if (!spec->group.ranks || spec->task_count == 0) return NPS_OK;
  r->stages = nps_xcalloc((size_t)nps_net_stages(spec->tasks[0].net), sizeof *r->stages);
  r->tasks = nps_xcalloc((size_t)spec->task_count, sizeof *r->tasks);
  for (int t = 0; t < spec->task_count; t++) link_task(r, t);
  find_own_steps(r);
  return make_room(r);
}

static void end(nps_runner_t *runner) {
  native_t *r = runner->own;
  for (int s = 0; r->stages && s < nps_net_stages(r->spec->tasks[0].net); s++) free(r->stages[s].pieces);
  for (int t = 0; r->tasks && t < r->spec->task_count; t++) {
    free(r->tasks[t].weights);
    free(r->tasks[t].links);
  }
  free(r->stages);
  free(r->tasks);
  free(r->incoming);
  free(r->outgoing);
  free(r->states);
  free(r->buffer);
  free(r->scratch);
  free(r);
}

/* ---- a wave ---- */

/* Batches of one candidate that go through the stages together. */
typedef struct {
  const nps_round_t *round;
  int64_t first;
  int64_t count;
  float *states;           /* [count][room] */
  nps_message_t **sending; /* [count] */
  bool good;               /* the candidate can be made, as far as this rank knows */
} wave_t;

static float *state_of(const native_t *r, const wave_t *w, int64_t i) { return w->states + i * r->room; }

static const nps_slot_t *slot_of(const wave_t *w, int64_t i) { return &w->round->slots[w->first + i]; }

/* Bytes of a batch's activation, with its mark. */
static size_t message_bytes(const native_t *r, const nps_slot_t *slot) {
  const nps_search_task_t *task = &r->spec->tasks[slot->task];
  return (size_t)(MARK + nps_net_activation(task->net, task->data, slot->count)) * sizeof(float);
}

/* Makes the weights that a stage needs whole. @return whether all are finite */
static bool build_stage(const native_t *r, int stage) {
  const stage_t *s = &r->stages[stage];
  bool good = true;
  for (int i = 0; i < s->count && good; i++)
    good = nps_candidate_make(r->candidate, s->pieces[i].tensor, 0,
                              nps_store_count(r->spec->store, s->pieces[i].tensor), r->buffer + s->pieces[i].at);
  for (int t = 0; t < r->spec->task_count; t++)
    for (int i = 0; i < r->tasks[t].link_count; i++) {
      const link_t *link = &r->tasks[t].links[i];
      if (link->stage == stage) r->tasks[t].weights[link->tensor] = r->buffer + link->at;
    }
  return good;
}

/* The part of a table that a task's step needs: the head's own, or what is made in the buffer. */
static const float *table_of(const native_t *r, int t, const nps_net_step_t *step) {
  const float *own = r->spec->tasks[t].own ? r->spec->tasks[t].own[step->table] : NULL;
  return own ? own + step->begin : r->buffer + r->stages[step->stage].numbers;
}

static bool build_table(const native_t *r, int t, const nps_net_step_t *step) {
  const nps_net_t *net = r->spec->tasks[t].net;
  const int tensor = nps_store_find(r->spec->store, nps_net_tensor(net, step->table)->name);
  if (r->spec->tasks[t].own && r->spec->tasks[t].own[step->table]) return true;
  return nps_candidate_make(r->candidate, tensor, step->begin, step->count, r->buffer + r->stages[step->stage].numbers);
}

static bool build(const native_t *r, int t, int at) {
  const nps_net_step_t *step = nps_net_step(r->spec->tasks[t].net, at);
  const bool begins = at == r->first_step || nps_net_step(r->spec->tasks[t].net, at - 1)->stage != step->stage;
  const bool good = !begins || build_stage(r, step->stage);
  return good && (step->table < 0 || build_table(r, t, step));
}

static void keep_score(const native_t *r, const wave_t *w, int64_t i) {
  const nps_slot_t *slot = slot_of(w, i);
  const nps_search_task_t *task = &r->spec->tasks[slot->task];
  const float *state = state_of(r, w, i);
  nps_score_t score = {.total = slot->count, .nll_sum = NAN};
  if (state[0] == 0) score = nps_net_finish(task->net, task->data, slot->count, state + MARK);
  w->round->scores[w->first + i] = score;
  w->round->done[w->first + i] = true;
}

/* Hands a batch to the next rank, or takes its score. */
static void deliver(const native_t *r, const wave_t *w, int64_t i) {
  if (r->rank == r->ranks - 1)
    keep_score(r, w, i);
  else
    w->sending[i] =
        nps_comm_send(r->spec->group.ranks, r->rank + 1, state_of(r, w, i), message_bytes(r, slot_of(w, i)));
}

static void receive(const native_t *r, int64_t i, float *state) {
  if (r->rank == 0) state[0] = 0;
  nps_message_wait(r->incoming[i]);
  r->incoming[i] = NULL;
}

static void run_batch(const native_t *r, const wave_t *w, int64_t i, int at) {
  const nps_slot_t *slot = slot_of(w, i);
  const nps_search_task_t *task = &r->spec->tasks[slot->task];
  float *state = state_of(r, w, i);
  const nps_net_step_t *step = nps_net_step(task->net, at);
  if (at == r->first_step) receive(r, i, state);
  if (!w->good) state[0] = 1;
  if (state[0] == 0)
    nps_net_run(task->net, step, r->tasks[slot->task].weights, step->table < 0 ? NULL : table_of(r, slot->task, step),
                task->data, slot->samples, slot->count, r->scratch, state + MARK);
  if (at == r->end_step - 1) deliver(r, w, i);
  nps_comm_progress(r->comm);
}

static wave_t start_wave(native_t *r, const nps_round_t *round, int64_t first, int64_t count) {
  const int64_t set = r->turn++ % r->sets;
  wave_t w = {.round = round, .first = first, .count = count, .good = true};
  w.states = r->states + set * r->wave * r->room;
  w.sending = r->outgoing + set * r->wave;
  for (int64_t i = 0; i < r->wave; i++) {
    nps_message_wait(w.sending[i]);
    w.sending[i] = NULL;
  }
  for (int64_t i = 0; r->rank > 0 && i < count; i++)
    r->incoming[i] =
        nps_comm_receive(r->spec->group.ranks, r->rank - 1, state_of(r, &w, i), message_bytes(r, slot_of(&w, i)));
  return w;
}

static void run_wave(native_t *r, const nps_round_t *round, int64_t first, int64_t count) {
  wave_t w = start_wave(r, round, first, count);
  const int task = slot_of(&w, 0)->task;
  const double began = nps_now();
  double building = 0;
  nps_slot_become(slot_of(&w, 0), r->spec, r->candidate);
  for (int at = r->first_step; at < r->end_step; at++) {
    const double now = nps_now();
    w.good = w.good && build(r, task, at);
    building += nps_now() - now;
    for (int64_t i = 0; i < count; i++) run_batch(r, &w, i, at);
  }
  r->build_seconds = building;
  r->run_seconds = nps_now() - began - building;
}

/* ---- how large waves are ---- */

static void finish(nps_runner_t *runner) {
  native_t *r = runner->own;
  for (int64_t i = 0; i < r->sets * r->wave; i++) {
    nps_message_wait(r->outgoing[i]);
    r->outgoing[i] = NULL;
  }
}

/* Work that a wave may have. */
static double most_flops(const native_t *r) {
  const double seconds = fmax(WAVE_SECONDS, WAVE_BUILDS * r->build_seconds);
  return r->run_seconds > 0 ? seconds / r->run_seconds * r->wave_flops : HUGE_VAL;
}

static int64_t size(const nps_runner_t *runner, const nps_round_t *round, int64_t first, int64_t end) {
  const native_t *r = runner->own;
  const nps_slot_t *slots = round->slots;
  const int64_t waves = (int64_t)WAVES_A_RANK * r->ranks * r->spec->group.count;
  const int64_t most = r->ranks > 1 ? nps_min64(r->wave, (round->count + waves - 1) / waves) : r->wave;
  const double limit = most_flops(r);
  double flops = slots[first].flops;
  int64_t count = 1;
  while (count < most && first + count < end && slots[first + count].job == slots[first].job &&
         slots[first + count].shake == slots[first].shake && flops + slots[first + count].flops <= limit)
    flops += slots[first + count++].flops;
  return count;
}

static void run(nps_runner_t *runner, const nps_round_t *round, int64_t first, int64_t count) {
  native_t *r = runner->own;
  run_wave(r, round, first, count);
  r->wave_flops = 0;
  for (int64_t i = 0; i < count; i++) r->wave_flops += round->slots[first + i].flops;
  if (r->rank == 0) runner->flops += r->wave_flops;
}

const nps_evaluator_kind_t nps_evaluator_native = {
    .begin = begin, .end = end, .size = size, .run = run, .finish = finish};
