#include "h5_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* count < 0: a scalar. */
static nps_err_t put_attribute(nps_h5_t *file, const char *group, const char *name, hid_t type, int64_t count,
                               const void *value) {
  const hsize_t extent = (hsize_t)count;
  hid_t at = H5Gopen2(file->id, group, H5P_DEFAULT), id = H5I_INVALID_HID;
  hid_t space = count < 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &extent, NULL);
  if (at >= 0 && space >= 0 && type >= 0) id = H5Acreate2(at, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  nps_err_t err = NPS_OK;
  if (id < 0 || H5Awrite(id, type, value) < 0)
    err = nps_h5_fail(file, NPS_ERR_IO, "attribute %s of %s cannot be written", name, group);
  if (id >= 0) H5Aclose(id);
  if (space >= 0) H5Sclose(space);
  if (at >= 0) H5Gclose(at);
  return err;
}

/* Variable length: h5py then gives a str, and the text may be longer than the 64 KiB that fit an object header. */
static hid_t make_text_type(void) {
  hid_t type = H5Tcopy(H5T_C_S1);
  if (type < 0) return type;
  if (H5Tset_size(type, H5T_VARIABLE) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0) return type;
  H5Tclose(type);
  return H5I_INVALID_HID;
}

nps_err_t nps_h5_put_attr_text(nps_h5_t *file, const char *group, const char *name, const char *text) {
  hid_t type = make_text_type();
  file->text_bytes += (int64_t)strlen(text);
  nps_err_t err = put_attribute(file, group, name, type, -1, &text);
  if (type >= 0) H5Tclose(type);
  return err;
}

nps_err_t nps_h5_put_attr_texts(nps_h5_t *file, const char *group, const char *name, const char *const *texts,
                                int64_t count) {
  hid_t type = make_text_type();
  for (int64_t i = 0; i < count; i++) file->text_bytes += (int64_t)strlen(texts[i]);
  nps_err_t err = put_attribute(file, group, name, type, count, texts);
  if (type >= 0) H5Tclose(type);
  return err;
}

nps_err_t nps_h5_put_attr_i64(nps_h5_t *file, const char *group, const char *name, int64_t value) {
  return put_attribute(file, group, name, H5T_STD_I64LE, -1, &value);
}

nps_err_t nps_h5_put_attr_f64(nps_h5_t *file, const char *group, const char *name, double value) {
  return put_attribute(file, group, name, H5T_IEEE_F64LE, -1, &value);
}

/* Opens an attribute; *id stays invalid when there is none. */
static nps_err_t open_attribute(nps_h5_t *file, const char *group, const char *name, hid_t *id) {
  *id = H5I_INVALID_HID;
  if (!nps_h5_exists(file, group)) return NPS_OK;
  htri_t exists = H5Aexists_by_name(file->id, group, name, H5P_DEFAULT);
  if (exists == 0) return NPS_OK;
  if (exists > 0) *id = H5Aopen_by_name(file->id, group, name, H5P_DEFAULT, H5P_DEFAULT);
  return *id >= 0 ? NPS_OK : nps_h5_fail(file, NPS_ERR_INPUT, "attribute %s of %s cannot be opened", name, group);
}

/* Elements, or -1. */
static int64_t count_of(hid_t id) {
  hid_t space = H5Aget_space(id);
  const int64_t count = space >= 0 ? (int64_t)H5Sget_simple_extent_npoints(space) : -1;
  if (space >= 0) H5Sclose(space);
  return count;
}

/* Fills texts[count] with copies. */
static bool read_texts(hid_t id, hid_t type, int64_t count, char **texts) {
  if (H5Tis_variable_str(type) > 0) {
    char **values = nps_xcalloc((size_t)count, sizeof *values);
    const bool read = H5Aread(id, type, values) >= 0;
    for (int64_t i = 0; read && i < count; i++) {
      texts[i] = nps_xstrdup(values[i] ? values[i] : "");
      H5free_memory(values[i]);
    }
    free(values);
    return read;
  }
  const size_t size = H5Tget_size(type);
  char *table = nps_xcalloc((size_t)count, size);
  const bool read = H5Aread(id, type, table) >= 0;
  for (int64_t i = 0; read && i < count; i++)
    texts[i] = nps_xstrndup(table + (size_t)i * size, strnlen(table + (size_t)i * size, size));
  free(table);
  return read;
}

/* Reads an attribute of texts; *texts stays NULL when there is none. @param single  exactly one is expected */
static nps_err_t get_texts(nps_h5_t *file, const char *group, const char *name, bool single, char ***texts,
                           int64_t *count) {
  hid_t id, type = H5I_INVALID_HID;
  *texts = NULL;
  *count = 0;
  NPS_TRY(open_attribute(file, group, name, &id));
  if (id < 0) return NPS_OK;
  nps_err_t err = NPS_OK;
  const int64_t n = count_of(id);
  type = H5Aget_type(id);
  char **found = NULL;
  if (type < 0 || H5Tget_class(type) != H5T_STRING || (single ? n != 1 : n < 0 || n > INT_MAX))
    err = nps_fail(NPS_ERR_INPUT, "%s: attribute %s of %s: expected %s", file->path, name, group,
                   single ? "one text" : "texts");
  else if (!read_texts(id, type, n, found = nps_xcalloc((size_t)n + 1, sizeof *found)))
    err = nps_h5_fail(file, NPS_ERR_INPUT, "attribute %s of %s cannot be read", name, group);
  if (err == NPS_OK) {
    *texts = found;
    *count = n;
  } else {
    free(found);
  }
  if (type >= 0) H5Tclose(type);
  H5Aclose(id);
  return err;
}

nps_err_t nps_h5_get_attr_text(nps_h5_t *file, const char *group, const char *name, char **text) {
  char **texts;
  int64_t count;
  *text = NULL;
  NPS_TRY(get_texts(file, group, name, true, &texts, &count));
  if (texts) *text = texts[0];
  free(texts);
  return NPS_OK;
}

nps_err_t nps_h5_get_attr_texts(nps_h5_t *file, const char *group, const char *name, char ***texts, int *count) {
  int64_t n;
  NPS_TRY(get_texts(file, group, name, false, texts, &n));
  *count = (int)n;
  return NPS_OK;
}

/* @param class  H5T_INTEGER or H5T_FLOAT; @param memory  type of *value */
static nps_err_t get_number(nps_h5_t *file, const char *group, const char *name, H5T_class_t class, hid_t memory,
                            void *value, bool *found) {
  hid_t id, type = H5I_INVALID_HID;
  *found = false;
  NPS_TRY(open_attribute(file, group, name, &id));
  if (id < 0) return NPS_OK;
  nps_err_t err = NPS_OK;
  type = H5Aget_type(id);
  if (type < 0 || H5Tget_class(type) != class || count_of(id) != 1)
    err = nps_fail(NPS_ERR_INPUT, "%s: attribute %s of %s: expected one %s", file->path, name, group,
                   class == H5T_INTEGER ? "integer" : "number");
  else if (H5Aread(id, memory, value) < 0)
    err = nps_h5_fail(file, NPS_ERR_INPUT, "attribute %s of %s cannot be read", name, group);
  *found = err == NPS_OK;
  if (type >= 0) H5Tclose(type);
  H5Aclose(id);
  return err;
}

nps_err_t nps_h5_get_attr_i64(nps_h5_t *file, const char *group, const char *name, int64_t *value, bool *found) {
  return get_number(file, group, name, H5T_INTEGER, H5T_NATIVE_INT64, value, found);
}

nps_err_t nps_h5_get_attr_f64(nps_h5_t *file, const char *group, const char *name, double *value, bool *found) {
  return get_number(file, group, name, H5T_FLOAT, H5T_NATIVE_DOUBLE, value, found);
}
