/* What a complete output says about the files it was made from. */
#include "model_internal.h"
#include "nps/h5.h"
#include "nps/json.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NANO ((int64_t)1000000000)

/* Whose time of modification is the provenance's; freed with free(). */
static char *file_of(const char *output) {
  return nps_output_is_hdf5(output) ? nps_xstrdup(output) : nps_xstrf("%s/provenance.json", output);
}

void nps_output_set_time(const char *path, int64_t time) {
  const struct timespec times[] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = time / NANO, .tv_nsec = time % NANO}};
  char *file = file_of(path);
  (void)utimensat(AT_FDCWD, file, times, 0);
  free(file);
}

static void make_room(nps_provenance_t *p, int64_t count) {
  p->count = count;
  p->paths = nps_xcalloc((size_t)count + 1, sizeof *p->paths);
  p->hashes = nps_xcalloc((size_t)count + 1, sizeof *p->hashes);
  p->sizes = nps_xcalloc((size_t)count + 1, sizeof *p->sizes);
}

static nps_err_t read_columns(nps_h5_t *file, nps_provenance_t *p) {
  int64_t hashes = 0, shape[NPS_MAX_DIMS] = {0};
  int ndim = 0;
  NPS_TRY(nps_h5_read_texts(file, "/provenance/path", &p->paths, &p->count));
  NPS_TRY(nps_h5_read(file, "/provenance/size", NPS_I64, &ndim, shape, (void **)&p->sizes));
  const bool fits = ndim == 1 && shape[0] == p->count;
  NPS_TRY(nps_h5_read_texts(file, "/provenance/sha256", &p->hashes, &hashes));
  if (fits && hashes == p->count) return NPS_OK;
  for (int64_t i = 0; i < hashes; i++) free(p->hashes[i]);
  free(p->hashes);
  p->hashes = NULL;
  return nps_fail(NPS_ERR_INPUT, "/provenance is damaged");
}

static nps_err_t read_hdf5(const char *path, nps_provenance_t *p) {
  nps_h5_t *file = NULL;
  NPS_TRY(nps_h5_open(path, &file));
  const nps_err_t err = read_columns(file, p);
  nps_h5_abandon(file);
  return err;
}

static char *text_of(const json_t *entry, const char *key) {
  const char *text = json_string_value(json_object_get(entry, key));
  return text ? nps_xstrdup(text) : NULL;
}

static nps_err_t read_folder(const char *path, nps_provenance_t *p) {
  json_t *all = NULL;
  NPS_TRY(nps_json_load(path, &all));
  const json_t *inputs = json_object_get(all, "inputs");
  make_room(p, (int64_t)json_array_size(inputs));
  for (int64_t i = 0; i < p->count; i++) {
    const json_t *entry = json_array_get(inputs, (size_t)i);
    p->paths[i] = text_of(entry, "path");
    p->hashes[i] = text_of(entry, "sha256");
    p->sizes[i] = json_integer_value(json_object_get(entry, "size"));
  }
  json_decref(all);
  return NPS_OK;
}

void nps_output_provenance(const char *path, nps_provenance_t *out) {
  const int problems = nps_problem_count();
  const bool hdf5 = nps_output_is_hdf5(path);
  char *file = file_of(path);
  struct stat st;
  *out = (nps_provenance_t){0};
  if (stat(file, &st) == 0) {
    const nps_err_t err = hdf5 ? read_hdf5(file, out) : read_folder(file, out);
    if (err != NPS_OK) nps_provenance_free(out);
    out->time = (int64_t)st.st_mtim.tv_sec * NANO + st.st_mtim.tv_nsec;
  }
  if (problems == 0) nps_problem_clear(); /* what cannot be read is not known */
  free(file);
}

void nps_provenance_free(nps_provenance_t *p) {
  for (int64_t i = 0; i < p->count; i++) {
    if (p->paths) free(p->paths[i]);
    if (p->hashes) free(p->hashes[i]);
  }
  free(p->paths);
  free(p->hashes);
  free(p->sizes);
  *p = (nps_provenance_t){0};
}
