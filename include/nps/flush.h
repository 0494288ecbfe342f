/** @file flush.h
 *  Bringing a file's bytes to the device while the next ones are computed: a thread that calls fdatasync() when it is asked, and
 *  takes no signals. Layer 0, local. */
#ifndef NPS_FLUSH_H
#define NPS_FLUSH_H

#include "nps/base.h"

/** What flushes one file. Opaque. */
typedef struct nps_flush nps_flush_t;

/** Begin. Ended with nps_flush_end().
 *  @param fd  open until then
 *  @return NULL where there can be no thread: then nothing is flushed before its time */
nps_flush_t *nps_flush_begin(int fd);

/** Ask for all that has been written so far. Does not wait. */
void nps_flush_ask(nps_flush_t *flush);

/** Wait until all that was asked for is on the device, and end. NULL: nothing is done.
 *  @return 0, or errno of the first failure, which a later fsync() of the same descriptor does not tell again */
int nps_flush_end(nps_flush_t *flush);

#endif
