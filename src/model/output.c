#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* renameat2 */
#endif

#include "model_internal.h"
#include "writer_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Marks a folder that was moved to NAME.old as ours: a user's own NAME.old is neither moved back nor removed. */
#define OLD_MARK ".nps-merge-replaced"

bool nps_output_is_hdf5(const char *path) { return nps_ends_with(path, ".h5") || nps_ends_with(path, ".hdf5"); }

/* ---- where an output lies ---- */

/* Without slashes at its end; where a symbolic link leads, so that the data go there and not beside the link. */
static nps_err_t resolve_target(const char *path, char **out) {
  size_t n = strlen(path);
  while (n > 1 && path[n - 1] == '/') n--;
  char *target = nps_xstrndup(path, n);
  struct stat st;
  if (lstat(target, &st) == 0 && S_ISLNK(st.st_mode)) {
    char *real = realpath(target, NULL);
    nps_err_t err = NPS_OK;
    if (!real) err = nps_fail(NPS_ERR_CONFIG, "%s: is a symbolic link that leads nowhere: %s", target, strerror(errno));
    free(target);
    *out = real;
    return err;
  }
  *out = target;
  return NPS_OK;
}

nps_err_t nps_place_make(const char *path, nps_place_t *out) {
  *out = (nps_place_t){.hdf5 = nps_output_is_hdf5(path)};
  NPS_TRY(resolve_target(path, &out->target));
  const char *slash = strrchr(out->target, '/');
  const char *name = slash ? slash + 1 : out->target;
  if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
    return nps_fail(NPS_ERR_CONFIG, "\"%s\": expected the name of an output file or folder", path);
  int head = (int)(name - out->target);
  out->folder = nps_path_folder(out->target);
  out->partial = nps_xstrf("%.*s.%s.partial", head, out->target, name);
  out->old = nps_xstrf("%s.old", out->target);
  return NPS_OK;
}

void nps_place_unlock(nps_place_t *place) {
  nps_lock_free(place->lock);
  place->lock = NULL;
}

void nps_place_clear(nps_place_t *place) {
  nps_place_unlock(place);
  free(place->target);
  free(place->folder);
  free(place->partial);
  free(place->old);
  *place = (nps_place_t){0};
}

/* ---- the recipe of an output ---- */

static char *read_text(const char *path) {
  FILE *file = fopen(path, "r");
  nps_text_t text = {0};
  char part[4096];
  if (!file) return NULL;
  for (size_t n = 0; (n = fread(part, 1, sizeof part, file)) > 0;) nps_text_add_bytes(&text, part, n);
  fclose(file);
  return text.text;
}

static char *read_hdf5_recipe(const char *path) {
  nps_h5_t *file = NULL;
  char *recipe = NULL;
  const int problems = nps_problem_count();
  if (access(path, F_OK) != 0 || !nps_has_hdf5_signature(path)) return NULL;
  if (nps_h5_open(path, &file) == NPS_OK) (void)nps_h5_get_attr_text(file, "/", "recipe", &recipe);
  nps_h5_abandon(file);
  if (problems == 0) nps_problem_clear(); /* a file that cannot be read has no recipe */
  return recipe;
}

char *nps_output_recipe(const char *path) {
  if (nps_output_is_hdf5(path)) return read_hdf5_recipe(path);
  char *file = nps_xstrf("%s/nps-merge.yaml", path), *recipe = read_text(file);
  free(file);
  return recipe;
}

/* ---- what is there already ---- */

static nps_err_t check_hdf5(const char *path, const struct stat *st) {
  if (S_ISDIR(st->st_mode)) return nps_fail(NPS_ERR_CONFIG, "%s: is a folder, which an HDF5 file never replaces", path);
  if (S_ISREG(st->st_mode) && nps_has_hdf5_signature(path)) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "%s: exists and is no HDF5 file, it is never replaced", path);
}

static bool is_folder(int at, const char *name) {
  struct stat st;
  return fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

static bool is_dots(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

/* Whether modules.json names it, and it holds only files. */
static bool is_module(const char *model, const char *name) {
  char *path = nps_path_join(model, name);
  DIR *dir = nps_is_module(model, name) ? opendir(path) : NULL;
  bool flat = dir != NULL;
  for (struct dirent *e; flat && (e = readdir(dir));) flat = is_dots(e->d_name) || !is_folder(dirfd(dir), e->d_name);
  if (dir) closedir(dir);
  free(path);
  return flat;
}

/* A model folder has no folders in it but those of modules, and a config.json or weights; an empty folder holds nothing to
 * lose. */
static nps_err_t check_folder(const char *path, const struct stat *st) {
  if (!S_ISDIR(st->st_mode))
    return nps_fail(NPS_ERR_CONFIG,
                    "%s: is a file, which a model folder never replaces (a merged HDF5 file ends in .h5)", path);
  DIR *dir = opendir(path);
  if (!dir) return nps_fail(NPS_ERR_IO, "%s: %s", path, strerror(errno));
  nps_err_t err = NPS_OK;
  int files = 0;
  bool model = false;
  for (struct dirent *e; err == NPS_OK && (e = readdir(dir));) {
    if (is_dots(e->d_name)) continue;
    files++;
    if (is_folder(dirfd(dir), e->d_name) && !is_module(path, e->d_name))
      err = nps_fail(NPS_ERR_CONFIG, "%s: has a folder in it (%s), expected only a model's files: it is never replaced",
                     path, e->d_name);
    model = model || strcmp(e->d_name, "config.json") == 0 || nps_ends_with(e->d_name, ".safetensors");
  }
  closedir(dir);
  if (err == NPS_OK && files > 0 && !model)
    err = nps_fail(NPS_ERR_CONFIG, "%s: has no config.json and no *.safetensors file: it is never replaced", path);
  return err;
}

static nps_err_t check_parent(const nps_place_t *place) {
  struct stat st;
  if (stat(place->folder, &st) != 0)
    return nps_fail(NPS_ERR_CONFIG, "%s: the folder %s cannot be written to: %s", place->target, place->folder,
                    strerror(errno));
  if (!S_ISDIR(st.st_mode)) return nps_fail(NPS_ERR_CONFIG, "%s: %s is no folder", place->target, place->folder);
  return NPS_OK;
}

nps_err_t nps_place_check(const nps_place_t *place, bool force) {
  struct stat st;
  NPS_TRY(check_parent(place));
  if (stat(place->target, &st) != 0) {
    if (errno == ENOENT) return NPS_OK;
    return nps_fail(NPS_ERR_IO, "%s: %s", place->target, strerror(errno));
  }
  NPS_TRY(place->hdf5 ? check_hdf5(place->target, &st) : check_folder(place->target, &st));
  if (force) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "%s: exists already; --force replaces it", place->target);
}

static nps_err_t check_space(const nps_place_t *place, int64_t bytes) {
  struct statvfs fs;
  if (statvfs(place->folder, &fs) != 0) return nps_fail(NPS_ERR_IO, "%s: %s", place->folder, strerror(errno));
  /* A stale partial output is removed first. */
  double room = (double)fs.f_bavail * (double)fs.f_frsize + (double)nps_path_bytes(place->partial, true);
  if ((double)bytes <= room) return NPS_OK;
  char need[32], have[32];
  return nps_fail(NPS_ERR_IO, "%s: needs %s (an output that it replaces stays until then), %s has %s free",
                  place->target, nps_format_bytes((double)bytes, need), place->folder, nps_format_bytes(room, have));
}

static bool is_marked(const char *folder) {
  char *mark = nps_xstrf("%s/" OLD_MARK, folder);
  bool found = access(mark, F_OK) == 0;
  free(mark);
  return found;
}

static void unmark(const char *folder) {
  char *mark = nps_xstrf("%s/" OLD_MARK, folder);
  unlink(mark);
  free(mark);
}

static nps_err_t move(const char *from, const char *to) {
  if (rename(from, to) == 0) return NPS_OK;
  return nps_fail(NPS_ERR_IO, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
}

/* Finish what a run that was killed while it replaced a folder left: without NAME, NAME.old is put back; beside NAME it
 * becomes a stale partial output. */
static nps_err_t recover_old(const nps_place_t *place) {
  if (place->hdf5 || !is_marked(place->old)) return NPS_OK;
  if (!nps_path_exists(place->target)) {
    NPS_TRY(move(place->old, place->target));
    unmark(place->target);
    nps_note("%s: put back from %s, where an interrupted run had moved it", place->target, place->old);
    return NPS_OK;
  }
  return move(place->old, place->partial);
}

static nps_err_t check_access(const nps_place_t *place) {
  if (access(place->folder, W_OK | X_OK) == 0) return NPS_OK;
  return nps_fail(NPS_ERR_IO, "%s: the folder %s cannot be written to: %s", place->target, place->folder,
                  strerror(errno));
}

/* Says so when another run writes there, else clears up behind one that was killed. */
static nps_err_t settle(nps_place_t *place) {
  NPS_TRY(nps_lock_new(place->target, &place->lock));
  return recover_old(place);
}

nps_err_t nps_output_check(const nps_output_t *output, int64_t bytes, nps_lock_t **lock) {
  nps_place_t place;
  nps_err_t err = NPS_OK;
  if (lock) *lock = NULL;
  NPS_GOTO(nps_place_make(output->path, &place));
  NPS_GOTO(check_parent(&place));
  if (access(place.folder, W_OK | X_OK) == 0) NPS_GOTO(settle(&place));
  NPS_GOTO(nps_place_check(&place, output->force));
  NPS_GOTO(check_access(&place));
  NPS_GOTO(check_space(&place, bytes));
  if (lock) {
    *lock = place.lock;
    place.lock = NULL;
  }
done:
  nps_place_clear(&place);
  return err;
}

/* ---- before and after writing ---- */

static bool exchange(const char *a, const char *b) { return renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0; }

/* Where folders cannot be exchanged, NAME.old must be free: better to say so now than when all the work is done. */
static nps_err_t check_old_is_free(const nps_place_t *place) {
  if (place->hdf5 || !nps_path_exists(place->target) || !nps_path_exists(place->old)) return NPS_OK;
  char *a = nps_xstrf("%s/a", place->partial);
  char *b = nps_xstrf("%s/b", place->partial);
  bool can = mkdir(a, 0777) == 0 && mkdir(b, 0777) == 0 && exchange(a, b);
  rmdir(a);
  rmdir(b);
  free(a);
  free(b);
  if (can) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "%s: is in the way: %s has to be moved there while it is replaced", place->old,
                  place->target);
}

nps_err_t nps_place_prepare(nps_place_t *place, bool force) {
  NPS_TRY(check_parent(place));
  if (!place->locked) NPS_TRY(nps_lock_new(place->target, &place->lock));
  NPS_TRY(recover_old(place));
  NPS_TRY(nps_place_check(place, force));
  bool stale = nps_path_exists(place->partial);
  NPS_TRY(nps_path_remove(place->partial));
  if (stale) nps_note("%s: left by an interrupted run, removed", place->partial);
  if (place->hdf5) return NPS_OK;
  if (mkdir(place->partial, 0777) != 0) return nps_fail(NPS_ERR_IO, "%s: %s", place->partial, strerror(errno));
  nps_err_t err = check_old_is_free(place);
  if (err != NPS_OK) rmdir(place->partial);
  return err;
}

/* The new output is complete: what cannot be removed of the old one is worth a note, no more. */
static void note_unless_removed(nps_err_t err) {
  if (err == NPS_OK) return;
  nps_note("the replaced output could not be removed: %s", nps_problem_text(nps_problem_count() - 1));
  nps_problem_clear();
}

nps_err_t nps_place_by_old(const nps_place_t *place) {
  if (nps_path_exists(place->old))
    return nps_fail(NPS_ERR_IO, "%s: is in the way of replacing %s", place->old, place->target);
  NPS_TRY(nps_file_put(place->target, OLD_MARK, "", 0));
  nps_err_t err = move(place->target, place->old);
  if (err == NPS_OK) {
    err = move(place->partial, place->target);
    if (err == NPS_OK) {
      note_unless_removed(move(place->old, place->partial));
      return NPS_OK;
    }
    /* It keeps its mark, for the next run to try again. */
    if (rename(place->old, place->target) != 0)
      return nps_fail(NPS_ERR_IO, "%s: the old output cannot be put back (%s), it now lies in %s", place->target,
                      strerror(errno), place->old);
  }
  unmark(place->target);
  return err;
}

static nps_err_t put_in_place(const nps_place_t *place) {
  if (place->hdf5 || !nps_path_exists(place->target)) return move(place->partial, place->target);
  if (exchange(place->partial, place->target)) return NPS_OK;
  if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP) return nps_place_by_old(place);
  return nps_fail(NPS_ERR_IO, "%s: cannot be exchanged with %s: %s", place->partial, place->target, strerror(errno));
}

/* Something may have come there since the start. */
static nps_err_t check_and_put(const nps_place_t *place, bool force) {
  NPS_TRY(nps_path_sync(place->partial));
  NPS_TRY(nps_place_check(place, force));
  return put_in_place(place);
}

/* Saves a complete output under the first name of its kind that is free. @return it, owned; NULL: nothing can be renamed */
static char *save_complete(const nps_place_t *place) {
  for (int k = 1; k < 1000; k++) {
    char *name = k == 1 ? nps_xstrf("%s.complete", place->target) : nps_xstrf("%s.complete-%d", place->target, k);
    const bool taken = nps_path_exists(name);
    if (!taken && rename(place->partial, name) == 0) return name;
    free(name);
    if (!taken) return NULL;
  }
  return NULL;
}

/* A complete output is never removed: it goes where no run touches it, or stays. */
static nps_err_t keep_complete(const nps_place_t *place) {
  char *kept = save_complete(place);
  (void)nps_fail(NPS_ERR_IO, "%s: the new output is complete and kept as %s: move it to its place%s", place->target,
                 kept ? kept : place->partial, kept ? "" : " before another run, which would remove it");
  free(kept);
  return NPS_ERR_IO;
}

nps_err_t nps_place_finish(const nps_place_t *place, bool force) {
  if (check_and_put(place, force) != NPS_OK) return keep_complete(place);
  if (nps_path_sync(place->folder) != NPS_OK)
    return nps_fail(NPS_ERR_IO, "%s: the new output is in its place, but perhaps not on the device", place->target);
  /* A replaced folder goes when the new one's name is on the device, not before. */
  note_unless_removed(nps_path_remove(place->partial));
  return NPS_OK;
}

nps_err_t nps_file_replace(const char *from, const char *to) {
  NPS_TRY(move(from, to));
  char *folder = nps_path_folder(to);
  const nps_err_t err = nps_path_sync(folder);
  free(folder);
  return err;
}
