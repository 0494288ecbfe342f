#include "model_internal.h"

#include <stdlib.h>
#include <string.h>

/* Numbers end in a space; texts are "LENGTH BYTES", as paths need not be UTF-8; -1 stands for NULL. */

static void put_number(nps_text_t *out, int64_t value) { nps_text_add(out, "%lld ", (long long)value); }

static void put_text(nps_text_t *out, const char *text) {
  put_number(out, text ? (int64_t)strlen(text) : -1);
  if (text) nps_text_add_bytes(out, text, strlen(text));
}

static void put_experts(nps_text_t *out, const nps_experts_t *experts) {
  put_number(out, experts ? experts->count : 0);
  if (!experts) return;
  for (int i = 0; i < experts->count; i++) put_text(out, experts->names[i]);
  put_number(out, experts->kg);
  put_number(out, experts->k);
  put_number(out, experts->top_k);
  char *parts = nps_model_pack(experts->parts);
  put_text(out, parts);
  free(parts);
}

static void put_model(nps_text_t *out, const nps_model_t *model) {
  char *text = model ? nps_model_pack(model) : NULL;
  put_text(out, text);
  free(text);
}

/* What is computed is planned again where it is read. */
static void put_derivation(nps_text_t *out, const nps_derivation_t *d) {
  put_text(out, d->form->name);
  put_text(out, d->text);
  put_model(out, d->base);
  put_model(out, d->parts);
}

char *nps_model_pack(const nps_model_t *model) {
  nps_text_t out = {NULL, 0, 0};
  put_text(&out, model->name);
  put_text(&out, model->path);
  put_number(&out, (int64_t)model->form);
  if (model->derivation) {
    put_derivation(&out, model->derivation);
    return out.text;
  }
  put_text(&out, model->config_json);
  put_number(&out, model->file_count);
  put_number(&out, model->tensor_count);
  for (int i = 0; i < model->file_count; i++) {
    put_text(&out, model->files[i].path);
    put_number(&out, model->files[i].size);
    put_number(&out, model->files[i].changed);
  }
  for (int i = 0; i < model->tensor_count; i++) {
    const nps_tensor_info_t *t = &model->tensors[i];
    put_text(&out, t->name);
    put_number(&out, (int64_t)t->dtype);
    put_number(&out, t->ndim);
    for (int d = 0; d < t->ndim; d++) put_number(&out, t->shape[d]);
    put_number(&out, t->file);
    put_number(&out, t->offset);
  }
  put_experts(&out, model->experts);
  return out.text;
}

/* Reading position; NULL once something did not fit. */
typedef struct {
  const char *at, *end;
} cursor_t;

static int64_t get_number(cursor_t *c, int64_t least, int64_t most) {
  char *after = NULL;
  if (!c->at) return least;
  const long long value = strtoll(c->at, &after, 10);
  const bool good = after > c->at && after < c->end && *after == ' ' && value >= least && value <= most;
  c->at = good ? after + 1 : NULL;
  return good ? value : least;
}

static char *get_text(cursor_t *c) {
  const int64_t length = get_number(c, -1, c->at ? c->end - c->at : 0);
  if (!c->at || length < 0) return NULL;
  if (length > c->end - c->at) {
    c->at = NULL;
    return NULL;
  }
  char *text = nps_xstrndup(c->at, (size_t)length);
  c->at += length;
  return text;
}

static void get_tensor(cursor_t *c, nps_model_t *model) {
  nps_tensor_info_t t = {.name = get_text(c)};
  t.dtype = (nps_dtype_t)get_number(c, 0, NPS_DTYPE_COUNT - 1);
  t.ndim = (int)get_number(c, 0, NPS_MAX_DIMS);
  for (int d = 0; d < t.ndim; d++) t.shape[d] = get_number(c, 0, INT64_MAX);
  t.file = (int)get_number(c, 0, model->file_count - 1);
  t.offset = get_number(c, 0, INT64_MAX);
  if (!t.name || !nps_shape_count(t.ndim, t.shape, &t.count)) c->at = NULL;
  nps_model_add_tensor(model, &t);
}

static void get_experts(cursor_t *c, nps_model_t *model) {
  const int count = (int)get_number(c, 0, INT32_MAX);
  if (count == 0) return;
  nps_experts_t *experts = model->experts = nps_xcalloc(1, sizeof *experts);
  for (int i = 0; c->at && i < count; i++) {
    experts->names = nps_xrealloc(experts->names, (size_t)i + 1, sizeof *experts->names);
    experts->names[experts->count++] = get_text(c);
  }
  experts->kg = get_number(c, 1, INT64_MAX);
  experts->k = get_number(c, 1, INT64_MAX);
  experts->top_k = get_number(c, 1, INT64_MAX);
  char *parts = get_text(c);
  if (!parts || nps_model_unpack(parts, &experts->parts) != NPS_OK) c->at = NULL;
  free(parts);
}

static nps_model_t *get_model(cursor_t *c) {
  nps_model_t *model = NULL;
  char *text = get_text(c);
  if (text && nps_model_unpack(text, &model) != NPS_OK) c->at = NULL;
  free(text);
  return model;
}

static nps_err_t fail_damaged(void) { return nps_fail(NPS_ERR_RUNTIME, "a packed catalogue is damaged"); }

static nps_err_t get_derived(cursor_t *c, const char *name, const char *path, nps_model_t **out) {
  char *form_name = get_text(c), *text = get_text(c);
  nps_model_t *base = get_model(c), *parts = get_model(c);
  const nps_derivation_form_t *form = form_name ? nps_derivation_form(form_name) : NULL;
  free(form_name);
  if (c->at && form && base) return nps_model_derive(form, name, path, base, parts, text, out);
  nps_model_free(base);
  nps_model_free(parts);
  free(text);
  return fail_damaged();
}

nps_err_t nps_model_unpack(const char *text, nps_model_t **out) {
  cursor_t c = {text, text + strlen(text)};
  nps_model_t *model = nps_xcalloc(1, sizeof *model);
  *out = NULL;
  model->name = get_text(&c);
  model->path = get_text(&c);
  model->form = (nps_model_form_t)get_number(&c, 0, NPS_FORM_DERIVED);
  if (model->form == NPS_FORM_DERIVED) {
    nps_err_t err = get_derived(&c, model->name, model->path, out);
    nps_model_free(model);
    return err;
  }
  model->config_json = get_text(&c);
  const int files = (int)get_number(&c, 1, INT32_MAX), tensors = (int)get_number(&c, 1, INT32_MAX);
  for (int i = 0; c.at && i < files; i++) {
    model->files = nps_xrealloc(model->files, (size_t)i + 1, sizeof *model->files);
    model->files[model->file_count].path = get_text(&c);
    model->files[model->file_count].size = get_number(&c, 0, INT64_MAX);
    model->files[model->file_count++].changed = get_number(&c, INT64_MIN, INT64_MAX);
  }
  for (int i = 0; c.at && i < tensors; i++) get_tensor(&c, model);
  get_experts(&c, model);
  if (!c.at) {
    nps_model_free(model);
    return fail_damaged();
  }
  *out = model;
  return NPS_OK;
}
