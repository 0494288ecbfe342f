/** @file selection.h
 *  The largest entries of several models, tensor by tensor or over the whole model, for methods whose statistics passes
 *  find them. A method may select several times from one model: each is a list. */
#ifndef NPS_MERGE_SELECTION_H
#define NPS_MERGE_SELECTION_H

#include "nps/merge.h"

typedef struct nps_selection {
  int lists;  /**< most that a tensor has; of methods that select once from a model, its models */
  int active; /**< those of the tensor in work */
  bool whole_model;
  int stride;            /* pass 0 looks at one entry of so many */
  uint32_t runs;         /* of entries looked at so far */
  nps_select_t **select; /**< [lists] owned */
  int64_t *ties; /**< whole model: [tensors by name][lists] entries at the threshold; later those before; owned */
} nps_selection_t;

/** Statistics passes that a selection takes, nearly always: two for the threshold; over the whole model one more, to count
 *  ties by tensor. */
#define NPS_SELECTION_PASSES(whole_model) ((whole_model) ? 3 : 2)

nps_selection_t *nps_selection_new(int lists);
void nps_selection_free(nps_selection_t *selection);

/** Bytes of a selection. @param tensors  of the whole model; 0 for tensor by tensor */
size_t nps_selection_bytes(int lists, int tensors);

/** Begin the selection of a tensor, or of the whole model. Local.
 *  @param lists  of this tensor
 *  @param keep   [lists] entries that are kept, over all ranks */
void nps_selection_start(nps_selection_t *selection, const nps_merge_tensor_t *tensor, bool whole_model, int lists,
                         const int64_t *keep);

/** Give the part of the next n entries that a pass wants to see: a run at changing places, so that no columns of a matrix are
 *  preferred. Local. @param[out] from  where it begins, from 0; @return its length, 1 to n */
int64_t nps_selection_part(nps_selection_t *selection, int pass, int64_t n, int64_t *from);

/** Look at entries of one list in pass 0, 1 or, over the whole model, 2. Local. */
void nps_selection_scan(nps_selection_t *selection, const nps_merge_tensor_t *tensor, int pass, int list,
                        const float *x, int64_t n);

/** Put the ranks together after a pass. Collective over the ranks that share the entries. */
void nps_selection_reduce(nps_selection_t *selection, const nps_merge_tensor_t *tensor, int pass,
                          const nps_comm_t *comm);

/** Give the pass after a pass that was reduced: the next, or 0 again where pass 1 missed a threshold. Local, the same on
 *  every rank. */
int nps_selection_next(nps_selection_t *selection, int pass);

/** Prepare for this rank's piece of a tensor, whose entries nps_select_keep() or nps_select_mark() will see in order.
 *  Local. */
void nps_selection_piece(nps_selection_t *selection, const nps_merge_tensor_t *tensor);

/** Set to zero the entries that are not marked. Local. @param marks  [n] of nps_select_mark() */
void nps_selection_drop(const float *marks, int64_t n, float *x);

#endif
