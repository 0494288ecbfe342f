/* All tensors of a model, as they are, or computed and rounded. */
#include "copy.h"

#include <stdlib.h>

int64_t nps_run_layout_bytes(const nps_layout_t *layout) {
  int64_t bytes = 0;
  for (int t = 0; t < layout->count; t++)
    bytes += layout->targets[t].count * (int64_t)nps_dtype_size(layout->targets[t].dtype);
  return bytes;
}

typedef struct {
  nps_pulse_t *pulse;
  nps_report_t *report;
  const nps_model_t *model;
  nps_reader_t *reader;
  nps_writer_t *writer;
  void *buffer;   /* NPS_STEP elements */
  double *values; /* NPS_STEP, where computed tensors are rounded; else NULL */
  int64_t done;   /* bytes */
  bool go_on;
} copy_t;

nps_err_t nps_run_round_computed(const nps_model_t *model, const nps_target_t *target, int tensor, int64_t first,
                                 int64_t n, double *values, void *buffer) {
  const nps_tensor_info_t *t = &model->tensors[tensor];
  if (!t->rule) return NPS_OK;
  int64_t at = nps_tensor_find_nonfinite(t->dtype, buffer, n);
  if (at >= 0)
    return nps_fail(NPS_ERR_INPUT, "%s: tensor %s holds NaN or infinity at index %lld", model->path, t->name,
                    (long long)(first + at));
  nps_tensor_widen(t->dtype, buffer, n, values);
  nps_tensor_narrow(values, n, target->dtype, buffer);
  at = nps_tensor_find_nonfinite(target->dtype, buffer, n);
  return at < 0 ? NPS_OK
                : nps_fail(NPS_ERR_RUNTIME, "%s: tensor %s: the value at index %lld is too large for %s", model->path,
                           t->name, (long long)(first + at), nps_dtype_name(target->dtype));
}

static nps_err_t copy_piece(copy_t *k, const nps_target_t *target, const nps_piece_t *piece) {
  const int64_t end = piece->first + piece->count, size = (int64_t)nps_dtype_size(target->dtype);
  for (int64_t first = piece->first; first < end && k->go_on; first += NPS_STEP) {
    const int64_t n = end - first < NPS_STEP ? end - first : NPS_STEP;
    int64_t total = 0;
    NPS_TRY(nps_reader_read(k->reader, target->source[0], first, n, k->buffer));
    NPS_TRY(nps_run_round_computed(k->model, target, target->source[0], first, n, k->values, k->buffer));
    NPS_TRY(nps_writer_write(k->writer, piece->target, first, n, k->buffer));
    k->done += n * size;
    k->go_on = nps_pulse_beat(k->pulse, k->done, &total);
    nps_report_progress(k->report, total);
  }
  return NPS_OK;
}

static void show_total(void *report, int64_t total) { nps_report_progress(report, total); }

static nps_err_t copy_pieces(copy_t *k, const nps_comm_t *comm, const nps_layout_t *layout, const nps_plan_t *plan) {
  const int rank = nps_comm_rank(comm);
  nps_err_t err = NPS_OK;
  k->pulse = nps_pulse_start(comm);
  for (int i = plan->first_piece[rank]; i < plan->first_piece[rank + 1] && err == NPS_OK && k->go_on; i++)
    err = copy_piece(k, &layout->targets[plan->pieces[i].target], &plan->pieces[i]);
  return nps_pulse_end(k->pulse, k->done, err, show_total, k->report);
}

static nps_err_t make_room(copy_t *k) {
  const size_t room = (size_t)NPS_STEP * sizeof(double);
  NPS_TRY(nps_buffer_alloc(room, "a part of a tensor", &k->buffer));
  return k->model->derivation ? nps_buffer_alloc(room, "a part of a tensor", &k->values) : NPS_OK;
}

static nps_err_t make_plan(const nps_comm_t *comm, const nps_model_t *model, const nps_layout_t *layout,
                           nps_plan_t **plan) {
  const nps_demand_t demand = {0};
  const nps_costs_t costs = {
      .read_rate = 7e9, .hash_rate = 1.7e9, .write_rate = 1.5e9, .cores_per_node = 1, .ranks_per_node = 1};
  return nps_plan_make(layout, &model, nps_comm_size(comm), &demand, &costs, INT64_MAX, plan);
}

nps_err_t nps_run_copy(const nps_comm_t *comm, nps_report_t *report, const char *title, const nps_model_t *model,
                       const nps_layout_t *layout, nps_digest_t *digest, nps_writer_t *writer) {
  copy_t k = {.report = report, .model = model, .writer = writer, .go_on = true};
  nps_plan_t *plan = NULL;
  nps_err_t err = make_plan(comm, model, layout, &plan);
  if (err == NPS_OK) err = make_room(&k);
  err = nps_comm_agree(comm, err);
  if (err == NPS_OK) {
    k.reader = nps_reader_new(model, digest);
    nps_report_phase(report, title, nps_run_layout_bytes(layout));
    err = copy_pieces(&k, comm, layout, plan);
    if (err == NPS_OK) nps_report_progress(report, nps_run_layout_bytes(layout));
    nps_report_phase_end(report);
    nps_reader_free(k.reader);
  }
  nps_plan_free(plan);
  free(k.buffer);
  free(k.values);
  return err;
}
