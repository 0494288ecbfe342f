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

/* ---- images ---- */

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

/* ---- texts ---- */

/* Reads /group/name [samples][tokens], of the shape of input_ids. */
static nps_err_t read_like_ids(nps_h5_t *file, const char *name, nps_dataset_t *data, int32_t **out) {
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  char text[192];
  char *full = nps_xstrf("/%s/%s", data->group, name);
  nps_err_t err = nps_h5_read(file, full, NPS_I32, &ndim, shape, (void **)out);
  if (err == NPS_OK && (ndim != 2 || shape[0] != data->samples || shape[1] != data->tokens))
    err = nps_fail(NPS_ERR_INPUT, "%s: %s: expected shape [%lld, %lld], as input_ids, found %s", data->path, full,
                   (long long)data->samples, (long long)data->tokens, nps_shape_format(ndim, shape, text));
  free(full);
  return err;
}

static nps_err_t read_ids(nps_h5_t *file, nps_dataset_t *data) {
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  char text[192];
  char *name = nps_xstrf("/%s/input_ids", data->group);
  nps_err_t err = nps_h5_read(file, name, NPS_I32, &ndim, shape, (void **)&data->ids);
  if (err == NPS_OK && (ndim != 2 || shape[0] == 0 || shape[1] == 0))
    err = nps_fail(NPS_ERR_INPUT, "%s: %s: expected shape [samples, tokens], found %s", data->path, name,
                   nps_shape_format(ndim, shape, text));
  free(name);
  if (err != NPS_OK) return err;
  data->samples = shape[0];
  data->tokens = shape[1];
  return NPS_OK;
}

static nps_err_t read_texts(nps_h5_t *file, bool masked, bool labelled, nps_dataset_t *data) {
  NPS_TRY(read_ids(file, data));
  if (masked) NPS_TRY(read_like_ids(file, "attention_mask", data, &data->mask));
  return labelled ? read_like_ids(file, "labels", data, &data->labels) : NPS_OK;
}

/* ---- either ---- */

static bool is_among(char *const *names, int count, const char *name) {
  for (int i = 0; i < count; i++)
    if (strcmp(names[i], name) == 0) return true;
  return false;
}

/* A group with input_ids holds texts, any other images. */
static nps_err_t read_samples(nps_h5_t *file, nps_dataset_t *data) {
  char **names = NULL;
  int count = 0;
  char *place = nps_xstrf("/%s", data->group);
  nps_err_t err = nps_h5_list(file, place, &names, &count);
  free(place);
  if (err == NPS_OK && is_among(names, count, "input_ids")) {
    err = read_texts(file, is_among(names, count, "attention_mask"), is_among(names, count, "labels"), data);
  } else if (err == NPS_OK) {
    err = read_inputs(file, data->path, data->group, data);
    if (err == NPS_OK) err = read_labels(file, data->path, data->group, data);
  }
  nps_h5_free_names(names, count);
  return err;
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
  NPS_GOTO(read_samples(file, data));
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
  free(data->ids);
  free(data->mask);
  free(data->labels);
  free(data);
}

int64_t nps_dataset_sample_bytes(const nps_dataset_t *data) {
  const int64_t image = data->channels * data->height * data->width * (int64_t)sizeof(float) + (int64_t)sizeof(int32_t);
  const int64_t text = data->tokens * (1 + (data->mask != NULL) + (data->labels != NULL)) * (int64_t)sizeof(int32_t);
  return data->inputs ? image : text;
}
