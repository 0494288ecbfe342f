#include "thread.h"

#include <signal.h>

bool nps_thread_start(pthread_t *thread, void *(*run)(void *), void *ctx) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const bool started = pthread_create(thread, NULL, run, ctx) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return started;
}
