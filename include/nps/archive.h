/** @file archive.h
 *  Compressed archives: a base, by reference or embedded, and for every fine-tuned model a sparse update with rounded values, from
 *  which the model expands. Layer 3, part of model. docs/formats.md describes the file.
 *
 *  An archive is written by the writer of a merged HDF5 file, whose format says so; models are added to it one after the other,
 *  the ranks sharing each, and its bytes do not depend on how. One is read as the model "FILE#NAME" (nps_model_open()). */
#ifndef NPS_ARCHIVE_H
#define NPS_ARCHIVE_H

#include "nps/model.h"

/** What the attribute `format` says of an archive. */
#define NPS_ARCHIVE_FORMAT "nps-archive"

/** What gives the singular factors of matrices. */
typedef struct nps_archive_factors {
  /** Whether a tensor is stored by its factors: one with two dimensions. */
  bool (*is_matrix)(void *ctx, const nps_target_t *target);
  /** Give the factors whose product the update is that is being written: of target i of the model. Used until the next. */
  nps_low_rank_t (*get)(void *ctx, int i);
  void *ctx;
} nps_archive_factors_t;

/** What all models of an archive share. Borrowed as long as the archive is written. */
typedef struct nps_archive_spec {
  const nps_model_t *base;
  const char *base_name;                /**< as the user names it */
  bool embedded;                        /**< the base's tensors are those of the file's writer */
  const nps_layout_t *expanded;         /**< its merged targets are what is coded, in the types that they expand to */
  int value_bits;                       /**< 4, 8 or 16 */
  const nps_archive_factors_t *factors; /**< of matrices that are stored by them; NULL: none is */
} nps_archive_spec_t;

/** What was written of a model. */
typedef struct nps_archive_told {
  int64_t kept;    /**< numbers that are stored: entries, and those of singular vectors */
  int64_t entries; /**< of the update */
  int64_t bytes;   /**< of its datasets */
  double error;    /**< of rounding: ‖stored − exact‖ / ‖exact‖ */
} nps_archive_told_t;

/** Bytes of an element's share of scales and tables, whether it is kept or not. */
#define NPS_ARCHIVE_OVERHEAD (4.0 / 1024 + 16.0 / 65536)

typedef struct nps_archive nps_archive_t;

/** Begin an archive. Collective.
 *  @param file  open, its output's format NPS_ARCHIVE_FORMAT; must outlive the archive
 *  @param[out] out  freed with nps_archive_free() */
nps_err_t nps_archive_new(nps_writer_t *file, const nps_archive_spec_t *spec, nps_archive_t **out);
void nps_archive_free(nps_archive_t *archive);

/** Begin a model. Its merged targets are then written with nps_writer_write() as float32 updates to the base, its head as it is.
 *  Each rank writes whole blocks of NPS_BLOCK entries of a tensor, or up to its end, in order. A matrix that is stored by its factors is one rank's. Copied targets are not stored: they are the base's. Collective.
 *  @param updates  merged targets as in the spec, and those of the head; must outlive the model
 *  @param[out] out  ended with nps_archive_end()
 *  @return NPS_ERR_CONFIG: a name that cannot be one in HDF5 */
nps_err_t nps_archive_begin(nps_archive_t *archive, const char *name, const nps_layout_t *updates, nps_writer_t **out);

/** Write what has been coded, and free the model's writer. Collective.
 *  @param err  the caller's result, the same on every rank: nothing is written after a failure
 *  @param config_json  or NULL
 *  @param[out] told  the same on every rank */
nps_err_t nps_archive_end(nps_archive_t *archive, nps_writer_t *model, nps_err_t err, const char *config_json,
                          nps_archive_told_t *told);

/** Write what is known of the base, before the file is committed. Collective as the file is. @param digest  finished */
nps_err_t nps_archive_put_base(const nps_archive_t *archive, nps_h5_t *file, const nps_digest_t *digest);

/** What an archive says of a model in it. */
typedef struct nps_archive_entry {
  char *name;
  nps_archive_told_t told; /**< entries are not known: 0 */
} nps_archive_entry_t;

/** Whether a file is an archive. Local. */
bool nps_archive_is(const char *path);

/** List the models in an archive. Local. @param[out] entries  [*count], freed with nps_archive_list_free() */
nps_err_t nps_archive_list(const char *path, nps_archive_entry_t **entries, int *count);
void nps_archive_list_free(nps_archive_entry_t *entries, int count);

/** Find the path of the archive that a model's name begins with: "FILE#NAME". Local.
 *  @return the length of FILE, 0 where it is none */
size_t nps_archive_split(const char *path);

/** Check that the bases of models from archives are what these were made from: they are read. Collective.
 *  @return NPS_ERR_INPUT: another content; the same on every rank */
nps_err_t nps_archive_verify(const nps_comm_t *comm, const nps_model_t *const *models, int n);

#endif
