/* Exact updates that a method keeps beside the merged tensors, for a later run to go on from. */
#include "writer_internal.h"

#include <assert.h>
#include <stdlib.h>

nps_err_t nps_state_create(nps_writer_t *w, nps_h5_t *file) {
  const nps_layout_t *layout = w->layout;
  if (!w->output.state) return NPS_OK;
  w->kept = nps_xcalloc((size_t)layout->count + 1, sizeof(nps_h5_dataset_t *));
  char *group = nps_xstrf("/state/%s/A", w->output.state);
  nps_err_t err = nps_h5_make_group(file, group);
  for (int i = 0; i < layout->count && err == NPS_OK; i++) {
    const nps_target_t *t = &layout->targets[i];
    if (t->action == NPS_ACTION_MERGE)
      err = nps_h5_dataset_create(file, group, t->name, NPS_F64, t->ndim, t->shape, &w->kept[i]);
  }
  free(group);
  return err;
}

nps_err_t nps_writer_write_state(nps_writer_t *w, int i, int64_t first, int64_t count, const double *values) {
  assert(w->kept && w->kept[i]);
  return count == 0 ? NPS_OK : nps_h5_dataset_write(w->kept[i], first, count, values);
}

nps_err_t nps_state_finish(nps_writer_t *w, nps_h5_t *file) {
  nps_err_t err = w->output.state ? w->output.put_state(w->output.extra_ctx, file) : NPS_OK;
  nps_state_close(w);
  return err;
}

void nps_state_close(nps_writer_t *w) {
  for (int i = 0; w->kept && i < w->layout->count; i++) nps_h5_dataset_close(w->kept[i]);
  free(w->kept);
  w->kept = NULL;
}
