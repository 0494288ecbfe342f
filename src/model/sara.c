/* Sparse fine-tuning of small weights (SaRA, arXiv 2409.06633): a list of values per tensor, for the places where the base's
 * weights lie below a threshold. */
#include "peft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PART ((int64_t)1 << 16)

/* Of the tensor that is being read: `used` values lie before element `at`. */
typedef struct {
  const nps_model_t *model;
  nps_reader_t *base, *parts;
  int tensor;
  int64_t at, used;
  void *raw;       /* [PART] of the base */
  double *values;  /* [PART] of the base */
  double *rounded; /* [PART] of the base, in the type of the list, as PyTorch compares */
  void *stored;    /* [PART] of the list */
  double *list;    /* [PART] of the list */
} state_t;

/* The rules. */
typedef struct {
  int *list_of;      /* [base->tensor_count] tensor of the parts, or -1 */
  double *threshold; /* [parts->tensor_count] in the type of that list */
  int *base_of;      /* [rules] tensor of the base, by rule */
} sara_t;

static double rounded_to(double value, nps_dtype_t dtype) {
  double stored = 0, out = 0;
  nps_tensor_narrow(&value, 1, dtype, &stored);
  nps_tensor_widen(dtype, &stored, 1, &out);
  return out;
}

static nps_err_t read_threshold(const char *text, const char *where, double *threshold) {
  char *end = NULL;
  *threshold = strtod(text, &end);
  if (end > text && *end == '\0' && *threshold > 0 && isfinite(*threshold)) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: metadata: threshold: expected a number above 0, found '%s'", where, text);
}

static void check_list(nps_model_t *model, nps_checks_t *checks, int part, int w) {
  const nps_model_t *base = model->derivation->base;
  const nps_tensor_info_t *list = &model->derivation->parts->tensors[part];
  char shape[192];
  if (w < 0)
    nps_checks_fail(checks, "tensor %s is not in the base %s", list->name, base->path);
  else if (list->ndim != 1 || nps_dtype_kind(list->dtype) != NPS_KIND_FLOAT || list->count > base->tensors[w].count)
    nps_checks_fail(checks, "tensor %s is %s %s, expected a list of at most %lld floating-point numbers", list->name,
                    nps_dtype_name(list->dtype), nps_shape_format(list->ndim, list->shape, shape),
                    (long long)base->tensors[w].count);
  else if (nps_dtype_kind(base->tensors[w].dtype) != NPS_KIND_FLOAT)
    nps_checks_fail(checks, "tensor %s of the base is %s", list->name, nps_dtype_name(base->tensors[w].dtype));
}

static void add_tensors(nps_model_t *model, sara_t *sara) {
  const nps_model_t *base = model->derivation->base;
  const int first = nps_model_add_files(model, base);
  int rules = 0;
  nps_model_add_files(model, model->derivation->parts);
  for (int w = 0; w < base->tensor_count; w++) {
    nps_tensor_info_t info = base->tensors[w];
    const bool changed = sara->list_of[w] >= 0 || info.rule;
    info.name = nps_xstrdup(info.name);
    info.written = nps_tensor_written(&base->tensors[w]);
    info.file += first;
    info.rule = 0;
    if (changed) {
      sara->base_of[rules++] = w;
      info.rule = rules;
      info.dtype = info.dtype == NPS_F64 ? NPS_F64 : NPS_F32;
    }
    nps_model_add_tensor(model, &info);
  }
}

static nps_err_t plan(nps_model_t *model) {
  const nps_derivation_t *d = model->derivation;
  nps_checks_t checks = {d->parts->files[0].path, 0};
  double threshold = 0;
  char *text = NULL;
  sara_t *sara = model->derivation->rules = nps_xcalloc(1, sizeof *sara);
  sara->list_of = nps_xcalloc((size_t)d->base->tensor_count + 1, sizeof *sara->list_of);
  sara->base_of = nps_xcalloc((size_t)d->base->tensor_count + 1, sizeof *sara->base_of);
  sara->threshold = nps_xcalloc((size_t)d->parts->tensor_count + 1, sizeof *sara->threshold);
  NPS_TRY(nps_safetensors_metadata(&d->parts->files[0], "threshold", &text));
  nps_err_t err = text ? read_threshold(text, checks.where, &threshold)
                       : nps_fail(NPS_ERR_INPUT, "%s: its metadata have no 'threshold'", checks.where);
  free(text);
  NPS_TRY(err);
  for (int w = 0; w < d->base->tensor_count; w++) sara->list_of[w] = -1;
  for (int i = 0; i < d->parts->tensor_count; i++) {
    const int w = nps_model_find(d->base, d->parts->tensors[i].name);
    check_list(model, &checks, i, w);
    if (w >= 0) sara->list_of[w] = i;
    if (nps_dtype_kind(d->parts->tensors[i].dtype) == NPS_KIND_FLOAT)
      sara->threshold[i] = rounded_to(threshold, d->parts->tensors[i].dtype);
  }
  NPS_TRY(nps_checks_end(&checks));
  add_tensors(model, sara);
  return NPS_OK;
}

static void free_rules(void *rules) {
  sara_t *sara = rules;
  free(sara->list_of);
  free(sara->base_of);
  free(sara->threshold);
  free(sara);
}

/* ---- reading ---- */

static void end(void *state) {
  state_t *s = state;
  nps_reader_free(s->base);
  nps_reader_free(s->parts);
  free(s->raw);
  free(s->values);
  free(s->rounded);
  free(s->stored);
  free(s->list);
  free(s);
}

static nps_err_t begin(const nps_model_t *model, nps_digest_t *digest, void **state) {
  state_t *s = nps_xcalloc(1, sizeof *s);
  s->model = model;
  s->tensor = -1;
  s->base = nps_reader_new(model->derivation->base, digest);
  s->parts = nps_reader_new(model->derivation->parts, digest);
  s->raw = nps_xcalloc((size_t)PART, sizeof(double));
  s->values = nps_xcalloc((size_t)PART, sizeof(double));
  s->rounded = nps_xcalloc((size_t)PART, sizeof(double));
  s->stored = nps_xcalloc((size_t)PART, sizeof(double));
  s->list = nps_xcalloc((size_t)PART, sizeof(double));
  *state = s;
  return NPS_OK;
}

static int64_t bytes(const nps_model_t *model) {
  (void)model;
  return 5 * PART * (int64_t)sizeof(double);
}

static nps_err_t fail_count(const state_t *s, const nps_tensor_info_t *list, const char *found) {
  return nps_fail(NPS_ERR_INPUT, "%s: tensor %s has %lld values, but %s of the base's lie below the threshold",
                  s->model->derivation->parts->files[0].path, list->name, (long long)list->count, found);
}

/* Goes on by n elements at the place reached; `values` gets what is there. */
static nps_err_t go_on(state_t *s, int w, int part, int64_t n) {
  const nps_derivation_t *d = s->model->derivation;
  const sara_t *sara = d->rules;
  const nps_tensor_info_t *t = &d->base->tensors[w];
  NPS_TRY(nps_reader_read(s->base, w, s->at, n, s->raw));
  nps_tensor_widen(t->dtype, s->raw, n, s->values);
  s->at += n;
  if (part < 0) return NPS_OK;
  const nps_tensor_info_t *list = &d->parts->tensors[part];
  const int64_t most = nps_min64(n, list->count - s->used);
  int64_t taken = 0;
  nps_tensor_narrow(s->values, n, list->dtype, s->stored);
  nps_tensor_widen(list->dtype, s->stored, n, s->rounded);
  NPS_TRY(nps_reader_read(s->parts, part, s->used, most, s->stored));
  nps_tensor_widen(list->dtype, s->stored, most, s->list);
  for (int64_t i = 0; i < n; i++) {
    if (!(fabs(s->rounded[i]) < sara->threshold[part])) continue;
    if (taken == most) return fail_count(s, list, "more");
    s->values[i] = s->list[taken++];
  }
  s->used += taken;
  return s->at == t->count && s->used < list->count ? fail_count(s, list, "fewer") : NPS_OK;
}

static nps_err_t read_values(void *state, int i, int64_t first, int64_t count, void *dst) {
  state_t *s = state;
  const nps_tensor_info_t *t = &s->model->tensors[i];
  const sara_t *sara = s->model->derivation->rules;
  const int w = sara->base_of[t->rule - 1], part = sara->list_of[w];
  char *to = dst;
  if (s->tensor != i || s->at > first) s->at = s->used = 0;
  s->tensor = -1; /* where reading fails the place is not known */
  if (part < 0) s->at = first;
  while (s->at < first) NPS_TRY(go_on(s, w, part, nps_min64(PART, first - s->at)));
  while (s->at < first + count) {
    const int64_t n = nps_min64(PART, first + count - s->at);
    NPS_TRY(go_on(s, w, part, n));
    nps_tensor_narrow(s->values, n, t->dtype, to);
    to += (size_t)n * nps_dtype_size(t->dtype);
  }
  s->tensor = i;
  return NPS_OK;
}

const nps_derivation_form_t nps_sara_form = {.name = "sara",
                                             .plan = plan,
                                             .free_rules = free_rules,
                                             .begin = begin,
                                             .read = read_values,
                                             .end = end,
                                             .bytes = bytes};
