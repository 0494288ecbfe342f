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

static bool is_among(char *const *names, int count, const char *name) {
  for (int i = 0; i < count; i++)
    if (strcmp(names[i], name) == 0) return true;
  return false;
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

int64_t nps_dataset_texts(const nps_dataset_t *data, int64_t samples) { return samples * nps_max64(data->choices, 1); }

int64_t nps_dataset_rows(const nps_dataset_t *data, int64_t samples) {
  return data->targets ? samples : nps_dataset_texts(data, samples);
}

const int32_t *nps_dataset_targets(const nps_dataset_t *data) { return data->targets ? data->targets : data->labels; }

int64_t nps_dataset_labels(const nps_dataset_t *data) {
  if (!data->labels) return 0;
  return data->inputs || data->choices ? 1 : nps_max64(data->places, 1);
}

static nps_err_t read_integers(nps_h5_t *file, const nps_dataset_t *data, const char *name, int *ndim, int64_t *shape,
                               int32_t **out) {
  char *full = nps_xstrf("/%s/%s", data->group, name);
  nps_err_t err = nps_h5_read(file, full, NPS_I32, ndim, shape, (void **)out);
  free(full);
  return err;
}

static nps_err_t fail_shape(const nps_dataset_t *data, const char *name, const char *expected, int ndim,
                            const int64_t *shape) {
  char found[192];
  return nps_fail(NPS_ERR_INPUT, "%s: /%s/%s: expected shape %s, found %s", data->path, data->group, name, expected,
                  nps_shape_format(ndim, shape, found));
}

/* Reads /group/name, of the first `dims` dimensions of input_ids. */
static nps_err_t read_like_ids(nps_h5_t *file, const nps_dataset_t *data, const char *name, int dims, int32_t **out) {
  const int64_t all[] = {data->samples, data->choices ? data->choices : data->tokens, data->tokens};
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  char text[192];
  NPS_TRY(read_integers(file, data, name, &ndim, shape, out));
  if (ndim == dims && memcmp(shape, all, (size_t)dims * sizeof *shape) == 0) return NPS_OK;
  char *expected = nps_xstrf("%s, as input_ids", nps_shape_format(dims, all, text));
  fail_shape(data, name, expected, ndim, shape);
  free(expected);
  return NPS_ERR_INPUT;
}

static nps_err_t read_ids(nps_h5_t *file, nps_dataset_t *data) {
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  NPS_TRY(read_integers(file, data, "input_ids", &ndim, shape, &data->ids));
  bool empty = false;
  for (int i = 0; i < ndim; i++) empty |= shape[i] == 0;
  if ((ndim != 2 && ndim != 3) || empty)
    return fail_shape(data, "input_ids", "[samples, tokens] or [samples, choices, tokens]", ndim, shape);
  data->samples = shape[0];
  data->choices = ndim == 3 ? shape[1] : 0;
  data->tokens = shape[ndim - 1];
  return NPS_OK;
}

/* Choices of encoder-decoders: one row of input_ids for all of a sample. */
static nps_err_t read_targets(nps_h5_t *file, nps_dataset_t *data) {
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  NPS_TRY(read_integers(file, data, "target_ids", &ndim, shape, &data->targets));
  if (data->choices)
    return nps_fail(NPS_ERR_INPUT,
                    "%s: /%s/input_ids: expected shape [samples, tokens] beside target_ids, found [%lld, %lld, %lld]",
                    data->path, data->group, (long long)data->samples, (long long)data->choices,
                    (long long)data->tokens);
  if (ndim != 3 || shape[0] != data->samples || shape[1] == 0 || shape[2] == 0)
    return fail_shape(data, "target_ids", "[samples, choices, places]", ndim, shape);
  data->choices = shape[1];
  data->places = shape[2];
  return NPS_OK;
}

static nps_err_t read_text_labels(nps_h5_t *file, nps_dataset_t *data) {
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS];
  NPS_TRY(read_integers(file, data, "labels", &ndim, shape, &data->labels));
  const bool fits = ndim > 0 && shape[0] == data->samples;
  if (!data->targets) data->places = ndim == 2 ? shape[1] : 0;
  if (fits && (ndim == 1 || (ndim == 2 && !data->choices && shape[1] > 0))) return NPS_OK;
  return fail_shape(data, "labels", data->choices ? "[samples]" : "[samples] or [samples, places]", ndim, shape);
}

static nps_err_t check_right_choices(const nps_dataset_t *data) {
  if (!data->labels)
    return nps_fail(NPS_ERR_INPUT, "%s: group %s: choices need labels, which of them is right", data->path,
                    data->group);
  for (int64_t i = 0; i < data->samples; i++)
    if (data->labels[i] < 0 || data->labels[i] >= data->choices)
      return nps_fail(NPS_ERR_INPUT,
                      "%s: group %s: label %d of sample %lld: expected 0 to %lld, as there are %lld choices",
                      data->path, data->group, (int)data->labels[i], (long long)i, (long long)data->choices - 1,
                      (long long)data->choices);
  for (int64_t i = 0; data->lengths && i < data->samples * data->choices; i++)
    if (data->lengths[i] < 1)
      return nps_fail(NPS_ERR_INPUT, "%s: group %s: lengths: expected 1 or more, found %d", data->path, data->group,
                      (int)data->lengths[i]);
  return NPS_OK;
}

static nps_err_t read_metric(nps_h5_t *file, nps_dataset_t *data) {
  static const char *const names[] = {
      [NPS_SCORED_EXACT] = "exact_match", [NPS_SCORED_SUM] = "acc", [NPS_SCORED_MEAN] = "acc_norm"};
  char *name = NULL;
  char *place = nps_xstrf("/%s", data->group);
  nps_err_t err = nps_h5_get_attr_text(file, place, "metric", &name);
  free(place);
  if (err != NPS_OK) return err;
  data->scored = data->choices ? NPS_SCORED_SUM : NPS_SCORED_PLAIN;
  bool known = !name;
  for (int i = data->choices ? NPS_SCORED_SUM : NPS_SCORED_EXACT;
       name && i <= (data->choices ? NPS_SCORED_MEAN : NPS_SCORED_EXACT); i++)
    if (strcmp(name, names[i]) == 0) data->scored = (nps_scored_t)i, known = true;
  if (!known)
    nps_fail(NPS_ERR_INPUT, "%s: group %s: metric: expected %s, found %s", data->path, data->group,
             data->choices ? "acc or acc_norm" : "exact_match, or none", name);
  free(name);
  return known ? NPS_OK : NPS_ERR_INPUT;
}

static nps_err_t read_texts(nps_h5_t *file, char *const *names, int count, nps_dataset_t *data) {
  NPS_TRY(read_ids(file, data));
  const int dims = data->choices ? 3 : 2;
  if (is_among(names, count, "attention_mask")) NPS_TRY(read_like_ids(file, data, "attention_mask", dims, &data->mask));
  if (is_among(names, count, "token_type_ids"))
    NPS_TRY(read_like_ids(file, data, "token_type_ids", dims, &data->types));
  if (data->choices && is_among(names, count, "answer_mask"))
    NPS_TRY(read_like_ids(file, data, "answer_mask", 3, &data->answer));
  if (is_among(names, count, "target_ids")) NPS_TRY(read_targets(file, data));
  if (data->choices && is_among(names, count, "lengths"))
    NPS_TRY(read_like_ids(file, data, "lengths", 2, &data->lengths));
  if (is_among(names, count, "labels")) NPS_TRY(read_text_labels(file, data));
  NPS_TRY(read_metric(file, data));
  return data->choices ? check_right_choices(data) : NPS_OK;
}

/* ---- either ---- */

/* A group with input_ids holds texts, any other images. */
static nps_err_t read_samples(nps_h5_t *file, nps_dataset_t *data) {
  char **names = NULL;
  int count = 0;
  char *place = nps_xstrf("/%s", data->group);
  nps_err_t err = nps_h5_list(file, place, &names, &count);
  free(place);
  if (err == NPS_OK && is_among(names, count, "input_ids")) {
    err = read_texts(file, names, count, data);
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
  free(data->types);
  free(data->answer);
  free(data->lengths);
  free(data->targets);
  free(data->labels);
  free(data);
}

int64_t nps_dataset_sample_bytes(const nps_dataset_t *data) {
  const int64_t texts = nps_dataset_texts(data, 1), rows = nps_dataset_rows(data, 1);
  const int64_t kinds = (data->ids != NULL) + (data->mask != NULL) + (data->types != NULL) + (data->answer != NULL);
  const int64_t targets = data->targets ? data->places : 0;
  const int64_t integers =
      rows * data->tokens * kinds + texts * (targets + (data->lengths != NULL)) + nps_dataset_labels(data);
  return data->channels * data->height * data->width * (int64_t)sizeof(float) + integers * (int64_t)sizeof(int32_t);
}
