/** @file watch.h
 *  What this process is doing, and a watchdog that tells on stderr when it gets no further, so that a file system, an evaluator
 *  or another rank that hangs is found by its name. It only tells: nothing is ended. Layer 0, local, for one thread a process.
 *
 *  Things that may take long are nested; the innermost is told. To begin one, to end one, and a beat are signs of life. */
#ifndef NPS_WATCH_H
#define NPS_WATCH_H

#include "nps/base.h"

#include <sys/types.h>

/** Start the watchdog: a thread that calls no MPI and takes no signals.
 *  @param who      begins its messages: "nps-merge: rank 3 on n012"; copied
 *  @param seconds  without a sign of life until it tells; then twice as many, and so on. 0 or less: it never tells
 *  @param tells_waiting  tell too when this process waits for others, which tell for themselves what holds them up */
void nps_watch_start(const char *who, double seconds, bool tells_waiting);

/** Stop the watchdog, where one was started. */
void nps_watch_stop(void);

/** Begin something: "reading" a file.
 *  @param doing  static
 *  @param what   NULL, or what it is done to; borrowed until nps_watch_end() */
void nps_watch_begin(const char *doing, const char *what);

/** Begin to wait for other ranks. */
void nps_watch_begin_wait(void);

/** End what was begun last. */
void nps_watch_end(void);

/** Give a sign of life. Cheap. */
void nps_watch_beat(void);

/** pread(), pwrite() and fsync(), watched. @param path  for messages */
ssize_t nps_watch_pread(int fd, void *to, size_t n, off_t at, const char *path);
ssize_t nps_watch_pwrite(int fd, const void *from, size_t n, off_t at, const char *path);
int nps_watch_fsync(int fd, const char *path);

#endif
