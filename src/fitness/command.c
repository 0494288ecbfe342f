/* Requests to a command and its answers. Whatever the process does with its three pipes, all of them are served together. */
#include "child.h"

#include "nps/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* An answer is a line of at most so many bytes. */
#define MOST_ANSWER ((size_t)16 << 20)

/* Bytes of stderr that are kept, and told. */
enum { TAIL = 4096, LAST_WORDS = 1024, LAST_LINES = 8 };

/* How often it is asked whether to go on, and how long a process may take to end once its stdin is closed. */
enum { TURN_MILLISECONDS = 20 };
#define END_SECONDS 5.0

struct nps_command {
  nps_command_options_t options;
  char *name; /* of the program, for messages */
  nps_child_t child;
  bool running;
  int start_error;     /* errno of the last start */
  int64_t answers;     /* of this process */
  nps_text_t out;      /* what it has printed since the last answer */
  char tail[2 * TAIL]; /* the last of stderr */
  size_t tail_size;
  bool has_told; /* that it prints more than answers */
};

/* ---- the process ---- */

static void start(nps_command_t *c) {
  c->tail_size = c->out.size = 0;
  c->answers = 0;
  c->start_error = nps_child_start(&c->options, &c->child);
  c->running = c->start_error == 0;
}

static void keep_tail(nps_command_t *c, const char *bytes, size_t n) {
  if (c->options.shows_stderr) fwrite(bytes, 1, n, stderr);
  if (n > TAIL) {
    bytes += n - TAIL;
    n = TAIL;
  }
  if (c->tail_size + n > sizeof c->tail) {
    memmove(c->tail, c->tail + c->tail_size - TAIL, TAIL);
    c->tail_size = TAIL;
  }
  memcpy(c->tail + c->tail_size, bytes, n);
  c->tail_size += n;
}

/* Reads what has come, as much as a pipe holds: a process may write without end. @return whether there may be more */
static bool take(nps_command_t *c, int *fd, bool is_err) {
  enum { MOST_READS = 32 };
  char bytes[65536];
  for (int i = 0; *fd >= 0 && i < MOST_READS; i++) {
    const ssize_t n = read(*fd, bytes, sizeof bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) {
      close(*fd);
      *fd = -1;
    } else if (is_err)
      keep_tail(c, bytes, (size_t)n);
    else if (c->out.size <= MOST_ANSWER)
      nps_text_add_bytes(&c->out, bytes, (size_t)n);
    nps_watch_beat();
  }
  return *fd >= 0;
}

/* What it says while it ends. */
static void take_last_words(nps_command_t *c) {
  const double until = nps_now() + 0.2;
  struct pollfd p = {.fd = c->child.err, .events = POLLIN};
  while (take(c, &c->child.err, true) && nps_now() < until) poll(&p, 1, 10);
}

static void stop(nps_command_t *c) {
  if (!c->running) return;
  nps_child_kill(&c->child);
  take_last_words(c);
  nps_child_close(&c->child);
  c->running = false;
}

/* ---- what it prints ---- */

/* The first line of what it printed that is no answer, cut to a reasonable length. @return bytes of the whole line */
static size_t add_line(const nps_command_t *c, nps_text_t *text) {
  enum { MOST = 120 };
  size_t n = strcspn(c->out.text, "\n");
  if (n > c->out.size) n = c->out.size;
  nps_text_add_bytes(text, c->out.text, n < MOST ? n : MOST);
  if (n > MOST) nps_text_add(text, " …");
  return n;
}

/* Whether it has printed more than its last answer, which the next would be taken for. That is told once. */
static bool has_said_more(nps_command_t *c) {
  take(c, &c->child.out, false);
  while (c->out.size > 0 && strchr(" \r\n\t", c->out.text[c->out.size - 1])) c->out.size--;
  if (c->out.size == 0 || c->has_told) return c->out.size > 0;
  nps_text_t line = {0};
  add_line(c, &line);
  nps_note("%s printed more on stdout than its answer, so that its process is begun anew before the next request: %s",
           c->name, line.text);
  free(line.text);
  return c->has_told = true;
}

static bool has_program(const char *path) {
  struct stat st;
  return access(path, X_OK) == 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static bool is_in_path(const char *program) {
  const char *path = getenv("PATH");
  bool found = false;
  for (const char *at = path ? path : "/bin:/usr/bin"; !found && at; at = strchr(at, ':')) {
    at += *at == ':';
    const int n = (int)strcspn(at, ":");
    char *file = n > 0 ? nps_xstrf("%.*s/%s", n, at, program) : nps_xstrdup(program);
    found = has_program(file);
    free(file);
  }
  return found;
}

nps_err_t nps_command_check(char *const *words, int count, const char *key) {
  if (count == 0) return nps_fail(NPS_ERR_CONFIG, "%s: expected a program and its arguments, found none", key);
  const bool is_path = strchr(words[0], '/') != NULL;
  if (is_path ? has_program(words[0]) : is_in_path(words[0])) return NPS_OK;
  if (!is_path) return nps_fail(NPS_ERR_CONFIG, "%s: %s: there is no such program in PATH", key, words[0]);
  return nps_fail(NPS_ERR_CONFIG, "%s: %s: %s", key, words[0],
                  access(words[0], F_OK) == 0 ? "is no program that can be run" : "there is no such program");
}

nps_command_t *nps_command_new(const nps_command_options_t *options) {
  nps_command_t *c = nps_xcalloc(1, sizeof *c);
  const char *slash = strrchr(options->words[0], '/');
  c->options = *options;
  c->name = nps_xstrdup(slash ? slash + 1 : options->words[0]);
  start(c);
  return c;
}

void nps_command_free(nps_command_t *c) {
  if (!c) return;
  if (c->running) {
    close(c->child.in);
    c->child.in = -1;
    const double until = nps_now() + END_SECONDS;
    while (!nps_child_look(&c->child, 0.01) && nps_now() < until) {
      take(c, &c->child.err, true);
      take(c, &c->child.out, false);
    }
    has_said_more(c);
  }
  stop(c);
  free(c->out.text);
  free(c->name);
  free(c);
}

void nps_command_distrust(nps_command_t *c) { stop(c); }

bool nps_command_cannot_run(const nps_command_t *c) {
  const nps_child_t *child = &c->child;
  if (c->start_error) return true;
  return c->answers == 0 && child->ended && child->known && WIFEXITED(child->status) &&
         WEXITSTATUS(child->status) == 127;
}

/* ---- what went wrong ---- */

/* The end of stderr: a few whole lines, indented. */
static void add_last_words(const nps_command_t *c, nps_text_t *why) {
  size_t end = c->tail_size, first;
  while (end > 0 && strchr(" \r\n\t", c->tail[end - 1])) end--;
  if (end == 0) return;
  first = end > LAST_WORDS ? end - LAST_WORDS : 0;
  while (first > 0 && first < end && c->tail[first - 1] != '\n') first++;
  if (first == end) first = end > LAST_WORDS ? end - LAST_WORDS : 0;
  int lines = 0;
  for (size_t i = end; i > first; i--)
    if (c->tail[i - 1] == '\n' && ++lines == LAST_LINES) first = i;
  nps_text_add(why, "; its last words on stderr:\n    ");
  for (size_t i = first; i < end; i++) {
    nps_text_add_bytes(why, c->tail + i, 1);
    if (c->tail[i] == '\n') nps_text_add(why, "    ");
  }
}

static void add_output(const nps_command_t *c, nps_text_t *why) {
  nps_text_t line = {0};
  if (c->out.size == 0) return;
  const bool whole = add_line(c, &line) < c->out.size;
  nps_text_add(why, "; it printed %s: %s", whole ? "the line" : "half a line", line.text ? line.text : "");
  free(line.text);
}

/* Ends the process. @param text  owned; what is wrong with it @return the whole reason */
static char *fail(nps_command_t *c, char *text) {
  nps_text_t why = {0};
  stop(c);
  nps_text_add(&why, "%s %s", c->name, text);
  add_output(c, &why);
  add_last_words(c, &why);
  c->out.size = 0;
  free(text);
  return nps_text_printable(why.text);
}

/* ---- a request ---- */

/* A request on its way. */
typedef struct {
  nps_command_t *c;
  const char *line;
  size_t size, sent;
  double asked; /* when it was last looked, by nps_now() */
  double spent; /* seconds of waiting */
} asking_t;

static void send_more(asking_t *a) {
  nps_child_t *child = &a->c->child;
  const ssize_t n = nps_child_write(child, a->line + a->sent, a->size - a->sent);
  if (n > 0) a->sent += (size_t)n;
  if (a->sent < a->size && (n >= 0 || errno == EAGAIN || errno == EINTR)) return;
  if (a->sent < a->size) { /* nobody reads: it is seen below whether the process lives */
    close(child->in);
    child->in = -1;
  }
}

/* Counts the time since the last turn; not that in which this process, and with it the command, was suspended. */
static void count_time(asking_t *a) {
  const double now = nps_now(), most = 1;
  a->spent += now - a->asked < most ? now - a->asked : most;
  a->asked = now;
}

/* Moves on what can be moved on, or waits for a moment. */
static void turn(asking_t *a) {
  nps_child_t *child = &a->c->child;
  struct pollfd p[4] = {{.fd = child->out, .events = POLLIN},
                        {.fd = child->err, .events = POLLIN},
                        {.fd = child->socket, .events = POLLIN},
                        {.fd = a->sent < a->size ? child->in : -1, .events = POLLOUT}};
  if (poll(p, 4, TURN_MILLISECONDS) <= 0) return;
  if (p[3].revents) send_more(a);
  if (p[1].revents) take(a->c, &child->err, true);
  if (p[0].revents) take(a->c, &child->out, false);
  if (p[2].revents && nps_child_look(child, 0)) { /* all it has printed is in the pipe */
    take(a->c, &child->out, false);
    take(a->c, &child->err, true);
  }
}

/* Whether a line has come. */
static bool has_line(const nps_command_t *c) { return c->out.size > 0 && memchr(c->out.text, '\n', c->out.size); }

/* What ends the waiting without an answer. @return NULL: nothing yet */
static char *find_trouble(const asking_t *a) {
  nps_command_t *c = a->c;
  if (c->out.size > MOST_ANSWER) return nps_xstrdup("printed more than 16 MiB without an end of line");
  if (c->child.out < 0) nps_child_look(&c->child, 1); /* most often it is about to end */
  if (c->child.ended) return nps_child_end(&c->child);
  if (c->child.out < 0) return nps_xstrdup("closed its stdout");
  if (a->spent > c->options.timeout) return nps_xstrf("gave no answer within %g s", c->options.timeout);
  return NULL;
}

/* Takes the answer that has come. @return what is wrong with it, or NULL */
static char *read_answer(nps_command_t *c, const json_t *request, json_t **answer) {
  json_error_t error;
  const size_t n = (size_t)((char *)memchr(c->out.text, '\n', c->out.size) - c->out.text);
  json_t *found = json_loadb(c->out.text, n, JSON_REJECT_DUPLICATES, &error);
  if (!json_is_object(found)) {
    json_decref(found);
    return found ? nps_xstrdup("answered with what is no JSON object")
                 : nps_xstrf("answered with what is no JSON (%s)", error.text);
  }
  if (!json_equal(json_object_get(found, "id"), json_object_get(request, "id"))) {
    json_decref(found);
    return nps_xstrf("answered another request: expected \"id\": %lld",
                     (long long)json_integer_value(json_object_get(request, "id")));
  }
  memmove(c->out.text, c->out.text + n + 1, c->out.size - n - 1);
  c->out.size -= n + 1;
  *answer = found;
  return NULL;
}

/* Sends the line and waits for one. @param[out] trouble  FAILED: what is wrong */
static nps_asked_t exchange(asking_t *a, bool (*go_on)(void *ctx), void *ctx, char **trouble) {
  while (!has_line(a->c) && !(*trouble = find_trouble(a))) {
    if (!go_on(ctx)) return NPS_ASKED_GIVEN_UP;
    turn(a);
    count_time(a);
  }
  if (!*trouble) return NPS_ASKED_ANSWERED;
  poll(NULL, 0, TURN_MILLISECONDS); /* what ends a whole job may end the command first */
  if (go_on(ctx)) return NPS_ASKED_FAILED;
  free(*trouble);
  *trouble = NULL;
  return NPS_ASKED_GIVEN_UP;
}

/* A process that has done its work well, and ends: it is no failure of the request that comes too late for it. */
static bool has_retired(const nps_command_t *c) {
  return c->child.ended && c->child.known && c->child.status == 0 && c->answers > 0 && c->out.size == 0;
}

/* Makes the process one that can be asked. */
static void make_ready(nps_command_t *c) {
  if (c->running && (nps_child_look(&c->child, 0) || has_said_more(c))) stop(c);
  if (!c->running) start(c);
}

static nps_asked_t ask(nps_command_t *c, const char *line, bool (*go_on)(void *ctx), void *ctx, char **trouble) {
  for (;;) {
    make_ready(c);
    if (!c->running) {
      *trouble = nps_xstrf("cannot be started: %s", strerror(c->start_error));
      return NPS_ASKED_FAILED;
    }
    asking_t a = {.c = c, .line = line, .size = strlen(line), .asked = nps_now()};
    const nps_asked_t how = exchange(&a, go_on, ctx, trouble);
    if (how != NPS_ASKED_FAILED || !has_retired(c)) return how;
    free(*trouble);
  }
}

nps_asked_t nps_command_ask(nps_command_t *c, const json_t *request, bool (*go_on)(void *ctx), void *ctx,
                            json_t **answer, char **why) {
  char *text = json_dumps(request, JSON_COMPACT), *line = nps_xstrf("%s\n", text ? text : ""), *trouble = NULL;
  *answer = NULL;
  *why = NULL;
  nps_watch_begin("waiting for an answer of", c->name);
  nps_asked_t how = ask(c, line, go_on, ctx, &trouble);
  nps_watch_end();
  if (how == NPS_ASKED_ANSWERED) trouble = read_answer(c, request, answer);
  if (trouble) {
    *why = fail(c, trouble);
    how = NPS_ASKED_FAILED;
  }
  if (how == NPS_ASKED_ANSWERED) c->answers++;
  if (how == NPS_ASKED_GIVEN_UP) stop(c);
  free(text);
  free(line);
  return how;
}
