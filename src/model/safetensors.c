#include "model_internal.h"

#include "nps/watch.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_HEADER ((uint64_t)100 * 1000 * 1000)

/* The bytes of one tensor, counted from the start of the data. */
typedef struct {
  const char *name;
  int64_t begin, end;
} extent_t;

typedef struct {
  nps_checks_t checks;
  nps_model_t *model;
  int file;
  int64_t data_start;
  extent_t *extents;
  int extent_count;
} header_t;

static nps_err_t read_at(int fd, const nps_model_file_t *file, void *dst, size_t n, off_t at) {
  for (char *p = dst; n > 0;) {
    ssize_t got = nps_watch_pread(fd, p, n, at, file->path);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", file->path, strerror(errno));
    if (got == 0)
      return nps_fail(NPS_ERR_INPUT, "%s: became shorter while it was read: expected %lld bytes", file->path,
                      (long long)file->size);
    p += got;
    at += got;
    n -= (size_t)got;
  }
  return NPS_OK;
}

/* Reads the header's text and checks its length. */
static nps_err_t read_text(const nps_model_file_t *file, char **text, size_t *size) {
  uint64_t length = 0;
  nps_err_t err = NPS_OK;
  *text = NULL;
  int fd = open(file->path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be opened: %s", file->path, strerror(errno));
  if (file->size < 8)
    err = nps_fail(NPS_ERR_INPUT, "%s: is no safetensors file: it has %lld bytes, expected at least 8", file->path,
                   (long long)file->size);
  else
    err = read_at(fd, file, &length, 8, 0);
  length = le64toh(length);
  if (err == NPS_OK && length > MAX_HEADER)
    err = nps_fail(NPS_ERR_INPUT, "%s: is no safetensors file: its header claims %llu bytes, at most %llu are accepted",
                   file->path, (unsigned long long)length, (unsigned long long)MAX_HEADER);
  else if (err == NPS_OK && length > (uint64_t)file->size - 8)
    err = nps_fail(NPS_ERR_INPUT, "%s: is truncated: the header alone takes %llu bytes, the file has %lld", file->path,
                   (unsigned long long)length + 8, (long long)file->size);
  if (err == NPS_OK) {
    *size = (size_t)length;
    *text = nps_xcalloc(*size + 1, 1);
    err = read_at(fd, file, *text, *size, 8);
    if (err == NPS_OK && (*text)[0] != '{')
      err = nps_fail(NPS_ERR_INPUT, "%s: is no safetensors file: its header does not start with '{'", file->path);
  }
  close(fd);
  return err;
}

static void check_metadata(header_t *h, const json_t *metadata) {
  const char *key;
  json_t *value;
  if (!json_is_object(metadata)) {
    nps_checks_fail(&h->checks, "__metadata__: expected an object");
    return;
  }
  json_object_foreach((json_t *)metadata, key, value) {
    if (!json_is_string(value)) nps_checks_fail(&h->checks, "__metadata__: %s: expected a string", key);
  }
}

static bool parse_dtype(header_t *h, const char *name, const json_t *dtype, nps_tensor_info_t *info) {
  if (!json_is_string(dtype)) {
    nps_checks_fail(&h->checks, "tensor %s: dtype: expected a string", name);
    return false;
  }
  if (nps_dtype_from_name(json_string_value(dtype), &info->dtype)) return true;
  nps_checks_fail(&h->checks, "tensor %s: unknown type '%s'", name, json_string_value(dtype));
  return false;
}

static bool parse_shape(header_t *h, const char *name, const json_t *shape, nps_tensor_info_t *info) {
  char text[192];
  if (!json_is_array(shape)) {
    nps_checks_fail(&h->checks, "tensor %s: shape: expected a list", name);
    return false;
  }
  if (json_array_size(shape) > NPS_MAX_DIMS) {
    nps_checks_fail(&h->checks, "tensor %s: has %zu dimensions, at most %d are accepted", name, json_array_size(shape),
                    NPS_MAX_DIMS);
    return false;
  }
  info->ndim = (int)json_array_size(shape);
  for (int i = 0; i < info->ndim; i++) {
    const json_t *extent = json_array_get(shape, (size_t)i);
    if (!json_is_integer(extent) || json_integer_value(extent) < 0) {
      nps_checks_fail(&h->checks, "tensor %s: shape: expected non-negative integers", name);
      return false;
    }
    info->shape[i] = json_integer_value(extent);
  }
  if (nps_shape_count(info->ndim, info->shape, &info->count) &&
      info->count <= INT64_MAX / (int64_t)nps_dtype_size(info->dtype))
    return true;
  nps_checks_fail(&h->checks, "tensor %s: shape %s is too large", name,
                  nps_shape_format(info->ndim, info->shape, text));
  return false;
}

static bool parse_offsets(header_t *h, const char *name, const json_t *offsets, const nps_tensor_info_t *info,
                          extent_t *extent) {
  const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
  char text[192];
  if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end)) {
    nps_checks_fail(&h->checks, "tensor %s: data_offsets: expected two integers", name);
    return false;
  }
  *extent = (extent_t){name, json_integer_value(begin), json_integer_value(end)};
  if (extent->begin < 0 || extent->end < extent->begin || extent->end > INT64_MAX - h->data_start) {
    nps_checks_fail(&h->checks, "tensor %s: data_offsets [%lld, %lld] are no range", name, (long long)extent->begin,
                    (long long)extent->end);
    return false;
  }
  const int64_t expected = info->count * (int64_t)nps_dtype_size(info->dtype);
  if (extent->end - extent->begin == expected) return true;
  nps_checks_fail(&h->checks, "tensor %s: %s %s takes %lld bytes, its data_offsets span %lld", name,
                  nps_dtype_name(info->dtype), nps_shape_format(info->ndim, info->shape, text), (long long)expected,
                  (long long)(extent->end - extent->begin));
  return false;
}

static void parse_tensor(header_t *h, const char *name, const json_t *value) {
  nps_tensor_info_t info = {.file = h->file};
  extent_t extent;
  const json_t *dtype = json_object_get(value, "dtype"), *shape = json_object_get(value, "shape");
  const json_t *offsets = json_object_get(value, "data_offsets");
  if (name[0] == '\0')
    nps_checks_fail(&h->checks, "a tensor has an empty name");
  else if (!json_is_object(value) || json_object_size(value) != 3 || !dtype || !shape || !offsets)
    nps_checks_fail(&h->checks, "tensor %s: expected exactly dtype, shape and data_offsets", name);
  else if (parse_dtype(h, name, dtype, &info) && parse_shape(h, name, shape, &info) &&
           parse_offsets(h, name, offsets, &info, &extent)) {
    info.name = nps_xstrdup(name);
    info.offset = h->data_start + extent.begin;
    h->extents[h->extent_count++] = extent;
    nps_model_add_tensor(h->model, &info);
  }
}

static int compare_extents(const void *a, const void *b) {
  const extent_t *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return (x->end > y->end) - (x->end < y->end);
}

/* The format wants the tensors to cover the data exactly. */
static void check_coverage(header_t *h) {
  const nps_model_file_t *file = &h->model->files[h->file];
  int64_t at = 0;
  const char *before = NULL;
  if (h->extent_count) qsort(h->extents, (size_t)h->extent_count, sizeof *h->extents, compare_extents);
  for (int i = 0; i < h->extent_count; i++) {
    const extent_t *e = &h->extents[i];
    if (e->begin < at)
      nps_checks_fail(&h->checks, "tensors %s and %s overlap", before, e->name);
    else if (e->begin > at)
      nps_checks_fail(&h->checks, "%lld bytes before tensor %s belong to no tensor", (long long)(e->begin - at),
                      e->name);
    if (e->end >= at) {
      at = e->end;
      before = e->name;
    }
  }
  const int64_t promised = h->data_start + at;
  if (promised > file->size)
    nps_checks_fail(&h->checks, "is truncated: the header promises %lld bytes, the file has %lld", (long long)promised,
                    (long long)file->size);
  else if (promised < file->size)
    nps_checks_fail(&h->checks,
                    "has %lld bytes after the last tensor: the header promises %lld bytes, the file has %lld",
                    (long long)(file->size - promised), (long long)promised, (long long)file->size);
}

nps_err_t nps_safetensors_read(nps_model_t *model, int file) {
  header_t h = {.checks = {model->files[file].path, 0}, .model = model, .file = file};
  char *text = NULL, *where = nps_xstrf("%s: header", model->files[file].path);
  size_t size = 0;
  json_t *root = NULL, *value;
  const char *key;
  nps_err_t err;
  NPS_GOTO(read_text(&model->files[file], &text, &size));
  NPS_GOTO(nps_json_parse(text, size, where, &root));
  h.data_start = (int64_t)size + 8;
  h.extents = nps_xcalloc(json_object_size(root), sizeof *h.extents);
  json_object_foreach(root, key, value) {
    if (strcmp(key, "__metadata__") == 0)
      check_metadata(&h, value);
    else
      parse_tensor(&h, key, value);
  }
  /* Where a tensor was refused its bytes would only be reported once more, as a hole. */
  if (h.checks.count == 0) check_coverage(&h);
  err = nps_checks_end(&h.checks);
done:
  json_decref(root);
  free(h.extents);
  free(where);
  free(text);
  return err;
}

nps_err_t nps_safetensors_metadata(const nps_model_file_t *file, const char *key, char **value) {
  char *text = NULL, *where = nps_xstrf("%s: header", file->path);
  size_t size = 0;
  json_t *root = NULL;
  nps_err_t err;
  *value = NULL;
  NPS_GOTO(read_text(file, &text, &size));
  NPS_GOTO(nps_json_parse(text, size, where, &root));
  const char *found = json_string_value(json_object_get(json_object_get(root, "__metadata__"), key));
  if (found) *value = nps_xstrdup(found);
done:
  json_decref(root);
  free(where);
  free(text);
  return err;
}
