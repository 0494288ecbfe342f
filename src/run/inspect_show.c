#include "nps/inspect.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t tensor_bytes(const nps_tensor_info_t *info) {
  return info->count * (int64_t)nps_dtype_size(info->dtype);
}

static void count_all(const nps_model_t *model, int64_t *parameters, int64_t *bytes) {
  *parameters = *bytes = 0;
  for (int t = 0; t < model->tensor_count; t++) {
    *parameters += model->tensors[t].count;
    *bytes += tensor_bytes(&model->tensors[t]);
  }
}

static const char *form_name(nps_model_form_t form) {
  switch (form) {
  case NPS_FORM_FOLDER:
    return "folder";
  case NPS_FORM_SAFETENSORS:
    return "safetensors";
  case NPS_FORM_HDF5:
    return "hdf5";
  case NPS_FORM_ADAPTER:
    return "adapter";
  case NPS_FORM_DERIVED:
    return "computed";
  case NPS_FORM_MADE: /* not on disk */
    break;
  }
  return "";
}

static double relative(const nps_inspect_tensor_t *found) {
  if (found->base_norm > 0) return found->difference / found->base_norm;
  return found->difference > 0 ? INFINITY : found->difference;
}

/* Whether the base has tensor t of the model, but in a shape or type that cannot be subtracted. */
static bool not_comparable(const nps_inspect_tensor_t *found) { return found->base >= 0 && !found->compared; }

/* Calls a function with the names of the tensors that only one side has. */
static void each_only_in(const nps_model_t *model, const nps_model_t *other, void (*use)(void *ctx, const char *name),
                         void *ctx) {
  for (int t = 0; t < model->tensor_count; t++)
    if (nps_model_find(other, model->tensors[t].name) < 0) use(ctx, model->tensors[t].name);
}

/* ---- JSON ---- */

static json_t *json_number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *json_difference(const nps_inspect_tensor_t *found) {
  if (!found->compared) return json_null();
  json_t *difference = json_object();
  json_object_set_new(difference, "norm", json_number(found->difference));
  json_object_set_new(difference, "relative", json_number(relative(found)));
  json_object_set_new(difference, "max", json_number(found->max));
  json_object_set_new(difference, "changed", json_integer(found->changed));
  return difference;
}

static json_t *json_tensor(const nps_inspect_t *inspect, int t) {
  const nps_tensor_info_t *info = &inspect->model->tensors[t];
  const nps_inspect_tensor_t *found = &inspect->tensors[t];
  json_t *tensor = json_object(), *shape = json_array();
  for (int i = 0; i < info->ndim; i++) json_array_append_new(shape, json_integer(info->shape[i]));
  json_object_set_new(tensor, "name", json_string(info->name));
  json_object_set_new(tensor, "dtype", json_string(nps_dtype_name(info->dtype)));
  json_object_set_new(tensor, "shape", shape);
  json_object_set_new(tensor, "bytes", json_integer(tensor_bytes(info)));
  json_object_set_new(tensor, "norm", found->has_norm ? json_number(found->norm) : json_null());
  if (inspect->base) json_object_set_new(tensor, "difference", json_difference(found));
  return tensor;
}

static void append_name(void *array, const char *name) { json_array_append_new(array, json_string(name)); }

static json_t *json_against(const nps_inspect_t *inspect) {
  json_t *against = json_object(), *in_model = json_array(), *in_base = json_array(), *unlike = json_array();
  each_only_in(inspect->model, inspect->base, append_name, in_model);
  each_only_in(inspect->base, inspect->model, append_name, in_base);
  for (int t = 0; t < inspect->model->tensor_count; t++)
    if (not_comparable(&inspect->tensors[t])) append_name(unlike, inspect->model->tensors[t].name);
  json_object_set_new(against, "path", nps_report_json_text(inspect->base->path));
  json_object_set_new(against, "difference", json_difference(&inspect->total));
  json_object_set_new(against, "only_in_model", in_model);
  json_object_set_new(against, "only_in_base", in_base);
  json_object_set_new(against, "not_comparable", unlike);
  return against;
}

static json_t *json_spectrum(const nps_inspect_t *inspect, const nps_inspect_spectrum_t *s) {
  const nps_tensor_info_t *info = &inspect->model->tensors[s->tensor];
  json_t *sigma = json_array(), *spectrum = json_object();
  char *kind = nps_inspect_kind(info->name);
  for (int k = 0; k < s->count; k++) json_array_append_new(sigma, json_number(s->sigma[k]));
  json_object_set_new(spectrum, "name", json_string(info->name));
  json_object_set_new(spectrum, "kind", json_string(kind));
  json_object_set_new(spectrum, "shape", json_pack("[I, I]", (json_int_t)info->shape[0], (json_int_t)info->shape[1]));
  json_object_set_new(spectrum, "norm", json_number(s->norm));
  json_object_set_new(spectrum, "effective_rank", json_number(s->effective_rank));
  json_object_set_new(spectrum, "energy", json_number(s->energy));
  json_object_set_new(spectrum, "sigma", sigma);
  free(kind);
  return spectrum;
}

/* What is known of the parts, and whose they are. */
static json_t *json_experts(const nps_inspect_t *inspect) {
  static const char *const kept[] = {"parameters", "bytes", "nonfinite", "tensors"};
  const nps_experts_t *experts = inspect->model->experts;
  json_t *parts = nps_inspect_json(inspect->experts), *root = json_object(), *names = json_array();
  for (int i = 0; i < experts->count; i++) append_name(names, experts->names[i]);
  json_object_set_new(root, "names", names);
  json_object_set_new(root, "kg", json_integer(experts->kg));
  json_object_set_new(root, "k", json_integer(experts->k));
  json_object_set_new(root, "top_k", json_integer(experts->top_k));
  for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
    json_object_set(root, kept[i], json_object_get(parts, kept[i]));
  json_decref(parts);
  return root;
}

json_t *nps_inspect_json(const nps_inspect_t *inspect) {
  const nps_model_t *model = inspect->model;
  int64_t parameters = 0, bytes = 0;
  json_t *root = json_object(), *nonfinite = json_object(), *tensors = json_array(), *files = json_array();
  count_all(model, &parameters, &bytes);
  for (int t = 0; t < model->tensor_count; t++) {
    int64_t count = inspect->tensors[t].nonfinite;
    json_array_append_new(tensors, json_tensor(inspect, t));
    if (count > 0) json_object_set_new(nonfinite, model->tensors[t].name, json_integer(count));
  }
  for (int i = 0; i < inspect->sidecar_count; i++) append_name(files, inspect->sidecars[i]);
  json_object_set_new(root, "path", nps_report_json_text(model->path));
  json_object_set_new(root, "form", json_string(form_name(model->form)));
  json_object_set_new(root, "parameters", json_integer(parameters));
  json_object_set_new(root, "bytes", json_integer(bytes));
  json_object_set_new(root, "norm", json_number(inspect->total.norm));
  json_object_set_new(root, "nonfinite", nonfinite);
  json_object_set_new(root, "files", files);
  if (inspect->origin) json_object_set(root, "origin", inspect->origin);
  if (inspect->archive) json_object_set(root, "models", inspect->archive);
  if (inspect->base) json_object_set_new(root, "against", json_against(inspect));
  json_object_set_new(root, "tensors", tensors);
  if (inspect->experts) json_object_set_new(root, "experts", json_experts(inspect));
  if (inspect->spectra) {
    json_t *spectra = json_array();
    for (int i = 0; i < inspect->spectrum_count; i++)
      json_array_append_new(spectra, json_spectrum(inspect, &inspect->spectra[i]));
    json_object_set_new(root, "spectrum", spectra);
  }
  return root;
}

/* ---- for people ---- */

static void show_types(const nps_model_t *model, nps_report_t *report) {
  nps_text_t t = {0};
  for (int d = 0; d < NPS_DTYPE_COUNT; d++) {
    int tensors = 0;
    for (int i = 0; i < model->tensor_count; i++) tensors += model->tensors[i].dtype == (nps_dtype_t)d;
    if (tensors) nps_text_add(&t, "%s%s (%d)", t.size ? ", " : "", nps_dtype_name((nps_dtype_t)d), tensors);
  }
  nps_report_line(report, "types       %s", t.text ? t.text : "-");
  free(t.text);
}

static void show_text(const json_t *origin, const char *key, const char *label, nps_report_t *report) {
  const char *text = json_string_value(json_object_get(origin, key));
  if (text) nps_report_line(report, "%-11s %s", label, text);
}

static void show_origin(const json_t *origin, nps_report_t *report) {
  const char *name = NULL;
  json_t *model = NULL, *models = json_object_get(origin, "models");
  show_text(origin, "created_by", "made by", report);
  show_text(origin, "method", "method", report);
  show_text(origin, "base", "base", report);
  json_object_foreach(models, name, model)
      nps_report_line(report, "merged      %s: %s", name, json_string_value(model));
  show_text(origin, "recipe_sha256", "recipe", report);
  json_t *inputs = json_object_get(origin, "inputs");
  if (inputs)
    nps_report_line(report, "provenance  %lld input files with hashes", (long long)json_integer_value(inputs));
}

static void show_archive(const json_t *models, nps_report_t *report) {
  size_t i;
  json_t *model;
  char size[32];
  json_array_foreach(models, i, model)
      nps_report_line(report, "archive     #%s: %s, %lld numbers kept, rounding %.2f %%",
                      json_string_value(json_object_get(model, "name")),
                      nps_format_bytes((double)json_integer_value(json_object_get(model, "bytes")), size),
                      (long long)json_integer_value(json_object_get(model, "kept")),
                      100 * json_real_value(json_object_get(model, "error")));
}

static void show_files(const nps_inspect_t *inspect, nps_report_t *report) {
  nps_text_t t = {0};
  for (int i = 0; i < inspect->sidecar_count; i++) nps_text_add(&t, "%s%s", i ? ", " : "", inspect->sidecars[i]);
  if (t.text) nps_report_line(report, "with        %s", t.text);
  free(t.text);
}

static void show_head(const nps_inspect_t *inspect, nps_report_t *report) {
  const nps_model_t *model = inspect->model;
  int64_t parameters = 0, bytes = 0;
  char size[32];
  count_all(model, &parameters, &bytes);
  nps_report_line(report, "model       %s", model->path);
  nps_report_line(report, "form        %s, %d file%s", form_name(model->form), model->file_count,
                  model->file_count == 1 ? "" : "s");
  nps_report_line(report, "tensors     %d", model->tensor_count);
  nps_report_line(report, "parameters  %" PRId64, parameters);
  nps_report_line(report, "bytes       %" PRId64 " (%s)", bytes, nps_format_bytes((double)bytes, size));
  show_types(model, report);
  if (inspect->origin) show_origin(inspect->origin, report);
  if (inspect->archive) show_archive(inspect->archive, report);
  show_files(inspect, report);
  if (inspect->base) nps_report_line(report, "against     %s", inspect->base->path);
}

enum { COLUMNS = 5, COLUMNS_AGAINST = 9 };

static char *number_cell(bool known, double x) { return known ? nps_xstrf("%.6g", x) : nps_xstrdup("-"); }

static char *percent_cell(double x) { return isfinite(x) ? nps_xstrf("%.3g %%", 100 * x) : nps_xstrdup("-"); }

static void fill_row(const nps_inspect_t *inspect, int t, char **cells) {
  const nps_tensor_info_t *info = &inspect->model->tensors[t];
  const nps_inspect_tensor_t *found = &inspect->tensors[t];
  char shape[192], size[32];
  cells[0] = nps_xstrdup(info->name);
  cells[1] = nps_xstrdup(nps_dtype_name(info->dtype));
  cells[2] = nps_xstrdup(nps_shape_format(info->ndim, info->shape, shape));
  cells[3] = nps_xstrdup(nps_format_bytes((double)tensor_bytes(info), size));
  cells[4] = number_cell(found->has_norm, found->norm);
  if (!inspect->base) return;
  cells[5] = number_cell(found->compared, found->difference);
  cells[6] = found->compared ? percent_cell(relative(found)) : nps_xstrdup("-");
  cells[7] = number_cell(found->compared, found->max);
  cells[8] = found->compared ? nps_xstrf("%" PRId64, found->changed) : nps_xstrdup("-");
}

static void show_table(const nps_inspect_t *inspect, nps_report_t *report) {
  static const char *const header[] = {"tensor",     "type",     "shape",        "bytes",  "norm",
                                       "difference", "relative", "max |change|", "changed"};
  int columns = inspect->base ? COLUMNS_AGAINST : COLUMNS, rows = inspect->model->tensor_count + 1;
  size_t count = (size_t)rows * (size_t)columns;
  char **cells = nps_xcalloc(count, sizeof *cells);
  for (int c = 0; c < columns; c++) cells[c] = nps_xstrdup(header[c]);
  for (int t = 0; t + 1 < rows; t++) fill_row(inspect, t, cells + (t + 1) * columns);
  nps_report_line(report, "%s", "");
  nps_report_table(report, (const char *const *)cells, rows, columns);
  nps_report_line(report, "%s", "");
  for (size_t i = 0; i < count; i++) free(cells[i]);
  free(cells);
}

/* ---- spectra ---- */

enum { SHOWN_VALUES = 4, SPECTRUM_COLUMNS = 6, KIND_COLUMNS = 4 };

static char *values_cell(const nps_inspect_spectrum_t *s) {
  nps_text_t t = {0};
  for (int k = 0; k < s->count && k < SHOWN_VALUES; k++) nps_text_add(&t, "%s%.4g", k ? " " : "", s->sigma[k]);
  if (s->count > SHOWN_VALUES) nps_text_add(&t, " … %.4g", s->sigma[s->count - 1]);
  return t.text;
}

static void fill_spectrum_row(const nps_inspect_t *inspect, const nps_inspect_spectrum_t *s, char **cells) {
  const nps_tensor_info_t *info = &inspect->model->tensors[s->tensor];
  char shape[192];
  cells[0] = nps_xstrdup(info->name);
  cells[1] = nps_xstrdup(nps_shape_format(info->ndim, info->shape, shape));
  cells[2] = number_cell(true, s->norm);
  cells[3] = nps_xstrf("%.1f", s->effective_rank);
  cells[4] = percent_cell(s->energy);
  cells[5] = values_cell(s);
}

static void print_cells(nps_report_t *report, char **cells, int rows, int columns) {
  nps_report_line(report, "%s", "");
  nps_report_table(report, (const char *const *)cells, rows, columns);
  for (int i = 0; i < rows * columns; i++) free(cells[i]);
  free(cells);
}

/* Means over the matrices of a kind, kinds in the order of their first matrix. */
static void show_kinds(const nps_inspect_t *inspect, nps_report_t *report) {
  static const char *const header[KIND_COLUMNS] = {"kind", "matrices", "effective rank", "energy"};
  const int count = inspect->spectrum_count;
  char **kinds = nps_xcalloc((size_t)count + 1, sizeof *kinds);
  char **cells = nps_xcalloc((size_t)(count + 1) * KIND_COLUMNS, sizeof *cells);
  int rows = 1;
  for (int c = 0; c < KIND_COLUMNS; c++) cells[c] = nps_xstrdup(header[c]);
  for (int i = 0; i < count; i++) kinds[i] = nps_inspect_kind(inspect->model->tensors[inspect->spectra[i].tensor].name);
  for (int i = 0; i < count; i++) {
    double rank = 0, energy = 0;
    int same = 0, earlier = 0;
    for (int j = 0; j < count; j++) {
      if (strcmp(kinds[i], kinds[j]) != 0) continue;
      earlier += j < i;
      same++;
      rank += inspect->spectra[j].effective_rank;
      energy += inspect->spectra[j].energy;
    }
    if (earlier > 0) continue;
    char **row = cells + KIND_COLUMNS * rows++;
    row[0] = nps_xstrdup(kinds[i]);
    row[1] = nps_xstrf("%d", same);
    row[2] = nps_xstrf("%.1f", rank / same);
    row[3] = percent_cell(energy / same);
  }
  for (int i = 0; i < count; i++) free(kinds[i]);
  free(kinds);
  print_cells(report, cells, rows, KIND_COLUMNS);
}

static void show_spectra(const nps_inspect_t *inspect, nps_report_t *report) {
  static const char *const header[SPECTRUM_COLUMNS] = {"matrix",         "shape",  "norm",
                                                       "effective rank", "energy", "singular values"};
  const int rows = inspect->spectrum_count + 1;
  char **cells = nps_xcalloc((size_t)rows * SPECTRUM_COLUMNS, sizeof *cells);
  for (int c = 0; c < SPECTRUM_COLUMNS; c++) cells[c] = nps_xstrdup(header[c]);
  for (int i = 0; i + 1 < rows; i++)
    fill_spectrum_row(inspect, &inspect->spectra[i], cells + (i + 1) * SPECTRUM_COLUMNS);
  print_cells(report, cells, rows, SPECTRUM_COLUMNS);
  show_kinds(inspect, report);
}

static void show_only_in_model(void *report, const char *name) { nps_report_line(report, "only in model: %s", name); }

static void show_only_in_base(void *report, const char *name) { nps_report_line(report, "only in base: %s", name); }

static void show_unlike(const nps_inspect_t *inspect, int t, nps_report_t *report) {
  const nps_tensor_info_t *info = &inspect->model->tensors[t];
  const nps_tensor_info_t *other = &inspect->base->tensors[inspect->tensors[t].base];
  char shape[192], base_shape[192];
  nps_report_line(report, "not comparable: %s is %s %s, in base %s %s", info->name, nps_dtype_name(info->dtype),
                  nps_shape_format(info->ndim, info->shape, shape), nps_dtype_name(other->dtype),
                  nps_shape_format(other->ndim, other->shape, base_shape));
}

static void show_remarks(const nps_inspect_t *inspect, nps_report_t *report) {
  for (int t = 0; t < inspect->model->tensor_count; t++) {
    const nps_inspect_tensor_t *found = &inspect->tensors[t];
    if (found->nonfinite)
      nps_report_line(report, "not finite: %s has %" PRId64 " elements that are NaN or infinite",
                      inspect->model->tensors[t].name, found->nonfinite);
    if (inspect->base && not_comparable(found)) show_unlike(inspect, t, report);
  }
  if (!inspect->base) return;
  each_only_in(inspect->model, inspect->base, show_only_in_model, report);
  each_only_in(inspect->base, inspect->model, show_only_in_base, report);
}

static void show_summary(const nps_inspect_t *inspect, nps_report_t *report) {
  const nps_inspect_tensor_t *total = &inspect->total;
  int64_t parameters = 0, bytes = 0;
  char size[32];
  nps_text_t t = {0};
  count_all(inspect->model, &parameters, &bytes);
  nps_text_add(&t, "%d tensors, %" PRId64 " parameters, %s, norm %.6g", inspect->model->tensor_count, parameters,
               nps_format_bytes((double)bytes, size), total->norm);
  if (total->compared) {
    char *share = percent_cell(relative(total));
    nps_text_add(&t, "; difference %.6g (%s of the base), %" PRId64 " elements changed", total->difference, share,
                 total->changed);
    free(share);
  }
  nps_report_line(report, "%s", t.text);
  free(t.text);
}

static void show_experts(const nps_inspect_t *inspect, nps_report_t *report) {
  const nps_experts_t *experts = inspect->model->experts;
  nps_text_t names = {0};
  for (int i = 0; i < experts->count; i++) nps_text_add(&names, "%s%s", i ? ", " : "", experts->names[i]);
  nps_report_line(report, "%s", "");
  nps_report_line(report, "experts     %s", names.text);
  nps_report_line(report, "            rank %" PRId64 ", routers of %" PRId64 " directions, top %" PRId64, experts->k,
                  experts->kg, experts->top_k);
  free(names.text);
  show_table(inspect->experts, report);
  show_remarks(inspect->experts, report);
  show_summary(inspect->experts, report);
}

void nps_inspect_show(const nps_inspect_t *inspect, nps_report_t *report) {
  show_head(inspect, report);
  show_table(inspect, report);
  if (inspect->spectra) show_spectra(inspect, report);
  show_remarks(inspect, report);
  show_summary(inspect, report);
  if (inspect->experts) show_experts(inspect, report);
}
