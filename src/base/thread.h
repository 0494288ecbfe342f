/** @file thread.h
 *  Threads beside the one that does the work. */
#ifndef NPS_BASE_THREAD_H
#define NPS_BASE_THREAD_H

#include <pthread.h>
#include <stdbool.h>

/** Start a thread that takes no signals: they are for the one that does the work. @return false where there can be none */
bool nps_thread_start(pthread_t *thread, void *(*run)(void *), void *ctx);

#endif
