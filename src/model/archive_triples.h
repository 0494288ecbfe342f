/** @file archive_triples.h
 *  The matrices of a model in an archive that are stored by their singular factors, as they are written. */
#ifndef NPS_MODEL_ARCHIVE_TRIPLES_H
#define NPS_MODEL_ARCHIVE_TRIPLES_H

#include "nps/archive.h"

typedef struct nps_triples nps_triples_t;

/** Find which targets they are / open the file where codes wait. Local. @param layout, factors  must outlive it */
nps_triples_t *nps_triples_new(const nps_layout_t *layout, const nps_archive_factors_t *factors, int value_bits);
nps_err_t nps_triples_open(nps_triples_t *triples, const char *beside);
void nps_triples_free(nps_triples_t *triples);

/** Whether a target is one. @param triples  NULL: none is */
bool nps_triples_has(const nps_triples_t *triples, int target);

/** Take elements [first, first + count) of a target's update, in order: with the first of them its factors are coded. Local. */
nps_err_t nps_triples_write(nps_triples_t *triples, int target, int64_t first, int64_t count, const float *update);

/** Add what is kept, and sums of squares of the updates and of what rounding changed, in the order of the targets. Collective. */
void nps_triples_tell(const nps_triples_t *triples, const nps_comm_t *comm, int64_t *kept, double *exact,
                      double *wrong);

/** Write the datasets of a model. Collective. @param[in,out] bytes  of its datasets */
nps_err_t nps_triples_put(nps_triples_t *triples, const nps_comm_t *comm, nps_h5_t *file, const char *group,
                          int64_t *bytes);

#endif
