/* What an earlier run of the same method has left in its output, for this one to go on from: read, checked, written. */
#include "run_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- reading, on rank 0 ---- */

/* Gives the file that holds the state of a model, or NULL. */
static nps_err_t find_file(const char *model, const char *group, const char *method, char **out) {
  struct stat st;
  nps_h5_t *file = NULL;
  char **members = NULL;
  int count = 0;
  *out = NULL;
  if (stat(model, &st) == 0 && S_ISDIR(st.st_mode)) {
    char *path = nps_xstrf("%s/%s_state.h5", model, method);
    if (stat(path, &st) == 0)
      *out = path;
    else
      free(path);
    return NPS_OK;
  }
  if (!nps_output_is_hdf5(model)) return NPS_OK;
  NPS_TRY(nps_h5_open(model, &file));
  nps_err_t err = nps_h5_list(file, group, &members, &count);
  if (count > 0) *out = nps_xstrdup(model);
  nps_h5_free_names(members, count);
  nps_h5_abandon(file);
  return err;
}

static nps_err_t missing(const char *path, const char *group, const char *name) {
  return nps_fail(NPS_ERR_INPUT, "%s: %s lacks the attribute %s", path, group, name);
}

/* A parameter of the method as the state tells it: a number, or the index of a choice. */
static nps_err_t read_param(nps_h5_t *file, const char *path, const char *group, const nps_param_t *param,
                            double *value) {
  char *text = NULL;
  bool found = false;
  if (param->kind == NPS_PARAM_NUMBER) {
    NPS_TRY(nps_h5_get_attr_f64(file, group, param->name, value, &found));
    return found ? NPS_OK : missing(path, group, param->name);
  }
  NPS_TRY(nps_h5_get_attr_text(file, group, param->name, &text));
  if (!text) return missing(path, group, param->name);
  nps_err_t err = NPS_OK;
  int i = 0;
  while (param->choices[i] && strcmp(param->choices[i], text) != 0) i++;
  *value = i;
  if (!param->choices[i]) err = nps_fail(NPS_ERR_INPUT, "%s: %s: unknown %s '%s'", path, group, param->name, text);
  free(text);
  return err;
}

static nps_err_t read_attributes(nps_h5_t *file, const char *path, const char *group, const nps_merge_method_t *method,
                                 nps_run_history_t *h) {
  bool found = false;
  NPS_TRY(nps_h5_get_attr_i64(file, group, "count", &h->models, &found));
  if (!found) return missing(path, group, "count");
  NPS_TRY(nps_h5_get_attr_f64(file, group, "norm_mean", &h->norm_mean, &found));
  if (!found) return missing(path, group, "norm_mean");
  if (h->models < 1 || !(h->norm_mean >= 0 && h->norm_mean < 1e300))
    return nps_fail(NPS_ERR_INPUT, "%s: %s: a count of %lld and a mean norm of %g cannot be", path, group,
                    (long long)h->models, h->norm_mean);
  NPS_TRY(nps_h5_get_attr_text(file, group, "base", &h->base));
  if (!h->base) return missing(path, group, "base");
  NPS_TRY(nps_h5_get_attr_texts(file, group, "base_sha256", &h->hashes, &h->hash_count));
  if (!h->hashes) return missing(path, group, "base_sha256");
  for (int p = 0; p < method->param_count; p++)
    if (!method->params[p].per_model) NPS_TRY(read_param(file, path, group, &method->params[p], &h->param[p]));
  return NPS_OK;
}

static nps_err_t read_state(const char *path, const char *group, const nps_merge_method_t *method,
                            nps_run_history_t *h) {
  nps_h5_t *file = NULL;
  char *updates = nps_xstrf("%s/A", group);
  nps_err_t err;
  NPS_GOTO(nps_h5_open(path, &file));
  NPS_GOTO(read_attributes(file, path, group, method, h));
  NPS_GOTO(nps_model_open_group(path, updates, "state", &h->updates));
done:
  nps_h5_abandon(file);
  free(updates);
  return err;
}

nps_err_t nps_run_find_history(nps_run_state_t *run) {
  const nps_merge_method_t *method = run->method;
  nps_run_history_t *h = &run->history;
  if (!method || !method->keeps_updates || !run->recipe->base_model) return NPS_OK;
  char *folder = nps_run_config_folder(run), *file = NULL, *group = nps_xstrf("/state/%s", method->name);
  struct stat st;
  nps_err_t err;
  NPS_GOTO(nps_model_locate(run->recipe->base_model, folder, &h->home));
  NPS_GOTO(find_file(h->home, group, method->name, &file));
  if (!file) goto done;
  NPS_GOTO(read_state(file, group, method, h));
  if (stat(h->base, &st) != 0)
    err = nps_fail(NPS_ERR_INPUT, "%s: its models were merged into the base model %s, which is missing", h->home,
                   h->base);
  else
    nps_note("%s is an output of %s with %lld model%s merged: this run adds to them, on the base model %s", h->home,
             method->name, (long long)h->models, h->models > 1 ? "s" : "", h->base);
done:
  free(group);
  free(file);
  free(folder);
  return err;
}

/* ---- checks ---- */

nps_err_t nps_run_share_history(nps_run_state_t *run) {
  const bool root = nps_comm_rank(run->comm) == 0;
  nps_run_history_t *h = &run->history;
  nps_err_t err = NPS_OK;
  char *packed = root && h->updates ? nps_model_pack(h->updates) : NULL;
  nps_comm_bcast_text(run->comm, &packed);
  nps_comm_bcast(run->comm, &h->models, sizeof h->models);
  nps_comm_bcast(run->comm, &h->norm_mean, sizeof h->norm_mean);
  if (!root && packed) err = nps_model_unpack(packed, &h->updates);
  free(packed);
  return nps_comm_agree(run->comm, err);
}

nps_err_t nps_run_fit_history(const nps_run_state_t *run, const nps_layout_t *layout) {
  const nps_model_t *updates = run->history.updates;
  nps_err_t err = NPS_OK;
  int merged = 0;
  if (!updates) return NPS_OK;
  for (int t = 0; t < layout->count && err == NPS_OK; t++) {
    const nps_target_t *target = &layout->targets[t];
    if (target->action != NPS_ACTION_MERGE) continue;
    const int i = nps_model_find(updates, target->name);
    const nps_tensor_info_t *info = i >= 0 ? &updates->tensors[i] : NULL;
    merged++;
    if (!info)
      err = nps_fail(NPS_ERR_INPUT, "%s: has no state of tensor %s", updates->path, target->name);
    else if (info->dtype != NPS_F64 || info->ndim != target->ndim ||
             memcmp(info->shape, target->shape, (size_t)info->ndim * sizeof *info->shape) != 0)
      err = nps_fail(NPS_ERR_INPUT, "%s: the state of tensor %s is not F64 in the shape of the base's", updates->path,
                     target->name);
  }
  if (err == NPS_OK && merged != updates->tensor_count)
    err = nps_fail(NPS_ERR_INPUT, "%s: has a state of %d tensors, the base has %d", updates->path,
                   updates->tensor_count, merged);
  return err;
}

static nps_err_t check_param(const nps_run_state_t *run, const nps_merge_t *merge, int p) {
  const nps_param_t *param = &run->method->params[p];
  const double then = run->history.param[p];
  double now = then;
  if (!nps_merge_plain_value(merge, param->name, 0, &now) || now == then) return NPS_OK;
  if (param->kind == NPS_PARAM_CHOICE)
    return nps_fail(NPS_ERR_CONFIG, "%s: parameter '%s' must be %s, as in the earlier runs that led to %s; found %s",
                    run->recipe->file, param->name, param->choices[(int)then], run->history.home,
                    param->choices[(int)now]);
  return nps_fail(NPS_ERR_CONFIG,
                  "%s: parameter '%s' must be %.15g, as in the earlier runs that led to %s; found %.15g",
                  run->recipe->file, param->name, then, run->history.home, now);
}

nps_err_t nps_run_check_history(const nps_run_state_t *run, const nps_merge_t *merge) {
  nps_err_t err = NPS_OK;
  if (!run->history.updates || nps_comm_rank(run->comm) != 0) return NPS_OK;
  for (int p = 0; p < run->method->param_count; p++)
    if (!run->method->params[p].per_model) err = nps_err_worse(err, check_param(run, merge, p));
  return err;
}

static const char *hash_of(const nps_digest_t *digest, const char *path) {
  for (int i = 0; i < nps_digest_count(digest); i++)
    if (strcmp(nps_digest_path(digest, i), path) == 0) return nps_digest_hex(digest, i);
  return "";
}

/* On rank 0. */
static nps_err_t compare_hashes(const nps_run_history_t *h, const nps_model_t *base, const nps_digest_t *digest) {
  nps_err_t err = NPS_OK;
  if (base->file_count != h->hash_count)
    return nps_fail(NPS_ERR_INPUT, "%s: has changed since %s was made: expected %d weight files, found %d", base->path,
                    h->home, h->hash_count, base->file_count);
  for (int i = 0; i < base->file_count; i++) {
    const char *path = base->files[i].path, *found = hash_of(digest, path);
    if (strcmp(found, h->hashes[i]) != 0)
      err = nps_fail(NPS_ERR_INPUT, "%s: has changed since %s was made: expected content hash %s, found %s", path,
                     h->home, h->hashes[i], found);
  }
  return err;
}

nps_err_t nps_run_hash_history(nps_run_state_t *run) {
  if (!run->history.updates) return NPS_OK;
  const nps_model_t *base = run->inputs[run->base];
  nps_digest_t *digest = nps_digest_start(&base, 1);
  nps_err_t err = nps_digest_finish(run->comm, digest);
  if (err == NPS_OK && nps_comm_rank(run->comm) == 0) err = compare_hashes(&run->history, base, digest);
  nps_digest_free(digest);
  return nps_comm_agree(run->comm, err);
}

/* ---- writing ---- */

static nps_err_t put_base(const nps_comm_t *comm, nps_h5_t *file, const char *group, const nps_model_t *base,
                          const nps_digest_t *digest) {
  /* From anywhere the next run must find the same model. */
  char *path = nps_comm_rank(comm) == 0 ? realpath(base->path, NULL) : NULL;
  nps_comm_bcast_text(comm, &path);
  const char **hashes = nps_xcalloc((size_t)base->file_count, sizeof *hashes);
  for (int i = 0; i < base->file_count; i++) hashes[i] = hash_of(digest, base->files[i].path);
  nps_err_t err = nps_h5_put_attr_text(file, group, "base", path ? path : base->path);
  if (err == NPS_OK) err = nps_h5_put_attr_texts(file, group, "base_sha256", hashes, base->file_count);
  free(hashes);
  free(path);
  return err;
}

nps_err_t nps_run_put_history(const nps_run_state_t *run, const nps_run_output_t *output, const nps_digest_t *digest,
                              nps_h5_t *file) {
  const nps_merge_method_t *method = run->method;
  const nps_merge_history_t now = nps_merge_history(output->merge);
  char *group = nps_xstrf("/state/%s", method->name);
  nps_err_t err;
  NPS_GOTO(put_base(run->comm, file, group, output->inputs[output->base], digest));
  NPS_GOTO(nps_h5_put_attr_i64(file, group, "count", now.models));
  NPS_GOTO(nps_h5_put_attr_f64(file, group, "norm_mean", now.norm_mean));
  for (int p = 0; p < method->param_count; p++) {
    const nps_param_t *param = &method->params[p];
    double value = param->fallback; /* where no tensor is merged */
    if (param->per_model) continue;
    (void)nps_merge_plain_value(output->merge, param->name, 0, &value);
    NPS_GOTO(param->kind == NPS_PARAM_CHOICE
                 ? nps_h5_put_attr_text(file, group, param->name, param->choices[(int)value])
                 : nps_h5_put_attr_f64(file, group, param->name, value));
  }
done:
  free(group);
  return err;
}

void nps_run_free_history(nps_run_state_t *run) {
  nps_run_history_t *h = &run->history;
  nps_model_free(h->updates);
  nps_h5_free_names(h->hashes, h->hash_count);
  free(h->base);
  free(h->home);
}
