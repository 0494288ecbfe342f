#include "model_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_RECORDED 50

void nps_checks_fail(nps_checks_t *checks, const char *fmt, ...) {
  if (checks->count++ >= MAX_RECORDED) return;
  va_list args;
  va_start(args, fmt);
  char *text = nps_xvstrf(fmt, args);
  va_end(args);
  nps_fail(NPS_ERR_INPUT, "%s: %s", checks->where, text);
  free(text);
}

nps_err_t nps_checks_end(nps_checks_t *checks) {
  if (checks->count > MAX_RECORDED)
    nps_fail(NPS_ERR_INPUT, "%s: … and %d more", checks->where, checks->count - MAX_RECORDED);
  return checks->count ? NPS_ERR_INPUT : NPS_OK;
}

char *nps_path_join(const char *folder, const char *name) {
  return nps_xstrf("%s%s%s", folder, nps_ends_with(folder, "/") ? "" : "/", name);
}

bool nps_path_exists(const char *path) { return access(path, F_OK) == 0; }

bool nps_path_is_broken_link(const char *path) {
  struct stat st;
  return lstat(path, &st) == 0 && S_ISLNK(st.st_mode) && stat(path, &st) != 0;
}

nps_err_t nps_path_check_link(const char *path) {
  if (!nps_path_is_broken_link(path)) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: is a link to a file that is not there; download the model again", path);
}

char *nps_path_folder(const char *path) {
  const char *slash = strrchr(path, '/');
  if (!slash) return nps_xstrdup(".");
  return slash == path ? nps_xstrdup("/") : nps_xstrndup(path, (size_t)(slash - path));
}

bool nps_ends_with(const char *text, const char *suffix) {
  const size_t n = strlen(text), m = strlen(suffix);
  return n >= m && strcmp(text + n - m, suffix) == 0;
}

nps_model_t *nps_model_new(const char *name, const char *path, nps_model_form_t form) {
  nps_model_t *model = nps_xcalloc(1, sizeof *model);
  model->name = nps_xstrdup(name);
  model->path = nps_xstrdup(path);
  model->form = form;
  return model;
}

static void free_experts(nps_experts_t *experts) {
  if (!experts) return;
  nps_model_free(experts->parts);
  for (int i = 0; i < experts->count; i++) free(experts->names[i]);
  free(experts->names);
  free(experts);
}

void nps_model_free(nps_model_t *model) {
  if (!model) return;
  free_experts(model->experts);
  nps_derivation_free(model->derivation);
  for (int i = 0; i < model->file_count; i++) free(model->files[i].path);
  for (int i = 0; i < model->tensor_count; i++) {
    free(model->tensors[i].name);
    nps_made_free(model->tensors[i].made);
  }
  free(model->parents);
  free(model->files);
  free(model->tensors);
  free(model->config_json);
  free(model->path);
  free(model->name);
  free(model);
}

static int64_t change_time(const struct stat *st) {
  return (int64_t)st->st_ctim.tv_sec * 1000000000 + st->st_ctim.tv_nsec;
}

int64_t nps_file_change_time(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 ? change_time(&st) : INT64_MAX;
}

nps_err_t nps_model_add_file(nps_model_t *model, const char *path) {
  struct stat st;
  if (stat(path, &st) != 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", path, strerror(errno));
  if (!S_ISREG(st.st_mode)) return nps_fail(NPS_ERR_INPUT, "%s: expected a regular file", path);
  model->files = nps_xrealloc(model->files, (size_t)model->file_count + 1, sizeof *model->files);
  model->files[model->file_count++] = (nps_model_file_t){nps_xstrdup(path), (int64_t)st.st_size, change_time(&st)};
  return NPS_OK;
}

int nps_model_add_files(nps_model_t *model, const nps_model_t *other) {
  const int first = model->file_count;
  model->files = nps_xrealloc(model->files, (size_t)(first + other->file_count) + 1, sizeof *model->files);
  for (int i = 0; i < other->file_count; i++) {
    nps_model_file_t *file = &model->files[model->file_count++];
    *file = other->files[i];
    file->path = nps_xstrdup(file->path);
  }
  return first;
}

void nps_model_add_tensor(nps_model_t *model, const nps_tensor_info_t *info) {
  /* Room grows in powers of two: the count tells when it is used up. */
  const int n = model->tensor_count;
  if ((n & (n - 1)) == 0) model->tensors = nps_xrealloc(model->tensors, n ? 2 * (size_t)n : 1, sizeof *model->tensors);
  model->tensors[model->tensor_count++] = *info;
}

static int compare_names(const void *a, const void *b) {
  return strcmp(((const nps_tensor_info_t *)a)->name, ((const nps_tensor_info_t *)b)->name);
}

nps_err_t nps_model_sort(nps_model_t *model) {
  nps_checks_t checks = {model->path, 0};
  if (model->tensor_count == 0) nps_checks_fail(&checks, "has no tensors");
  if (model->tensor_count) qsort(model->tensors, (size_t)model->tensor_count, sizeof *model->tensors, compare_names);
  for (int i = 1; i < model->tensor_count; i++) {
    const nps_tensor_info_t *a = &model->tensors[i - 1], *b = &model->tensors[i];
    if (strcmp(a->name, b->name) == 0)
      nps_checks_fail(&checks, "tensor %s is stored twice, in %s and %s", a->name, model->files[a->file].path,
                      model->files[b->file].path);
  }
  return nps_checks_end(&checks);
}

int nps_model_find(const nps_model_t *model, const char *name) {
  int low = 0, high = model->tensor_count;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    const int order = strcmp(model->tensors[middle].name, name);
    if (order == 0) return middle;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return -1;
}
