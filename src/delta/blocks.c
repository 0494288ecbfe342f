/* Numbered arrays of float32, each in memory, or all in one file of the host, whose name is gone as soon as every rank has
 * opened it: nothing is left behind, however the run ends. */
#include "factors_internal.h"

#include "nps/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

struct nps_blocks {
  int count;
  float **memory;  /* [count] */
  int file;        /* -1: memory */
  bool leader;     /* the first rank of the host */
  int64_t *offset; /* [count] numbers */
};

/* ---- the file ---- */

static nps_err_t file_error(const char *what, const char *path) {
  return nps_fail(NPS_ERR_RUNTIME, "the file of singular factors%s%s cannot be %s: %s", path ? " " : "",
                  path ? path : "", what, strerror(errno));
}

static nps_err_t check_room(const char *folder, int64_t bytes) {
  struct statvfs fs;
  char needed[32], free_[32];
  if (statvfs(folder, &fs) != 0) return NPS_OK; /* creating the file tells why */
  const double room = (double)fs.f_bavail * (double)fs.f_frsize;
  if (room >= (double)bytes) return NPS_OK;
  return nps_fail(
      NPS_ERR_RUNTIME,
      "%s: the singular factors need %s, but only %s are free there: set TMPDIR to another folder, or raise "
      "resources.memory_per_rank",
      folder, nps_format_bytes((double)bytes, needed), nps_format_bytes(room, free_));
}

static nps_err_t create(const char *folder, int64_t bytes, char **path, int *file) {
  NPS_TRY(check_room(folder, bytes));
  *path = nps_xstrf("%s/nps-factors-XXXXXX", folder);
  *file = mkstemp(*path);
  return *file >= 0 ? NPS_OK : file_error("created", *path);
}

/* The first rank of every host makes the file, the others open it, then its name is removed. Collective. */
static nps_err_t share_file(const nps_comm_t *comm, const char *folder, int64_t bytes, nps_blocks_t *b) {
  nps_comm_t *host = NULL;
  char *path = NULL;
  nps_err_t err = NPS_OK;
  nps_comm_split_host(comm, &host);
  b->leader = nps_comm_rank(host) == 0;
  if (b->leader) err = create(folder, bytes, &path, &b->file);
  err = nps_comm_agree(comm, err);
  if (err == NPS_OK) {
    nps_comm_bcast_text(host, &path);
    if (!b->leader && (b->file = open(path, O_RDWR | O_CLOEXEC)) < 0) err = file_error("opened", path);
    err = nps_comm_agree(comm, err);
  }
  if (b->leader && b->file >= 0) unlink(path);
  free(path);
  nps_comm_free(host);
  return err;
}

nps_err_t nps_blocks_new(const nps_comm_t *comm, const int64_t *most, int count, const char *folder,
                         nps_blocks_t **out) {
  nps_blocks_t *b = nps_xcalloc(1, sizeof *b);
  int64_t at = 0;
  b->count = count;
  b->file = -1;
  b->memory = nps_xcalloc((size_t)count + 1, sizeof *b->memory);
  b->offset = nps_xcalloc((size_t)count + 1, sizeof *b->offset);
  for (int i = 0; i < count; i++) {
    b->offset[i] = at;
    at += most[i];
  }
  nps_err_t err = folder ? share_file(comm, folder, at * (int64_t)sizeof(float), b) : NPS_OK;
  *out = err == NPS_OK ? b : NULL;
  if (err != NPS_OK) nps_blocks_free(b);
  return err;
}

bool nps_blocks_wanted(const nps_blocks_t *b) { return b->file < 0 || b->leader; }

bool nps_blocks_in_file(const nps_blocks_t *b) { return b->file >= 0; }

void nps_blocks_drop(nps_blocks_t *b, int block) {
  free(b->memory[block]);
  b->memory[block] = NULL;
}

void nps_blocks_free(nps_blocks_t *b) {
  if (!b) return;
  for (int i = 0; i < b->count; i++) free(b->memory[i]);
  if (b->file >= 0) close(b->file);
  free(b->memory);
  free(b->offset);
  free(b);
}

/* ---- reading and writing ---- */

static nps_err_t write_all(const nps_blocks_t *b, const char *data, size_t bytes, off_t at) {
  while (bytes > 0) {
    const ssize_t done = nps_watch_pwrite(b->file, data, bytes, at, "singular factors");
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return file_error("written", NULL);
    data += done;
    at += done;
    bytes -= (size_t)done;
  }
  return NPS_OK;
}

static nps_err_t read_all(const nps_blocks_t *b, char *data, size_t bytes, off_t at) {
  while (bytes > 0) {
    const ssize_t done = nps_watch_pread(b->file, data, bytes, at, "singular factors");
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = EIO;
    if (done <= 0) return file_error("read", NULL);
    data += done;
    at += done;
    bytes -= (size_t)done;
  }
  return NPS_OK;
}

nps_err_t nps_blocks_put(nps_blocks_t *b, int block, const float *x, int64_t n) {
  const size_t bytes = (size_t)n * sizeof *x;
  if (b->file >= 0) return write_all(b, (const char *)x, bytes, (off_t)(b->offset[block] * (int64_t)sizeof *x));
  free(b->memory[block]);
  b->memory[block] = NULL;
  NPS_TRY(nps_buffer_alloc(bytes, "singular vectors", &b->memory[block]));
  memcpy(b->memory[block], x, bytes);
  return NPS_OK;
}

nps_err_t nps_blocks_get(const nps_blocks_t *b, int block, int64_t first, int64_t n, float *x) {
  const size_t bytes = (size_t)n * sizeof *x;
  if (b->file >= 0) return read_all(b, (char *)x, bytes, (off_t)((b->offset[block] + first) * (int64_t)sizeof *x));
  memcpy(x, b->memory[block] + first, bytes);
  return NPS_OK;
}
