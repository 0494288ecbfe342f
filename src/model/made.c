/* Catalogues whose tensors are made of rows of other catalogues' tensors, and reading them. */
#include "model_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- making ---- */

nps_model_t *nps_made_new(const char *name, const char *path, const nps_model_t *const *parents, int n) {
  nps_model_t *made = nps_model_new(name, path, NPS_FORM_MADE);
  made->parents = nps_xcalloc((size_t)n + 1, sizeof *made->parents);
  made->parent_count = n;
  for (int p = 0; p < n; p++) {
    made->parents[p] = parents[p];
    nps_model_add_files(made, parents[p]);
  }
  return made;
}

void nps_made_free(nps_made_t *made) {
  if (!made) return;
  free(made->spans);
  free(made->from);
  free(made);
}

/* Where a parent's files begin among those of the made catalogue. */
static int first_file(const nps_model_t *made, int parent) {
  int first = 0;
  for (int p = 0; p < parent; p++) first += made->parents[p]->file_count;
  return first;
}

/* Room grows in powers of two: the count tells when it is used up. */
static void *grow(void *list, int count, size_t size) {
  return (count & (count - 1)) == 0 ? nps_xrealloc(list, count ? 2 * (size_t)count : 1, size) : list;
}

static void add_span(nps_made_t *made, int64_t count, int parts) {
  const nps_span_t *last = made->span_count ? &made->spans[made->span_count - 1] : NULL;
  const int64_t first = last ? last->first + last->count : 0;
  made->spans = grow(made->spans, made->span_count, sizeof *made->spans);
  made->spans[made->span_count++] = (nps_span_t){first, count, made->from_count, parts};
}

static void add_from(nps_made_t *made, const nps_row_from_t *from) {
  made->from = grow(made->from, made->from_count, sizeof *made->from);
  made->from[made->from_count++] = *from;
}

nps_tensor_info_t *nps_made_add(nps_model_t *made, const char *name, int parent, int tensor) {
  nps_tensor_info_t info = made->parents[parent]->tensors[tensor];
  const nps_row_from_t whole = {parent, tensor, 0};
  info.written = nps_tensor_written(&info);
  info.rule = 0;
  info.name = nps_xstrdup(name);
  info.file += first_file(made, parent);
  info.absent = false;
  info.made = nps_xcalloc(1, sizeof *info.made);
  *info.made = (nps_made_t){.row = 1, .slice = -1};
  add_span(info.made, info.count, 1);
  add_from(info.made, &whole);
  nps_model_add_tensor(made, &info);
  return &made->tensors[made->tensor_count - 1];
}

void nps_made_rows(nps_tensor_info_t *info) {
  nps_made_t *made = info->made;
  assert(info->ndim > 0);
  made->row = info->shape[0] > 0 ? info->count / info->shape[0] : 1;
  made->span_count = made->from_count = 0;
  info->count = info->shape[0] = 0;
}

static void add_rows(nps_tensor_info_t *info, int64_t count) {
  info->shape[0] += count;
  info->count += count * info->made->row;
}

/* Whether a copied row goes on where the last span ends, or zeros follow zeros. */
static bool continues(const nps_made_t *made, const nps_span_t *last, const nps_row_from_t *from, int parts) {
  if (last->parts != parts || parts > 1) return false;
  if (parts == 0) return true;
  const nps_row_from_t *begin = &made->from[last->from];
  return begin->parent == from->parent && begin->tensor == from->tensor && begin->row + last->count == from->row;
}

void nps_made_row(nps_tensor_info_t *info, const nps_row_from_t *from, int parts) {
  nps_made_t *made = info->made;
  nps_span_t *last = made->span_count ? &made->spans[made->span_count - 1] : NULL;
  if (last && continues(made, last, from, parts))
    last->count++;
  else {
    add_span(made, 1, parts);
    for (int i = 0; i < parts; i++) add_from(made, &from[i]);
  }
  add_rows(info, 1);
}

void nps_made_pad(nps_tensor_info_t *info, int64_t count) {
  if (count == 0) return;
  add_span(info->made, count, NPS_SPAN_MEAN);
  add_rows(info, count);
}

/* Files of parents that no tensor is made of are none of the catalogue's. */
static void drop_files(nps_model_t *made) {
  bool *used = nps_xcalloc((size_t)made->parent_count + 1, sizeof *used);
  int *place = nps_xcalloc((size_t)made->file_count + 1, sizeof *place), count = 0, file = 0;
  for (int t = 0; t < made->tensor_count; t++)
    for (int i = 0; i < made->tensors[t].made->from_count; i++) used[made->tensors[t].made->from[i].parent] = true;
  for (int p = 0; p < made->parent_count; p++)
    for (int f = 0; f < made->parents[p]->file_count; f++, file++) {
      place[file] = used[p] ? count : 0;
      if (used[p])
        made->files[count++] = made->files[file];
      else
        free(made->files[file].path);
    }
  made->file_count = count;
  for (int t = 0; t < made->tensor_count; t++) made->tensors[t].file = place[made->tensors[t].file];
  free(used);
  free(place);
}

nps_err_t nps_made_end(nps_model_t *made) {
  drop_files(made);
  return nps_model_sort(made);
}

int64_t nps_made_reader_bytes(const nps_model_t *model) {
  int64_t bytes = 0, row = 0;
  for (int p = 0; p < model->parent_count; p++) bytes += nps_model_reader_bytes(model->parents[p]);
  for (int t = 0; t < model->tensor_count; t++)
    if (model->tensors[t].made) row = nps_max64(row, model->tensors[t].made->row);
  return bytes + row * (int64_t)(3 * sizeof(double));
}

const char *nps_model_origin(const nps_model_t *model, int tensor) {
  const nps_tensor_info_t *info = &model->tensors[tensor];
  if (!info->made || info->made->from_count == 0) return info->name;
  const nps_row_from_t *from = &info->made->from[0];
  return nps_model_origin(model->parents[from->parent], from->tensor);
}

/* ---- reading ---- */

/* Elements that are averaged or converted at a time. */
enum { STEP = 1024 };

/* The span that an element lies in. */
static const nps_span_t *find_span(const nps_made_t *made, int64_t element) {
  int low = 0, high = made->span_count - 1;
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    if (made->spans[middle].first * made->row <= element)
      low = middle;
    else
      high = middle - 1;
  }
  return &made->spans[low];
}

static int64_t end_of(const nps_made_t *made, const nps_span_t *span) {
  return (span->first + span->count) * made->row;
}

/* The element of a part that an element of the span is made of. */
static int64_t element_of(const nps_made_t *made, const nps_span_t *span, const nps_row_from_t *from, int64_t element) {
  return element + (from->row - span->first) * made->row;
}

void nps_made_resolve(nps_reader_t **reader, int *tensor, int64_t *first, int64_t count) {
  for (;;) {
    const nps_model_t *model = (*reader)->model;
    const nps_tensor_info_t *info = &model->tensors[*tensor];
    if (!info->made || *first < 0 || count <= 0 || count > info->count - *first) return;
    const nps_span_t *span = find_span(info->made, *first);
    if (span->parts != 1 || *first + count > end_of(info->made, span)) return;
    const nps_row_from_t *from = &info->made->from[span->from];
    if (model->parents[from->parent]->tensors[from->tensor].dtype != info->dtype) return;
    *first = element_of(info->made, span, from, *first);
    *reader = nps_reader_parent(*reader, from->parent);
    *tensor = from->tensor;
  }
}

/* Reads n elements, at most STEP, of a part as numbers. */
static nps_err_t read_numbers(nps_reader_t *reader, const nps_row_from_t *from, int64_t first, int64_t n, double *x) {
  char raw[STEP * sizeof(double)];
  NPS_TRY(nps_reader_read(nps_reader_parent(reader, from->parent), from->tensor, first, n, raw));
  nps_tensor_widen(reader->model->parents[from->parent]->tensors[from->tensor].dtype, raw, n, x);
  return NPS_OK;
}

/* The mean of a span's parts, n elements, at most STEP. */
static nps_err_t average(nps_reader_t *reader, const nps_made_t *made, const nps_span_t *span, int64_t first, int64_t n,
                         double *sum) {
  double x[STEP];
  memset(sum, 0, (size_t)n * sizeof *sum);
  for (int k = 0; k < span->parts; k++) {
    const nps_row_from_t *from = &made->from[span->from + k];
    NPS_TRY(read_numbers(reader, from, element_of(made, span, from, first), n, x));
    for (int64_t i = 0; i < n; i++) sum[i] += x[i];
  }
  for (int64_t i = 0; span->parts > 1 && i < n; i++) sum[i] /= span->parts;
  return NPS_OK;
}

/* Finds the mean of a tensor's rows [0, rows), summed in their order. */
static nps_err_t find_mean(nps_reader_t *reader, int i, int64_t rows) {
  const nps_tensor_info_t *info = &reader->model->tensors[i];
  const int64_t row = info->made->row;
  if (reader->mean_of == i) return NPS_OK;
  char *raw = NULL;
  double *x = nps_xcalloc((size_t)row, sizeof *x);
  nps_err_t err = nps_buffer_alloc((size_t)row * nps_dtype_size(info->dtype), "a row of a tensor", &raw);
  free(reader->mean);
  reader->mean = nps_xcalloc((size_t)row, sizeof *reader->mean);
  for (int64_t r = 0; r < rows && err == NPS_OK; r++) {
    err = nps_reader_read(reader, i, r * row, row, raw);
    if (err == NPS_OK) nps_tensor_widen(info->dtype, raw, row, x);
    for (int64_t e = 0; e < row && err == NPS_OK; e++) reader->mean[e] += x[e];
  }
  for (int64_t e = 0; e < row; e++) reader->mean[e] /= (double)nps_max64(rows, 1);
  if (err == NPS_OK) reader->mean_of = i;
  free(raw);
  free(x);
  return err;
}

/* Reads elements [first, first + n) of a span, at most STEP where they are not copied in their type. */
static nps_err_t read_span(nps_reader_t *reader, int i, const nps_span_t *span, int64_t first, int64_t n, void *dst) {
  const nps_tensor_info_t *info = &reader->model->tensors[i];
  double x[STEP];
  if (span->parts == NPS_SPAN_MEAN) {
    NPS_TRY(find_mean(reader, i, span->first));
    for (int64_t k = 0; k < n; k++) x[k] = reader->mean[(first + k) % info->made->row];
  } else
    NPS_TRY(average(reader, info->made, span, first, n, x));
  nps_tensor_narrow(x, n, info->dtype, dst);
  return NPS_OK;
}

static bool is_copy(const nps_reader_t *reader, const nps_tensor_info_t *info, const nps_span_t *span) {
  if (span->parts != 1) return false;
  const nps_row_from_t *from = &info->made->from[span->from];
  return reader->model->parents[from->parent]->tensors[from->tensor].dtype == info->dtype;
}

nps_err_t nps_made_read(nps_reader_t *reader, int i, int64_t first, int64_t count, void *dst) {
  const nps_tensor_info_t *info = &reader->model->tensors[i];
  const int64_t size = (int64_t)nps_dtype_size(info->dtype), end = first + count;
  if (first < 0 || count < 0 || first > info->count || count > info->count - first)
    return nps_fail(NPS_ERR_RUNTIME, "%s: tensor %s: elements %lld to %lld are outside of its %lld",
                    reader->model->name, info->name, (long long)first, (long long)end, (long long)info->count);
  char *to = dst;
  while (first < end) {
    const nps_span_t *span = find_span(info->made, first);
    int64_t n = nps_min64(end, end_of(info->made, span)) - first;
    if (is_copy(reader, info, span))
      NPS_TRY(nps_reader_read(reader, i, first, n, to));
    else {
      n = nps_min64(n, STEP);
      NPS_TRY(read_span(reader, i, span, first, n, to));
    }
    first += n;
    to += n * size;
  }
  return NPS_OK;
}
