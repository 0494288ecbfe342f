/* The difference of two models as a LoRA adapter: the leading singular triples of every linear layer's difference,
 * τ ≈ B·A with B = U√S and A = √S·Vᵀ. */
#include "lora.h"

#include "open_model.h"

#include "nps/plan.h"
#include "nps/schedule.h"
#include "nps/svd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nps_tensor_info_t *info_of(const nps_lora_t *lora, int i) {
  return &lora->model->tensors[lora->matrices[i].tensor];
}

/* ---- checks ---- */

static nps_err_t check_tensor(const nps_lora_t *lora, int t) {
  const nps_tensor_info_t *a = &lora->model->tensors[t], *b = &lora->base->tensors[lora->found->tensors[t].base];
  char found[192], expected[192];
  const bool no_floats = lora->kind_of[t] == NPS_LORA_LINEAR && nps_dtype_kind(b->dtype) != NPS_KIND_FLOAT;
  if (!lora->found->tensors[t].compared || no_floats)
    return nps_fail(NPS_ERR_INPUT, "%s: tensor %s is %s %s, in %s %s %s", lora->model->path, a->name,
                    nps_dtype_name(a->dtype), nps_shape_format(a->ndim, a->shape, found), lora->base->path,
                    nps_dtype_name(b->dtype), nps_shape_format(b->ndim, b->shape, expected));
  if (!isfinite(lora->found->tensors[t].difference))
    return nps_fail(NPS_ERR_INPUT, "tensor %s holds NaN or infinity, in %s or in %s", a->name, lora->model->path,
                    lora->base->path);
  return NPS_OK;
}

static nps_err_t check_tensors(const nps_lora_t *lora) {
  nps_err_t err = NPS_OK;
  for (int t = 0; t < lora->model->tensor_count; t++)
    if (lora->kind_of[t] != NPS_LORA_EXTRA) err = nps_err_worse(err, check_tensor(lora, t));
  if (err == NPS_OK && lora->count == 0)
    err = nps_fail(NPS_ERR_INPUT, "%s: has no linear layer that %s has too", lora->model->path, lora->base->path);
  return err;
}

/* ---- one matrix ---- */

/* sum ← sum + sign · tensor. @param room  2·NPS_BLOCK float64 */
static nps_err_t add_tensor(const nps_model_t *model, int t, nps_digest_t *digest, double sign, double *room,
                            double *sum) {
  const nps_tensor_info_t *info = &model->tensors[t];
  nps_reader_t *reader = nps_reader_new(model, digest);
  nps_err_t err = NPS_OK;
  for (int64_t at = 0; at < info->count; at += NPS_BLOCK) {
    const int64_t n = nps_min64(info->count - at, NPS_BLOCK);
    NPS_GOTO(nps_reader_read(reader, t, at, n, room + NPS_BLOCK));
    nps_tensor_widen(info->dtype, room + NPS_BLOCK, n, room);
    for (int64_t i = 0; i < n; i++) sum[at + i] += sign * room[i];
  }
done:
  nps_reader_free(reader);
  return err;
}

/* @param[out] tau  [count], freed with free() */
static nps_err_t read_difference(const nps_lora_t *lora, int i, nps_digest_t *digest, double **tau) {
  const nps_lora_matrix_t *m = &lora->matrices[i];
  const size_t bytes = (size_t)info_of(lora, i)->count * sizeof **tau;
  double *room = NULL;
  nps_err_t err;
  NPS_TRY(nps_buffer_alloc(bytes, "a matrix", tau));
  memset(*tau, 0, bytes);
  NPS_GOTO(nps_buffer_alloc(2 * (size_t)NPS_BLOCK * sizeof *room, "a part of a matrix", &room));
  NPS_GOTO(add_tensor(lora->model, m->tensor, digest, 1, room, *tau));
  NPS_GOTO(add_tensor(lora->base, lora->found->tensors[m->tensor].base, digest, -1, room, *tau));
done:
  free(room);
  return err;
}

/* The least rank that holds the energy asked for. */
static nps_err_t choose_rank(nps_lora_t *lora, int i, nps_digest_t *digest) {
  const nps_tensor_info_t *info = info_of(lora, i);
  const int64_t n = nps_min64(info->shape[0], info->shape[1]);
  double *tau = NULL, *sigma = nps_xcalloc((size_t)n, sizeof *sigma), total = 0, sum = 0;
  nps_err_t err;
  NPS_GOTO(read_difference(lora, i, digest, &tau));
  NPS_GOTO(nps_svd_values(tau, info->shape[0], info->shape[1], info->name, sigma));
  for (int64_t k = 0; k < n; k++) total += sigma[k] * sigma[k];
  int64_t rank = 0;
  while (rank < n && (rank == 0 || sum < lora->request->energy * total)) {
    sum += sigma[rank] * sigma[rank];
    rank++;
  }
  lora->matrices[i].rank = rank;
done:
  free(sigma);
  free(tau);
  return err;
}

/* Writes one factor, √σ_k·vectors: [rank][n] or, transposed, [n][rank]. */
static nps_err_t write_factor(nps_writer_t *writer, int target, const nps_svd_t *s, const double *vectors, int64_t n,
                              bool transposed) {
  float *out = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(s->count * n) * sizeof *out, "a factor", &out));
  for (int64_t k = 0; k < s->count; k++)
    for (int64_t j = 0; j < n; j++)
      out[transposed ? j * s->count + k : k * n + j] = (float)(sqrt(s->sigma[k]) * vectors[k * n + j]);
  nps_err_t err = nps_writer_write(writer, target, 0, s->count * n, out);
  free(out);
  return err;
}

static nps_err_t write_matrix(nps_lora_t *lora, int i, nps_digest_t *digest, nps_writer_t *writer) {
  nps_lora_matrix_t *m = &lora->matrices[i];
  const nps_tensor_info_t *info = info_of(lora, i);
  const nps_svd_options_t options = {.name = info->name, .leading = m->rank};
  double *tau = NULL;
  nps_svd_t s = {0};
  nps_err_t err;
  NPS_GOTO(read_difference(lora, i, digest, &tau));
  NPS_GOTO(nps_svd_compute(tau, info->shape[0], info->shape[1], &options, &s));
  m->squares = s.norm * s.norm;
  for (int64_t k = 0; k < s.count; k++) m->captured += s.sigma[k] * s.sigma[k];
  NPS_GOTO(write_factor(writer, 2 * i, &s, m->transposed ? s.u : s.v, m->transposed ? s.rows : s.columns, false));
  NPS_GOTO(write_factor(writer, 2 * i + 1, &s, m->transposed ? s.v : s.u, m->transposed ? s.columns : s.rows, true));
done:
  nps_svd_free(&s);
  free(tau);
  return err;
}

/* ---- all matrices, the dearest handed out first ---- */

static void hand_out(nps_lora_t *lora) {
  double *seconds = nps_xcalloc((size_t)lora->count + 1, sizeof *seconds);
  lora->owner = nps_xcalloc((size_t)lora->count + 1, sizeof *lora->owner);
  for (int i = 0; i < lora->count; i++) {
    const int64_t *shape = info_of(lora, i)->shape;
    seconds[i] = nps_svd_seconds(shape[0], shape[1], lora->request->rank, NPS_SVD_GRAM);
  }
  nps_schedule_assign(seconds, lora->count, nps_comm_size(lora->comm), lora->owner);
  free(seconds);
}

/* Handles this rank's matrices: finds their ranks (no writer) or writes their factors. Collective. */
static nps_err_t for_matrices(nps_lora_t *lora, const char *title, nps_digest_t *digest, nps_writer_t *writer) {
  int64_t bytes = 0, done = 0, total = 0;
  nps_err_t err = NPS_OK;
  bool go_on = true;
  for (int i = 0; i < lora->count; i++) bytes += info_of(lora, i)->count * (int64_t)sizeof(float);
  nps_report_phase(lora->report, title, bytes);
  nps_pulse_t *pulse = nps_pulse_start(lora->comm);
  for (int i = 0; i < lora->count && err == NPS_OK && go_on; i++) {
    if (lora->owner[i] != nps_comm_rank(lora->comm)) continue;
    err = writer ? write_matrix(lora, i, digest, writer) : choose_rank(lora, i, digest);
    go_on = nps_pulse_beat(pulse, done += info_of(lora, i)->count * (int64_t)sizeof(float), &total);
    nps_report_progress(lora->report, total);
  }
  err = nps_pulse_end(pulse, done, err, NULL, NULL);
  if (err == NPS_OK) nps_report_progress(lora->report, bytes);
  nps_report_phase_end(lora->report);
  return err;
}

/* Every rank learns what the owners have found: the others' are 0. Collective. */
static void share(nps_lora_t *lora) {
  for (int i = 0; i < lora->count; i++) {
    double two[] = {lora->matrices[i].squares, lora->matrices[i].captured};
    nps_comm_sum_f64(lora->comm, two, 2);
    lora->matrices[i].squares = two[0];
    lora->matrices[i].captured = two[1];
  }
}

static nps_err_t find_ranks(nps_lora_t *lora, nps_digest_t *digest) {
  const int most = lora->request->rank;
  if (most == 0) NPS_TRY(for_matrices(lora, "singular values", digest, NULL));
  for (int i = 0; i < lora->count; i++) {
    const nps_tensor_info_t *info = info_of(lora, i);
    nps_lora_matrix_t *m = &lora->matrices[i];
    if (most > 0) m->rank = nps_min64(most, nps_min64(info->shape[0], info->shape[1]));
    if (most == 0) nps_comm_sum_i64(lora->comm, &m->rank, 1);
    m->shape[0] = m->shape[3] = m->rank;
    m->shape[1] = info->shape[m->transposed ? 0 : 1];
    m->shape[2] = info->shape[m->transposed ? 1 : 0];
  }
  return NPS_OK;
}

/* ---- the adapter ---- */

static void make_layout(nps_lora_t *lora) {
  const size_t room = 2 * (size_t)lora->count + (size_t)lora->extra_count;
  nps_layout_t *layout = lora->layout = nps_xcalloc(1, sizeof *layout);
  layout->targets = nps_xcalloc(room + 1, sizeof *layout->targets);
  layout->inputs = 1;
  for (int i = 0; i < lora->count; i++)
    for (int k = 0; k < 2; k++) {
      const int64_t *shape = lora->matrices[i].shape + 2 * k;
      layout->targets[layout->count++] = (nps_target_t){
          .name = lora->matrices[i].name[k], .dtype = NPS_F32, .ndim = 2, .shape = shape, .count = shape[0] * shape[1]};
    }
  for (int t = 0, e = 0; t < lora->model->tensor_count; t++) {
    const nps_tensor_info_t *info = &lora->model->tensors[t];
    if (lora->kind_of[t] == NPS_LORA_EXTRA)
      layout->targets[layout->count++] = (nps_target_t){.name = lora->extra_names[e++],
                                                        .action = NPS_ACTION_HEAD,
                                                        .dtype = info->dtype,
                                                        .ndim = info->ndim,
                                                        .shape = info->shape,
                                                        .count = info->count};
  }
}

/* Rank 0 copies a task's head. */
static nps_err_t copy_extras(const nps_lora_t *lora, nps_digest_t *digest, nps_writer_t *writer) {
  nps_err_t err = NPS_OK;
  int target = 2 * lora->count;
  if (nps_comm_rank(lora->comm) != 0) return NPS_OK;
  nps_reader_t *reader = nps_reader_new(lora->model, digest);
  for (int t = 0; t < lora->model->tensor_count && err == NPS_OK; t++) {
    const nps_tensor_info_t *info = &lora->model->tensors[t];
    void *raw = NULL;
    if (lora->kind_of[t] != NPS_LORA_EXTRA) continue;
    err = nps_buffer_alloc((size_t)info->count * nps_dtype_size(info->dtype), "a head", &raw);
    if (err == NPS_OK) err = nps_reader_read(reader, t, 0, info->count, raw);
    if (err == NPS_OK) err = nps_writer_write(writer, target++, 0, info->count, raw);
    free(raw);
  }
  nps_reader_free(reader);
  return err;
}

static nps_err_t check_output(const nps_lora_t *lora, const nps_output_t *output) {
  int64_t bytes = 0;
  if (nps_comm_rank(lora->comm) != 0) return NPS_OK;
  for (int t = 0; t < lora->layout->count; t++)
    bytes += lora->layout->targets[t].count * (int64_t)nps_dtype_size(lora->layout->targets[t].dtype);
  if (nps_run_is_of_model(lora->model, output->path) || nps_run_is_of_model(lora->base, output->path))
    return nps_fail(NPS_ERR_CONFIG, "%s: the output would replace an input", output->path);
  return nps_output_check(output, bytes, NULL);
}

static nps_err_t write_adapter(nps_lora_t *lora, nps_digest_t *digest, int64_t *bytes) {
  nps_writer_t *writer = NULL;
  nps_err_t err;
  make_layout(lora);
  if (nps_comm_rank(lora->comm) == 0) nps_lora_write_config(lora);
  nps_comm_bcast_text(lora->comm, &lora->config);
  nps_comm_bcast_text(lora->comm, &lora->card);
  const nps_output_t output = {.path = lora->request->target,
                               .force = lora->request->force,
                               .adapter = true,
                               .config_json = lora->config,
                               .model_card = lora->card};
  NPS_TRY(nps_comm_agree(lora->comm, check_output(lora, &output)));
  NPS_GOTO(nps_writer_open(lora->comm, &output, lora->layout, &writer));
  NPS_GOTO(for_matrices(lora, "leading triples", digest, writer));
  NPS_GOTO(nps_comm_agree(lora->comm, copy_extras(lora, digest, writer)));
  NPS_GOTO(nps_digest_finish(lora->comm, digest));
  NPS_GOTO(nps_writer_commit(writer, digest));
  *bytes = nps_writer_bytes(writer);
done:
  nps_writer_free(writer);
  return err;
}

/* The target before any work; what depends on the adapter's size comes later. */
static nps_err_t check_target(const nps_lora_t *lora) {
  const nps_output_t output = {.path = lora->request->target, .force = lora->request->force};
  return nps_comm_rank(lora->comm) == 0 ? nps_output_check(&output, 0, NULL) : NPS_OK;
}

static nps_err_t extract(nps_lora_t *lora) {
  const nps_convert_request_t *request = lora->request;
  const nps_model_t *inputs[2];
  nps_digest_t *digest = NULL;
  int64_t bytes = 0;
  nps_err_t err;
  NPS_GOTO(nps_run_open_model(lora->comm, request->source, &lora->model));
  NPS_GOTO(nps_run_open_beside(lora->comm, request->base, lora->model, &lora->base));
  NPS_GOTO(nps_run_refuse_adapter(lora->model));
  NPS_GOTO(nps_run_refuse_adapter(lora->base));
  NPS_GOTO(nps_comm_agree(lora->comm, check_target(lora)));
  nps_lora_sort(lora);
  NPS_GOTO(nps_inspect_scan(lora->comm, lora->model, lora->base, lora->report, &lora->found));
  NPS_GOTO(nps_comm_agree(lora->comm, check_tensors(lora)));
  inputs[0] = lora->model;
  inputs[1] = lora->base;
  digest = nps_digest_start(inputs, 2);
  hand_out(lora);
  NPS_GOTO(find_ranks(lora, digest));
  NPS_GOTO(write_adapter(lora, digest, &bytes));
  share(lora);
  nps_lora_show(lora, bytes);
done:
  nps_digest_free(digest);
  return err;
}

static void free_lora(nps_lora_t *lora) {
  for (int i = 0; i < lora->count; i++)
    for (int k = 0; k < 2; k++) free(lora->matrices[i].name[k]);
  for (int i = 0; i < lora->extra_count; i++) free(lora->extra_names[i]);
  nps_inspect_free(lora->found);
  nps_layout_free(lora->layout);
  nps_model_free(lora->model);
  nps_model_free(lora->base);
  free(lora->extra_names);
  free(lora->matrices);
  free(lora->kind_of);
  free(lora->owner);
  free(lora->config);
  free(lora->card);
}

nps_err_t nps_lora_run(const nps_comm_t *comm, const nps_convert_request_t *request, nps_report_t *report) {
  nps_lora_t lora = {.comm = comm, .request = request, .report = report};
  nps_err_t err = extract(&lora);
  free_lora(&lora);
  return err;
}
