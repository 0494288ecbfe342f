/* Opening an archive: which models it has, its index, and its base. */
#include "nps/archive.h"

#include "archive_read.h"

#include <stdlib.h>
#include <string.h>

#define FORMAT_VERSION 1

bool nps_archive_is(const char *path) {
  nps_h5_t *file = NULL;
  char *format = NULL;
  const int problems = nps_problem_count();
  if (!nps_has_hdf5_signature(path)) return false;
  if (nps_h5_open(path, &file) == NPS_OK) (void)nps_h5_get_attr_text(file, "/", "format", &format);
  nps_h5_abandon(file);
  if (problems == 0) nps_problem_clear(); /* whoever opens it next tells them */
  const bool found = format && strcmp(format, NPS_ARCHIVE_FORMAT) == 0;
  free(format);
  return found;
}

size_t nps_archive_split(const char *path) {
  if (nps_path_exists(path)) return 0;
  for (const char *at = strchr(path, '#'); at; at = strchr(at + 1, '#')) {
    char *file = nps_xstrndup(path, (size_t)(at - path));
    const bool found = at > path && nps_has_hdf5_signature(file);
    free(file);
    if (found) return (size_t)(at - path);
  }
  return 0;
}

static nps_err_t check_version(nps_h5_t *file, const char *path) {
  char *format = NULL;
  int64_t version = 0;
  bool found = false;
  nps_err_t err;
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "format", &format));
  NPS_GOTO(nps_h5_get_attr_i64(file, "/", "format_version", &version, &found));
  if (!format || strcmp(format, NPS_ARCHIVE_FORMAT) != 0)
    err = nps_fail(NPS_ERR_INPUT, "%s: is no archive: expected format '%s', found '%s'", path, NPS_ARCHIVE_FORMAT,
                   format ? format : "");
  else if (!found || version != FORMAT_VERSION)
    err =
        nps_fail(NPS_ERR_INPUT, "%s: expected format_version %d, found %lld", path, FORMAT_VERSION, (long long)version);
done:
  free(format);
  return err;
}

/* ---- the base ---- */

/* Where the base lies: at its path, else as it was named, from the archive's folder. */
static nps_err_t locate_base(const char *path, const char *at, const char *name, char **out) {
  char *folder = nps_path_folder(path);
  const int problems = nps_problem_count();
  nps_err_t err = nps_model_locate(at, NULL, out);
  if (err != NPS_OK && name) err = nps_model_locate(name, folder, out);
  if (problems == 0) nps_problem_clear(); /* one message tells it all */
  if (err != NPS_OK)
    err = nps_fail(NPS_ERR_INPUT, "%s: its base is not there, neither %s nor, from the archive's folder, %s", path, at,
                   name);
  free(folder);
  return err;
}

static nps_err_t check_sizes(nps_h5_t *file, const char *path, const nps_model_t *base) {
  void *sizes = NULL;
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  NPS_TRY(nps_h5_read(file, "/base/size", NPS_I64, &ndim, shape, &sizes));
  nps_err_t err = NPS_OK;
  if (ndim != 1 || shape[0] != base->file_count)
    err = nps_fail(NPS_ERR_INPUT, "%s: has %d files, but the base that %s was made from %lld", base->path,
                   base->file_count, path, ndim == 1 ? (long long)shape[0] : -1);
  for (int i = 0; err == NPS_OK && i < base->file_count; i++)
    if (base->files[i].size != ((const int64_t *)sizes)[i])
      err = nps_fail(NPS_ERR_INPUT, "%s: has %lld bytes, but the base that %s was made from %lld", base->files[i].path,
                     (long long)base->files[i].size, path, (long long)((const int64_t *)sizes)[i]);
  free(sizes);
  return err;
}

static nps_err_t open_embedded(nps_h5_t *file, const char *path, const char *name, nps_model_t **out) {
  nps_model_t *model = nps_model_new(name, path, NPS_FORM_HDF5);
  char *where = nps_xstrf("%s: attribute config_json", path);
  nps_err_t err;
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "config_json", &model->config_json));
  if (model->config_json) NPS_GOTO(nps_config_check(model->config_json, where));
  NPS_GOTO(nps_model_add_file(model, path));
  NPS_GOTO(nps_hdf5_read_group(model, "/tensors", ""));
  NPS_GOTO(nps_model_sort(model));
done:
  free(where);
  *out = err == NPS_OK ? model : NULL;
  if (err != NPS_OK) nps_model_free(model);
  return err;
}

/* Archives whose bases are models of archives, one in another. */
enum { MOST_BASES = 8 };

static nps_err_t open_base(nps_h5_t *file, const char *path, const char *name, nps_model_t **out) {
  static int depth; /* of bases within bases */
  char *at = NULL, *named = NULL, *found = NULL;
  nps_model_t *base = NULL;
  nps_err_t err;
  NPS_GOTO(nps_h5_get_attr_text(file, "/base", "name", &named));
  NPS_GOTO(nps_h5_get_attr_text(file, "/base", "path", &at));
  if (!named) NPS_GOTO(nps_fail(NPS_ERR_INPUT, "%s: /base has no attribute 'name'", path));
  if (at) {
    NPS_GOTO(locate_base(path, at, named, &found));
    if (depth == MOST_BASES)
      NPS_GOTO(nps_fail(NPS_ERR_INPUT, "%s: its base is a model of an archive, whose base is, and so on", path));
    depth++;
    err = nps_model_open(found, name, &base);
    depth--;
    NPS_GOTO(err);
    NPS_GOTO(check_sizes(file, path, base));
  } else
    NPS_GOTO(open_embedded(file, path, name, &base));
  *out = base;
  base = NULL;
done:
  nps_model_free(base);
  free(found);
  free(named);
  free(at);
  return err;
}

nps_err_t nps_archive_open_base(const char *path, const char *name, nps_model_t **out) {
  nps_h5_t *file = NULL;
  *out = NULL;
  NPS_TRY(nps_h5_open(path, &file));
  nps_err_t err = check_version(file, path);
  if (err == NPS_OK) err = open_base(file, path, name, out);
  nps_h5_abandon(file);
  return err;
}

/* ---- the index ---- */

static nps_err_t add_texts(nps_h5_t *file, const char *path, const char *key, json_t *index) {
  char **texts = NULL;
  int64_t count = 0;
  NPS_TRY(nps_h5_read_texts(file, path, &texts, &count));
  json_t *list = json_array();
  nps_err_t err = NPS_OK;
  for (int64_t i = 0; i < count && err == NPS_OK; i++)
    if (json_array_append_new(list, json_string(texts[i])) != 0)
      err = nps_fail(NPS_ERR_INPUT, "%s: entry %lld is not UTF-8", path, (long long)i);
  json_object_set_new(index, key, list);
  nps_h5_free_names(texts, (int)count);
  return err;
}

static nps_err_t add_numbers(nps_h5_t *file, const char *path, const char *key, json_t *index) {
  void *numbers = NULL;
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  NPS_TRY(nps_h5_read(file, path, NPS_I64, &ndim, shape, &numbers));
  json_t *list = json_array();
  const int64_t n = ndim == 1 ? shape[0] : 0;
  for (int64_t i = 0; i < n; i++) json_array_append_new(list, json_integer(((const int64_t *)numbers)[i]));
  json_object_set_new(index, key, list);
  free(numbers);
  return NPS_OK;
}

/* Which tensors are stored by their singular factors, where some are. */
static nps_err_t add_matrices(nps_h5_t *file, json_t *index) {
  int64_t matrices = 0;
  bool found = false;
  NPS_TRY(nps_h5_get_attr_i64(file, "/index", "matrices", &matrices, &found));
  return found ? add_numbers(file, "/index/matrix", "matrix", index) : NPS_OK;
}

static nps_err_t check_index(const char *path, const json_t *index, int64_t bits) {
  const size_t n = json_array_size(json_object_get(index, "name"));
  if (bits != 4 && bits != 8 && bits != 16)
    return nps_fail(NPS_ERR_INPUT, "%s: /index: value_bits: expected 4, 8 or 16, found %lld", path, (long long)bits);
  const json_t *matrix = json_object_get(index, "matrix");
  if (n == json_array_size(json_object_get(index, "dtype")) && n == json_array_size(json_object_get(index, "count")) &&
      (!matrix || n == json_array_size(matrix)))
    return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: /index: name, dtype, count and matrix have different lengths", path);
}

static nps_err_t read_index(nps_h5_t *file, const char *path, const char *group, bool embedded, json_t *index) {
  char *config = NULL;
  int64_t bits = 0;
  bool found = false;
  NPS_TRY(add_texts(file, "/index/name", "name", index));
  NPS_TRY(add_texts(file, "/index/dtype", "dtype", index));
  NPS_TRY(add_numbers(file, "/index/count", "count", index));
  NPS_TRY(add_matrices(file, index));
  NPS_TRY(nps_h5_get_attr_i64(file, "/index", "value_bits", &bits, &found));
  NPS_TRY(check_index(path, index, bits));
  json_object_set_new(index, "value_bits", json_integer(bits));
  if (!embedded) NPS_TRY(add_texts(file, "/base/sha256", "sha256", index));
  NPS_TRY(nps_h5_get_attr_text(file, group, "config_json", &config));
  json_t *text = config ? json_string(config) : NULL;
  if (text) json_object_set_new(index, "config_json", text);
  char *where = nps_xstrf("%s: %s: attribute config_json", path, group);
  const nps_err_t err = config ? nps_config_check(config, where) : NPS_OK;
  free(where);
  free(config);
  return err;
}

/* ---- a model ---- */

static nps_err_t find_model(nps_h5_t *file, const char *path, const char *model) {
  char **names = NULL;
  int count = 0;
  bool found = false;
  nps_text_t list = {0};
  NPS_TRY(nps_h5_list(file, "/models", &names, &count));
  for (int i = 0; i < count; i++) {
    found = found || strcmp(names[i], model) == 0;
    nps_text_add(&list, "%s%s", i ? ", " : "", names[i]);
  }
  const char *near = found ? NULL : nps_nearest(model, (const char *const *)names, count);
  nps_err_t err = NPS_OK;
  if (near)
    err = nps_fail(NPS_ERR_INPUT, "%s: has no model '%s', did you mean '%s'?", path, model, near);
  else if (!found)
    err = nps_fail(NPS_ERR_INPUT, "%s: has no model '%s', but %s", path, model, list.text ? list.text : "none");
  free(list.text);
  nps_h5_free_names(names, count);
  return err;
}

static nps_err_t open_parts(const char *path, const char *model, nps_model_t **out) {
  char *group = nps_xstrf("/models/%s", model), *heads = nps_xstrf("/heads/%s", model);
  nps_model_t *parts = nps_model_new(model, path, NPS_FORM_HDF5);
  nps_err_t err = nps_model_add_file(parts, path);
  if (err == NPS_OK) err = nps_hdf5_read_group(parts, group, "");
  if (err == NPS_OK) err = nps_hdf5_read_group(parts, heads, NPS_ARCHIVE_HEADS);
  if (err == NPS_OK) err = nps_model_sort(parts);
  free(group);
  free(heads);
  *out = err == NPS_OK ? parts : NULL;
  if (err != NPS_OK) nps_model_free(parts);
  return err;
}

static nps_err_t open_model(nps_h5_t *file, const char *path, const char *model, const char *name, json_t *index,
                            nps_model_t **out) {
  nps_model_t *base = NULL, *parts = NULL;
  char *group = nps_xstrf("/models/%s", model), *full = nps_xstrf("%s#%s", path, model);
  nps_err_t err;
  NPS_GOTO(check_version(file, path));
  NPS_GOTO(find_model(file, path, model));
  NPS_GOTO(open_base(file, path, name, &base));
  NPS_GOTO(read_index(file, path, group, base->form == NPS_FORM_HDF5 && strcmp(base->path, path) == 0, index));
  NPS_GOTO(open_parts(path, model, &parts));
  err = nps_model_derive(&nps_archive_form, name, full, base, parts, json_dumps(index, JSON_COMPACT), out);
  base = parts = NULL;
done:
  nps_model_free(base);
  nps_model_free(parts);
  free(group);
  free(full);
  return err;
}

nps_err_t nps_archive_open(const char *path, const char *model, const char *name, nps_model_t **out) {
  nps_h5_t *file = NULL;
  json_t *index = json_object();
  *out = NULL;
  nps_err_t err = nps_h5_open(path, &file);
  if (err == NPS_OK) err = open_model(file, path, model, name, index, out);
  nps_h5_abandon(file);
  json_decref(index);
  return err;
}

/* ---- listing ---- */

/* Adds the bytes of a group's datasets. */
static nps_err_t add_bytes(nps_h5_t *file, const char *group, int64_t *bytes) {
  char **names = NULL;
  int count = 0;
  NPS_TRY(nps_h5_list(file, group, &names, &count));
  nps_err_t err = NPS_OK;
  for (int i = 0; i < count && err == NPS_OK; i++) {
    nps_h5_info_t info;
    err = nps_h5_describe(file, group, names[i], &info);
    if (err == NPS_OK && info.is_dataset) *bytes += info.bytes;
  }
  nps_h5_free_names(names, count);
  return err;
}

static nps_err_t describe_entry(nps_h5_t *file, const char *name, nps_archive_entry_t *entry) {
  char *group = nps_xstrf("/models/%s", name), *heads = nps_xstrf("/heads/%s", name);
  bool found = false;
  nps_err_t err;
  entry->name = nps_xstrdup(name);
  NPS_GOTO(nps_h5_get_attr_i64(file, group, "kept", &entry->told.kept, &found));
  NPS_GOTO(nps_h5_get_attr_f64(file, group, "error", &entry->told.error, &found));
  NPS_GOTO(add_bytes(file, group, &entry->told.bytes));
  NPS_GOTO(add_bytes(file, heads, &entry->told.bytes));
done:
  free(group);
  free(heads);
  return err;
}

nps_err_t nps_archive_list(const char *path, nps_archive_entry_t **entries, int *count) {
  nps_h5_t *file = NULL;
  char **names = NULL;
  *entries = NULL;
  *count = 0;
  NPS_TRY(nps_h5_open(path, &file));
  nps_err_t err = nps_h5_list(file, "/models", &names, count);
  if (err == NPS_OK) *entries = nps_xcalloc((size_t)*count + 1, sizeof **entries);
  for (int i = 0; i < *count && err == NPS_OK; i++) err = describe_entry(file, names[i], &(*entries)[i]);
  nps_h5_free_names(names, *count);
  nps_h5_abandon(file);
  if (err == NPS_OK) return NPS_OK;
  nps_archive_list_free(*entries, *count);
  *entries = NULL;
  *count = 0;
  return err;
}

void nps_archive_list_free(nps_archive_entry_t *entries, int count) {
  for (int i = 0; entries && i < count; i++) free(entries[i].name);
  free(entries);
}
