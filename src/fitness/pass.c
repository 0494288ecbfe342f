/* Passes: the steps of a network, rows of logits, scores. */
#include "fitness_internal.h"

#include "mixture.h"
#include "nps/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- stages and steps ---- */

void nps_net_begin_stage(nps_net_t *net, int stage) {
  net->stage = stage;
  if (stage >= net->stages) net->stages = stage + 1;
}

void nps_net_share(nps_net_t *net, int tensor, int stage) { net->tensors[tensor].also = stage; }

static void append(nps_net_t *net, nps_net_step_t step) {
  net->steps = nps_xrealloc(net->steps, (size_t)net->step_count + 1, sizeof *net->steps);
  net->steps[net->step_count++] = step;
}

void nps_net_add_step(nps_net_t *net, int stage) { append(net, (nps_net_step_t){.stage = stage, .table = -1}); }

void nps_net_add_table(nps_net_t *net, int stage, int tensor, int64_t rows, int64_t width) {
  const int64_t most = nps_max64(NPS_TABLE_COUNT / width, 1);
  for (int64_t first = 0; first < rows; first += most) {
    nps_net_step_t step = {.stage = stage, .table = tensor, .first = first, .rows = nps_min64(most, rows - first)};
    step.begin = first * width;
    step.count = step.rows * width;
    append(net, step);
  }
}

int nps_net_stages(const nps_net_t *net) { return net->stages; }

int nps_net_steps(const nps_net_t *net) { return net->step_count; }

const nps_net_step_t *nps_net_step(const nps_net_t *net, int i) { return &net->steps[i]; }

bool nps_net_uses(const nps_net_t *net, int stage, int tensor) {
  return net->tensors[tensor].stage == stage || net->tensors[tensor].also == stage;
}

bool nps_net_needs_whole(const nps_net_t *net, int stage, int tensor) {
  for (int i = 0; i < net->step_count; i++)
    if (net->steps[i].stage == stage && net->steps[i].table == tensor) return false;
  return nps_net_uses(net, stage, tensor);
}

/* ---- memory ---- */

static int64_t padded(int64_t n) { return (n + NPS_PAD - 1) / NPS_PAD * NPS_PAD; }

int64_t nps_net_activation(const nps_net_t *net, const nps_dataset_t *data, int batch) {
  return net->family->activation(net->shape, data, batch);
}

/* The tallies come behind the activation. */
static nps_tally_t *tallies_of(const nps_net_t *net, const nps_dataset_t *data, int n, const float *state) {
  return (nps_tally_t *)(uintptr_t)(state + padded(nps_net_activation(net, data, n)));
}

int64_t nps_net_state(const nps_net_t *net, const nps_dataset_t *data, int batch) {
  const int64_t tallies = net->family->rows(net->shape, data, batch) * (int64_t)(sizeof(nps_tally_t) / sizeof(float));
  return padded(nps_net_activation(net, data, batch)) + padded(tallies);
}

static size_t mixing_room(const nps_net_t *net) { return net->mixture ? nps_mixture_room(net->mixture) : 0; }

size_t nps_net_step_bytes(const nps_net_t *net, const nps_dataset_t *data, int batch) {
  return (mixing_room(net) + (size_t)net->family->scratch(net->shape, data, batch)) * sizeof(float);
}

size_t nps_net_scratch_bytes(const nps_net_t *net, const nps_dataset_t *data, int batch) {
  return (size_t)nps_net_state(net, data, batch) * sizeof(float) + nps_net_step_bytes(net, data, batch);
}

/* ---- tallies ---- */

/* There is no largest where one of them is NaN. */
enum { NO_CLASS = -2 };

/* A part's exponentials are relative to the largest logit so far; a larger one scales what was there. */
static void add_part(nps_tally_t *t, const float *z, int64_t first, int64_t count) {
  double most = t->most;
  bool finite = true;
  for (int64_t c = 0; c < count; c++) {
    finite = finite && isfinite(z[c]);
    if (isnan(z[c])) t->best = NO_CLASS;
    if (!((double)z[c] > most)) continue;
    most = (double)z[c];
    if (t->best != NO_CLASS) t->best = (int32_t)(first + c);
  }
  if (t->sum != 0) t->sum *= exp(t->most - most);
  t->most = most;
  for (int64_t c = 0; c < count; c++) t->sum += exp((double)z[c] - most);
  if (!finite) t->sum = NAN;
}

static void tally(nps_tally_t *t, int label, const float *z, int64_t first, int64_t count) {
  t->label = label;
  if (label >= first && label < first + count) t->own = (double)z[label - first];
  add_part(t, z, first, count);
}

static double nll_of(const nps_tally_t *t) { return log(t->sum) + t->most - t->own; }

static void add_tally(const nps_tally_t *t, nps_score_t *score) {
  score->total++;
  score->correct += t->best == t->label;
  score->nll_sum += nll_of(t);
}

void nps_pass_take(const nps_pass_t *pass, int64_t row, int label, const float *z, int64_t first, int64_t count) {
  tally(&pass->tallies[row], label, z, first, count);
  if (pass->logits) memcpy(pass->logits + row * pass->classes + first, z, (size_t)count * sizeof *z);
}

void nps_pass_take_samples(const nps_pass_t *pass, const float *z, int64_t classes) {
  for (int64_t i = 0; i < pass->n; i++)
    nps_pass_take(pass, i, pass->data->labels[pass->samples[i]], z + i * classes, 0, classes);
}

int64_t nps_pass_sample_rows(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)shape, (void)data;
  return n;
}

/* ---- what counts as right ---- */

/* Text i of the batch from *at on: the sum of its places' nll, and how many. */
static double sum_text(const nps_pass_t *pass, int64_t i, int64_t *at, int64_t *count, bool *right) {
  double nll = 0;
  *count = 0;
  *right = true;
  for (; *at < pass->rows && pass->tallies[*at].label >= 0 && pass->tallies[*at].text == i; ++*at, ++*count) {
    nll += nll_of(&pass->tallies[*at]);
    *right = *right && pass->tallies[*at].best == pass->tallies[*at].label;
  }
  return nll;
}

/* One tally a text: right where all of its places are. */
static int64_t fold_texts(const nps_pass_t *pass) {
  int64_t at = 0, texts = 0, count = 0;
  for (int64_t i = 0; i < nps_dataset_texts(pass->data, pass->n); i++) {
    bool right = false;
    const double nll = sum_text(pass, i, &at, &count, &right);
    if (count == 0) continue;
    pass->tallies[texts++] = (nps_tally_t){.sum = 1, .own = -nll, .best = right ? 0 : NO_CLASS};
  }
  return texts;
}

/* One tally a sample: its classes are the choices, whose logits are their log-likelihoods. */
static int64_t fold_choices(const nps_pass_t *pass) {
  const nps_dataset_t *data = pass->data;
  int64_t at = 0, count = 0;
  for (int64_t i = 0; i < pass->n; i++) {
    nps_tally_t sample = {.most = -INFINITY, .best = -1};
    for (int64_t c = 0; c < data->choices; c++) {
      bool right = false;
      const double nll = sum_text(pass, i * data->choices + c, &at, &count, &right);
      const int64_t length = data->lengths ? data->lengths[pass->samples[i] * data->choices + c] : count;
      const float z = (float)(data->scored == NPS_SCORED_MEAN ? -nll / (double)length : -nll);
      tally(&sample, data->labels[pass->samples[i]], &z, c, 1);
    }
    pass->tallies[i] = sample;
  }
  return pass->n;
}

/* Folded tallies take the place of those of places; there are never more of them, nor do they come later. */
static void fold(const nps_pass_t *pass) {
  if (pass->data->scored == NPS_SCORED_PLAIN) return;
  const int64_t count = pass->data->scored == NPS_SCORED_EXACT ? fold_texts(pass) : fold_choices(pass);
  for (int64_t i = count; i < pass->rows; i++) pass->tallies[i].label = -1;
}

/* ---- passes ---- */

static void start_tallies(const nps_pass_t *pass) {
  for (int64_t i = 0; i < pass->rows; i++)
    pass->tallies[i] = (nps_tally_t){.most = -INFINITY, .best = -1, .label = -1, .text = (int32_t)i};
}

static void run(const nps_net_t *net, const nps_net_step_t *step, nps_pass_t *pass, void *scratch) {
  pass->mixture = net->mixture;
  pass->mixing = scratch;
  pass->classes = net->classes;
  pass->rows = net->family->rows(net->shape, pass->data, pass->n);
  pass->tallies = tallies_of(net, pass->data, (int)pass->n, pass->x);
  if (step->stage == net->stages - 1 && step->first == 0) start_tallies(pass);
  net->family->run(net->shape, pass, step, pass->mixing + mixing_room(net));
  const nps_net_step_t *last = &net->steps[net->step_count - 1];
  if (step->stage == last->stage && step->first == last->first) fold(pass);
}

void nps_net_run(const nps_net_t *net, const nps_net_step_t *step, const float *const *weights, const float *table,
                 const nps_dataset_t *data, const int64_t *samples, int n, void *scratch, float *state) {
  nps_pass_t pass = {.weights = weights, .table = table, .data = data, .samples = samples, .n = n, .x = state};
  nps_watch_begin("scoring a batch of", data->path);
  run(net, step, &pass, scratch);
  nps_watch_end();
}

void nps_net_logits(const nps_net_t *net, const float *const *weights, const nps_dataset_t *data,
                    const int64_t *samples, int n, void *scratch, float *logits) {
  float *state = scratch;
  nps_pass_t pass = {.weights = weights, .data = data, .samples = samples, .n = n, .x = state, .logits = logits};
  for (int i = 0; i < net->step_count; i++) {
    const nps_net_step_t *step = &net->steps[i];
    pass.table = step->table < 0 ? NULL : weights[step->table] + step->begin;
    run(net, step, &pass, state + nps_net_state(net, data, n));
  }
}

/* ---- scores ---- */

nps_score_t nps_net_finish(const nps_net_t *net, const nps_dataset_t *data, int n, const float *state) {
  const nps_tally_t *tallies = tallies_of(net, data, n, state);
  const int64_t rows = net->family->rows(net->shape, data, n);
  nps_score_t score = {0};
  for (int64_t i = 0; i < rows && tallies[i].label >= 0; i++) add_tally(&tallies[i], &score);
  return score;
}

nps_score_t nps_logits_score(const float *logits, int classes, const nps_dataset_t *data, const int64_t *samples,
                             int n) {
  nps_score_t score = {0};
  for (int i = 0; i < n; i++) {
    nps_tally_t t = {.most = -INFINITY, .best = -1};
    tally(&t, data->labels[samples[i]], logits + (int64_t)i * classes, 0, classes);
    add_tally(&t, &score);
  }
  return score;
}

nps_score_t nps_net_score(const nps_net_t *net, const float *const *weights, const nps_dataset_t *data,
                          const int64_t *samples, int n, void *scratch) {
  nps_watch_begin("scoring a batch of", data->path);
  nps_net_logits(net, weights, data, samples, n, scratch, NULL);
  nps_watch_end();
  return nps_net_finish(net, data, n, scratch);
}
