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

/** Copy all tensors, the ranks sharing the work. What is computed comes in float32 or wider, and is rounded to its base's type.
 *  Collective.
 *  @param report  rank 0's, else NULL; @param title  of the phase
 *  @param layout  as nps_layout_copy() makes it of the model
 *  @param digest  gets every byte read
 *  @return the same on every rank */
nps_err_t nps_run_copy(const nps_comm_t *comm, nps_report_t *report, const char *title, const nps_model_t *model,
                       const nps_layout_t *layout, nps_digest_t *digest, nps_writer_t *writer);

#endif
