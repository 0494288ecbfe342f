#define _GNU_SOURCE /* fallocate, SEEK_HOLE */

#include "h5_internal.h"

#include "nps/watch.h"

#include "nps/comm_mpi.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Small metadata is gathered in blocks of this size instead of lying between the datasets; of the last one a part stays empty. */
#define META_BLOCK 16384

/* Written behind the end to learn why HDF5 could not. */
#define PROBE_BYTES ((size_t)1 << 20)

/* Room for the metadata that closing writes. */
#define META_ROOM ((int64_t)4 << 20)

static herr_t keep_first(unsigned n, const H5E_error2_t *entry, void *ctx) {
  char **text = ctx;
  if (n == 0 && entry->desc) *text = nps_xstrdup(entry->desc);
  return 0;
}

/* The innermost description; free() it. */
static char *stack_text(void) {
  char *text = NULL;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);
  return text ? text : nps_xstrdup("no cause given by HDF5");
}

nps_err_t nps_h5_fail(const nps_h5_t *file, nps_err_t code, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *what = nps_xvstrf(fmt, args);
  va_end(args);
  char *cause = stack_text();
  const bool lock = strstr(cause, "unable to lock") != NULL;
  nps_fail(code, "%s: %s: %s%s", file->path, what, cause,
           lock ? "; where the file system has no locks set HDF5_USE_FILE_LOCKING=FALSE" : "");
  free(cause);
  free(what);
  return code;
}

/* Writes bytes with pwrite(). Returns 0 or errno. */
static int probe_write(int fd, const char *data, size_t bytes, off_t offset) {
  while (bytes > 0) {
    ssize_t n = pwrite(fd, data, bytes, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return ENOSPC;
    data += n;
    bytes -= (size_t)n;
    offset += n;
  }
  return 0;
}

static int probe_end(int fd) {
  struct stat st;
  if (fstat(fd, &st) != 0) return errno;
  char *zeros = nps_xcalloc(1, PROBE_BYTES);
  int cause = probe_write(fd, zeros, PROBE_BYTES, st.st_size);
  free(zeros);
  return cause;
}

nps_err_t nps_h5_fail_write(const nps_h5_t *file, const char *what, const void *data, size_t bytes, int64_t offset) {
  int cause = data ? probe_write(file->fd, data, bytes, (off_t)offset) : probe_end(file->fd);
  if (cause) return nps_fail(NPS_ERR_IO, "%s: %s cannot be written: %s", file->path, what, strerror(cause));
  return nps_h5_fail(file, NPS_ERR_IO, "%s cannot be written", what);
}

nps_err_t nps_h5_agree(const nps_h5_t *file, nps_err_t err) {
  return file->comm ? nps_comm_agree(file->comm, err) : err;
}

/* Returns 0 or errno. File systems that cannot allocate in advance are left alone. */
static int allocate(int fd, off_t offset, off_t bytes) {
  int rc;
  do rc = bytes > 0 ? fallocate(fd, 0, offset, bytes) : 0;
  while (rc != 0 && errno == EINTR);
  return rc != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG) ? errno : 0;
}

static nps_err_t fail_allocate(const nps_h5_t *file, off_t bytes, int cause) {
  char size[32];
  return nps_fail(NPS_ERR_IO, "%s: %s cannot be allocated: %s", file->path, nps_format_bytes((double)bytes, size),
                  strerror(cause));
}

nps_err_t nps_h5_allocate(const nps_h5_t *file, int64_t offset, int64_t bytes) {
  int cause = allocate(file->fd, (off_t)offset, (off_t)bytes);
  return cause ? fail_allocate(file, (off_t)bytes, cause) : NPS_OK;
}

/* Allocating memory in advance takes as long as writing it. */
static bool is_memory(int fd) {
  struct statfs fs;
  return fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

nps_err_t nps_h5_reserve(nps_h5_t *file) {
  if (is_memory(file->fd)) return NPS_OK; /* the same on every rank: they have the same file open */
  const int64_t rank = nps_comm_rank(file->comm), size = nps_comm_size(file->comm);
  const int64_t part = file->end / size + 1, first = part * rank;
  int cause = allocate(file->fd, first, part < file->end - first ? part : file->end - first);
  return nps_h5_agree(file, cause ? fail_allocate(file, file->end, cause) : NPS_OK);
}

/* Allocates what closing is going to write: a failure inside of H5Fclose() cannot be handled, see nps_h5_abandon().
 * HDF5 cuts off what is too much. */
static nps_err_t reserve_metadata(nps_h5_t *file) {
  off_t hole = 0;
  while (hole < file->end && (hole = lseek(file->fd, hole, SEEK_HOLE)) >= 0 && hole < file->end) {
    off_t data = lseek(file->fd, hole, SEEK_DATA);
    if (data < 0) data = file->end;
    NPS_TRY(nps_h5_allocate(file, hole, data - hole));
    hole = data;
  }
  return nps_h5_allocate(file, file->end, META_ROOM + file->text_bytes);
}

const char *nps_h5_version(void) {
  static char text[32];
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  snprintf(text, sizeof text, "%u.%u.%u", major, minor, release);
  return text;
}

static nps_h5_t *new_file(const nps_comm_t *comm, const char *path) {
  H5dont_atexit(); /* see fail_abandon(): leaving at once must stay possible */
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  nps_h5_t *file = nps_xcalloc(1, sizeof *file);
  file->path = nps_xstrdup(path);
  file->comm = comm;
  file->id = H5I_INVALID_HID;
  file->fd = -1;
  for (int i = 0; i < NPS_DTYPE_COUNT; i++) file->types[i] = H5I_INVALID_HID;
  return file;
}

static void release(nps_h5_t *file) {
  nps_h5_types_free(file);
  nps_flush_end(file->flush, file->path);
  if (file->fd >= 0) close(file->fd);
  free(file->path);
  free(file);
}

/* A file that HDF5 could not close crashes it when MPI ends: end here, with what went wrong before. */
static void fail_abandon(const nps_h5_t *file) {
  if (nps_comm_rank(file->comm) > 0) nps_comm_barrier(file->comm); /* until rank 0 ends all */
  nps_fatal("%s", nps_problem_count() ? nps_problem_text(0) : "an output file cannot be closed");
}

/* HDF5 and MPI-IO crash or wait for ever when a file's last metadata cannot be written. Its content is worth nothing
 * here: without it there is room on a full disk. */
void nps_h5_abandon(nps_h5_t *file) {
  if (!file) return;
  const bool written = file->fd >= 0;
  if (written && ftruncate(file->fd, 0) != 0) errno = 0; /* then closing must do without */
  int64_t broken = file->id >= 0 && H5Fclose(file->id) < 0 && written;
  if (file->comm) nps_comm_sum_i64(file->comm, &broken, 1);
  if (broken) fail_abandon(file);
  release(file);
}

/* Opened here first: only the system's own call says why it fails, and every rank must see the same file. */
static nps_err_t open_descriptor(nps_h5_t *file) {
  nps_err_t err = NPS_OK;
  const int rank = nps_comm_rank(file->comm);
  if (rank == 0) {
    file->fd = open(file->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file->fd < 0) err = nps_fail(NPS_ERR_IO, "%s: cannot be created: %s", file->path, strerror(errno));
    if (err == NPS_OK) err = nps_h5_allocate(file, 0, META_ROOM);
  }
  NPS_TRY(nps_h5_agree(file, err));
  if (rank > 0) {
    file->fd = open(file->path, O_RDWR | O_CLOEXEC);
    if (file->fd < 0)
      err = nps_fail(NPS_ERR_IO,
                     "%s: created by rank 0, cannot be opened by rank %d: %s; is the folder shared by all nodes?",
                     file->path, rank, strerror(errno));
  }
  return nps_h5_agree(file, err);
}

static hid_t make_access(const nps_h5_t *file) {
  hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  if (access < 0) return access;
  herr_t rc = H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  if (rc >= 0) rc = H5Pset_meta_block_size(access, META_BLOCK);
  if (rc >= 0 && file->comm) rc = H5Pset_fapl_mpio(access, nps_comm_mpi(file->comm), MPI_INFO_NULL);
  if (rc >= 0 && file->comm) rc = H5Pset_all_coll_metadata_ops(access, true);
  if (rc >= 0 && file->comm) rc = H5Pset_coll_metadata_write(access, true);
  if (rc >= 0) return access;
  H5Pclose(access);
  return H5I_INVALID_HID;
}

/* Open MPI makes a semaphore for every file, named by the last part of its path alone, and removes it again: one that another
 * user's run has left is in the way of all files of that name on the node. Its other ways to share file pointers, which are
 * not used here, put files beside the output. */
static nps_err_t fail_create(const nps_h5_t *file) {
  const char *slash = strrchr(file->path, '/');
  char *semaphore = nps_xstrf("/dev/shm/sem.OMPIO_%s", slash ? slash + 1 : file->path);
  nps_err_t err;
  if (access(semaphore, F_OK) == 0)
    err = nps_h5_fail(file, NPS_ERR_IO,
                      "cannot be created as an HDF5 file (is %s, which another run has left, in the way? Remove it, "
                      "choose another name for the output, or set OMPI_MCA_sharedfp=^sm)",
                      semaphore);
  else
    err = nps_h5_fail(file, NPS_ERR_IO, "cannot be created as an HDF5 file");
  free(semaphore);
  return err;
}

static nps_err_t create_file(nps_h5_t *file) {
  hid_t creation = H5Pcreate(H5P_FILE_CREATE);
  hid_t access = make_access(file);
  if (creation >= 0 && access >= 0 && H5Pset_obj_track_times(creation, false) >= 0)
    file->id = H5Fcreate(file->path, H5F_ACC_TRUNC, creation, access);
  nps_err_t err = NPS_OK;
  if (file->id < 0) err = fail_create(file);
  if (creation >= 0) H5Pclose(creation);
  if (access >= 0) H5Pclose(access);
  if (err == NPS_OK) err = nps_h5_types_make(file);
  return nps_h5_agree(file, err);
}

nps_err_t nps_h5_create(const nps_comm_t *comm, const char *path, nps_h5_t **out) {
  nps_h5_t *file = new_file(comm, path);
  nps_err_t err = open_descriptor(file);
  if (err == NPS_OK) err = create_file(file);
  *out = NULL;
  if (err != NPS_OK) {
    nps_h5_abandon(file);
    return err;
  }
  file->flush = nps_flush_begin(file->fd);
  *out = file;
  return NPS_OK;
}

static nps_err_t check_readable(const nps_h5_t *file) {
  int fd = open(file->path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be opened: %s", file->path, strerror(errno));
  close(fd);
  if (H5Fis_hdf5(file->path) <= 0) return nps_fail(NPS_ERR_INPUT, "%s: is not an HDF5 file", file->path);
  return NPS_OK;
}

nps_err_t nps_h5_open(const char *path, nps_h5_t **out) {
  nps_h5_t *file = new_file(NULL, path);
  hid_t access = make_access(file);
  nps_err_t err = check_readable(file);
  *out = NULL;
  if (err == NPS_OK) {
    nps_watch_begin("opening", path);
    file->id = access < 0 ? access : H5Fopen(path, H5F_ACC_RDONLY, access);
    nps_watch_end();
    if (file->id < 0) err = nps_h5_fail(file, NPS_ERR_INPUT, "cannot be opened as an HDF5 file");
  }
  if (access >= 0) H5Pclose(access);
  if (err == NPS_OK) err = nps_h5_types_make(file);
  if (err == NPS_OK)
    *out = file;
  else
    nps_h5_abandon(file);
  return err;
}

/* After H5Fclose, so that the last metadata is on the device too. */
static nps_err_t sync_descriptor(nps_h5_t *file) {
  int cause = nps_flush_end(file->flush, file->path);
  file->flush = NULL;
  if (nps_watch_fsync(file->fd, file->path) != 0 && !cause) cause = errno;
  if (close(file->fd) != 0 && !cause) cause = errno;
  file->fd = -1;
  if (!cause) return NPS_OK;
  return nps_fail(NPS_ERR_IO, "%s: cannot be flushed to the device: %s", file->path, strerror(cause));
}

nps_err_t nps_h5_close(nps_h5_t *file) {
  if (!file) return NPS_OK;
  nps_err_t err = NPS_OK;
  const bool written = file->fd >= 0;
  if (written && nps_comm_rank(file->comm) == 0) err = reserve_metadata(file);
  err = nps_h5_agree(file, err);
  if (err != NPS_OK) {
    nps_h5_abandon(file);
    return err;
  }
  nps_watch_begin("closing", file->path);
  const bool closed = H5Fclose(file->id) >= 0;
  nps_watch_end();
  if (!closed)
    err = written ? nps_h5_fail_write(file, "the file's metadata", NULL, 0, 0)
                  : nps_h5_fail(file, NPS_ERR_INPUT, "cannot be closed");
  file->id = H5I_INVALID_HID;
  if (err == NPS_OK && written) err = sync_descriptor(file);
  err = nps_h5_agree(file, err);
  release(file);
  return err;
}
