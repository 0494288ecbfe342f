/** @file h5_internal.h
 *  What the sources of h5 share. */
#ifndef NPS_H5_INTERNAL_H
#define NPS_H5_INTERNAL_H

#include "nps/flush.h"
#include "nps/h5.h"

#include <hdf5.h>

struct nps_h5 {
  char *path;
  const nps_comm_t *comm; /**< NULL: open for reading, by this process alone */
  hid_t id;
  int fd; /**< second descriptor, of files that are written: for fsync and to learn the system's cause of a failure */
  int64_t end;                  /**< of the last dataset's bytes in the file */
  int64_t text_bytes;           /**< of attributes */
  nps_flush_t *flush;           /**< of fd */
  hid_t types[NPS_DTYPE_COUNT]; /**< H5I_INVALID_HID where HDF5 has none */
};

struct nps_h5_dataset {
  nps_h5_t *file;
  char *name;
  hid_t id;
  hid_t type; /**< owned by the file */
  size_t size;
  int ndim;
  int64_t shape[NPS_MAX_DIMS];
  int64_t count;
};

/** Make the HDF5 type of every element type that has one. */
nps_err_t nps_h5_types_make(nps_h5_t *file);
void nps_h5_types_free(nps_h5_t *file);

/** Find the element type of an HDF5 type. @return false when there is none */
bool nps_h5_types_find(const nps_h5_t *file, hid_t type, nps_dtype_t *dtype);

/** Record a problem as "PATH: TEXT: innermost description of HDF5's error stack". */
nps_err_t nps_h5_fail(const nps_h5_t *file, nps_err_t code, const char *fmt, ...) NPS_PRINTF(3, 4);

/** Record that writing failed, with the system's cause, which HDF5 and MPI-IO do not pass on: the bytes are written once
 *  more with pwrite().
 *  @param data    [bytes], or NULL: zeros behind the end of the file
 *  @param offset  in the file */
nps_err_t nps_h5_fail_write(const nps_h5_t *file, const char *what, const void *data, size_t bytes, int64_t offset);

/** Allocate bytes of the file on the device, where the file system can. NPS_ERR_IO. Local. */
nps_err_t nps_h5_allocate(const nps_h5_t *file, int64_t offset, int64_t bytes);

/** Agree on a code where the file belongs to several ranks. */
nps_err_t nps_h5_agree(const nps_h5_t *file, nps_err_t err);

/** Split "/a/b/c" into the group "/a/b" ("/" when there is none) and the name "c".
 *  @return the group, freed with free(); *name points into path */
char *nps_h5_split(const char *path, const char **name);

#endif
