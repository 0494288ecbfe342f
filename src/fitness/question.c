/* What a command is asked about a model, and what its answer means. */
#include "nps/command.h"

#include <stdlib.h>
#include <string.h>

json_t *nps_command_request(const nps_question_t *q) {
  json_t *tasks = json_array(), *about = json_object();
  for (int i = 0; i < q->count; i++) {
    json_array_append_new(tasks, json_string(q->tasks[i]));
    json_object_set(about, q->tasks[i], json_object_get(q->about, q->tasks[i]));
  }
  json_t *request =
      json_pack("{s:I, s:s, s:o, s:o}", "id", (json_int_t)q->id, "model", q->model, "tasks", tasks, "about", about);
  if (q->holdout > 0) {
    json_object_set_new(request, "holdout", json_real(q->holdout));
    json_object_set_new(request, "held", json_boolean(q->held));
  }
  return request;
}

/* The reason that a command gives by itself: {"error": "…"}. */
static char *reason_in(const json_t *answer) {
  const json_t *error = json_object_get(answer, "error");
  if (!error) return NULL;
  return nps_text_printable(
      nps_xstrf("the command says: %s", json_is_string(error) ? json_string_value(error) : "error"));
}

/* @return what is wrong with the scores, or NULL */
static char *take_scores(const nps_question_t *q, const json_t *request, const json_t *answer, nps_score_t *scores) {
  const json_t *held = json_object_get(request, "held");
  if (held && !json_equal(held, json_object_get(answer, "held")))
    return nps_xstrf("expected \"held\": %s, as fitness.holdout splits the samples",
                     json_is_true(held) ? "true" : "false");
  return nps_command_scores(answer, &q->expected, q->tasks, q->count, scores);
}

/* What is wrong, with the beginning of the answer. @param wrong  freed */
static char *quote(char *wrong, const json_t *answer) {
  enum { MOST = 300 };
  char *text = json_dumps(answer, JSON_COMPACT | JSON_ENSURE_ASCII);
  char *quoted = text ? nps_xstrf("%s; it is %.*s%s", wrong, MOST, text, strlen(text) > MOST ? " …" : "") : NULL;
  free(text);
  if (!quoted) return wrong;
  free(wrong);
  return quoted;
}

char *nps_command_refuse(nps_command_t *command, char *wrong) {
  char *why = nps_text_printable(nps_xstrf("the command's answer: %s", wrong));
  nps_command_distrust(command);
  free(wrong);
  return why;
}

nps_asked_t nps_command_ask_scores(nps_command_t *command, const nps_question_t *q, bool (*go_on)(void *ctx), void *ctx,
                                   nps_score_t *scores, json_t **answer, char **why) {
  json_t *request = nps_command_request(q), *found = NULL;
  nps_asked_t how = nps_command_ask(command, request, go_on, ctx, &found, why);
  if (how == NPS_ASKED_ANSWERED && !(*why = reason_in(found))) {
    char *wrong = take_scores(q, request, found, scores);
    if (wrong) *why = nps_command_refuse(command, quote(wrong, found));
  }
  if (*why) how = NPS_ASKED_FAILED;
  if (answer) *answer = how == NPS_ASKED_ANSWERED ? json_incref(found) : NULL;
  json_decref(request);
  json_decref(found);
  return how;
}
