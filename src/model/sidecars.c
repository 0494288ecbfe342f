#include "model_internal.h"

#include "nps/h5.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SIDECAR ((int64_t)1 << 30)

static const struct {
  const char *name;
  bool of_tokenizer;
} known[] = {
    {"added_tokens.json", true},
    {"chat_template.jinja", true},
    {"chat_template.json", true},
    {"generation_config.json", false},
    {"merges.txt", true},
    {"preprocessor_config.json", false},
    {"processor_config.json", false},
    {"sentencepiece.bpe.model", true},
    {"special_tokens_map.json", true},
    {"spiece.model", true},
    {"tekken.json", true},
    {"tokenizer.json", true},
    {"tokenizer.model", true},
    {"tokenizer_config.json", true},
    {"video_preprocessor_config.json", false},
    {"vocab.json", true},
    {"vocab.txt", true},
};

bool nps_is_tokenizer_file(const char *name) {
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strcmp(name, known[i].name) == 0) return known[i].of_tokenizer;
  return false;
}

static void add(nps_sidecar_t **list, int *count, const char *name, char *data, size_t size) {
  *list = nps_xrealloc(*list, (size_t)*count + 1, sizeof **list);
  (*list)[(*count)++] = (nps_sidecar_t){nps_xstrdup(name), data, size};
}

static nps_err_t read_folder(const char *folder, nps_sidecar_t **list, int *count) {
  nps_err_t err = NPS_OK;
  for (size_t i = 0; i < sizeof known / sizeof *known && err == NPS_OK; i++) {
    char *path = nps_path_join(folder, known[i].name), *data = NULL;
    size_t size = 0;
    if (nps_path_exists(path)) {
      err = nps_file_read(path, (size_t)MAX_SIDECAR, &data, &size);
      if (err == NPS_OK) add(list, count, known[i].name, data, size);
    }
    free(path);
  }
  return err;
}

static nps_err_t read_member(nps_h5_t *file, const char *path, const char *name, nps_sidecar_t **list, int *count) {
  nps_h5_info_t info;
  void *data = NULL;
  size_t size = 0;
  NPS_TRY(nps_h5_describe(file, "/tokenizer", name, &info));
  if (name[0] == '.') return nps_fail(NPS_ERR_INPUT, "%s: /tokenizer/%s is not the name of a file", path, name);
  if (info.is_dataset && info.ndim == 1 && info.shape[0] > MAX_SIDECAR)
    return nps_fail(NPS_ERR_INPUT, "%s: /tokenizer/%s has %lld bytes, at most %lld are accepted", path, name,
                    (long long)info.shape[0], (long long)MAX_SIDECAR);
  char *member = nps_xstrf("/tokenizer/%s", name);
  nps_err_t err = nps_h5_get_bytes(file, member, &data, &size);
  if (err == NPS_OK) add(list, count, name, data, size);
  free(member);
  return err;
}

static nps_err_t read_hdf5(const char *path, nps_sidecar_t **list, int *count) {
  nps_h5_t *file = NULL;
  char **names = NULL;
  int name_count = 0;
  NPS_TRY(nps_h5_open(path, &file));
  nps_err_t err = nps_h5_list(file, "/tokenizer", &names, &name_count);
  for (int i = 0; i < name_count && err == NPS_OK; i++) err = read_member(file, path, names[i], list, count);
  nps_h5_free_names(names, name_count);
  nps_h5_abandon(file);
  return err;
}

nps_err_t nps_sidecars_read(const nps_model_t *model, nps_sidecar_t **list, int *count) {
  nps_err_t err = NPS_OK;
  *list = NULL;
  *count = 0;
  if (model->derivation) return nps_sidecars_read(model->derivation->base, list, count);
  if (model->form == NPS_FORM_HDF5)
    err = read_hdf5(model->path, list, count);
  else {
    char *folder = model->form == NPS_FORM_SAFETENSORS ? nps_path_folder(model->path) : nps_xstrdup(model->path);
    err = read_folder(folder, list, count);
    free(folder);
  }
  if (err == NPS_OK) return NPS_OK;
  nps_sidecars_free(*list, *count);
  *list = NULL;
  *count = 0;
  return err;
}

void nps_sidecars_free(nps_sidecar_t *list, int count) {
  for (int i = 0; i < count; i++) {
    free(list[i].name);
    free(list[i].data);
  }
  free(list);
}
