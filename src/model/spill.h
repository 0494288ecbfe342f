/** @file spill.h
 *  Bytes that are written down, in a file without a name, to be read back. */
#ifndef NPS_MODEL_SPILL_H
#define NPS_MODEL_SPILL_H

#include "nps/base.h"

typedef struct nps_spill {
  nps_text_t tail; /**< not yet in the file: bytes are added here */
  int fd;          /**< -1: not open */
  char *path;      /**< for messages */
  int64_t size;    /**< of the file */
} nps_spill_t;

/** A tail is brought to the file when it is that long. */
#define NPS_SPILL_BYTES ((size_t)1 << 20)

/** Open a file beside a path. Local. @param[out] spill  begins with fd −1; closed with nps_spill_close(), after errors too
 *  @return NPS_ERR_IO, as the others */
nps_err_t nps_spill_open(const char *beside, nps_spill_t *spill);
void nps_spill_close(nps_spill_t *spill);

/** Give the place of the next byte. */
static inline int64_t nps_spill_end(const nps_spill_t *spill) { return spill->size + (int64_t)spill->tail.size; }

/** Bring the tail to the file where it has at least so many bytes / read bytes of the file. Local. */
nps_err_t nps_spill_settle(nps_spill_t *spill, size_t least);
nps_err_t nps_spill_read(const nps_spill_t *spill, int64_t at, size_t n, char *to);

#endif
