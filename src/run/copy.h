/** @file copy.h
 *  Copying a model's tensors into an output. */
#ifndef NPS_RUN_COPY_H
#define NPS_RUN_COPY_H

#include "nps/comm.h"
#include "nps/model.h"
#include "nps/plan.h"
#include "nps/report.h"

/** Give the bytes of all targets. Local. */
int64_t nps_run_layout_bytes(const nps_layout_t *layout);

/** Round elements [first, first + n) of a tensor that is computed when it is read, which come in float32 or wider, to the target's
 *  type; others stay as they are. Local.
 *  @param values  [n] working memory, of models with a derivation; @param[in,out] buffer  [n] of doubles
 *  @return NPS_ERR_INPUT: NaN or infinity; NPS_ERR_RUNTIME: too large for the type */
nps_err_t nps_run_round_computed(const nps_model_t *model, const nps_target_t *target, int tensor, int64_t first,
                                 int64_t n, double *values, void *buffer);

/** Copy all tensors, the ranks sharing the work. What is computed comes in float32 or wider, and is rounded to its base's type.
 *  Collective.
 *  @param report  rank 0's, else NULL; @param title  of the phase
 *  @param layout  as nps_layout_copy() makes it of the model
 *  @param digest  gets every byte read
 *  @return the same on every rank */
nps_err_t nps_run_copy(const nps_comm_t *comm, nps_report_t *report, const char *title, const nps_model_t *model,
                       const nps_layout_t *layout, nps_digest_t *digest, nps_writer_t *writer);

#endif
