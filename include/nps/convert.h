/** @file convert.h
 *  A model in another form: its tensors as they are, or its difference from a base as an adapter. Layer 7, part of `run`. */
#ifndef NPS_CONVERT_H
#define NPS_CONVERT_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/report.h"

/** What is asked for. Texts are borrowed. */
typedef struct nps_convert_request {
  const char *source; /**< any readable model */
  const char *target; /**< ends in .h5 or .hdf5: merged HDF5; otherwise a folder */
  bool force;         /**< replace an existing output */
  const char *base;   /**< with rank or energy: write a LoRA adapter of source − base; else NULL */
  int rank;           /**< of every matrix; 0: by energy */
  double energy;      /**< least part of every matrix's Σσ² that is kept, in (0, 1] */
} nps_convert_request_t;

/** Write all tensors of a model in the other form, byte for byte, with its config and tokenizer files. Collective: the
 *  ranks share the bytes; a rank holds 2 MiB of them at a time.
 *  @param report  on rank 0; may be NULL
 *  @return the same on every rank */
nps_err_t nps_convert_run(const nps_comm_t *comm, const nps_convert_request_t *request, nps_report_t *report);

/** Write the leading singular triples of source − base as a PEFT adapter, and tell what it holds and what not. Collective:
 *  each matrix is one rank's, whole in its memory.
 *  @return the same on every rank */
nps_err_t nps_lora_run(const nps_comm_t *comm, const nps_convert_request_t *request, nps_report_t *report);

#endif
