/* Folders for models that are handed over, in memory where there is room. A folder is locked while its process lives: one that is
 * not, of this host and user, was left by a process that was killed. */
#include "supervise.h"

#include "nps/command.h"
#include "nps/watch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define KEPT "files"
#define TENSORS "model.safetensors"
#define MEMORY_FOLDER "/dev/shm"
#define UNIQUE "XXXXXX" /* of a folder's name, as mkdtemp() wants it */
enum { TMPFS = 0x01021994, RAMFS = (int)0x858458f6 };

struct nps_handover {
  char *path;
  int lock;    /* the folder, open and locked */
  char **kept; /* [kept_count] names of files */
  int kept_count;
  char *model; /* folder of the one that is handed over, or NULL */
  int fd;      /* its file; −1: closed */
};

/* ---- where ---- */

static double room_in(const char *directory) {
  struct statvfs fs;
  struct stat st;
  if (access(directory, W_OK | X_OK) != 0 || stat(directory, &st) != 0 || statvfs(directory, &fs) != 0) return -1;
  if (!S_ISDIR(st.st_mode)) {
    errno = ENOTDIR;
    return -1;
  }
  return (double)fs.f_bavail * (double)fs.f_frsize;
}

/* The first place that has room; else what there is. @param[out] tried  owned text */
static const char *choose_directory(int64_t bytes, char **tried) {
  const char *const places[] = {MEMORY_FOLDER, getenv("TMPDIR"), "/tmp"};
  nps_text_t text = {0};
  char have[32];
  *tried = NULL;
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    const double room = places[i] && places[i][0] ? room_in(places[i]) : -1;
    if (room >= (double)bytes) {
      free(text.text);
      return places[i];
    }
    if (room >= 0) nps_text_add(&text, "%s%s has %s", text.text ? ", " : "", places[i], nps_format_bytes(room, have));
  }
  *tried = text.text ? text.text : nps_xstrdup("no folder can be written to");
  return NULL;
}

nps_err_t nps_handover_check(const char *directory) {
  if (!directory || room_in(directory) >= 0) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "fitness.directory: %s: %s", directory, strerror(errno));
}

static nps_err_t find_directory(const char *given, int64_t bytes, const char **out) {
  char need[32], have[32], *tried = NULL;
  nps_format_bytes((double)bytes, need);
  if (given) {
    NPS_TRY(nps_handover_check(given));
    const double room = room_in(given);
    *out = given;
    if (room >= (double)bytes) return NPS_OK;
    return nps_fail(NPS_ERR_IO, "fitness.directory: handing models over needs %s, %s has %s", need, given,
                    nps_format_bytes(room, have));
  }
  *out = choose_directory(bytes, &tried);
  if (*out) return NPS_OK;
  nps_fail(NPS_ERR_IO, "handing models over needs %s: %s; fitness.directory names another place", need, tried);
  free(tried);
  return NPS_ERR_IO;
}

bool nps_handover_in_memory(const char *directory) {
  struct statfs fs;
  return statfs(directory ? directory : MEMORY_FOLDER, &fs) == 0 &&
         ((int)fs.f_type == TMPFS || (int)fs.f_type == RAMFS);
}

/* ---- the folder ---- */

/* "nps-merge-HOST-", as other hosts may see the same place. */
static char *name_prefix(void) {
  char host[256] = "";
  if (gethostname(host, sizeof host - 1) != 0 || !host[0]) strcpy(host, "host");
  for (char *c = host; *c; c++)
    if (*c == '/') *c = '_';
  return nps_xstrf("nps-merge-%s-", host);
}

/* Opens a folder and locks it. @return −1: somebody else has, or it is gone */
static int lock_folder(const char *path) {
  struct stat ours, there;
  const int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return -1;
  if (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &ours) == 0 && stat(path, &there) == 0 &&
      ours.st_ino == there.st_ino && ours.st_uid == geteuid())
    return fd;
  close(fd);
  return -1;
}

static void remove_stale(const char *directory, const char *prefix) {
  DIR *dir = opendir(directory);
  if (!dir) return;
  for (struct dirent *e; (e = readdir(dir));) {
    if (strncmp(e->d_name, prefix, strlen(prefix)) != 0 || strlen(e->d_name) != strlen(prefix) + strlen(UNIQUE))
      continue;
    char *path = nps_xstrf("%s/%s", directory, e->d_name);
    const int fd = lock_folder(path);
    if (fd >= 0) nps_folder_remove(path);
    if (fd >= 0) close(fd);
    free(path);
  }
  closedir(dir);
}

static nps_err_t fail_errno(const char *path) { return nps_fail(NPS_ERR_IO, "%s: %s", path, strerror(errno)); }

/* A folder that is new may be taken for a stale one before it is locked. */
static nps_err_t make_folder(const char *directory, const char *prefix, nps_handover_t *h) {
  enum { TRIES = 20 };
  for (int i = 0; i < TRIES; i++) {
    free(h->path);
    h->path = nps_xstrf("%s/%s" UNIQUE, directory, prefix);
    if (!mkdtemp(h->path)) return fail_errno(h->path);
    h->lock = lock_folder(h->path);
    if (h->lock >= 0) return NPS_OK;
    rmdir(h->path);
  }
  h->lock = -1; /* locks are not to be had here: a killed run's folder stays */
  free(h->path);
  h->path = nps_xstrf("%s/%s" UNIQUE, directory, prefix);
  return mkdtemp(h->path) ? NPS_OK : fail_errno(h->path);
}

nps_err_t nps_handover_new(const char *directory, int64_t bytes, nps_handover_t **out) {
  nps_handover_t *h = nps_xcalloc(1, sizeof *h);
  char *prefix = name_prefix(), *kept = NULL;
  char *real = NULL;
  nps_err_t err = NPS_OK;
  h->lock = h->fd = -1;
  *out = NULL;
  if (directory || nps_handover_in_memory(NULL)) remove_stale(directory ? directory : MEMORY_FOLDER, prefix);
  NPS_GOTO(find_directory(directory, bytes, &directory));
  real = realpath(directory, NULL);
  if (!real) NPS_GOTO(fail_errno(directory));
  remove_stale(real, prefix);
  NPS_GOTO(make_folder(real, prefix, h));
  kept = nps_xstrf("%s/" KEPT, h->path);
  if (mkdir(kept, 0700) != 0) NPS_GOTO(fail_errno(kept));
  *out = h;
  h = NULL;
done:
  nps_handover_free(h);
  free(prefix);
  free(kept);
  free(real);
  return err;
}

void nps_handover_free(nps_handover_t *h) {
  if (!h) return;
  nps_handover_end(h);
  if (h->path) nps_folder_remove(h->path);
  if (h->lock >= 0) close(h->lock);
  for (int i = 0; i < h->kept_count; i++) free(h->kept[i]);
  free(h->kept);
  free(h->path);
  free(h);
}

const char *nps_handover_path(const nps_handover_t *h) { return h->path; }

/* ---- models ---- */

/* What every model has a link to: a file, or the folder that it lies in. */
static void note_kept(nps_handover_t *h, const char *name) {
  const size_t n = strcspn(name, "/");
  for (int i = 0; i < h->kept_count; i++)
    if (strncmp(h->kept[i], name, n) == 0 && h->kept[i][n] == '\0') return;
  h->kept = nps_xrealloc(h->kept, (size_t)h->kept_count + 1, sizeof *h->kept);
  h->kept[h->kept_count++] = nps_xstrndup(name, n);
}

static nps_err_t make_kept_folder(const nps_handover_t *h, const char *name) {
  const char *slash = strchr(name, '/');
  if (!slash) return NPS_OK;
  char *path = nps_xstrf("%s/" KEPT "/%.*s", h->path, (int)(slash - name), name);
  const nps_err_t err = mkdir(path, 0700) == 0 || errno == EEXIST ? NPS_OK : fail_errno(path);
  free(path);
  return err;
}

nps_err_t nps_handover_keep(nps_handover_t *h, const char *name, const char *data, size_t size) {
  NPS_TRY(make_kept_folder(h, name));
  char *path = nps_xstrf("%s/" KEPT "/%s", h->path, name);
  const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  size_t done = 0;
  while (fd >= 0 && done < size) {
    const ssize_t n = write(fd, data + done, size - done);
    if (n < 0 && errno != EINTR) break;
    if (n > 0) done += (size_t)n;
  }
  nps_err_t err = fd >= 0 && done == size ? NPS_OK : fail_errno(path);
  if (fd >= 0 && close(fd) != 0 && err == NPS_OK) err = fail_errno(path);
  free(path);
  if (err != NPS_OK) return err;
  note_kept(h, name);
  return NPS_OK;
}

static nps_err_t link_kept(const nps_handover_t *h) {
  nps_err_t err = NPS_OK;
  for (int i = 0; i < h->kept_count && err == NPS_OK; i++) {
    char *to = nps_xstrf("../" KEPT "/%s", h->kept[i]), *from = nps_xstrf("%s/%s", h->model, h->kept[i]);
    if (symlink(to, from) != 0) err = fail_errno(from);
    free(to);
    free(from);
  }
  return err;
}

nps_err_t nps_handover_begin(nps_handover_t *h, int64_t id, const char **model) {
  nps_handover_end(h);
  h->model = nps_xstrf("%s/%lld", h->path, (long long)id);
  *model = h->model;
  if (mkdir(h->model, 0700) != 0) return fail_errno(h->model);
  NPS_TRY(link_kept(h));
  char *path = nps_xstrf("%s/" TENSORS, h->model);
  h->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  const nps_err_t err = h->fd >= 0 ? NPS_OK : fail_errno(path);
  free(path);
  return err;
}

nps_err_t nps_handover_write(nps_handover_t *h, const void *bytes, size_t n, int64_t at) {
  for (const char *from = bytes; n > 0;) {
    const ssize_t done = nps_watch_pwrite(h->fd, from, n, (off_t)at, h->model);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return fail_errno(h->model);
    from += done;
    at += done;
    n -= (size_t)done;
  }
  return NPS_OK;
}

nps_err_t nps_handover_close(nps_handover_t *h) {
  const int fd = h->fd;
  h->fd = -1;
  return fd < 0 || close(fd) == 0 ? NPS_OK : fail_errno(h->model);
}

void nps_handover_end(nps_handover_t *h) {
  if (h->fd >= 0) close(h->fd);
  h->fd = -1;
  if (h->model) nps_folder_remove(h->model);
  free(h->model);
  h->model = NULL;
}
