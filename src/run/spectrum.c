/* Singular values of a model's matrices, each on one rank. */
#include "nps/inspect.h"
#include "nps/plan.h"
#include "nps/svd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

char *nps_inspect_kind(const char *name) {
  nps_text_t kind = {0};
  for (const char *end; *name; name = end) {
    end = strchr(name, '.') ? strchr(name, '.') + 1 : name + strlen(name);
    const int size = (int)(end - name), digits = (int)strspn(name, "0123456789");
    if (digits > 0 && (digits == size || name[digits] == '.'))
      nps_text_add(&kind, "*%s", name + digits == end ? "" : ".");
    else
      nps_text_add(&kind, "%.*s", size, name);
  }
  return kind.text ? kind.text : nps_xstrdup("");
}

/* ---- who does what ---- */

static bool has_spectrum(const nps_inspect_t *inspect, int t) {
  const nps_tensor_info_t *info = &inspect->model->tensors[t];
  const nps_inspect_tensor_t *found = &inspect->tensors[t];
  const bool matrix = info->ndim == 2 && info->shape[0] >= 2 && info->shape[1] >= 2;
  const bool finite = found->has_norm && found->nonfinite == 0 && isfinite(found->norm);
  return matrix && finite && (!inspect->base || (found->compared && isfinite(found->difference)));
}

static int64_t bytes_of(const nps_inspect_t *inspect, int i) {
  const nps_tensor_info_t *info = &inspect->model->tensors[inspect->spectra[i].tensor];
  return info->count * (int64_t)nps_dtype_size(info->dtype);
}

static double seconds_of(const nps_inspect_t *inspect, int i) {
  const int64_t *shape = inspect->model->tensors[inspect->spectra[i].tensor].shape;
  return nps_svd_seconds(shape[0], shape[1], 1, NPS_SVD_GRAM);
}

static void list_matrices(nps_inspect_t *inspect, int leading) {
  const nps_model_t *model = inspect->model;
  inspect->spectra = nps_xcalloc((size_t)model->tensor_count + 1, sizeof *inspect->spectra);
  for (int t = 0; t < model->tensor_count; t++) {
    if (!has_spectrum(inspect, t)) continue;
    const int64_t all = min64(model->tensors[t].shape[0], model->tensors[t].shape[1]);
    const int count = (int)min64(all, leading);
    inspect->spectra[inspect->spectrum_count++] =
        (nps_inspect_spectrum_t){.tensor = t, .count = count, .sigma = nps_xcalloc((size_t)count, sizeof(double))};
  }
}

/* @param[out] owner  [spectra] */
static void hand_out(const nps_inspect_t *inspect, int ranks, int *owner) {
  const int count = inspect->spectrum_count;
  double *seconds = nps_xcalloc((size_t)count + 1, sizeof *seconds);
  for (int i = 0; i < count; i++) seconds[i] = seconds_of(inspect, i);
  nps_plan_assign(seconds, count, ranks, owner);
  free(seconds);
}

/* ---- one matrix ---- */

static nps_err_t read_whole(const nps_model_t *model, int t, double *out) {
  const nps_tensor_info_t *info = &model->tensors[t];
  nps_reader_t *reader = nps_reader_new(model, NULL);
  void *raw = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)info->count * nps_dtype_size(info->dtype), "a matrix", &raw));
  NPS_GOTO(nps_reader_read(reader, t, 0, info->count, raw));
  nps_tensor_widen(info->dtype, raw, info->count, out);
done:
  free(raw);
  nps_reader_free(reader);
  return err;
}

static nps_err_t read_matrix(const nps_inspect_t *inspect, int t, double *a) {
  const int64_t count = inspect->model->tensors[t].count;
  double *base = NULL;
  nps_err_t err = NPS_OK;
  NPS_TRY(read_whole(inspect->model, t, a));
  if (!inspect->base) return NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)count * sizeof *base, "a matrix", &base));
  NPS_GOTO(read_whole(inspect->base, inspect->tensors[t].base, base));
  for (int64_t i = 0; i < count; i++) a[i] -= base[i];
done:
  free(base);
  return err;
}

static void describe(const double *sigma, int64_t n, nps_inspect_spectrum_t *s) {
  double sum = 0, squares = 0, leading = 0, entropy = 0;
  for (int64_t k = 0; k < n; k++) {
    sum += sigma[k];
    squares += sigma[k] * sigma[k];
    if (k < s->count) leading += sigma[k] * sigma[k];
  }
  for (int64_t k = 0; k < n; k++)
    if (sigma[k] > 0) entropy -= sigma[k] / sum * log(sigma[k] / sum);
  s->norm = sqrt(squares);
  s->effective_rank = sum > 0 ? exp(entropy) : 0;
  s->energy = squares > 0 ? leading / squares : 1;
  memcpy(s->sigma, sigma, (size_t)s->count * sizeof *sigma);
}

static nps_err_t look_at(const nps_inspect_t *inspect, nps_inspect_spectrum_t *s) {
  const nps_tensor_info_t *info = &inspect->model->tensors[s->tensor];
  const int64_t n = min64(info->shape[0], info->shape[1]);
  double *a = NULL, *sigma = nps_xcalloc((size_t)n, sizeof *sigma);
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)info->count * sizeof *a, "a matrix", &a));
  NPS_GOTO(read_matrix(inspect, s->tensor, a));
  NPS_GOTO(nps_svd_values(a, info->shape[0], info->shape[1], info->name, sigma));
  describe(sigma, n, s);
done:
  free(a);
  free(sigma);
  return err;
}

/* All ranks get what the owners have found: the others' parts are 0. Collective. */
static void share(const nps_comm_t *comm, nps_inspect_t *inspect) {
  for (int i = 0; i < inspect->spectrum_count; i++) {
    nps_inspect_spectrum_t *s = &inspect->spectra[i];
    double three[] = {s->norm, s->effective_rank, s->energy};
    nps_comm_sum_f64(comm, three, 3);
    nps_comm_sum_f64(comm, s->sigma, s->count);
    s->norm = three[0];
    s->effective_rank = three[1];
    s->energy = three[2];
  }
}

nps_err_t nps_inspect_scan_spectra(const nps_comm_t *comm, nps_inspect_t *inspect, int leading, nps_report_t *report) {
  nps_err_t err = NPS_OK;
  list_matrices(inspect, leading);
  int *owner = nps_xcalloc((size_t)inspect->spectrum_count + 1, sizeof *owner);
  hand_out(inspect, nps_comm_size(comm), owner);
  int64_t done = 0, total = 0, bytes = 0;
  for (int i = 0; i < inspect->spectrum_count; i++) bytes += bytes_of(inspect, i);
  nps_report_phase(report, "singular values", bytes);
  nps_pulse_t *pulse = nps_pulse_start(comm);
  bool go_on = true;
  for (int i = 0; i < inspect->spectrum_count && err == NPS_OK && go_on; i++) {
    if (owner[i] != nps_comm_rank(comm)) continue;
    err = look_at(inspect, &inspect->spectra[i]);
    go_on = nps_pulse_beat(pulse, done += bytes_of(inspect, i), &total);
    nps_report_progress(report, total);
  }
  err = nps_pulse_end(pulse, done, err, NULL, NULL);
  if (err == NPS_OK) nps_report_progress(report, bytes);
  nps_report_phase_end(report);
  if (err == NPS_OK) share(comm, inspect);
  free(owner);
  return err;
}
