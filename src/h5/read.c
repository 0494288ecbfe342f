#include "h5_internal.h"

#include "nps/watch.h"

#include <stdlib.h>
#include <string.h>

/* HDF5 would clamp a value that does not fit, and say nothing. */
static H5T_conv_ret_t stop_out_of_range(H5T_conv_except_t what, hid_t from, hid_t to, void *value, void *result,
                                        void *ctx) {
  (void)from, (void)to, (void)value, (void)result;
  if (what != H5T_CONV_EXCEPT_RANGE_HI && what != H5T_CONV_EXCEPT_RANGE_LOW) return H5T_CONV_UNHANDLED;
  *(bool *)ctx = true;
  return H5T_CONV_ABORT;
}

static hid_t native_type(nps_dtype_t dtype) {
  switch (dtype) {
  case NPS_F32:
    return H5T_NATIVE_FLOAT;
  case NPS_F64:
    return H5T_NATIVE_DOUBLE;
  case NPS_I32:
    return H5T_NATIVE_INT32;
  default:
    return H5T_NATIVE_INT64;
  }
}

static nps_err_t read_all(const nps_h5_t *file, hid_t id, const char *path, nps_dtype_t dtype, void *data) {
  bool outside = false;
  hid_t transfer = H5Pcreate(H5P_DATASET_XFER);
  nps_watch_begin("reading", file->path);
  const bool read = transfer >= 0 && H5Pset_type_conv_cb(transfer, stop_out_of_range, &outside) >= 0 &&
                    H5Dread(id, native_type(dtype), H5S_ALL, H5S_ALL, transfer, data) >= 0;
  nps_watch_end();
  if (transfer >= 0) H5Pclose(transfer);
  if (read) return NPS_OK;
  if (outside)
    return nps_fail(NPS_ERR_INPUT, "%s: %s holds a value that does not fit type %s", file->path, path,
                    nps_dtype_name(dtype));
  return nps_h5_fail(file, NPS_ERR_INPUT, "%s cannot be read", path);
}

static nps_err_t check_class(const nps_h5_t *file, hid_t id, const char *path, bool floats) {
  hid_t type = H5Dget_type(id);
  const H5T_class_t class = type >= 0 ? H5Tget_class(type) : H5T_NO_CLASS;
  if (type >= 0) H5Tclose(type);
  if (class == (floats ? H5T_FLOAT : H5T_INTEGER)) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: %s: expected a dataset of %s numbers", file->path, path,
                  floats ? "floating-point" : "whole");
}

/* Describes what must be a dataset. */
static nps_err_t describe(nps_h5_t *file, const char *path, nps_h5_info_t *info) {
  if (!nps_h5_exists(file, path)) return nps_fail(NPS_ERR_INPUT, "%s: there is no dataset %s", file->path, path);
  const char *name = NULL;
  char *group = nps_h5_split(path, &name);
  nps_err_t err = nps_h5_describe(file, group, name, info);
  free(group);
  if (err == NPS_OK && !info->is_dataset)
    err = nps_fail(NPS_ERR_INPUT, "%s: %s: expected a dataset, found a group", file->path, path);
  return err;
}

nps_err_t nps_h5_read(nps_h5_t *file, const char *path, nps_dtype_t dtype, int *ndim, int64_t *shape, void **data) {
  nps_h5_info_t info;
  void *buffer = NULL;
  int64_t count = 0;
  NPS_TRY(describe(file, path, &info));
  hid_t id = H5Dopen2(file->id, path, H5P_DEFAULT);
  if (id < 0) return nps_h5_fail(file, NPS_ERR_INPUT, "%s cannot be opened", path);
  nps_err_t err = check_class(file, id, path, nps_dtype_kind(dtype) == NPS_KIND_FLOAT);
  const int64_t most = INT64_MAX / (int64_t)nps_dtype_size(dtype);
  if (err == NPS_OK && (!nps_shape_count(info.ndim, info.shape, &count) || count > most))
    err = nps_fail(NPS_ERR_INPUT, "%s: %s: the shape is too large", file->path, path);
  if (err == NPS_OK) err = nps_buffer_alloc((size_t)count * nps_dtype_size(dtype), path, &buffer);
  if (err == NPS_OK) err = read_all(file, id, path, dtype, buffer);
  H5Dclose(id);
  if (err != NPS_OK) {
    free(buffer);
    return err;
  }
  *ndim = info.ndim;
  for (int i = 0; i < info.ndim; i++) shape[i] = info.shape[i];
  *data = buffer;
  return NPS_OK;
}

/* A row of a table of texts, which zeros fill up. */
static char **split_table(const char *table, int64_t count, size_t width) {
  char **texts = nps_xcalloc((size_t)count + 1, sizeof *texts);
  for (int64_t i = 0; i < count; i++)
    texts[i] = nps_xstrndup(table + (size_t)i * width, strnlen(table + (size_t)i * width, width));
  return texts;
}

static nps_err_t read_table(const nps_h5_t *file, const char *path, hid_t id, hid_t type, char ***texts,
                            int64_t *count) {
  hid_t space = H5Dget_space(id);
  const hssize_t n = space >= 0 ? H5Sget_simple_extent_npoints(space) : -1;
  const size_t width = H5Tget_size(type);
  void *table = NULL;
  if (space >= 0) H5Sclose(space);
  if (n < 0 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 || width == 0 ||
      (uint64_t)n > SIZE_MAX / width)
    return nps_fail(NPS_ERR_INPUT, "%s: %s: expected texts of a fixed length", file->path, path);
  nps_err_t err = nps_buffer_alloc((size_t)n * width, path, &table);
  if (err == NPS_OK && n > 0 && H5Dread(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, table) < 0)
    err = nps_h5_fail(file, NPS_ERR_INPUT, "%s cannot be read", path);
  if (err == NPS_OK) {
    *texts = split_table(table, n, width);
    *count = n;
  }
  free(table);
  return err;
}

nps_err_t nps_h5_read_texts(nps_h5_t *file, const char *path, char ***texts, int64_t *count) {
  hid_t id = H5Dopen2(file->id, path, H5P_DEFAULT), type = id >= 0 ? H5Dget_type(id) : H5I_INVALID_HID;
  nps_err_t err = type < 0 ? nps_h5_fail(file, NPS_ERR_INPUT, "%s cannot be opened", path) : NPS_OK;
  if (err == NPS_OK) err = read_table(file, path, id, type, texts, count);
  if (type >= 0) H5Tclose(type);
  if (id >= 0) H5Dclose(id);
  return err;
}
