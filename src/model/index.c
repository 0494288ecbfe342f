#include "model_internal.h"

#include <stdlib.h>
#include <string.h>

/* The files an index names, each once. */
typedef struct {
  const char **names;
  int count;
} names_t;

static int compare_texts(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool is_file_name(const char *name) { return name[0] != '\0' && name[0] != '.' && !strchr(name, '/'); }

static void collect_files(nps_checks_t *checks, json_t *map, names_t *files) {
  const char *tensor;
  json_t *value;
  files->names = nps_xcalloc(json_object_size(map), sizeof(char *));
  json_object_foreach(map, tensor, value) {
    const char *name = json_string_value(value);
    if (!name)
      nps_checks_fail(checks, "weight_map: %s: expected the name of a file", tensor);
    else if (!is_file_name(name))
      nps_checks_fail(checks, "weight_map: %s: '%s' is not the name of a file in this folder", tensor, name);
    else
      files->names[files->count++] = name;
  }
  if (files->count) qsort(files->names, (size_t)files->count, sizeof(char *), compare_texts);
  int unique = 0;
  for (int i = 0; i < files->count; i++)
    if (unique == 0 || strcmp(files->names[i], files->names[unique - 1]) != 0) files->names[unique++] = files->names[i];
  files->count = unique;
}

static nps_err_t read_files(nps_model_t *model, nps_checks_t *checks, const names_t *files) {
  nps_err_t err = NPS_OK;
  for (int i = 0; i < files->count; i++) {
    char *path = nps_path_join(model->path, files->names[i]);
    nps_err_t one = NPS_OK;
    if (!nps_path_exists(path))
      nps_checks_fail(checks, "weight_map names %s, which does not exist", files->names[i]);
    else if ((one = nps_model_add_file(model, path)) == NPS_OK)
      one = nps_safetensors_read(model, model->file_count - 1);
    if (one != NPS_OK) err = one;
    free(path);
  }
  return err;
}

static const char *file_name(const nps_model_t *model, int i) {
  const char *slash = strrchr(model->files[i].path, '/');
  return slash ? slash + 1 : model->files[i].path;
}

/* The map and the files' headers must say the same. */
static void compare_map(const nps_model_t *model, nps_checks_t *checks, json_t *map) {
  const char *tensor;
  json_t *value;
  json_object_foreach(map, tensor, value) {
    const int i = nps_model_find(model, tensor);
    if (i < 0)
      nps_checks_fail(checks, "weight_map: tensor %s is not in %s", tensor, json_string_value(value));
    else if (strcmp(file_name(model, model->tensors[i].file), json_string_value(value)) != 0)
      nps_checks_fail(checks, "weight_map: tensor %s is said to be in %s, found in %s", tensor,
                      json_string_value(value), file_name(model, model->tensors[i].file));
  }
  for (int i = 0; i < model->tensor_count; i++)
    if (!json_object_get(map, model->tensors[i].name))
      nps_checks_fail(checks, "weight_map lacks tensor %s of %s", model->tensors[i].name,
                      file_name(model, model->tensors[i].file));
}

static void compare_size(const nps_model_t *model, const char *index, const json_t *root) {
  const json_t *size = json_object_get(json_object_get(root, "metadata"), "total_size");
  double total = 0;
  if (!json_is_number(size)) return;
  for (int i = 0; i < model->tensor_count; i++)
    total += (double)model->tensors[i].count * (double)nps_dtype_size(model->tensors[i].dtype);
  if (json_number_value(size) < total || json_number_value(size) > total)
    nps_note("%s: metadata.total_size is %.0f, the tensors take %.0f bytes", index, json_number_value(size), total);
}

nps_err_t nps_index_read(nps_model_t *model, const char *index) {
  nps_checks_t checks = {index, 0};
  names_t files = {NULL, 0};
  json_t *root = NULL;
  nps_err_t err, end;
  NPS_GOTO(nps_json_load(index, &root));
  json_t *map = json_object_get(root, "weight_map");
  if (!json_is_object(map) || json_object_size(map) == 0) {
    err = nps_fail(NPS_ERR_INPUT, "%s: expected an object with weight_map, an object of file names", index);
    goto done;
  }
  collect_files(&checks, map, &files);
  err = read_files(model, &checks, &files);
  if (err == NPS_OK && checks.count == 0) err = nps_model_sort(model);
  if (err == NPS_OK && checks.count == 0) {
    compare_map(model, &checks, map);
    compare_size(model, index, root);
  }
  end = nps_checks_end(&checks);
  if (err == NPS_OK) err = end;
done:
  free(files.names);
  json_decref(root);
  return err;
}
