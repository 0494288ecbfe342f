#include "model_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Read in parts that stay in the processor's cache until they are hashed. */
#define PART_BYTES ((size_t)1 << 20)

struct nps_reader {
  const nps_model_t *model;
  nps_digest_t *digest;
  int file; /* the one last used, open as fd: a model may have more files than a process may open */
  int fd;   /* -1: none yet */
};

nps_reader_t *nps_reader_new(const nps_model_t *model, nps_digest_t *digest) {
  nps_reader_t *reader = nps_xcalloc(1, sizeof *reader);
  reader->model = model;
  reader->digest = digest;
  reader->fd = -1;
  return reader;
}

static nps_err_t use_file(nps_reader_t *reader, int file) {
  const char *path = reader->model->files[file].path;
  if (reader->fd >= 0 && reader->file == file) return NPS_OK;
  if (reader->fd >= 0) close(reader->fd);
  reader->file = file;
  reader->fd = open(path, O_RDONLY | O_CLOEXEC);
  if (reader->fd < 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be opened: %s", path, strerror(errno));
  posix_fadvise(reader->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  return NPS_OK;
}

static nps_err_t read_part(int fd, const char *path, char *dst, size_t n, int64_t offset) {
  while (n > 0) {
    const ssize_t got = pread(fd, dst, n, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", path, strerror(errno));
    if (got == 0) return nps_fail(NPS_ERR_INPUT, "%s: is shorter than when it was checked", path);
    dst += got;
    offset += got;
    n -= (size_t)got;
  }
  return NPS_OK;
}

nps_err_t nps_reader_read(nps_reader_t *reader, int i, int64_t first, int64_t count, void *dst) {
  const nps_tensor_info_t *t = &reader->model->tensors[i];
  const char *path = reader->model->files[t->file].path;
  const int64_t size = (int64_t)nps_dtype_size(t->dtype);
  if (first < 0 || count < 0 || first > t->count || count > t->count - first)
    return nps_fail(NPS_ERR_RUNTIME, "%s: tensor %s: elements %lld to %lld are outside of its %lld", path, t->name,
                    (long long)first, (long long)(first + count), (long long)t->count);
  if (count == 0) return NPS_OK;
  NPS_TRY(use_file(reader, t->file));
  int64_t offset = t->offset + first * size;
  size_t left = (size_t)(count * size);
  for (char *to = dst; left > 0;) {
    const size_t n = left < PART_BYTES ? left : PART_BYTES;
    NPS_TRY(read_part(reader->fd, path, to, n, offset));
    if (reader->digest) nps_digest_feed(reader->digest, path, offset, to, n);
    to += n;
    offset += (int64_t)n;
    left -= n;
  }
  return NPS_OK;
}

void nps_reader_free(nps_reader_t *reader) {
  if (!reader) return;
  if (reader->fd >= 0) close(reader->fd);
  free(reader);
}
