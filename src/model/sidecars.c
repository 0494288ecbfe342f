#include "model_internal.h"

#include "nps/h5.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_SIDECAR ((int64_t)1 << 30)

/* What a file says something of. */
typedef enum { OF_MODEL, OF_TOKENIZER, OF_MODULES } kind_t;

static const struct {
  const char *name;
  kind_t kind;
} known[] = {
    {"added_tokens.json", OF_TOKENIZER},
    {"bpe.codes", OF_TOKENIZER},
    {"chat_template.jinja", OF_TOKENIZER},
    {"chat_template.json", OF_TOKENIZER},
    {"config_sentence_transformers.json", OF_MODULES},
    {"generation_config.json", OF_MODEL},
    {"merges.txt", OF_TOKENIZER},
    {"modules.json", OF_MODULES},
    {"preprocessor_config.json", OF_MODEL},
    {"processor_config.json", OF_MODEL},
    {"sentence_albert_config.json", OF_MODULES},
    {"sentence_bert_config.json", OF_MODULES},
    {"sentence_camembert_config.json", OF_MODULES},
    {"sentence_distilbert_config.json", OF_MODULES},
    {"sentence_roberta_config.json", OF_MODULES},
    {"sentence_xlm-roberta_config.json", OF_MODULES},
    {"sentence_xlnet_config.json", OF_MODULES},
    {"sentencepiece.bpe.model", OF_TOKENIZER},
    {"sentencepiece.model", OF_TOKENIZER},
    {"source.spm", OF_TOKENIZER},
    {"special_tokens_map.json", OF_TOKENIZER},
    {"spiece.model", OF_TOKENIZER},
    {"spm.model", OF_TOKENIZER},
    {"target.spm", OF_TOKENIZER},
    {"tekken.json", OF_TOKENIZER},
    {"tokenizer.json", OF_TOKENIZER},
    {"tokenizer.model", OF_TOKENIZER},
    {"tokenizer_config.json", OF_TOKENIZER},
    {"video_preprocessor_config.json", OF_MODEL},
    {"vocab.json", OF_TOKENIZER},
    {"vocab.txt", OF_TOKENIZER},
};

static bool is_of(const char *name, kind_t kind) {
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strcmp(name, known[i].name) == 0) return known[i].kind == kind;
  return kind == OF_MODULES && strchr(name, '/');
}

bool nps_is_tokenizer_file(const char *name) { return is_of(name, OF_TOKENIZER); }

bool nps_is_module_weights(const char *name) {
  return strchr(name, '/') && (nps_ends_with(name, ".safetensors") || nps_ends_with(name, ".bin"));
}

/* The files that are read. */
typedef struct {
  nps_sidecar_t *list; /* [count] */
  int count;
  bool modules; /* only those of modules */
} files_t;

static void add(files_t *files, const char *name, char *data, size_t size) {
  files->list = nps_xrealloc(files->list, (size_t)files->count + 1, sizeof *files->list);
  files->list[files->count++] = (nps_sidecar_t){nps_xstrdup(name), data, size};
}

/* ---- in a folder ---- */

static bool is_file(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static nps_err_t read_file(const char *folder, const char *name, files_t *files) {
  char *path = nps_path_join(folder, name), *data = NULL;
  size_t size = 0;
  nps_err_t err = NPS_OK;
  if (is_file(path)) {
    err = nps_file_read(path, (size_t)MAX_SIDECAR, &data, &size);
    if (err == NPS_OK) add(files, name, data, size);
  } else if (nps_path_is_broken_link(path))
    nps_note("%s: is a link to a file that is not there, and left out", path);
  free(path);
  return err;
}

/* The folder that an entry of modules.json names, or NULL: the model's own. */
static const char *module_folder(const json_t *module) {
  const char *path = json_string_value(json_object_get(module, "path"));
  return path && path[0] && strcmp(path, ".") != 0 ? path : NULL;
}

/* Such a name does not lead out of the folder, and no file beside it is called so: they all have a dot. */
static bool is_module_name(const char *name) {
  static const char fit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
  return name[0] && name[strspn(name, fit)] == '\0';
}

static int is_visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static int compare_entries(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

static bool is_folder(const char *folder, const char *name) {
  struct stat st;
  char *path = nps_path_join(folder, name);
  const bool is = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
  free(path);
  return is;
}

/* All files of a module; there may be none. */
static nps_err_t read_module(const char *folder, const char *module, files_t *files) {
  char *path = nps_path_join(folder, module);
  struct dirent **entries = NULL;
  nps_err_t err = NPS_OK;
  const int n = scandir(path, &entries, is_visible, compare_entries);
  if (n < 0 && errno != ENOENT && errno != ENOTDIR)
    err = nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", path, strerror(errno));
  for (int i = 0; i < n; i++) {
    char *name = nps_path_join(module, entries[i]->d_name);
    if (is_folder(folder, name)) nps_note("%s/%s: is not copied: folders within a module are left out", folder, name);
    if (err == NPS_OK) err = read_file(folder, name, files);
    free(name);
    free(entries[i]);
  }
  free(entries);
  free(path);
  return err;
}

static bool has_module(const files_t *files, const char *module) {
  const size_t n = strlen(module);
  for (int i = 0; i < files->count; i++)
    if (strncmp(files->list[i].name, module, n) == 0 && files->list[i].name[n] == '/') return true;
  return false;
}

static nps_err_t read_modules(const char *folder, const nps_sidecar_t *file, files_t *files) {
  char *where = nps_path_join(folder, file->name);
  json_t *modules = NULL, *module;
  size_t i;
  nps_err_t err = nps_json_parse_python(file->data, file->size, where, &modules);
  json_array_foreach(modules, i, module) {
    const char *name = module_folder(module);
    if (err != NPS_OK || !name || has_module(files, name)) continue;
    err = is_module_name(name) ? read_module(folder, name, files)
                               : nps_fail(NPS_ERR_INPUT,
                                          "%s: path: expected the name of a folder beside it (letters, digits, _ and "
                                          "-), found '%s'",
                                          where, name);
  }
  json_decref(modules);
  free(where);
  return err;
}

static nps_err_t read_folder(const char *folder, files_t *files) {
  nps_err_t err = NPS_OK;
  for (size_t i = 0; i < sizeof known / sizeof *known && err == NPS_OK; i++)
    if (!files->modules || known[i].kind == OF_MODULES) err = read_file(folder, known[i].name, files);
  for (int i = 0; i < files->count && err == NPS_OK; i++)
    if (strcmp(files->list[i].name, "modules.json") == 0) {
      const nps_sidecar_t file = files->list[i];
      return read_modules(folder, &file, files);
    }
  return err;
}

bool nps_is_module(const char *folder, const char *name) {
  char *path = nps_path_join(folder, "modules.json");
  json_t *modules = is_file(path) ? json_load_file(path, 0, NULL) : NULL, *module;
  size_t i;
  bool found = false;
  json_array_foreach(modules, i, module) {
    const char *named = module_folder(module);
    found = found || (named && strcmp(named, name) == 0);
  }
  json_decref(modules);
  free(path);
  return found;
}

/* ---- in HDF5 ---- */

static nps_err_t read_group(nps_h5_t *file, const char *path, const char *module, files_t *files);

static nps_err_t read_dataset(nps_h5_t *file, const char *path, const char *name, const nps_h5_info_t *info,
                              files_t *files) {
  void *data = NULL;
  size_t size = 0;
  if (info->is_dataset && info->ndim == 1 && info->shape[0] > MAX_SIDECAR)
    return nps_fail(NPS_ERR_INPUT, "%s: /tokenizer/%s has %lld bytes, at most %lld are accepted", path, name,
                    (long long)info->shape[0], (long long)MAX_SIDECAR);
  char *member = nps_xstrf("/tokenizer/%s", name);
  nps_err_t err = nps_h5_get_bytes(file, member, &data, &size);
  if (err == NPS_OK) add(files, name, data, size);
  free(member);
  return err;
}

/* @param module  whose group it is in; NULL: it is in /tokenizer itself */
static nps_err_t read_member(nps_h5_t *file, const char *path, const char *module, const char *name, files_t *files) {
  nps_h5_info_t info;
  char *full = module ? nps_path_join(module, name) : nps_xstrdup(name);
  char *group = module ? nps_xstrf("/tokenizer/%s", module) : nps_xstrdup("/tokenizer");
  nps_err_t err = nps_h5_describe(file, group, name, &info);
  if (err == NPS_OK && name[0] == '.')
    err = nps_fail(NPS_ERR_INPUT, "%s: /tokenizer/%s is not the name of a file", path, full);
  else if (err == NPS_OK && !module && !info.is_dataset && is_module_name(name))
    err = read_group(file, path, name, files);
  else if (err == NPS_OK && (!files->modules || is_of(full, OF_MODULES)))
    err = read_dataset(file, path, full, &info, files);
  free(full);
  free(group);
  return err;
}

static nps_err_t read_group(nps_h5_t *file, const char *path, const char *module, files_t *files) {
  char **names = NULL, *group = module ? nps_xstrf("/tokenizer/%s", module) : nps_xstrdup("/tokenizer");
  int count = 0;
  nps_err_t err = nps_h5_list(file, group, &names, &count);
  for (int i = 0; i < count && err == NPS_OK; i++) err = read_member(file, path, module, names[i], files);
  nps_h5_free_names(names, count);
  free(group);
  return err;
}

static nps_err_t read_hdf5(const char *path, files_t *files) {
  nps_h5_t *file = NULL;
  NPS_TRY(nps_h5_open(path, &file));
  nps_err_t err = read_group(file, path, NULL, files);
  nps_h5_abandon(file);
  return err;
}

/* ---- of a model ---- */

static nps_err_t read_files(const nps_model_t *model, files_t *files) {
  if (model->derivation) return read_files(model->derivation->base, files);
  if (model->form == NPS_FORM_HDF5) return read_hdf5(model->path, files);
  char *folder = model->form == NPS_FORM_SAFETENSORS ? nps_path_folder(model->path) : nps_xstrdup(model->path);
  nps_err_t err = read_folder(folder, files);
  free(folder);
  return err;
}

static nps_err_t read_some(const nps_model_t *model, bool modules, nps_sidecar_t **list, int *count) {
  files_t files = {.modules = modules};
  nps_err_t err = read_files(model, &files);
  if (err != NPS_OK) nps_sidecars_free(files.list, files.count);
  *list = err == NPS_OK ? files.list : NULL;
  *count = err == NPS_OK ? files.count : 0;
  return err;
}

nps_err_t nps_sidecars_read(const nps_model_t *model, nps_sidecar_t **list, int *count) {
  return read_some(model, false, list, count);
}

nps_err_t nps_sidecars_read_modules(const nps_model_t *model, nps_sidecar_t **list, int *count) {
  return read_some(model, true, list, count);
}

void nps_sidecars_free(nps_sidecar_t *list, int count) {
  for (int i = 0; i < count; i++) {
    free(list[i].name);
    free(list[i].data);
  }
  free(list);
}
