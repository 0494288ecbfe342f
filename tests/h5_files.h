/** @file h5_files.h
 *  Small things that tests put into HDF5 files. */
#ifndef NPS_H5_FILES_H
#define NPS_H5_FILES_H

#include "nps/h5.h"

/** Write a dataset of bytes, on every rank the same. Collective as the file is. */
static inline nps_err_t put_bytes(nps_h5_t *file, const char *group, const char *name, const void *data, size_t bytes) {
  const int64_t count = (int64_t)bytes;
  nps_h5_dataset_t *d = NULL;
  NPS_TRY(nps_h5_dataset_create(file, group, name, NPS_U8, 1, &count, &d));
  const nps_err_t err = nps_h5_dataset_write(d, 0, count, data);
  nps_h5_dataset_close(d);
  return err;
}

#endif
