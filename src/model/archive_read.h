/** @file archive_read.h
 *  What the parts of reading archives share. */
#ifndef NPS_MODEL_ARCHIVE_READ_H
#define NPS_MODEL_ARCHIVE_READ_H

#include "model_internal.h"

/** Tensors of a head, among the parts of a model, have this before their names. */
#define NPS_ARCHIVE_HEADS "heads/"

/** Tensors of a model in an archive. Parts: the datasets of the model and its heads'. Text: JSON, {"value_bits", "name": […],
 *  "dtype": […], "count": […], "matrix": […] of the index (the last where there are some), "sha256": […] of the base's files unless it is embedded, "config_json"}. */
extern const nps_derivation_form_t nps_archive_form;

/** Open the base of an archive / a model in it. Local. NPS_ERR_INPUT. */
nps_err_t nps_archive_open_base(const char *path, const char *name, nps_model_t **out);
nps_err_t nps_archive_open(const char *path, const char *model, const char *name, nps_model_t **out);

#endif
