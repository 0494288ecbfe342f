#include "selection.h"

#include <stdlib.h>
#include <string.h>

nps_selection_t *nps_selection_new(int lists) {
  nps_selection_t *s = nps_xcalloc(1, sizeof *s);
  s->lists = lists;
  s->select = nps_xcalloc((size_t)lists, sizeof(nps_select_t *));
  for (int m = 0; m < lists; m++) s->select[m] = nps_select_new();
  return s;
}

void nps_selection_free(nps_selection_t *selection) {
  if (!selection) return;
  for (int m = 0; m < selection->lists; m++) nps_select_free(selection->select[m]);
  free(selection->select);
  free(selection->ties);
  free(selection);
}

/* Ties twice: the ranks' sums while they are put together. */
size_t nps_selection_bytes(int lists, int tensors) {
  return (size_t)lists * (nps_select_bytes() + (size_t)tensors * 2 * sizeof(int64_t));
}

/* One entry of how many is enough to bracket the threshold: a bracket of a few bins needs a quarter of a million. */
static int part_of(int64_t entries, int64_t keep) {
  const int64_t stride = entries >> 18 < 16 ? entries >> 18 : 16;
  return stride > 1 && (keep == 0 || keep / stride >= 1000) ? (int)stride : 1;
}

void nps_selection_start(nps_selection_t *selection, const nps_merge_tensor_t *tensor, bool whole_model, int lists,
                         const int64_t *keep) {
  selection->whole_model = whole_model;
  selection->active = lists;
  const int64_t entries = whole_model ? tensor->model_elements : tensor->count;
  selection->stride = part_of(entries, keep[0]);
  for (int m = 1; m < selection->active; m++) {
    const int stride = part_of(entries, keep[m]);
    if (stride < selection->stride) selection->stride = stride;
  }
  for (int m = 0; m < selection->active; m++) {
    nps_select_start(selection->select[m], keep[m]);
    if (selection->stride > 1) nps_select_sample(selection->select[m], entries);
  }
  if (!whole_model) return;
  free(selection->ties);
  selection->ties = nps_xcalloc((size_t)tensor->tensor_count * (size_t)selection->lists, sizeof(int64_t));
}

static int64_t *ties_of(nps_selection_t *selection, const nps_merge_tensor_t *tensor, int list) {
  return &selection->ties[(int64_t)tensor->order * selection->lists + list];
}

int64_t nps_selection_part(nps_selection_t *selection, int pass, int64_t n, int64_t *from) {
  *from = 0;
  if (pass > 0 || selection->stride <= 1) return n;
  const int64_t run = n < selection->stride ? 1 : n / selection->stride;
  *from = (int64_t)((selection->runs++ * 0x9E3779B1u >> 16) % (uint32_t)(n / run)) * run;
  return run;
}

void nps_selection_scan(nps_selection_t *selection, const nps_merge_tensor_t *tensor, int pass, int list,
                        const float *x, int64_t n) {
  if (pass < 2)
    nps_select_count(selection->select[list], pass, x, n);
  else
    *ties_of(selection, tensor, list) += nps_select_count_ties(selection->select[list], x, n);
}

/* Turns the ties of this rank's pieces into the ties that lie before them: in tensors with smaller names on any rank, and
 * in the same tensor on the ranks before this one. */
static void count_ties_before(nps_selection_t *s, int tensors, const nps_comm_t *comm) {
  const int64_t n = (int64_t)tensors * s->lists;
  int64_t *total = nps_xcalloc((size_t)n, sizeof *total);
  memcpy(total, s->ties, (size_t)n * sizeof *total);
  nps_comm_sum_i64(comm, total, n);
  nps_comm_exscan_i64(comm, s->ties, n);
  for (int m = 0; m < s->lists; m++) {
    int64_t before = 0;
    for (int64_t i = m; i < n; i += s->lists) {
      s->ties[i] += before;
      before += total[i];
    }
  }
  free(total);
}

void nps_selection_reduce(nps_selection_t *selection, const nps_merge_tensor_t *tensor, int pass,
                          const nps_comm_t *comm) {
  if (pass == 2)
    count_ties_before(selection, tensor->tensor_count, comm);
  else
    for (int m = 0; m < selection->active; m++) nps_select_reduce(selection->select[m], pass, comm);
}

int nps_selection_next(nps_selection_t *selection, int pass) {
  bool again = false;
  for (int m = 0; pass == 1 && m < selection->active; m++) {
    if (!nps_select_missed(selection->select[m])) continue;
    nps_select_restart(selection->select[m]);
    again = true;
  }
  if (again) selection->stride = 1;
  return again ? 0 : pass + 1;
}

void nps_selection_piece(nps_selection_t *selection, const nps_merge_tensor_t *tensor) {
  if (!selection->whole_model) return;
  for (int m = 0; m < selection->lists; m++) {
    const int64_t left = nps_select_ties(selection->select[m]) - *ties_of(selection, tensor, m);
    nps_select_set_ties(selection->select[m], left > 0 ? left : 0);
  }
}

NPS_VECTOR_CLONES
void nps_selection_drop(const float *restrict marks, int64_t n, float *restrict x) {
  for (int64_t i = 0; i < n; i++) x[i] = marks[i] != 0 ? x[i] : 0.0f;
}
