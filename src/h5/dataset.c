#include "h5_internal.h"

#include "nps/watch.h"

#include <stdlib.h>
#include <string.h>

/* HDF5 and MPI-IO fail from 2 GiB on. */
#define MAX_TRANSFER ((int64_t)1 << 30)

static hid_t make_creation(void) {
  hid_t list = H5Pcreate(H5P_DATASET_CREATE);
  if (list < 0) return list;
  if (H5Pset_layout(list, H5D_CONTIGUOUS) >= 0 && H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY) >= 0 &&
      H5Pset_fill_time(list, H5D_FILL_TIME_NEVER) >= 0 && H5Pset_obj_track_times(list, false) >= 0)
    return list;
  H5Pclose(list);
  return H5I_INVALID_HID;
}

static hid_t make_space(int ndim, const int64_t *shape) {
  hsize_t extent[NPS_MAX_DIMS];
  if (ndim == 0) return H5Screate(H5S_SCALAR);
  for (int i = 0; i < ndim; i++) extent[i] = (hsize_t)shape[i];
  return H5Screate_simple(ndim, extent, NULL);
}

/* A dataset of any HDF5 type. */
static hid_t create_raw(nps_h5_t *file, const char *group, const char *name, hid_t type, int ndim,
                        const int64_t *shape) {
  hid_t id = H5I_INVALID_HID;
  hid_t at = H5Gopen2(file->id, group, H5P_DEFAULT);
  hid_t space = make_space(ndim, shape);
  hid_t creation = make_creation();
  if (at >= 0 && space >= 0 && creation >= 0)
    id = H5Dcreate2(at, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  if (at >= 0) H5Gclose(at);
  if (space >= 0) H5Sclose(space);
  if (creation >= 0) H5Pclose(creation);
  const haddr_t start = id >= 0 ? H5Dget_offset(id) : HADDR_UNDEF;
  if (start != HADDR_UNDEF) {
    const int64_t end = (int64_t)(start + H5Dget_storage_size(id));
    if (end > file->end) file->end = end;
  }
  return id;
}

static nps_err_t check_name(const nps_h5_t *file, const char *name) {
  if (name[0] == '\0' || strchr(name, '/') || strcmp(name, ".") == 0)
    return nps_fail(NPS_ERR_INPUT, "%s: '%s' cannot be the name of an HDF5 dataset (empty, '.' or with '/')",
                    file->path, name);
  return NPS_OK;
}

nps_err_t nps_h5_dataset_create(nps_h5_t *file, const char *group, const char *name, nps_dtype_t dtype, int ndim,
                                const int64_t *shape, nps_h5_dataset_t **out) {
  int64_t count = 0;
  *out = NULL;
  NPS_TRY(check_name(file, name));
  if (ndim > NPS_MAX_DIMS || !nps_shape_count(ndim, shape, &count))
    return nps_fail(NPS_ERR_INPUT, "%s: dataset %s: the shape is too large", file->path, name);
  if (file->types[dtype] < 0)
    return nps_fail(NPS_ERR_INPUT, "%s: dataset %s: type %s cannot be stored in HDF5", file->path, name,
                    nps_dtype_name(dtype));
  hid_t id = create_raw(file, group, name, file->types[dtype], ndim, shape);
  if (id < 0) return nps_h5_fail(file, NPS_ERR_IO, "dataset %s cannot be created in %s", name, group);
  nps_h5_dataset_t *d = nps_xcalloc(1, sizeof *d);
  *d = (nps_h5_dataset_t){file, nps_xstrdup(name), id, file->types[dtype], nps_dtype_size(dtype), ndim, {0}, count};
  if (ndim) memcpy(d->shape, shape, (size_t)ndim * sizeof *shape);
  *out = d;
  return NPS_OK;
}

/* Selects the largest box that starts at element `first` and is one piece in row-major order, of at most `count`
 * elements. Returns its elements, or -1. A range needs at most 2·ndim − 1 boxes. */
static int64_t select_box(const nps_h5_dataset_t *d, hid_t space, int64_t first, int64_t count) {
  hsize_t start[NPS_MAX_DIMS], extent[NPS_MAX_DIMS];
  int64_t rest = first, row = 1;
  for (int i = d->ndim - 1; i >= 0; i--) {
    start[i] = (hsize_t)(rest % d->shape[i]);
    rest /= d->shape[i];
    extent[i] = 1;
  }
  int k = d->ndim - 1;
  while (k > 0 && start[k] == 0 && row * d->shape[k] <= count) {
    extent[k] = (hsize_t)d->shape[k];
    row *= d->shape[k];
    k--;
  }
  int64_t rows = d->shape[k] - (int64_t)start[k];
  if (rows > count / row) rows = count / row;
  extent[k] = (hsize_t)rows;
  return H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, extent, NULL) < 0 ? -1 : rows * row;
}

static int64_t write_box(nps_h5_dataset_t *d, int64_t first, int64_t count, const void *data) {
  hid_t space = H5Dget_space(d->id), memory = H5I_INVALID_HID;
  int64_t n = -1;
  if (space >= 0) n = d->ndim == 0 ? 1 : select_box(d, space, first, count);
  if (n > 0) {
    hsize_t extent = (hsize_t)n;
    memory = H5Screate_simple(1, &extent, NULL);
    nps_watch_begin("writing", d->file->path);
    if (memory < 0 || H5Dwrite(d->id, d->type, memory, space, H5P_DEFAULT, data) < 0) n = -1;
    nps_watch_end();
  }
  if (memory >= 0) H5Sclose(memory);
  if (space >= 0) H5Sclose(space);
  return n;
}

static nps_err_t fail_data(nps_h5_dataset_t *d, int64_t first, int64_t count, const char *data) {
  char *what = nps_xstrf("dataset %s", d->name);
  haddr_t at = H5Dget_offset(d->id);
  nps_err_t err = at == HADDR_UNDEF ? nps_h5_fail_write(d->file, what, NULL, 0, 0)
                                    : nps_h5_fail_write(d->file, what, data, (size_t)count * d->size,
                                                        (int64_t)at + first * (int64_t)d->size);
  free(what);
  return err;
}

nps_err_t nps_h5_dataset_write(nps_h5_dataset_t *d, int64_t first, int64_t count, const void *data) {
  const char *from = data;
  const int64_t most = MAX_TRANSFER / (int64_t)d->size;
  if (first < 0 || count < 0 || first > d->count || count > d->count - first)
    return nps_fail(NPS_ERR_RUNTIME, "%s: dataset %s: elements %lld to %lld are outside of its %lld", d->file->path,
                    d->name, (long long)first, (long long)(first + count), (long long)d->count);
  while (count > 0) {
    int64_t n = write_box(d, first, count < most ? count : most, from);
    if (n < 0) return fail_data(d, first, count < most ? count : most, from);
    nps_flush_note(d->file->flush, n * (int64_t)d->size);
    from += (size_t)n * d->size;
    first += n;
    count -= n;
  }
  return NPS_OK;
}

void nps_h5_dataset_close(nps_h5_dataset_t *d) {
  if (!d) return;
  H5Dclose(d->id);
  free(d->name);
  free(d);
}

static nps_err_t write_whole(nps_h5_dataset_t *d, const void *data) {
  const haddr_t at = H5Dget_offset(d->id);
  if (at != HADDR_UNDEF) NPS_TRY(nps_h5_allocate(d->file, (int64_t)at, d->count * (int64_t)d->size));
  return nps_h5_dataset_write(d, 0, d->count, data);
}

/* The values are the same on every rank: rank 0 writes them. */
nps_err_t nps_h5_put(nps_h5_t *file, const char *path, nps_dtype_t dtype, const void *data, int ndim,
                     const int64_t *shape) {
  const char *name = NULL;
  char *group = nps_h5_split(path, &name);
  nps_h5_dataset_t *d = NULL;
  nps_err_t err = nps_h5_dataset_create(file, group, name, dtype, ndim, shape, &d);
  if (err == NPS_OK && nps_comm_rank(file->comm) == 0) err = write_whole(d, data);
  err = nps_h5_agree(file, err);
  nps_h5_dataset_close(d);
  free(group);
  return err;
}

/* Fixed length: parallel HDF5 cannot write strings of variable length into datasets. */
static hid_t make_text_type(size_t size) {
  hid_t type = H5Tcopy(H5T_C_S1);
  if (type < 0) return type;
  if (H5Tset_size(type, size) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0 &&
      H5Tset_strpad(type, H5T_STR_NULLPAD) >= 0)
    return type;
  H5Tclose(type);
  return H5I_INVALID_HID;
}

nps_err_t nps_h5_put_texts(nps_h5_t *file, const char *path, const char *const *texts, int64_t count) {
  size_t width = 1;
  for (int64_t i = 0; i < count; i++)
    if (strlen(texts[i]) > width) width = strlen(texts[i]);
  char *table = nps_xcalloc((size_t)count, width);
  for (int64_t i = 0; i < count; i++) memcpy(table + (size_t)i * width, texts[i], strlen(texts[i]));
  const char *name = NULL;
  char *group = nps_h5_split(path, &name);
  hid_t type = make_text_type(width), id = H5I_INVALID_HID;
  nps_err_t err = check_name(file, name);
  if (err == NPS_OK) {
    if (type >= 0) id = create_raw(file, group, name, type, 1, &count);
    if (id < 0) err = nps_h5_fail(file, NPS_ERR_IO, "dataset %s cannot be created", path);
  }
  if (err == NPS_OK && count > 0 && nps_comm_rank(file->comm) == 0 &&
      H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, table) < 0)
    err = nps_h5_fail_write(file, path, NULL, 0, 0);
  err = nps_h5_agree(file, err);
  if (id >= 0) H5Dclose(id);
  if (type >= 0) H5Tclose(type);
  free(group);
  free(table);
  return err;
}
