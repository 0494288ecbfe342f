#include "nps/fitness.h"

#include "nps/h5.h"

#include <stdlib.h>
#include <string.h>

/* Keeps the names that are groups. */
static nps_err_t keep_groups(nps_h5_t *file, char **names, int *count) {
  int kept = 0, i = 0;
  nps_err_t err = NPS_OK;
  for (; i < *count && err == NPS_OK; i++) {
    nps_h5_info_t info;
    err = nps_h5_describe(file, "/", names[i], &info);
    if (err == NPS_OK && !info.is_dataset)
      names[kept++] = names[i];
    else
      free(names[i]);
  }
  for (; i < *count; i++) free(names[i]);
  *count = kept;
  return err;
}

nps_err_t nps_dataset_groups(const char *path, char ***names, int *count) {
  nps_h5_t *file = NULL;
  *names = NULL;
  *count = 0;
  NPS_TRY(nps_h5_open(path, &file));
  nps_err_t err = nps_h5_list(file, "/", names, count);
  if (err == NPS_OK) err = keep_groups(file, *names, count);
  nps_h5_abandon(file);
  if (err == NPS_OK) return NPS_OK;
  nps_h5_free_names(*names, *count);
  *names = NULL;
  *count = 0;
  return err;
}

/* The group must be there: otherwise the file's groups are named. */
static nps_err_t check_group(nps_h5_t *file, const char *path, const char *group) {
  char **names = NULL;
  int count = 0;
  nps_text_t known = {0};
  NPS_TRY(nps_h5_list(file, "/", &names, &count));
  bool found = false;
  for (int i = 0; i < count; i++) {
    found |= strcmp(names[i], group) == 0;
    nps_text_add(&known, "%s%s", i ? ", " : "", names[i]);
  }
  if (!found)
    nps_fail(NPS_ERR_INPUT, "%s: there is no group %s (there are: %s)", path, group, known.text ? known.text : "none");
  nps_h5_free_names(names, count);
  free(known.text);
  return found ? NPS_OK : NPS_ERR_INPUT;
}

static nps_err_t read_inputs(nps_h5_t *file, const char *path, const char *group, nps_dataset_t *data) {
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  char text[192];
  char *name = nps_xstrf("/%s/inputs", group);
  nps_err_t err = nps_h5_read(file, name, NPS_F32, &ndim, shape, (void **)&data->inputs);
  free(name);
  NPS_TRY(err);
  bool empty = false;
  for (int i = 0; i < ndim; i++) empty |= shape[i] == 0;
  if (ndim != 4 || empty)
    return nps_fail(NPS_ERR_INPUT, "%s: /%s/inputs: expected shape [samples, channels, height, width], found %s", path,
                    group, nps_shape_format(ndim, shape, text));
  data->samples = shape[0];
  data->channels = shape[1];
  data->height = shape[2];
  data->width = shape[3];
  const int64_t one = shape[1] * shape[2] * shape[3];
  const int64_t bad = nps_tensor_find_nonfinite(NPS_F32, data->inputs, shape[0] * one);
  if (bad < 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: /%s/inputs: sample %lld holds NaN or infinity", path, group,
                  (long long)(bad / one));
}

static nps_err_t read_labels(nps_h5_t *file, const char *path, const char *group, nps_dataset_t *data) {
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  char text[192];
  char *name = nps_xstrf("/%s/labels", group);
  nps_err_t err = nps_h5_read(file, name, NPS_I32, &ndim, shape, (void **)&data->labels);
  free(name);
  NPS_TRY(err);
  if (ndim == 1 && shape[0] == data->samples) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: /%s/labels: expected shape [%lld], one label a sample, found %s", path, group,
                  (long long)data->samples, nps_shape_format(ndim, shape, text));
}

nps_err_t nps_dataset_read(const char *path, const char *group, nps_dataset_t **out) {
  nps_h5_t *file = NULL;
  nps_err_t err = NPS_OK;
  *out = NULL;
  NPS_TRY(nps_h5_open(path, &file));
  nps_dataset_t *data = nps_xcalloc(1, sizeof *data);
  data->path = nps_xstrdup(path);
  data->group = nps_xstrdup(group);
  NPS_GOTO(check_group(file, path, group));
  NPS_GOTO(read_inputs(file, path, group, data));
  NPS_GOTO(read_labels(file, path, group, data));
  *out = data;
  data = NULL;
done:
  nps_dataset_free(data);
  nps_h5_abandon(file);
  return err;
}

void nps_dataset_free(nps_dataset_t *data) {
  if (!data) return;
  free(data->path);
  free(data->group);
  free(data->inputs);
  free(data->labels);
  free(data);
}
