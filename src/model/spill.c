#include "spill.h"

#include "writer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

nps_err_t nps_spill_open(const char *beside, nps_spill_t *spill) {
  spill->path = nps_xstrf("%s-XXXXXX", beside);
  spill->fd = mkstemp(spill->path);
  if (spill->fd < 0) return nps_fail(NPS_ERR_IO, "%s: cannot be created: %s", spill->path, strerror(errno));
  unlink(spill->path);
  return NPS_OK;
}

/* Brings the tail to the file where it is long enough. */
nps_err_t nps_spill_settle(nps_spill_t *spill, size_t least) {
  if (spill->tail.size < least || spill->tail.size == 0) return NPS_OK;
  NPS_TRY(nps_fd_write(spill->fd, spill->path, spill->tail.text, spill->tail.size, spill->size));
  spill->size += (int64_t)spill->tail.size;
  spill->tail.size = 0;
  return NPS_OK;
}

nps_err_t nps_spill_read(const nps_spill_t *spill, int64_t at, size_t n, char *to) {
  while (n > 0) {
    const ssize_t got = pread(spill->fd, to, n, at);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = EIO;
    if (got <= 0) return nps_fail(NPS_ERR_IO, "%s: cannot be read back: %s", spill->path, strerror(errno));
    to += got;
    at += got;
    n -= (size_t)got;
  }
  return NPS_OK;
}

void nps_spill_close(nps_spill_t *spill) {
  if (spill->fd >= 0) close(spill->fd);
  free(spill->tail.text);
  free(spill->path);
}
