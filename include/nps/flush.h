/** @file flush.h
 *  Bringing what was written to the device while the next bytes are computed: a thread that calls fdatasync() from time to time,
 *  and takes no signals. Layer 0, local. */
#ifndef NPS_FLUSH_H
#define NPS_FLUSH_H

#include "nps/base.h"

/** Bytes written after which they are brought to the device. */
#define NPS_FLUSH_BYTES ((int64_t)192 << 20)

/** What flushes one file. Opaque. */
typedef struct nps_flush nps_flush_t;

/** Begin. Ended with nps_flush_end().
 *  @param fd  open until then */
nps_flush_t *nps_flush_begin(int fd);

/** Note that bytes were written, which from time to time starts to flush the file. Does not wait: what is not flushed in time,
 *  or because there can be no thread, is left to who closes the file. */
void nps_flush_note(nps_flush_t *flush, int64_t bytes);

/** Wait, watched, for what was started, and end. NULL: nothing is done.
 *  @param path  for messages
 *  @return 0, or errno of the first failure, which a later fsync() of the same file may not tell again */
int nps_flush_end(nps_flush_t *flush, const char *path);

#endif
