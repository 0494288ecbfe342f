#include "h5_internal.h"

#include <stdlib.h>
#include <string.h>

static nps_err_t put_attribute(nps_h5_t *file, const char *group, const char *name, hid_t type, const void *value) {
  hid_t at = H5Gopen2(file->id, group, H5P_DEFAULT), space = H5Screate(H5S_SCALAR), id = H5I_INVALID_HID;
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
nps_err_t nps_h5_put_attr_text(nps_h5_t *file, const char *group, const char *name, const char *text) {
  hid_t type = H5Tcopy(H5T_C_S1);
  if (type >= 0 && (H5Tset_size(type, H5T_VARIABLE) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)) {
    H5Tclose(type);
    type = H5I_INVALID_HID;
  }
  file->text_bytes += (int64_t)strlen(text);
  nps_err_t err = put_attribute(file, group, name, type, &text);
  if (type >= 0) H5Tclose(type);
  return err;
}

nps_err_t nps_h5_put_attr_i64(nps_h5_t *file, const char *group, const char *name, int64_t value) {
  return put_attribute(file, group, name, H5T_STD_I64LE, &value);
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

static bool is_single(hid_t id) {
  hid_t space = H5Aget_space(id);
  bool single = space >= 0 && H5Sget_simple_extent_npoints(space) == 1;
  if (space >= 0) H5Sclose(space);
  return single;
}

static bool read_text(hid_t id, hid_t type, char **text) {
  if (H5Tis_variable_str(type) > 0) {
    char *value = NULL;
    if (H5Aread(id, type, &value) < 0) return false;
    *text = nps_xstrdup(value ? value : "");
    H5free_memory(value);
    return true;
  }
  size_t size = H5Tget_size(type);
  char *value = nps_xcalloc(size + 1, 1);
  if (H5Aread(id, type, value) < 0) {
    free(value);
    return false;
  }
  *text = value;
  return true;
}

nps_err_t nps_h5_get_attr_text(nps_h5_t *file, const char *group, const char *name, char **text) {
  hid_t id, type = H5I_INVALID_HID;
  *text = NULL;
  NPS_TRY(open_attribute(file, group, name, &id));
  if (id < 0) return NPS_OK;
  nps_err_t err = NPS_OK;
  type = H5Aget_type(id);
  if (type < 0 || H5Tget_class(type) != H5T_STRING || !is_single(id))
    err = nps_fail(NPS_ERR_INPUT, "%s: attribute %s of %s: expected one text", file->path, name, group);
  else if (!read_text(id, type, text))
    err = nps_h5_fail(file, NPS_ERR_INPUT, "attribute %s of %s cannot be read", name, group);
  if (type >= 0) H5Tclose(type);
  H5Aclose(id);
  return err;
}

nps_err_t nps_h5_get_attr_i64(nps_h5_t *file, const char *group, const char *name, int64_t *value, bool *found) {
  hid_t id, type = H5I_INVALID_HID;
  *found = false;
  NPS_TRY(open_attribute(file, group, name, &id));
  if (id < 0) return NPS_OK;
  nps_err_t err = NPS_OK;
  type = H5Aget_type(id);
  if (type < 0 || H5Tget_class(type) != H5T_INTEGER || !is_single(id))
    err = nps_fail(NPS_ERR_INPUT, "%s: attribute %s of %s: expected one integer", file->path, name, group);
  else if (H5Aread(id, H5T_NATIVE_INT64, value) < 0)
    err = nps_h5_fail(file, NPS_ERR_INPUT, "attribute %s of %s cannot be read", name, group);
  *found = err == NPS_OK;
  if (type >= 0) H5Tclose(type);
  H5Aclose(id);
  return err;
}
