/** @file open_model.h
 *  What runs share about paths: opening a model that is named on a command line. */
#ifndef NPS_RUN_OPEN_MODEL_H
#define NPS_RUN_OPEN_MODEL_H

#include "nps/comm.h"
#include "nps/model.h"

/** Find a model and read its headers on rank 0, and give every rank the catalogue. Collective.
 *  @param model  as nps_model_locate() takes it, in the current directory
 *  @param[out] out  freed with nps_model_free() */
nps_err_t nps_run_open_model(const nps_comm_t *comm, const char *model, nps_model_t **out);

/** Open a model that another is compared with, by whose names its tensors go (nps_model_name_like()). Collective. */
nps_err_t nps_run_open_beside(const nps_comm_t *comm, const char *base, const nps_model_t *model, nps_model_t **out);

/** Refuse an adapter by itself where a model is needed. Local. */
nps_err_t nps_run_refuse_adapter(const nps_model_t *model);

/** Whether two paths lead to the same file or folder, which is there. Local. */
bool nps_run_same_place(const char *a, const char *b);

/** Whether a path leads to a model, or to what it is computed from. Local. */
bool nps_run_is_of_model(const nps_model_t *model, const char *path);

#endif
