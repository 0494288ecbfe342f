/* Task vectors of a list, read from the files. */
#include "factors_internal.h"

#include "nps/plan.h"

#include <stdlib.h>

struct nps_source {
  const nps_factors_spec_t *spec;
  nps_reader_t **reader; /* [1 + models] base first */
  char **raw;            /* [1 + models] */
  float *q;              /* [models][NPS_CHUNK] */
  float **tau;           /* [models] into q */
  const nps_target_t *target;
  int first, end; /* models of the loaded list */
};

static int input_of(const nps_factors_spec_t *spec, int model) {
  return model < 0 ? spec->base : spec->input_of[model];
}

nps_err_t nps_source_new(const nps_factors_spec_t *spec, nps_source_t **out) {
  const size_t slots = (size_t)spec->models + 1;
  nps_source_t *s = nps_xcalloc(1, sizeof *s);
  nps_err_t err = NPS_OK;
  s->spec = spec;
  s->reader = nps_xcalloc(slots, sizeof *s->reader);
  s->raw = nps_xcalloc(slots, sizeof *s->raw);
  s->q = nps_xcalloc(slots * NPS_CHUNK, sizeof *s->q);
  s->tau = nps_xcalloc(slots, sizeof *s->tau);
  for (int m = 0; m < spec->models; m++) s->tau[m] = s->q + (size_t)m * NPS_CHUNK;
  for (size_t i = 0; i < slots && err == NPS_OK; i++) {
    s->reader[i] = nps_reader_new(spec->inputs[input_of(spec, (int)i - 1)], NULL);
    err = nps_buffer_alloc(NPS_STEP * sizeof(double), "a step of a tensor", &s->raw[i]);
  }
  *out = err == NPS_OK ? s : NULL;
  if (err != NPS_OK) nps_source_free(s);
  return err;
}

void nps_source_free(nps_source_t *s) {
  if (!s) return;
  for (int i = 0; i <= s->spec->models; i++) {
    nps_reader_free(s->reader[i]);
    free(s->raw[i]);
  }
  free(s->reader);
  free(s->raw);
  free(s->q);
  free(s->tau);
  free(s);
}

static nps_dtype_t dtype_of(const nps_source_t *s, int model) {
  const int input = input_of(s->spec, model);
  return s->spec->inputs[input]->tensors[s->target->source[input]].dtype;
}

static nps_err_t load_model(nps_source_t *s, int model, int64_t first, int64_t count) {
  const int input = input_of(s->spec, model);
  char *raw = s->raw[model + 1];
  NPS_TRY(nps_reader_read(s->reader[model + 1], s->target->source[input], first, count, raw));
  return nps_delta_check_finite(s->spec->inputs[input], s->target->name, dtype_of(s, model), raw, first, count);
}

nps_err_t nps_source_load(nps_source_t *s, int list, const nps_target_t *target, int64_t first, int64_t count) {
  s->target = target;
  s->first = s->spec->sum ? 0 : list;
  s->end = s->spec->sum ? s->spec->models : list + 1;
  NPS_TRY(load_model(s, -1, first, count));
  for (int m = s->first; m < s->end; m++) NPS_TRY(load_model(s, m, first, count));
  return NPS_OK;
}

static const char *raw_at(const nps_source_t *s, int model, int64_t at) {
  return s->raw[model + 1] + (size_t)at * nps_dtype_size(dtype_of(s, model));
}

void nps_source_values(nps_source_t *s, int64_t at, int64_t n, double *x) {
  for (int64_t i = 0; i < n; i++) x[i] = 0;
  for (int m = s->first; m < s->end; m++) {
    const nps_dtype_t dtype = dtype_of(s, m);
    const void *tuned = raw_at(s, m, at);
    const double lambda = s->spec->sum ? s->spec->lambda[m] : 1;
    nps_delta_form(dtype_of(s, -1), raw_at(s, -1, at), 1, &dtype, &tuned, n, &s->tau[m]);
    for (int64_t i = 0; i < n; i++) x[i] += lambda * (double)s->tau[m][i];
  }
}
