#include "writer_internal.h"

#include "nps/watch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static nps_err_t fail_errno(const char *path) { return nps_fail(NPS_ERR_IO, "%s: %s", path, strerror(errno)); }

static bool is_dots(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

static nps_err_t remove_tree(const char *path, int levels);

static nps_err_t remove_files(const char *folder, int levels) {
  DIR *dir = opendir(folder);
  if (!dir) return fail_errno(folder);
  nps_err_t err = NPS_OK;
  for (struct dirent *e; err == NPS_OK && (e = readdir(dir));) {
    if (is_dots(e->d_name)) continue;
    char *path = nps_xstrf("%s/%s", folder, e->d_name);
    err = remove_tree(path, levels);
    free(path);
  }
  closedir(dir);
  return err;
}

/* @param levels  of folders whose contents are removed */
static nps_err_t remove_tree(const char *path, int levels) {
  struct stat st;
  if (lstat(path, &st) != 0) return errno == ENOENT ? NPS_OK : fail_errno(path);
  bool folder = S_ISDIR(st.st_mode);
  if (folder && levels > 0) NPS_TRY(remove_files(path, levels - 1));
  if ((folder ? rmdir(path) : unlink(path)) == 0) return NPS_OK;
  return nps_fail(NPS_ERR_IO, "%s: cannot be removed: %s", path, strerror(errno));
}

nps_err_t nps_path_remove(const char *path) {
  enum { OUTPUT_AND_MODULES = 2 };
  return remove_tree(path, OUTPUT_AND_MODULES);
}

nps_err_t nps_path_sync(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail_errno(path);
  nps_err_t err = NPS_OK;
  /* Some file systems cannot sync a folder and say EINVAL. */
  if (nps_watch_fsync(fd, path) != 0 && errno != EINVAL) err = fail_errno(path);
  close(fd);
  return err;
}

nps_err_t nps_fd_write(int fd, const char *path, const void *data, size_t n, int64_t offset) {
  const char *p = data;
  while (n > 0) {
    ssize_t put = nps_watch_pwrite(fd, p, n, offset, path);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail_errno(path);
    p += put;
    n -= (size_t)put;
    offset += put;
  }
  return NPS_OK;
}

nps_err_t nps_file_put(const char *folder, const char *name, const void *data, size_t size) {
  if (name[0] == '\0' || strchr(name, '/') || is_dots(name))
    return nps_fail(NPS_ERR_INPUT, "%s: \"%s\" is no file name", folder, name);
  char *path = nps_xstrf("%s/%s", folder, name);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  nps_err_t err = fd < 0 ? fail_errno(path) : nps_fd_write(fd, path, data, size, 0);
  if (err == NPS_OK && nps_watch_fsync(fd, path) != 0) err = fail_errno(path);
  if (fd >= 0 && close(fd) != 0 && err == NPS_OK) err = fail_errno(path);
  free(path);
  return err;
}

int64_t nps_path_bytes(const char *path, bool allocated) {
  struct stat st;
  if (lstat(path, &st) != 0) return 0;
  if (S_ISREG(st.st_mode)) return allocated ? (int64_t)st.st_blocks * 512 : (int64_t)st.st_size;
  DIR *dir = S_ISDIR(st.st_mode) ? opendir(path) : NULL;
  if (!dir) return 0;
  int64_t bytes = 0;
  for (struct dirent *e; (e = readdir(dir));) {
    if (is_dots(e->d_name)) continue;
    char *entry = nps_xstrf("%s/%s", path, e->d_name);
    bytes += nps_path_bytes(entry, allocated);
    free(entry);
  }
  closedir(dir);
  return bytes;
}

/* Whether the path still names the open file: whoever held the lock before may have removed it. */
static bool is_still_there(int fd, const char *path) {
  struct stat opened, named;
  return fstat(fd, &opened) == 0 && stat(path, &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

static bool has_no_locks(int cause) { return cause == ENOSYS || cause == EOPNOTSUPP || cause == ENOLCK; }

struct nps_lock {
  char *path;
  int fd; /* -1: the file system has no locks */
};

static nps_err_t take_lock(const char *path, const char *what, int *out) {
  *out = -1;
  for (;;) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return fail_errno(path);
    int cause = flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
    if (cause == 0 && is_still_there(fd, path)) {
      *out = fd;
      return NPS_OK;
    }
    close(fd);
    if (cause == EWOULDBLOCK) return nps_fail(NPS_ERR_IO, "%s: another run is writing it", what);
    if (has_no_locks(cause)) {
      unlink(path);
      return NPS_OK;
    }
    if (cause != 0) return nps_fail(NPS_ERR_IO, "%s: cannot be locked: %s", path, strerror(cause));
  }
}

nps_err_t nps_lock_new(const char *target, nps_lock_t **out) {
  const char *slash = strrchr(target, '/');
  const int head = slash ? (int)(slash + 1 - target) : 0;
  char *path = nps_xstrf("%.*s.%s.lock", head, target, target + head);
  int fd = -1;
  *out = NULL;
  const nps_err_t err = take_lock(path, target, &fd);
  if (err != NPS_OK) {
    free(path);
    return err;
  }
  *out = nps_xcalloc(1, sizeof **out);
  **out = (struct nps_lock){path, fd};
  return NPS_OK;
}

/* The file is removed while it is locked, so that a lock always is one of the file that the path names. */
void nps_lock_free(nps_lock_t *lock) {
  if (!lock) return;
  if (lock->fd >= 0) {
    unlink(lock->path);
    close(lock->fd);
  }
  free(lock->path);
  free(lock);
}
