/** @file model_internal.h
 *  What the sources that read models share. */
#ifndef NPS_MODEL_INTERNAL_H
#define NPS_MODEL_INTERNAL_H

#include "nps/json.h"
#include "nps/model.h"

/** Problems of one file or model: the first 50 are recorded, the others counted. Zero-initialise but for `where`. */
typedef struct nps_checks {
  const char *where; /**< file, put before every message */
  int count;
} nps_checks_t;

/** Record a problem as "WHERE: TEXT". */
void nps_checks_fail(nps_checks_t *checks, const char *fmt, ...) NPS_PRINTF(2, 3);

/** Tell how many problems were not recorded. @return NPS_ERR_INPUT when there was any problem */
nps_err_t nps_checks_end(nps_checks_t *checks);

/* ---- catalogue.c ---- */

nps_model_t *nps_model_new(const char *name, const char *path, nps_model_form_t form);

/** Add a weight file, which must be a regular file. @param path is copied */
nps_err_t nps_model_add_file(nps_model_t *model, const char *path);

/** Add a tensor. @param info  its name is taken over by the catalogue */
void nps_model_add_tensor(nps_model_t *model, const nps_tensor_info_t *info);

/** Bring the tensors into the order of their names; a name that occurs twice is an error. */
nps_err_t nps_model_sort(nps_model_t *model);

/* ---- one file each ---- */

/** Read and check the header of file `file` and add its tensors. */
nps_err_t nps_safetensors_read(nps_model_t *model, int file);

/** Read and check a merged HDF5 file, file 0, with its config. */
nps_err_t nps_hdf5_read(nps_model_t *model);

/** Read and check the tensors of a group of an HDF5 file, file 0. */
nps_err_t nps_hdf5_read_group(nps_model_t *model, const char *group);

/** Whether a file begins as HDF5 files do. */
bool nps_has_hdf5_signature(const char *path);

/** Read a folder's index with all files it names. */
nps_err_t nps_index_read(nps_model_t *model, const char *index);

/** Check that a text is a JSON object. @param where  for messages */
nps_err_t nps_config_check(const char *text, const char *where);

/** Give "FOLDER/NAME", freed with free(). */
char *nps_path_join(const char *folder, const char *name);

/** Whether there is something at the path. */
bool nps_path_exists(const char *path);

/** Give the folder a path lies in ("." when it has none), freed with free(). */
char *nps_path_folder(const char *path);

/** Whether a text ends in a suffix. */
bool nps_ends_with(const char *text, const char *suffix);

#endif
