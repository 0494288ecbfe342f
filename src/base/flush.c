#include "nps/flush.h"

#include "nps/watch.h"

#include "thread.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

struct nps_flush {
  int fd;
  int64_t unsent; /* bytes */
  pthread_t thread;
  bool runs;

  pthread_mutex_t lock; /* of what follows */
  pthread_cond_t news;
  bool asked, ends;
  int cause; /* errno of the first failure */
};

nps_flush_t *nps_flush_begin(int fd) {
  nps_flush_t *f = nps_xcalloc(1, sizeof *f);
  f->fd = fd;
  pthread_mutex_init(&f->lock, NULL);
  pthread_cond_init(&f->news, NULL);
  return f;
}

/* With the lock, which is given back meanwhile. */
static void flush_now(nps_flush_t *f) {
  f->asked = false;
  pthread_mutex_unlock(&f->lock);
  int cause;
  do cause = fdatasync(f->fd) != 0 ? errno : 0;
  while (cause == EINTR);
  pthread_mutex_lock(&f->lock);
  if (f->cause == 0) f->cause = cause;
}

static void *run(void *ctx) {
  nps_flush_t *f = ctx;
  pthread_mutex_lock(&f->lock);
  while (f->asked || !f->ends)
    if (f->asked)
      flush_now(f);
    else
      pthread_cond_wait(&f->news, &f->lock);
  pthread_mutex_unlock(&f->lock);
  return NULL;
}

static void tell(nps_flush_t *f, bool *what) {
  pthread_mutex_lock(&f->lock);
  *what = true;
  pthread_cond_signal(&f->news);
  pthread_mutex_unlock(&f->lock);
}

void nps_flush_note(nps_flush_t *flush, int64_t bytes) {
  flush->unsent += bytes;
  if (flush->unsent < NPS_FLUSH_BYTES) return;
  flush->unsent = 0;
  if (!flush->runs) flush->runs = nps_thread_start(&flush->thread, run, flush);
  if (flush->runs) tell(flush, &flush->asked);
}

int nps_flush_end(nps_flush_t *flush, const char *path) {
  if (!flush) return 0;
  if (flush->runs) {
    tell(flush, &flush->ends);
    nps_watch_begin("bringing to the device", path);
    pthread_join(flush->thread, NULL);
    nps_watch_end();
  }
  const int cause = flush->cause;
  pthread_cond_destroy(&flush->news);
  pthread_mutex_destroy(&flush->lock);
  free(flush);
  return cause;
}
