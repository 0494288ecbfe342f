#include "model_internal.h"

#include "nps/h5.h"

#include <stdlib.h>
#include <string.h>

#define FORMAT_VERSION 1

static nps_err_t check_format(nps_h5_t *file, const char *path) {
  char *format = NULL;
  int64_t version = 0;
  bool found = false;
  nps_err_t err;
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "format", &format));
  NPS_GOTO(nps_h5_get_attr_i64(file, "/", "format_version", &version, &found));
  if (!format)
    err = nps_fail(NPS_ERR_INPUT, "%s: is no merged model: it has no attribute 'format'", path);
  else if (strcmp(format, "nps-merged") != 0)
    err = nps_fail(NPS_ERR_INPUT, "%s: is no merged model: expected format 'nps-merged', found '%s'", path, format);
  else if (!found)
    err = nps_fail(NPS_ERR_INPUT, "%s: has no attribute 'format_version'", path);
  else if (version != FORMAT_VERSION)
    err =
        nps_fail(NPS_ERR_INPUT, "%s: expected format_version %d, found %lld", path, FORMAT_VERSION, (long long)version);
done:
  free(format);
  return err;
}

/* A dataset must be a plain piece of the file, for it is read without HDF5. */
static void add_dataset(nps_model_t *model, nps_checks_t *checks, const char *group, const char *name,
                        const nps_h5_info_t *info) {
  nps_tensor_info_t tensor = {.dtype = info->dtype, .ndim = info->ndim};
  const int64_t size = info->known_type ? (int64_t)nps_dtype_size(info->dtype) : 1;
  memcpy(tensor.shape, info->shape, sizeof tensor.shape);
  if (!info->is_dataset)
    nps_checks_fail(checks, "%s/%s: expected a dataset, found a group", group, name);
  else if (!info->known_type)
    nps_checks_fail(checks, "tensor %s: unknown type", name);
  else if (!info->contiguous)
    nps_checks_fail(checks, "tensor %s: expected a contiguous dataset, found one in chunks or filtered", name);
  else if (!nps_shape_count(info->ndim, info->shape, &tensor.count) || tensor.count > INT64_MAX / size)
    nps_checks_fail(checks, "tensor %s: its shape is too large", name);
  else if (tensor.count > 0 &&
           (info->offset < 0 || info->bytes != tensor.count * size || info->bytes > model->files[0].size ||
            info->offset > model->files[0].size - info->bytes))
    nps_checks_fail(checks, "tensor %s: its %lld bytes at offset %lld are outside of the file's %lld", name,
                    (long long)(tensor.count * size), (long long)info->offset, (long long)model->files[0].size);
  else {
    tensor.name = nps_xstrdup(name);
    tensor.offset = tensor.count > 0 ? info->offset : 0;
    nps_model_add_tensor(model, &tensor);
  }
}

/* Adds the datasets of a group as tensors, their names behind a prefix. */
static nps_err_t read_group(nps_model_t *model, nps_h5_t *file, const char *group, const char *prefix) {
  nps_checks_t checks = {model->path, 0};
  char **names = NULL;
  int count = 0;
  NPS_TRY(nps_h5_list(file, group, &names, &count));
  nps_err_t err = NPS_OK;
  for (int i = 0; i < count; i++) {
    nps_h5_info_t info;
    nps_err_t one = nps_h5_describe(file, group, names[i], &info);
    if (one == NPS_OK) {
      char *name = nps_xstrf("%s%s", prefix, names[i]);
      add_dataset(model, &checks, group, name, &info);
      free(name);
    }
    err = nps_err_worse(err, one);
  }
  nps_h5_free_names(names, count);
  return nps_err_worse(err, nps_checks_end(&checks));
}

/* ---- experts ---- */

static nps_err_t get_count(nps_h5_t *file, const nps_model_t *model, const char *key, int64_t most, int64_t *value) {
  bool found = false;
  NPS_TRY(nps_h5_get_attr_i64(file, "/experts", key, value, &found));
  if (found && *value >= 1 && *value <= most) return NPS_OK;
  if (!found) return nps_fail(NPS_ERR_INPUT, "%s: /experts has no attribute '%s'", model->path, key);
  return nps_fail(NPS_ERR_INPUT, "%s: /experts: %s: expected 1 to %lld, found %lld", model->path, key, (long long)most,
                  (long long)*value);
}

static nps_err_t read_experts(nps_model_t *model, nps_h5_t *file) {
  static const char *const kinds[] = {"bias", "sigma", "u", "v"};
  nps_experts_t *experts = model->experts = nps_xcalloc(1, sizeof *experts);
  experts->parts = nps_model_new(model->name, model->path, NPS_FORM_HDF5);
  NPS_TRY(nps_model_add_file(experts->parts, model->path));
  NPS_TRY(nps_h5_get_attr_texts(file, "/experts", "names", &experts->names, &experts->count));
  if (experts->count < 1) return nps_fail(NPS_ERR_INPUT, "%s: /experts has no attribute 'names'", model->path);
  NPS_TRY(get_count(file, model, "kg", INT32_MAX, &experts->kg));
  NPS_TRY(get_count(file, model, "k", INT32_MAX, &experts->k));
  NPS_TRY(get_count(file, model, "top_k", experts->count, &experts->top_k));
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    char *group = nps_xstrf("/experts/%s", kinds[i]), *prefix = nps_xstrf("%s/", kinds[i]);
    nps_err_t err = read_group(experts->parts, file, group, prefix);
    free(group);
    free(prefix);
    NPS_TRY(err);
  }
  return nps_model_sort(experts->parts);
}

static bool has_experts(char *const *names, int count) {
  for (int i = 0; i < count; i++)
    if (strcmp(names[i], "experts") == 0) return true;
  return false;
}

static nps_err_t read_experts_if_any(nps_model_t *model, nps_h5_t *file) {
  char **names = NULL;
  int count = 0;
  NPS_TRY(nps_h5_list(file, "/", &names, &count));
  const bool found = has_experts(names, count);
  nps_h5_free_names(names, count);
  return found ? read_experts(model, file) : NPS_OK;
}

nps_err_t nps_hdf5_read(nps_model_t *model) {
  nps_h5_t *file = NULL;
  char *where = nps_xstrf("%s: attribute config_json", model->path);
  nps_err_t err;
  NPS_GOTO(nps_h5_open(model->path, &file));
  NPS_GOTO(check_format(file, model->path));
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "config_json", &model->config_json));
  if (model->config_json) NPS_GOTO(nps_config_check(model->config_json, where));
  NPS_GOTO(read_group(model, file, "/tensors", ""));
  err = read_experts_if_any(model, file);
done:
  nps_h5_abandon(file);
  free(where);
  return err;
}

nps_err_t nps_hdf5_read_group(nps_model_t *model, const char *group, const char *prefix) {
  nps_h5_t *file = NULL;
  NPS_TRY(nps_h5_open(model->path, &file));
  nps_err_t err = read_group(model, file, group, prefix);
  nps_h5_abandon(file);
  return err;
}
