/* Scores of a model by the command of a config: the model is handed over and asked about as a search does it. */
#include "copy.h"
#include "open_model.h"
#include "run_internal.h"

#include "nps/command.h"

#include <stdlib.h>
#include <string.h>

/* Where a tensor that is handed over comes from. */
typedef struct {
  const nps_model_t *model;
  int tensor;
} source_t;

typedef struct {
  nps_run_state_t *run;
  const nps_eval_request_t *request;
  nps_model_t *model;
  nps_search_command_t what;
  nps_eval_t *eval;
  nps_target_t *targets; /* [count] this and what follows: rank 0 only */
  source_t *sources;     /* [count] */
  int count;
  void *buffer;   /* [NPS_STEP] elements */
  double *values; /* [NPS_STEP] */
  nps_handover_t *handover;
  nps_command_t *command;
} work_t;

/* ---- what is handed over: the tensors that the merged model of the config has, without heads ---- */

/* Integer buffers that the model lacks are the base's. */
static source_t find_source(const work_t *w, const nps_target_t *target) {
  const source_t own = {w->model, nps_model_find(w->model, target->name)};
  if (own.tensor >= 0 || target->action != NPS_ACTION_COPY) return own;
  return (source_t){w->what.base, target->source[w->what.base_input]};
}

static nps_err_t add_tensor(work_t *w, const nps_target_t *target, source_t source) {
  const nps_tensor_info_t *t = &source.model->tensors[source.tensor];
  char found[192], expected[192];
  if (t->ndim != target->ndim || memcmp(t->shape, target->shape, (size_t)t->ndim * sizeof *t->shape) != 0)
    return nps_fail(NPS_ERR_INPUT, "%s: tensor %s has shape %s, expected %s as in the merged model of %s",
                    w->request->model, t->name, nps_shape_format(t->ndim, t->shape, found),
                    nps_shape_format(target->ndim, target->shape, expected), w->request->config);
  w->targets[w->count] = *target;
  w->targets[w->count].dtype = nps_tensor_written(t);
  w->sources[w->count++] = source;
  return NPS_OK;
}

static nps_err_t list_tensors(work_t *w) {
  const nps_layout_t *layout = w->what.layout;
  bool changed;
  if (w->model->experts)
    return nps_fail(NPS_ERR_INPUT, "%s: is a mixture of experts, which cannot be handed over to a command",
                    w->request->model);
  NPS_TRY(nps_model_name_like(w->model, w->what.base, &changed));
  w->targets = nps_xcalloc((size_t)layout->count + 1, sizeof *w->targets);
  w->sources = nps_xcalloc((size_t)layout->count + 1, sizeof *w->sources);
  for (int t = 0; t < layout->count; t++) {
    const nps_target_t *target = &layout->targets[t];
    if (target->action == NPS_ACTION_HEAD) continue;
    const source_t source = find_source(w, target);
    if (source.tensor < 0)
      return nps_fail(NPS_ERR_INPUT, "%s: lacks tensor %s of the merged model of %s", w->request->model, target->name,
                      w->request->config);
    NPS_TRY(add_tensor(w, target, source));
  }
  return NPS_OK;
}

/* ---- handing over ---- */

static nps_err_t write_tensor(work_t *w, nps_reader_t *reader, int i, int64_t offset) {
  const nps_target_t *target = &w->targets[i];
  const source_t *source = &w->sources[i];
  const int64_t size = (int64_t)nps_dtype_size(target->dtype);
  for (int64_t first = 0; first < target->count; first += NPS_STEP) {
    const int64_t n = nps_min64(NPS_STEP, target->count - first);
    NPS_TRY(nps_reader_read(reader, source->tensor, first, n, w->buffer));
    NPS_TRY(nps_run_round_computed(source->model, target, source->tensor, first, n, w->values, w->buffer));
    NPS_TRY(nps_handover_write(w->handover, w->buffer, (size_t)(n * size), offset + first * size));
  }
  return NPS_OK;
}

static nps_err_t write_tensors(work_t *w, const nps_safetensors_t *plan) {
  nps_reader_t *own = nps_reader_new(w->model, NULL), *base = nps_reader_new(w->what.base, NULL);
  nps_err_t err = nps_handover_write(w->handover, plan->header, plan->header_size, 0);
  for (int i = 0; i < w->count && err == NPS_OK; i++)
    err = write_tensor(w, w->sources[i].model == w->model ? own : base, i, plan->offset[i]);
  nps_reader_free(own);
  nps_reader_free(base);
  return err;
}

static nps_err_t keep_files(work_t *w) {
  const nps_search_command_t *c = &w->what;
  if (c->config_json) NPS_TRY(nps_handover_keep(w->handover, "config.json", c->config_json, strlen(c->config_json)));
  for (int i = 0; i < c->sidecar_count; i++)
    NPS_TRY(nps_handover_keep(w->handover, c->sidecars[i].name, c->sidecars[i].data, c->sidecars[i].size));
  return NPS_OK;
}

/* @param[out] folder  as nps_handover_begin() gives it */
static nps_err_t hand_over(work_t *w, const char **folder) {
  nps_safetensors_t plan = {0};
  nps_err_t err;
  NPS_GOTO(nps_safetensors_plan(w->targets, w->count, &plan));
  NPS_GOTO(nps_buffer_alloc((size_t)NPS_STEP * sizeof(double), "a part of a tensor", &w->buffer));
  NPS_GOTO(nps_buffer_alloc((size_t)NPS_STEP * sizeof(double), "a part of a tensor", &w->values));
  NPS_GOTO(nps_handover_new(w->what.directory, plan.size, &w->handover));
  NPS_GOTO(keep_files(w));
  NPS_GOTO(nps_handover_begin(w->handover, 1, folder));
  NPS_GOTO(write_tensors(w, &plan));
  err = nps_handover_close(w->handover);
done:
  nps_safetensors_free(&plan);
  return err;
}

/* ---- asking ---- */

static bool go_on(void *ctx) {
  nps_comm_progress(ctx);
  return true;
}

/* Which figures all tasks have; that of the metric is there, or the answer would not count. */
static void find_known(nps_eval_t *eval, const json_t *answer) {
  for (int t = 0; t < eval->task_count; t++) {
    const json_t *score = json_object_get(json_object_get(answer, "scores"), eval->tasks[t].group);
    if (!json_object_get(score, "correct")) eval->known[NPS_FIGURE_ACCURACY] = false;
    if (!json_object_get(score, "nll_sum")) eval->known[NPS_FIGURE_NLL] = false;
  }
}

static void add_scores(nps_eval_t *eval, const nps_score_t *scores) {
  for (int t = 0; t < eval->task_count; t++) {
    eval->tasks[t].score.correct += scores[t].correct;
    eval->tasks[t].score.total += scores[t].total;
    eval->tasks[t].score.nll_sum += scores[t].nll_sum;
  }
}

static nps_err_t ask(work_t *w, nps_question_t *question, nps_score_t *scores) {
  json_t *answer = NULL;
  char *why = NULL;
  nps_err_t err = NPS_OK;
  question->id++;
  const nps_asked_t how =
      nps_command_ask_scores(w->command, question, go_on, (void *)(uintptr_t)w->run->comm, scores, &answer, &why);
  if (how == NPS_ASKED_ANSWERED) {
    find_known(w->eval, answer);
    add_scores(w->eval, scores);
  } else if (nps_command_cannot_run(w->command))
    err = nps_fail(NPS_ERR_RUNTIME, "fitness.command cannot be run: %s", why);
  else
    err = nps_fail(NPS_ERR_RUNTIME, "%s cannot be scored: %s", w->request->model, why);
  json_decref(answer);
  free(why);
  return err;
}

/* Both parts of the samples where some are held out: the scores are those of all. */
static nps_err_t ask_all(work_t *w, const char *folder) {
  const nps_recipe_fitness_t *fitness = &w->run->recipe->fitness;
  const int count = w->eval->task_count;
  const char **names = nps_xcalloc((size_t)count, sizeof *names);
  nps_score_t *scores = nps_xcalloc((size_t)count, sizeof *scores);
  for (int t = 0; t < count; t++) names[t] = w->eval->tasks[t].group;
  nps_question_t question = {.model = folder,
                             .tasks = names,
                             .count = count,
                             .about = w->what.about,
                             .holdout = fitness->holdout,
                             .expected = {fitness->metric, fitness->less_is_better}};
  nps_err_t err = ask(w, &question, scores);
  question.held = true;
  if (err == NPS_OK && fitness->holdout > 0) err = ask(w, &question, scores);
  free(names);
  free(scores);
  return err;
}

/* Rank 0's part. */
static nps_err_t score(work_t *w) {
  const char *folder = NULL;
  char spent[32];
  NPS_TRY(list_tensors(w));
  NPS_TRY(hand_over(w, &folder));
  const double since = nps_now();
  w->command = nps_command_new(&(nps_command_options_t){.words = w->what.words,
                                                        .word_count = w->what.word_count,
                                                        .timeout = w->what.timeout,
                                                        .folder = nps_handover_path(w->handover),
                                                        .shows_stderr = true});
  NPS_TRY(ask_all(w, folder));
  nps_report_line(w->run->report, "%s has answered in %s (fitness.timeout: %g s)", w->what.words[0],
                  nps_format_seconds(nps_now() - since, spent), w->what.timeout);
  return NPS_OK;
}

/* ---- the config ---- */

static nps_err_t take_tasks(const nps_run_state_t *run, nps_eval_t *eval) {
  const nps_recipe_fitness_t *fitness = &run->recipe->fitness;
  if (!nps_run_has_tasks(run) || !nps_run_asks_command(run))
    return nps_fail(NPS_ERR_CONFIG,
                    "%s: fitness.evaluator: expected command; the native evaluators score by --data FILE",
                    run->recipe->file);
  eval->tasks = nps_xcalloc((size_t)fitness->task_count, sizeof *eval->tasks);
  eval->task_count = fitness->task_count;
  for (int t = 0; t < fitness->task_count; t++) eval->tasks[t].group = nps_xstrdup(fitness->tasks[t].name);
  const bool value = fitness->metric == NPS_METRIC_VALUE;
  eval->known[NPS_FIGURE_ACCURACY] = eval->known[NPS_FIGURE_NLL] = !value;
  eval->known[NPS_FIGURE_VALUE] = value;
  eval->less_is_better = fitness->less_is_better;
  return NPS_OK;
}

/* The config is checked as a whole, as before a search. */
static nps_err_t look_at_config(nps_run_state_t *run) {
  NPS_TRY(nps_run_validate(run));
  return nps_comm_agree(run->comm, nps_run_read_sidecars(run));
}

static nps_err_t prepare(work_t *w) {
  const nps_comm_t *comm = w->run->comm;
  nps_note_mute(true); /* what is to be said of merging */
  const nps_err_t err = look_at_config(w->run);
  nps_note_mute(false);
  NPS_TRY(err);
  NPS_TRY(nps_comm_agree(comm, take_tasks(w->run, w->eval)));
  NPS_TRY(nps_run_open_model(comm, w->request->model, &w->model));
  nps_run_make_command(w->run, &w->what);
  if (nps_comm_size(comm) > 1) nps_note("a command scores one model on one rank: the others wait");
  return NPS_OK;
}

static void release(work_t *w) {
  nps_command_free(w->command);
  nps_handover_free(w->handover);
  nps_run_free_command(&w->what);
  nps_model_free(w->model);
  free(w->targets);
  free(w->sources);
  free(w->buffer);
  free(w->values);
}

nps_err_t nps_eval_ask(const nps_comm_t *comm, const nps_eval_request_t *request, nps_report_t *report,
                       nps_eval_t *eval) {
  const nps_run_options_t options = {.config = request->config,
                                     .overrides = request->overrides,
                                     .override_count = request->override_count,
                                     .check = true};
  nps_run_state_t run = {
      .comm = comm, .options = &options, .report = report, .started = nps_now(), .base = -1, .head = -1};
  work_t w = {.run = &run, .request = request, .eval = eval};
  nps_err_t err = prepare(&w);
  if (err == NPS_OK) err = nps_comm_agree(comm, nps_comm_rank(comm) == 0 ? score(&w) : NPS_OK);
  release(&w);
  nps_run_free(&run);
  return err;
}
