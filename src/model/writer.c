#include "writer_internal.h"

#include <assert.h>
#include <stdlib.h>

static nps_err_t check_sizes(const nps_layout_t *layout) {
  int64_t total = 0;
  for (int i = 0; i < layout->count; i++) {
    const nps_target_t *t = &layout->targets[i];
    int64_t bytes;
    if (__builtin_mul_overflow(t->count, (int64_t)nps_dtype_size(t->dtype), &bytes) ||
        __builtin_add_overflow(total, bytes, &total))
      return nps_fail(NPS_ERR_INPUT, "%s: the output would have more than 2^63 bytes", t->name);
  }
  return NPS_OK;
}

nps_err_t nps_writer_open(const nps_comm_t *comm, const nps_output_t *output, const nps_layout_t *layout,
                          nps_writer_t **out) {
  *out = NULL;
  nps_writer_t *w = nps_xcalloc(1, sizeof *w);
  w->comm = comm;
  w->output = *output;
  w->layout = layout;
  nps_err_t err = nps_place_make(output->path, &w->place);
  w->place.locked = output->locked;
  if (err == NPS_OK) err = check_sizes(layout);
  if (err == NPS_OK && nps_comm_rank(comm) == 0) {
    err = nps_place_prepare(&w->place, output->force);
    w->prepared = err == NPS_OK;
  }
  NPS_GOTO(nps_comm_agree(comm, err));
  w->form = w->place.hdf5 ? &nps_writer_hdf5 : &nps_writer_folder;
  assert(output->part_count == 0 || w->form->write_part);
  NPS_GOTO(w->form->open(w));
  *out = w;
  w = NULL;
done:
  nps_writer_free(w);
  return err;
}

nps_err_t nps_writer_write(nps_writer_t *w, int i, int64_t first, int64_t count, const void *data) {
  assert(i >= 0 && i < w->layout->count);
  assert(first >= 0 && count >= 0 && first <= w->layout->targets[i].count - count);
  return count == 0 ? NPS_OK : w->form->write(w, i, first, count, data);
}

nps_err_t nps_writer_write_part(nps_writer_t *w, int part, const void *data) {
  assert(part >= 0 && part < w->output.part_count);
  return w->form->write_part(w, part, data);
}

nps_err_t nps_writer_commit(nps_writer_t *w, const nps_digest_t *digest) {
  nps_err_t err = w->form->finish(w, digest);
  if (err != NPS_OK) return err;
  if (nps_comm_rank(w->comm) == 0) {
    w->bytes = nps_path_bytes(w->place.partial, false);
    err = nps_place_finish(&w->place, w->output.force);
    w->finished = true;
    nps_place_unlock(&w->place);
  }
  nps_comm_bcast(w->comm, &w->bytes, sizeof w->bytes);
  return nps_comm_agree(w->comm, err);
}

int64_t nps_writer_bytes(const nps_writer_t *w) { return w->bytes; }

void nps_writer_free(nps_writer_t *w) {
  if (!w) return;
  if (w->form) w->form->close(w);
  nps_comm_barrier(w->comm);
  /* What cannot be removed is recorded beside the failure that led here. */
  if (w->prepared && !w->finished) (void)nps_path_remove(w->place.partial);
  nps_place_clear(&w->place);
  free(w);
}
