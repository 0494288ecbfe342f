/** @file h5.h
 *  The few HDF5 operations the project needs; the only user of hdf5.h. Layer 2.
 *
 *  Every HDF5 and MPI-IO return code is checked; a failure is recorded with the file and the innermost description of
 *  HDF5's error stack. HDF5's own printing is off. */
#ifndef NPS_H5_H
#define NPS_H5_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/tensor.h"

/** An open HDF5 file. */
typedef struct nps_h5 nps_h5_t;

/** A contiguous dataset of tensor elements, open for writing. */
typedef struct nps_h5_dataset nps_h5_dataset_t;

/** What a file says of one dataset. */
typedef struct nps_h5_info {
  bool is_dataset; /**< else a group */
  bool known_type; /**< dtype is valid: a type of nps_dtype_t, little-endian */
  nps_dtype_t dtype;
  int ndim;
  int64_t shape[NPS_MAX_DIMS];
  bool contiguous; /**< raw bytes lie in one piece at `offset`, unfiltered */
  int64_t offset;  /**< from the start of the file, bytes; -1 when nothing was allocated */
  int64_t bytes;   /**< stored bytes */
} nps_h5_info_t;

/** Give the HDF5 library's version, "1.10.8". Local. The string is static. */
const char *nps_h5_version(void);

/** Create a file with parallel access, replacing what is there; collective metadata; no modification times. Collective.
 *  @return NPS_ERR_IO on every rank alike */
nps_err_t nps_h5_create(const nps_comm_t *comm, const char *path, nps_h5_t **out);

/** Open a file for reading, this process alone. Local. NPS_ERR_INPUT when it is no HDF5 file or damaged. */
nps_err_t nps_h5_open(const char *path, nps_h5_t **out);

/** Flush to the device and close. Collective over the ranks that created it. NULL is fine. */
nps_err_t nps_h5_close(nps_h5_t *file);

/** Close after an error, or what was read; records no problem. What was written is thrown away: the file is left behind
 *  useless. Collective over the ranks that created it, which must have agreed on the error. NULL is fine. */
void nps_h5_abandon(nps_h5_t *file);

/** Create a group (and its missing parents). Collective as the file is. */
nps_err_t nps_h5_make_group(nps_h5_t *file, const char *path);

/** Whether every link of a path exists. Collective as the file is. */
bool nps_h5_exists(const nps_h5_t *file, const char *path);

/** Create a contiguous dataset: allocated early, never filled. Collective as the file is.
 *  Slashes in `name` stand for themselves in the last component only when escaped by the caller: names with '/' are
 *  refused by nps_fail().
 *  @param group  path of an existing group, e.g. "/tensors"
 *  @param ndim, shape  0 dimensions make a scalar
 *  @param[out] out  closed with nps_h5_dataset_close() */
nps_err_t nps_h5_dataset_create(nps_h5_t *file, const char *group, const char *name, nps_dtype_t dtype, int ndim,
                                const int64_t *shape, nps_h5_dataset_t **out);

/** Write elements [first, first + count) in row-major order, independently of other ranks; memory type = file type;
 *  parts of at most 1 GiB. Local. NPS_ERR_IO. */
nps_err_t nps_h5_dataset_write(nps_h5_dataset_t *dataset, int64_t first, int64_t count, const void *data);

/** Allocate the space of all datasets created so far on the device, the ranks sharing the work, so that a full disk is
 *  found before any data is written. Where the file system cannot do that in advance, nothing is done. Collective as the
 *  file is. NPS_ERR_IO. */
nps_err_t nps_h5_reserve(nps_h5_t *file);

/** Close a dataset; NULL is fine. Collective as the file is. */
void nps_h5_dataset_close(nps_h5_dataset_t *dataset);

/** Write a whole small dataset: every rank passes the same values. Collective as the file is. */
nps_err_t nps_h5_put(nps_h5_t *file, const char *path, nps_dtype_t dtype, const void *data, int ndim,
                     const int64_t *shape);
nps_err_t nps_h5_put_texts(nps_h5_t *file, const char *path, const char *const *texts,
                           int64_t count); /* UTF-8 [count] */

/** Write an attribute of a group ("/": the root). Collective as the file is. */
nps_err_t nps_h5_put_attr_text(nps_h5_t *file, const char *group, const char *name, const char *text);
nps_err_t nps_h5_put_attr_i64(nps_h5_t *file, const char *group, const char *name, int64_t value);
nps_err_t nps_h5_put_attr_f64(nps_h5_t *file, const char *group, const char *name, double value);
nps_err_t nps_h5_put_attr_texts(nps_h5_t *file, const char *group, const char *name, const char *const *texts,
                                int64_t count); /* an array of UTF-8 texts */

/** Read an attribute. Local. A missing one gives NPS_OK with *text = NULL (freed with free()), or *found = false. */
nps_err_t nps_h5_get_attr_text(nps_h5_t *file, const char *group, const char *name, char **text);
nps_err_t nps_h5_get_attr_i64(nps_h5_t *file, const char *group, const char *name, int64_t *value, bool *found);
nps_err_t nps_h5_get_attr_f64(nps_h5_t *file, const char *group, const char *name, double *value, bool *found);
nps_err_t nps_h5_get_attr_texts(nps_h5_t *file, const char *group, const char *name, char ***texts,
                                int *count); /* freed with nps_h5_free_names(); fixed or variable length */

/** List the members of a group in byte order of their names; a missing group has none. Local.
 *  @param[out] names  [*count] strings and the array, freed by nps_h5_free_names() */
nps_err_t nps_h5_list(nps_h5_t *file, const char *group, char ***names, int *count);
void nps_h5_free_names(char **names, int count);

/** Describe a member of a group. Local. */
nps_err_t nps_h5_describe(nps_h5_t *file, const char *group, const char *name, nps_h5_info_t *out);

/** Read a whole dataset, however it is stored (chunked, compressed, any byte order), as a type: floats as NPS_F32 or
 *  NPS_F64, integers as NPS_I32 or NPS_I64. Local. NPS_ERR_INPUT when it is missing, of another class, or holds a value that
 *  does not fit.
 *  @param[out] ndim, shape  [NPS_MAX_DIMS]
 *  @param[out] data  freed with free() */
nps_err_t nps_h5_read(nps_h5_t *file, const char *path, nps_dtype_t dtype, int *ndim, int64_t *shape, void **data);

/** Read what nps_h5_put_texts() has written. Local. NPS_ERR_INPUT. @param[out] texts  [*count] owned, as each is */
nps_err_t nps_h5_read_texts(nps_h5_t *file, const char *path, char ***texts, int64_t *count);

/** Read a whole dataset of uint8. Local. @param[out] data freed with free() */
nps_err_t nps_h5_get_bytes(nps_h5_t *file, const char *path, void **data, size_t *bytes);

#endif
