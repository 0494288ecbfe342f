#include "h5_internal.h"

#include <stdlib.h>
#include <string.h>

char *nps_h5_split(const char *path, const char **name) {
  const char *slash = strrchr(path, '/');
  *name = slash ? slash + 1 : path;
  return slash && slash > path ? nps_xstrndup(path, (size_t)(slash - path)) : nps_xstrdup("/");
}

bool nps_h5_exists(const nps_h5_t *file, const char *path) {
  char *part = nps_xstrdup(path);
  bool exists = true;
  for (char *p = part; exists && *p; p++) {
    char *end = strchr(p + 1, '/');
    if (!end) end = p + 1 + strlen(p + 1);
    const char saved = *end;
    *end = '\0';
    if (end > p + 1) exists = H5Lexists(file->id, part, H5P_DEFAULT) > 0;
    *end = saved;
    p = end - 1;
  }
  free(part);
  return exists;
}

nps_err_t nps_h5_make_group(nps_h5_t *file, const char *path) {
  hid_t links = H5Pcreate(H5P_LINK_CREATE), creation = H5Pcreate(H5P_GROUP_CREATE), id = H5I_INVALID_HID;
  if (links >= 0 && creation >= 0 && H5Pset_create_intermediate_group(links, 1) >= 0 &&
      H5Pset_obj_track_times(creation, false) >= 0)
    id = H5Gcreate2(file->id, path, links, creation, H5P_DEFAULT);
  nps_err_t err = NPS_OK;
  if (id < 0) err = nps_h5_fail(file, NPS_ERR_IO, "group %s cannot be created", path);
  if (id >= 0) H5Gclose(id);
  if (links >= 0) H5Pclose(links);
  if (creation >= 0) H5Pclose(creation);
  return err;
}

typedef struct {
  char **names;
  int count;
} names_t;

static herr_t add_name(hid_t group, const char *name, const H5L_info_t *info, void *ctx) {
  names_t *list = ctx;
  (void)group;
  (void)info;
  list->names = nps_xrealloc(list->names, (size_t)list->count + 1, sizeof(char *));
  list->names[list->count++] = nps_xstrdup(name);
  return 0;
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

nps_err_t nps_h5_list(nps_h5_t *file, const char *group, char ***names, int *count) {
  names_t list = {NULL, 0};
  *names = NULL;
  *count = 0;
  if (!nps_h5_exists(file, group)) return NPS_OK;
  hid_t id = H5Gopen2(file->id, group, H5P_DEFAULT);
  if (id < 0) return nps_h5_fail(file, NPS_ERR_INPUT, "%s cannot be opened as a group", group);
  herr_t rc = H5Literate(id, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, add_name, &list);
  H5Gclose(id);
  if (rc < 0) {
    nps_h5_free_names(list.names, list.count);
    return nps_h5_fail(file, NPS_ERR_INPUT, "the members of %s cannot be listed", group);
  }
  if (list.count) qsort(list.names, (size_t)list.count, sizeof(char *), compare_names);
  *names = list.names;
  *count = list.count;
  return NPS_OK;
}

void nps_h5_free_names(char **names, int count) {
  for (int i = 0; i < count; i++) free(names[i]);
  free(names);
}

static bool describe_shape(hid_t id, nps_h5_info_t *out) {
  hsize_t extent[H5S_MAX_RANK];
  hid_t space = H5Dget_space(id);
  if (space < 0) return false;
  int ndim = H5Sget_simple_extent_dims(space, extent, NULL);
  const H5S_class_t class = H5Sget_simple_extent_type(space);
  H5Sclose(space);
  if (ndim < 0 || ndim > NPS_MAX_DIMS || (class != H5S_SIMPLE && class != H5S_SCALAR)) return false;
  out->ndim = ndim;
  for (int i = 0; i < ndim; i++) {
    if (extent[i] > INT64_MAX) return false;
    out->shape[i] = (int64_t)extent[i];
  }
  return true;
}

static bool describe_storage(hid_t id, nps_h5_info_t *out) {
  hid_t list = H5Dget_create_plist(id);
  if (list < 0) return false;
  out->contiguous = H5Pget_layout(list) == H5D_CONTIGUOUS && H5Pget_external_count(list) == 0;
  H5Pclose(list);
  haddr_t at = out->contiguous ? H5Dget_offset(id) : HADDR_UNDEF;
  out->offset = at == HADDR_UNDEF || at > INT64_MAX ? -1 : (int64_t)at;
  hsize_t bytes = H5Dget_storage_size(id);
  out->bytes = bytes > INT64_MAX ? INT64_MAX : (int64_t)bytes;
  return true;
}

static bool describe_dataset(const nps_h5_t *file, hid_t id, nps_h5_info_t *out) {
  hid_t type = H5Dget_type(id);
  if (type < 0) return false;
  out->is_dataset = true;
  out->known_type = nps_h5_types_find(file, type, &out->dtype);
  H5Tclose(type);
  return describe_shape(id, out) && describe_storage(id, out);
}

nps_err_t nps_h5_describe(nps_h5_t *file, const char *group, const char *name, nps_h5_info_t *out) {
  char *path = nps_xstrf("%s/%s", strcmp(group, "/") == 0 ? "" : group, name);
  nps_err_t err = NPS_OK;
  H5L_info_t link;
  *out = (nps_h5_info_t){.offset = -1};
  hid_t id = H5I_INVALID_HID;
  if (H5Lget_info(file->id, path, &link, H5P_DEFAULT) >= 0 && link.type != H5L_TYPE_HARD)
    err =
        nps_fail(NPS_ERR_INPUT, "%s: %s: expected a dataset or group, found a soft or external link", file->path, path);
  else if ((id = H5Oopen(file->id, path, H5P_DEFAULT)) < 0)
    err = nps_h5_fail(file, NPS_ERR_INPUT, "%s cannot be opened", path);
  else if (H5Iget_type(id) == H5I_DATASET && !describe_dataset(file, id, out))
    err = nps_h5_fail(file, NPS_ERR_INPUT, "%s: its shape or storage cannot be used (at most %d dimensions)", path,
                      NPS_MAX_DIMS);
  if (id >= 0) H5Oclose(id);
  free(path);
  return err;
}

nps_err_t nps_h5_get_bytes(nps_h5_t *file, const char *path, void **data, size_t *bytes) {
  const char *name = NULL;
  char *group = nps_h5_split(path, &name);
  nps_h5_info_t info;
  hid_t id = H5I_INVALID_HID;
  void *buffer = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_h5_describe(file, group, name, &info));
  if (!info.is_dataset || !info.known_type || info.dtype != NPS_U8 || info.ndim != 1) {
    err = nps_fail(NPS_ERR_INPUT, "%s: %s: expected a one-dimensional dataset of uint8", file->path, path);
    goto done;
  }
  NPS_GOTO(nps_buffer_alloc((size_t)info.shape[0], path, &buffer));
  id = H5Dopen2(file->id, path, H5P_DEFAULT);
  if (id < 0 || H5Dread(id, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer) < 0) {
    err = nps_h5_fail(file, NPS_ERR_INPUT, "%s cannot be read", path);
    goto done;
  }
  *data = buffer;
  *bytes = (size_t)info.shape[0];
  buffer = NULL;
done:
  if (id >= 0) H5Dclose(id);
  free(buffer);
  free(group);
  return err;
}
