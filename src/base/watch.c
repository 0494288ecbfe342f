#include "nps/watch.h"

#include "thread.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* Deeper ones are counted, not told. */
enum { DEPTH = 16 };

typedef struct {
  const char *doing; /* NULL: waiting for others */
  const char *what;
} act_t;

static struct {
  pthread_mutex_t lock;
  pthread_cond_t stopped;
  pthread_t thread;
  bool runs, stops;
  char *who;
  double seconds; /* HUGE_VAL: it never tells */
  bool tells_waiting;

  act_t acts[DEPTH];
  int depth;
  double since; /* last sign of life */
  double after; /* it tells when this much time has passed since then */
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER, .stopped = PTHREAD_COND_INITIALIZER};

/* ---- what is going on ---- */

/* With the lock. */
static void live(void) {
  watch.since = nps_now();
  watch.after = watch.seconds;
}

static void begin(act_t act) {
  pthread_mutex_lock(&watch.lock);
  if (watch.depth < DEPTH) watch.acts[watch.depth] = act;
  watch.depth++;
  live();
  pthread_mutex_unlock(&watch.lock);
}

void nps_watch_begin(const char *doing, const char *what) { begin((act_t){doing, what}); }

void nps_watch_begin_wait(void) { begin((act_t){0}); }

void nps_watch_end(void) {
  pthread_mutex_lock(&watch.lock);
  watch.depth--;
  live();
  pthread_mutex_unlock(&watch.lock);
}

void nps_watch_beat(void) {
  pthread_mutex_lock(&watch.lock);
  live();
  pthread_mutex_unlock(&watch.lock);
}

ssize_t nps_watch_pread(int fd, void *to, size_t n, off_t at, const char *path) {
  nps_watch_begin("reading", path);
  const ssize_t done = pread(fd, to, n, at);
  nps_watch_end();
  return done;
}

ssize_t nps_watch_pwrite(int fd, const void *from, size_t n, off_t at, const char *path) {
  nps_watch_begin("writing", path);
  const ssize_t done = pwrite(fd, from, n, at);
  nps_watch_end();
  return done;
}

int nps_watch_fsync(int fd, const char *path) {
  int code;
  nps_watch_begin("bringing to the device", path);
  do code = fsync(fd);
  while (code != 0 && errno == EINTR);
  nps_watch_end();
  return code;
}

/* ---- the watchdog ---- */

enum { LINE = 1024 };

/* @return bytes of the line */
static size_t describe(const act_t *act, double silent, char text[LINE]) {
  int n = snprintf(text, LINE, "%s has been %s%s%s for %.0f s\n", watch.who,
                   act->doing ? act->doing : "waiting for the other ranks", act->what ? " " : "",
                   act->what ? act->what : "", silent);
  return n < LINE ? (size_t)n : LINE - 1;
}

/* With the lock. @return bytes of what there is to tell, or 0 */
static size_t look(char text[LINE]) {
  const act_t idle = {"busy", NULL};
  const act_t *act = watch.depth == 0 ? &idle : &watch.acts[watch.depth < DEPTH ? watch.depth - 1 : DEPTH - 1];
  const double silent = nps_now() - watch.since;
  if (silent < watch.after || (!act->doing && !watch.tells_waiting)) return 0;
  watch.after = 2 * silent;
  return describe(act, silent, text);
}

/* One write: lines of several ranks do not mix. It may take long, and the work must not wait for it. */
static void tell(const char *text, size_t n) {
  pthread_mutex_unlock(&watch.lock);
  const ssize_t written = write(STDERR_FILENO, text, n);
  (void)written;
  pthread_mutex_lock(&watch.lock);
}

static struct timespec in_seconds(double seconds) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  const double at = (double)t.tv_nsec + 1e9 * seconds;
  t.tv_sec += (time_t)(at / 1e9);
  t.tv_nsec = (long)fmod(at, 1e9);
  return t;
}

static void *run(void *ctx) {
  char text[LINE];
  pthread_mutex_lock(&watch.lock);
  while (!watch.stops) {
    const struct timespec next = in_seconds(fmin(watch.seconds / 4, 5));
    pthread_cond_timedwait(&watch.stopped, &watch.lock, &next);
    const size_t n = watch.stops ? 0 : look(text);
    if (n > 0) tell(text, n);
  }
  pthread_mutex_unlock(&watch.lock);
  return ctx;
}

void nps_watch_start(const char *who, double seconds, bool tells_waiting) {
  watch.seconds = seconds > 0 ? seconds : HUGE_VAL;
  watch.tells_waiting = tells_waiting;
  watch.stops = false;
  nps_watch_beat();
  if (!(seconds > 0)) return;
  watch.who = nps_xstrdup(who);
  watch.runs = nps_thread_start(&watch.thread, run, NULL);
}

void nps_watch_stop(void) {
  if (watch.runs) {
    pthread_mutex_lock(&watch.lock);
    watch.stops = true;
    pthread_cond_signal(&watch.stopped);
    pthread_mutex_unlock(&watch.lock);
    pthread_join(watch.thread, NULL);
  }
  watch.runs = false;
  free(watch.who);
  watch.who = NULL;
}
