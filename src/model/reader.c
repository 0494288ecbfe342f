#include "model_internal.h"

#include "nps/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Read in parts that stay in the processor's cache until they are hashed. */
#define PART_BYTES ((size_t)1 << 20)
#define PAIR_ELEMENTS ((int64_t)1 << 16)

nps_reader_t *nps_reader_new(const nps_model_t *model, nps_digest_t *digest) {
  nps_reader_t *reader = nps_xcalloc(1, sizeof *reader);
  reader->model = model;
  reader->digest = digest;
  reader->fd = reader->mean_of = -1;
  return reader;
}

nps_reader_t *nps_reader_parent(nps_reader_t *reader, int parent) {
  const nps_model_t *model = reader->model;
  if (!reader->parents) reader->parents = nps_xcalloc((size_t)model->parent_count, sizeof *reader->parents);
  if (!reader->parents[parent]) reader->parents[parent] = nps_reader_new(model->parents[parent], reader->digest);
  return reader->parents[parent];
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
    const ssize_t got = nps_watch_pread(fd, dst, n, (off_t)offset, path);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", path, strerror(errno));
    if (got == 0) return nps_fail(NPS_ERR_INPUT, "%s: is shorter than when it was checked", path);
    dst += got;
    offset += got;
    n -= (size_t)got;
  }
  return NPS_OK;
}

static nps_err_t check_range(const nps_reader_t *reader, int i, int64_t first, int64_t count) {
  const nps_tensor_info_t *t = &reader->model->tensors[i];
  if (first >= 0 && count >= 0 && first <= t->count && count <= t->count - first) return NPS_OK;
  return nps_fail(NPS_ERR_RUNTIME, "%s: tensor %s: elements %lld to %lld are outside of its %lld",
                  reader->model->files[t->file].path, t->name, (long long)first, (long long)(first + count),
                  (long long)t->count);
}

/* Finds where the elements [first, first + count) of a tensor lie, and opens the file. */
static nps_err_t find_bytes(nps_reader_t *reader, int i, int64_t first, int64_t count, nps_digest_part_t *bytes) {
  const nps_tensor_info_t *t = &reader->model->tensors[i];
  const char *path = reader->model->files[t->file].path;
  const int64_t size = (int64_t)nps_dtype_size(t->dtype);
  NPS_TRY(check_range(reader, i, first, count));
  *bytes = (nps_digest_part_t){.path = path, .offset = t->offset + first * size, .n = (size_t)(count * size)};
  return count > 0 ? use_file(reader, t->file) : NPS_OK;
}

static nps_err_t compute(nps_reader_t *reader, int i, int64_t first, int64_t count, void *dst) {
  const nps_derivation_form_t *form = reader->model->derivation->form;
  NPS_TRY(check_range(reader, i, first, count));
  if (!reader->state) NPS_TRY(form->begin(reader->model, reader->digest, &reader->state));
  return count > 0 ? form->read(reader->state, i, first, count, dst) : NPS_OK;
}

nps_err_t nps_reader_read(nps_reader_t *reader, int i, int64_t first, int64_t count, void *dst) {
  nps_digest_part_t part;
  nps_made_resolve(&reader, &i, &first, count);
  if (reader->model->tensors[i].made) return nps_made_read(reader, i, first, count, dst);
  if (reader->model->tensors[i].rule) return compute(reader, i, first, count, dst);
  NPS_TRY(find_bytes(reader, i, first, count, &part));
  size_t left = part.n;
  for (char *to = dst; left > 0;) {
    const size_t n = left < PART_BYTES ? left : PART_BYTES;
    NPS_TRY(read_part(reader->fd, part.path, to, n, part.offset));
    if (reader->digest) nps_digest_feed(reader->digest, part.path, part.offset, to, n);
    to += n;
    part.offset += (int64_t)n;
    left -= n;
  }
  return NPS_OK;
}

/* Whether its bytes are not simply there. */
static bool is_computed(const nps_read_t *read) {
  const nps_tensor_info_t *t = &read->reader->model->tensors[read->tensor];
  return t->rule != 0 || t->made;
}

/* @param begin  [2] first element of each */
static nps_err_t read_stored(const nps_read_t read[2], const int64_t begin[2], int64_t count) {
  nps_digest_t *digest = read[0].reader->digest;
  char *to[] = {read[0].dst, read[1].dst};
  for (int64_t at = 0; at < count; at += PAIR_ELEMENTS) {
    const int64_t n = count - at < PAIR_ELEMENTS ? count - at : PAIR_ELEMENTS;
    nps_digest_part_t part[2];
    for (int i = 0; i < 2; i++) {
      NPS_TRY(find_bytes(read[i].reader, read[i].tensor, begin[i] + at, n, &part[i]));
      NPS_TRY(read_part(read[i].reader->fd, part[i].path, to[i], part[i].n, part[i].offset));
      part[i].bytes = to[i];
      to[i] += part[i].n;
    }
    if (digest) nps_digest_feed_two(digest, &part[0], &part[1]);
  }
  return NPS_OK;
}

nps_err_t nps_reader_read_two(const nps_read_t read[2], int64_t first, int64_t count) {
  nps_read_t stored[2] = {read[0], read[1]};
  int64_t begin[2] = {first, first};
  for (int i = 0; i < 2; i++) nps_made_resolve(&stored[i].reader, &stored[i].tensor, &begin[i], count);
  if (!is_computed(&stored[0]) && !is_computed(&stored[1])) return read_stored(stored, begin, count);
  NPS_TRY(nps_reader_read(stored[0].reader, stored[0].tensor, begin[0], count, stored[0].dst));
  return nps_reader_read(stored[1].reader, stored[1].tensor, begin[1], count, stored[1].dst);
}

void nps_reader_free(nps_reader_t *reader) {
  if (!reader) return;
  if (reader->fd >= 0) close(reader->fd);
  if (reader->state) reader->model->derivation->form->end(reader->state);
  for (int i = 0; reader->parents && i < reader->model->parent_count; i++) nps_reader_free(reader->parents[i]);
  free(reader->parents);
  free(reader->mean);
  free(reader);
}
