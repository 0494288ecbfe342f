/* Singular values of a model's matrices. */
#include "nps/inspect.h"
#include "nps/plan.h"
#include "nps/svd.h"
#include "run_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
  if (!matrix || !finite || nps_dtype_kind(info->dtype) != NPS_KIND_FLOAT) return false;
  if (!inspect->base) return true;
  return found->compared && isfinite(found->difference) &&
         nps_dtype_kind(inspect->base->tensors[found->base].dtype) == NPS_KIND_FLOAT;
}

static int64_t bytes_of(const nps_inspect_t *inspect, int i) {
  const nps_tensor_info_t *info = &inspect->model->tensors[inspect->spectra[i].tensor];
  return info->count * (int64_t)nps_dtype_size(info->dtype);
}

static void list_matrices(nps_inspect_t *inspect, int leading) {
  const nps_model_t *model = inspect->model;
  inspect->spectra = nps_xcalloc((size_t)model->tensor_count + 1, sizeof *inspect->spectra);
  for (int t = 0; t < model->tensor_count; t++) {
    if (!has_spectrum(inspect, t)) continue;
    const int64_t all = nps_min64(model->tensors[t].shape[0], model->tensors[t].shape[1]);
    const int count = (int)nps_min64(all, leading);
    inspect->spectra[inspect->spectrum_count++] =
        (nps_inspect_spectrum_t){.tensor = t, .count = count, .sigma = nps_xcalloc((size_t)count, sizeof(double))};
  }
}

/* ---- one matrix ---- */

typedef struct {
  nps_inspect_t *inspect;
  nps_report_t *report;
} scan_t;

/* Elements [first, first + count) as float64, step by step. @param[out] out  filled, or lessened by the elements */
static nps_err_t read_elements(const nps_model_t *model, int t, int64_t first, int64_t count, bool subtract,
                               double *out) {
  const nps_dtype_t dtype = model->tensors[t].dtype;
  const int64_t step = nps_min64(count, NPS_STEP);
  nps_reader_t *reader = nps_reader_new(model, NULL);
  void *raw = NULL;
  double *values = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)step * nps_dtype_size(dtype), "a matrix", &raw));
  NPS_GOTO(nps_buffer_alloc((size_t)step * sizeof *values, "a matrix", &values));
  for (int64_t at = 0; at < count; at += step) {
    const int64_t n = nps_min64(count - at, step);
    NPS_GOTO(nps_reader_read(reader, t, first + at, n, raw));
    nps_tensor_widen(dtype, raw, n, subtract ? values : out + at);
    for (int64_t i = 0; subtract && i < n; i++) out[at + i] -= values[i];
  }
done:
  free(raw);
  free(values);
  nps_reader_free(reader);
  return err;
}

static nps_err_t load_rows(void *ctx, int i, int64_t first, int64_t count, double *rows) {
  const nps_inspect_t *inspect = ((scan_t *)ctx)->inspect;
  const int t = inspect->spectra[i].tensor;
  const int64_t columns = inspect->model->tensors[t].shape[1];
  NPS_TRY(read_elements(inspect->model, t, first * columns, count * columns, false, rows));
  if (!inspect->base) return NPS_OK;
  return read_elements(inspect->base, inspect->tensors[t].base, first * columns, count * columns, true, rows);
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

static nps_err_t take_values(void *ctx, int i, int rank, nps_dsvd_t *svd) {
  if (rank == 0) describe(svd->svd.sigma, svd->svd.count, &((scan_t *)ctx)->inspect->spectra[i]);
  return NPS_OK;
}

static void show_progress(void *ctx, int64_t done) { nps_report_progress(((scan_t *)ctx)->report, done); }

/* ---- all of them ---- */

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
  list_matrices(inspect, leading);
  scan_t scan = {inspect, report};
  nps_svd_job_t *jobs = nps_xcalloc((size_t)inspect->spectrum_count + 1, sizeof *jobs);
  int64_t bytes = 0;
  for (int i = 0; i < inspect->spectrum_count; i++) {
    const nps_tensor_info_t *info = &inspect->model->tensors[inspect->spectra[i].tensor];
    jobs[i] = (nps_svd_job_t){.rows = info->shape[0],
                              .columns = info->shape[1],
                              .options = {.name = info->name},
                              .values_only = true,
                              .work = bytes_of(inspect, i)};
    bytes += jobs[i].work;
  }
  nps_report_phase(report, "singular values", bytes);
  nps_err_t err = nps_svd_list(comm, &(nps_svd_list_t){.jobs = jobs,
                                                       .count = inspect->spectrum_count,
                                                       .memory = nps_run_free_memory(comm),
                                                       .load = load_rows,
                                                       .done = take_values,
                                                       .progress = show_progress,
                                                       .ctx = &scan});
  nps_report_phase_end(report);
  if (err == NPS_OK) share(comm, inspect);
  free(jobs);
  return err;
}
