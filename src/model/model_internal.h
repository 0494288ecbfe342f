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

/** Add the files of another model, as they are known. @return the index of the first */
int nps_model_add_files(nps_model_t *model, const nps_model_t *other);

/* ---- derivation.c: tensors that are computed when they are read ---- */

/** A way of computing tensors. */
typedef struct nps_derivation_form {
  const char *name;
  /** Make model->derivation->rules from its base, parts and text, and add files and tensors (rule: 0 for stored ones).
   *  Called on every rank with the same; notes and problems of rank 0 are shown. */
  nps_err_t (*plan)(nps_model_t *model);
  void (*free_rules)(void *rules);
  /** Prepare what one reader keeps between reads. @param digest  gets every byte read; may be NULL */
  nps_err_t (*begin)(const nps_model_t *model, nps_digest_t *digest, void **state);
  /** Compute elements [first, first + count) of tensor i, in its type. */
  nps_err_t (*read)(void *state, int i, int64_t first, int64_t count, void *dst);
  void (*end)(void *state);
  int64_t (*bytes)(const nps_model_t *model); /**< what a reader keeps, predicted */
} nps_derivation_form_t;

/** Make a model of what its tensors are computed from. @param base, parts, text  taken over, also on failure; text and parts
 *  may be NULL */
nps_err_t nps_model_derive(const nps_derivation_form_t *form, const char *name, const char *path, nps_model_t *base,
                           nps_model_t *parts, char *text, nps_model_t **out);

/** Find a form by its name. */
const nps_derivation_form_t *nps_derivation_form(const char *name);

void nps_derivation_free(nps_derivation_t *derivation);

/** Whether a path, as nps_model_locate() gives it, leads to a model: one that is there, or two with a plus between them.
 *  @param[out] base, beside  freed with free() where there are two, else NULL */
bool nps_path_split(const char *path, char **base, char **beside);

/** Open an adapter by itself: `model` is a folder's, which holds adapter_model.safetensors. */
nps_err_t nps_adapter_open_alone(nps_model_t *model);

/** Compare the configs of two adapters: a key that the meaning of their tensors depends on and that differs is a problem. */
void nps_peft_compare(const char *config, const char *other, const char *other_name, nps_checks_t *checks);

/** Open BASE+ADAPTER. */
nps_err_t nps_adapter_open(const char *base, const char *adapter, const char *path, const char *name,
                           nps_model_t **out);

/* ---- reader.c, made.c ---- */

struct nps_reader {
  const nps_model_t *model;
  nps_digest_t *digest;
  int file;               /**< the one last used, open as fd: a model may have more files than a process may open */
  int fd;                 /**< -1: none yet */
  void *state;            /**< of computed tensors; NULL: none was read yet */
  nps_reader_t **parents; /**< [parent_count] of a made catalogue, from their first use; else NULL */
  int mean_of;            /**< tensor whose rows' mean is `mean`, or -1 */
  double *mean;           /**< [row] or NULL */
};

/** Give the reader of a parent. */
nps_reader_t *nps_reader_parent(nps_reader_t *reader, int parent);

/** Find where elements of a made tensor are stored as they are: all in one span of copies. Changes nothing where they are not. */
void nps_made_resolve(nps_reader_t **reader, int *tensor, int64_t *first, int64_t count);

/** Read elements of a made tensor. */
nps_err_t nps_made_read(nps_reader_t *reader, int i, int64_t first, int64_t count, void *dst);

void nps_made_free(nps_made_t *made);

/** Predict what a reader of a made catalogue keeps: what its parents' readers do, and the mean of a tensor's rows. */
int64_t nps_made_reader_bytes(const nps_model_t *model);

/* ---- one file each ---- */

/** Read and check the header of file `file` and add its tensors. */
nps_err_t nps_safetensors_read(nps_model_t *model, int file);

/** Give an entry of a file's metadata. @param[out] value  freed with free(); NULL where there is none */
nps_err_t nps_safetensors_metadata(const nps_model_file_t *file, const char *key, char **value);

/** Read and check a merged HDF5 file, file 0, with its config. */
nps_err_t nps_hdf5_read(nps_model_t *model);

/** Read and check the tensors of a group of an HDF5 file, file 0, their names behind a prefix. */
nps_err_t nps_hdf5_read_group(nps_model_t *model, const char *group, const char *prefix);

/** Whether a file begins as HDF5 files do. */
bool nps_has_hdf5_signature(const char *path);

/** Read a folder's index with all files it names. */
nps_err_t nps_index_read(nps_model_t *model, const char *index);

/** Check that a text is a JSON object. @param where  for messages */
nps_err_t nps_config_check(const char *text, const char *where);

/** Whether modules.json in a folder names a folder of it. Records no problem. */
bool nps_is_module(const char *folder, const char *name);

/** Give "FOLDER/NAME", freed with free(). */
char *nps_path_join(const char *folder, const char *name);

/** Whether there is something at the path. */
bool nps_path_exists(const char *path);

/** Whether a path is a link to what is not there, as in a Hugging Face cache of which parts were removed. */
bool nps_path_is_broken_link(const char *path);

/** Refuse such a link. @return NPS_ERR_INPUT */
nps_err_t nps_path_check_link(const char *path);

/** Give the folder a path lies in ("." when it has none), freed with free(). */
char *nps_path_folder(const char *path);

/** Whether a text ends in a suffix. */
bool nps_ends_with(const char *text, const char *suffix);

#endif
