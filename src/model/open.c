#include "nps/archive.h"

#include "archive_read.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

nps_err_t nps_config_check(const char *text, const char *where) {
  json_t *root = NULL;
  NPS_TRY(nps_json_parse_python(text, strlen(text), where, &root));
  const bool object = json_is_object(root);
  json_decref(root);
  return object ? NPS_OK : nps_fail(NPS_ERR_INPUT, "%s: expected a JSON object", where);
}

static nps_err_t read_config(nps_model_t *model, const char *folder) {
  char *path = nps_path_join(folder, "config.json");
  nps_err_t err = nps_path_check_link(path);
  if (err == NPS_OK && nps_path_exists(path)) {
    err = nps_file_read(path, (size_t)64 << 20, &model->config_json, NULL);
    if (err == NPS_OK) err = nps_config_check(model->config_json, path);
  }
  free(path);
  return err;
}

static nps_err_t open_file(nps_model_t *model, const char *path) {
  NPS_TRY(nps_model_add_file(model, path));
  NPS_TRY(nps_safetensors_read(model, 0));
  return nps_model_sort(model);
}

/* What a folder holds, by the ends of names. */
typedef struct {
  char *first; /* *.safetensors, the first by name */
  int safetensors;
  int bin;
} contents_t;

static nps_err_t list_folder(const char *folder, contents_t *out) {
  DIR *dir = opendir(folder);
  if (!dir) return nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", folder, strerror(errno));
  for (const struct dirent *entry; (entry = readdir(dir));) {
    if (entry->d_name[0] == '.') continue;
    if (nps_ends_with(entry->d_name, ".bin")) out->bin++;
    if (!nps_ends_with(entry->d_name, ".safetensors")) continue;
    out->safetensors++;
    if (out->first && strcmp(out->first, entry->d_name) <= 0) continue;
    free(out->first);
    out->first = nps_xstrdup(entry->d_name);
  }
  closedir(dir);
  return NPS_OK;
}

static nps_err_t refuse_folder(const char *folder, const contents_t *found) {
  if (found->safetensors > 1)
    return nps_fail(NPS_ERR_INPUT,
                    "%s: has %d .safetensors files (%s, …) but no model.safetensors.index.json that tells "
                    "which belong to the model",
                    folder, found->safetensors, found->first);
  if (found->bin)
    return nps_fail(NPS_ERR_INPUT,
                    "%s: has only .bin weights; convert them with transformers: "
                    "AutoModel.from_pretrained(\"%s\").save_pretrained(OUT, safe_serialization=True)",
                    folder, folder);
  return nps_fail(NPS_ERR_INPUT, "%s: has no weights, expected model.safetensors or model.safetensors.index.json",
                  folder);
}

/* Whether a name is NAME-0000I-of-0000N.safetensors with several parts. */
static bool is_shard(const char *name) {
  const char *of = strstr(name, "-of-");
  return of && strtol(of + 4, NULL, 10) > 1;
}

static nps_err_t open_listed(nps_model_t *model) {
  contents_t found = {NULL, 0, 0};
  nps_err_t err = list_folder(model->path, &found);
  if (err == NPS_OK && found.safetensors == 1 && strcmp(found.first, "adapter_model.safetensors") == 0)
    err = nps_adapter_open_alone(model);
  else if (err == NPS_OK && found.safetensors == 1 && is_shard(found.first))
    err = nps_fail(NPS_ERR_INPUT, "%s: has one part of several, %s, and no model.safetensors.index.json", model->path,
                   found.first);
  else if (err == NPS_OK && found.safetensors == 1) {
    char *path = nps_path_join(model->path, found.first);
    err = open_file(model, path);
    free(path);
  } else if (err == NPS_OK)
    err = refuse_folder(model->path, &found);
  free(found.first);
  return err;
}

static nps_err_t open_weights(nps_model_t *model, const char *single, const char *index) {
  NPS_TRY(nps_path_check_link(single));
  NPS_TRY(nps_path_check_link(index));
  if (nps_path_exists(single) && nps_path_exists(index))
    nps_note("%s: has model.safetensors and an index; the index is not used", model->path);
  if (nps_path_exists(single)) return open_file(model, single);
  return nps_path_exists(index) ? nps_index_read(model, index) : open_listed(model);
}

static nps_err_t open_folder(nps_model_t *model) {
  char *single = nps_path_join(model->path, "model.safetensors");
  char *index = nps_path_join(model->path, "model.safetensors.index.json");
  nps_err_t err = open_weights(model, single, index);
  nps_err_t config = model->form == NPS_FORM_ADAPTER ? NPS_OK : read_config(model, model->path);
  free(single);
  free(index);
  return nps_err_worse(err, config);
}

bool nps_has_hdf5_signature(const char *path) {
  char start[8] = {0};
  struct stat st;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is not waited for */
  const bool found = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && read(fd, start, 8) == 8 &&
                     memcmp(start, "\x89HDF\r\n\x1a\n", 8) == 0;
  if (fd >= 0) close(fd);
  return found;
}

static nps_err_t open_single(nps_model_t *model) {
  char *folder = nps_path_folder(model->path);
  nps_err_t err = open_file(model, model->path);
  nps_err_t config = read_config(model, folder);
  free(folder);
  return nps_err_worse(err, config);
}

static nps_err_t open_hdf5(nps_model_t *model) {
  NPS_TRY(nps_model_add_file(model, model->path));
  NPS_TRY(nps_hdf5_read(model));
  return nps_model_sort(model);
}

static nps_err_t open_from_archive(const char *path, const char *name, nps_model_t **out) {
  const size_t n = nps_archive_split(path);
  char *file = nps_xstrndup(path, n);
  const nps_err_t err = nps_archive_open(file, path + n + 1, name, out);
  free(file);
  return err;
}

nps_err_t nps_model_open(const char *path, const char *name, nps_model_t **out) {
  struct stat st;
  nps_model_t *model;
  nps_err_t err;
  char *base = NULL, *beside = NULL;
  *out = NULL;
  if (nps_path_split(path, &base, &beside)) {
    err = nps_adapter_open(base, beside, path, name, out);
    free(base);
    free(beside);
    return err;
  }
  if (nps_archive_split(path)) return open_from_archive(path, name, out);
  if (stat(path, &st) != 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", path, strerror(errno));
  if (nps_archive_is(path)) return nps_archive_open_base(path, name, out);
  if (S_ISDIR(st.st_mode)) {
    model = nps_model_new(name, path, NPS_FORM_FOLDER);
    err = open_folder(model);
  } else if (nps_ends_with(path, ".safetensors")) {
    model = nps_model_new(name, path, NPS_FORM_SAFETENSORS);
    err = open_single(model);
  } else if (nps_ends_with(path, ".h5") || nps_ends_with(path, ".hdf5") || nps_has_hdf5_signature(path)) {
    model = nps_model_new(name, path, NPS_FORM_HDF5);
    err = open_hdf5(model);
  } else
    return nps_fail(NPS_ERR_INPUT, "%s: expected a folder, a .safetensors file or a merged .h5 file", path);
  if (err == NPS_OK)
    *out = model;
  else
    nps_model_free(model);
  return err;
}

nps_err_t nps_model_open_group(const char *path, const char *group, const char *name, nps_model_t **out) {
  nps_model_t *model = nps_model_new(name, path, NPS_FORM_HDF5);
  nps_err_t err = nps_model_add_file(model, path);
  if (err == NPS_OK) err = nps_hdf5_read_group(model, group, "");
  if (err == NPS_OK) err = nps_model_sort(model);
  *out = NULL;
  if (err == NPS_OK)
    *out = model;
  else
    nps_model_free(model);
  return err;
}
