/* Catalogues of what is merged: places in slices, or models one by one. */
#include "compose_internal.h"

#include <stdlib.h>
#include <string.h>

/* All that is composed, and one of the catalogues. */
typedef struct {
  const nps_compose_spec_t *spec;
  nps_part_model_t *parts; /* [model_count] */
  nps_heads_t heads;
  nps_model_t *made;
} work_t;

/* A tensor of the merged model and where it lies: its slice, or -1. */
typedef struct {
  const char *name;
  int slice;
  double layer;
} place_t;

/* ---- tensors outside of the layers ---- */

static bool has_stack(const work_t *w) { return w->spec->slice_count > 0; }

static bool is_layer(const work_t *w, int model, const char *name) {
  int64_t layer;
  return has_stack(w) && nps_stack_rest(&w->parts[model].stack, name, &layer);
}

/* The tensor of a model that stands for a name of the merged model, or -1. */
static int find_tensor(const work_t *w, int model, const char *name) {
  const nps_part_model_t *part = &w->parts[model];
  if (part->tied && nps_is_head(name)) return w->heads.name && strcmp(name, w->heads.name) == 0 ? part->embedding : -1;
  return nps_model_find(part->model, name);
}

/* The models' tensors that are merged under a name. @param[out] parts  [as many as there can be] @return how many */
static int find_parts(const work_t *w, const char *name, int slice, nps_row_part_t *parts) {
  const nps_compose_spec_t *spec = w->spec;
  const int models = slice < 0 ? spec->model_count : spec->slices[slice].count;
  int count = 0;
  for (int k = 0; k < models; k++) {
    const int model = slice < 0 ? k : spec->slices[slice].sources[k].model, tensor = find_tensor(w, model, name);
    if (tensor >= 0) parts[count++] = (nps_row_part_t){model, tensor};
  }
  return count;
}

static nps_err_t add(work_t *w, const place_t *place, int model, int tensor, bool absent) {
  const nps_compose_spec_t *spec = w->spec;
  nps_tensor_info_t *info = nps_made_add(w->made, place->name, model, tensor);
  info->made->slice = place->slice;
  info->made->layer = place->layer;
  info->absent = absent;
  if (!spec->alignment || !nps_is_vocabulary(place->name) || is_layer(w, model, place->name)) return NPS_OK;
  const int slice = place->slice, most = slice < 0 ? spec->model_count : spec->slices[slice].count;
  nps_row_part_t *parts = nps_xcalloc((size_t)most, sizeof *parts);
  const nps_row_part_t own = {model, tensor};
  const int count = find_parts(w, place->name, slice, parts);
  nps_err_t err = nps_align_rows(spec, info, &own, parts, count, slice < 0 ? spec->base : spec->slices[slice].base);
  free(parts);
  return err;
}

/* Adds a model's tensor under its own name, unless it is a head that is none. */
static nps_err_t add_same(work_t *w, int model, int tensor, int slice, bool absent) {
  const nps_part_model_t *part = &w->parts[model];
  const place_t place = {part->model->tensors[tensor].name, slice, 0};
  if (part->tied && nps_is_head(place.name)) return NPS_OK;
  return add(w, &place, model, tensor, absent);
}

/* A tied model's embeddings are its head too, where the merged model has one. */
static nps_err_t add_head(work_t *w, int model, int slice, bool absent) {
  const place_t place = {w->heads.name, slice, 0};
  if (!w->heads.name || !w->parts[model].tied) return NPS_OK;
  return add(w, &place, model, w->parts[model].embedding, absent);
}

/* ---- slices ---- */

/* Where place k of a slice's sources is empty, its tensors are named after the first and left out. */
static const nps_slice_source_t *source_of(const nps_slice_t *slice, int k, bool *absent) {
  *absent = k >= slice->count;
  return &slice->sources[*absent ? 0 : k];
}

/* Adds what lies outside of the layers, before or after them. */
static nps_err_t add_outer(work_t *w, int k, int slice, bool before) {
  bool absent;
  const nps_slice_source_t *source = source_of(&w->spec->slices[slice], k, &absent);
  const nps_model_t *model = w->parts[source->model].model;
  for (int t = 0; t < model->tensor_count; t++) {
    const char *name = model->tensors[t].name;
    if (is_layer(w, source->model, name) || nps_is_before_layers(name) != before) continue;
    NPS_TRY(add_same(w, source->model, t, slice, absent));
  }
  return before ? NPS_OK : add_head(w, source->model, slice, absent);
}

/* Adds the layers of a slice. @param offset  layers of the slices before */
static nps_err_t add_layers(work_t *w, int k, int s, int64_t offset) {
  const nps_slice_t *slice = &w->spec->slices[s];
  bool absent;
  const nps_slice_source_t *source = source_of(slice, k, &absent);
  const nps_stack_t *out = &w->parts[w->spec->slices[0].sources[0].model].stack;
  const nps_part_model_t *part = &w->parts[source->model];
  for (int t = 0; t < part->model->tensor_count; t++) {
    int64_t layer;
    const char *rest = nps_stack_rest(&part->stack, part->model->tensors[t].name, &layer);
    if (!rest || layer < source->first || layer >= source->first + slice->length) continue;
    layer -= source->first;
    char *name = nps_xstrf("%.*s%lld%s", (int)out->size, out->prefix, (long long)(layer + offset), rest);
    const place_t place = {name, s, slice->length == 1 ? 1 : (double)layer / (double)(slice->length - 1)};
    nps_err_t err = add(w, &place, source->model, t, absent);
    free(name);
    NPS_TRY(err);
  }
  return NPS_OK;
}

static nps_err_t add_place(work_t *w, int k) {
  const nps_compose_spec_t *spec = w->spec;
  int64_t offset = 0;
  NPS_TRY(add_outer(w, k, 0, true));
  for (int s = 0; s < spec->slice_count; s++) {
    NPS_TRY(add_layers(w, k, s, offset));
    offset += spec->slices[s].length;
  }
  return add_outer(w, k, spec->slice_count - 1, false);
}

/* The models in place k, each once, separated by what stands between them. */
static char *list_models(const nps_compose_spec_t *spec, int k, bool paths, const char *between) {
  bool *seen = nps_xcalloc((size_t)spec->model_count, sizeof *seen);
  nps_text_t out = {0};
  for (int s = 0; s < spec->slice_count; s++) {
    if (k >= spec->slices[s].count) continue;
    const int model = spec->slices[s].sources[k].model;
    if (seen[model]) continue;
    seen[model] = true;
    nps_text_add(&out, "%s%s", out.size ? between : "", paths ? spec->models[model]->path : spec->models[model]->name);
  }
  free(seen);
  return out.text;
}

static nps_err_t check_slices(const work_t *w) {
  nps_err_t err = NPS_OK;
  for (int s = 0; s < w->spec->slice_count; s++) {
    const nps_slice_t *slice = &w->spec->slices[s];
    for (int k = 0; k < slice->count; k++) {
      const nps_slice_source_t *source = &slice->sources[k];
      const nps_part_model_t *part = &w->parts[source->model];
      if (source->first + slice->length > part->stack.length)
        err = nps_fail(NPS_ERR_CONFIG, "%s: layers [%lld, %lld) of '%s', which has %lld", slice->where,
                       (long long)source->first, (long long)(source->first + slice->length), part->model->name,
                       (long long)part->stack.length);
    }
  }
  return err;
}

/* ---- models one by one ---- */

static nps_err_t add_model(work_t *w, int model) {
  for (int t = 0; t < w->parts[model].model->tensor_count; t++) NPS_TRY(add_same(w, model, t, -1, false));
  return add_head(w, model, -1, false);
}

/* ---- all ---- */

/* Whether any model has a head that is not to be merged as it is stored. */
static bool changes_heads(const work_t *w, const bool *used) {
  for (int i = 0; i < w->spec->model_count; i++)
    if (used[i] && w->parts[i].tied && (w->heads.name || w->parts[i].head >= 0)) return true;
  return false;
}

static void note_heads(const work_t *w, const bool *used) {
  nps_text_t names = {0};
  for (int i = 0; i < w->spec->model_count; i++)
    if (used[i] && w->parts[i].tied) nps_text_add(&names, "%s%s", names.size ? ", " : "", w->parts[i].model->name);
  if (w->heads.name)
    nps_note("%s of %s is tied to the embeddings, of others not: the merged model has one of its own", w->heads.name,
             names.text);
  else
    nps_note("the output head of %s is tied to the embeddings: it is not written", names.text);
  free(names.text);
}

static void find_used(const nps_compose_spec_t *spec, bool *used) {
  for (int i = 0; i < spec->model_count; i++) used[i] = spec->slice_count == 0;
  for (int s = 0; s < spec->slice_count; s++)
    for (int k = 0; k < spec->slices[s].count; k++) used[spec->slices[s].sources[k].model] = true;
}

static nps_err_t look_at_models(work_t *w, const bool *used) {
  nps_err_t err = NPS_OK;
  for (int i = 0; i < w->spec->model_count; i++) {
    w->parts[i].model = w->spec->models[i];
    if (!used[i]) continue;
    if (w->spec->models[i]->experts)
      err = nps_fail(NPS_ERR_INPUT,
                     "%s: %s: is a mixture of experts, which cannot be merged; merge the models that it "
                     "was made of",
                     w->spec->models[i]->name, w->spec->models[i]->path);
    if (w->spec->models[i]->form == NPS_FORM_ADAPTER && (has_stack(w) || w->spec->alignment))
      err = nps_fail(NPS_ERR_INPUT, "%s: %s: is a PEFT adapter by itself, expected BASE+%s", w->spec->models[i]->name,
                     w->spec->models[i]->path, w->spec->models[i]->path);
    nps_part_find_head(&w->parts[i]);
    if (has_stack(w)) err = nps_err_worse(err, nps_stack_find(w->spec->models[i], &w->parts[i].stack));
  }
  return err == NPS_OK ? check_slices(w) : err;
}

static int count_places(const nps_compose_spec_t *spec) {
  int places = spec->slice_count > 0 ? 0 : spec->model_count;
  for (int s = 0; s < spec->slice_count; s++)
    if (spec->slices[s].count > places) places = spec->slices[s].count;
  return places;
}

static nps_err_t make(work_t *w, int k, const char *config, nps_model_t **out) {
  const nps_compose_spec_t *spec = w->spec;
  const bool slices = has_stack(w);
  char *name = slices ? list_models(spec, k, false, "+") : nps_xstrdup(spec->models[k]->name);
  char *path = slices ? list_models(spec, k, true, ", ") : nps_xstrdup(spec->models[k]->path);
  *out = w->made = nps_made_new(name, path, spec->models, spec->model_count);
  free(name);
  free(path);
  if (!slices && k != spec->reference) config = spec->models[k]->config_json;
  w->made->config_json = config ? nps_xstrdup(config) : NULL;
  NPS_TRY(slices ? add_place(w, k) : add_model(w, k));
  return nps_made_end(w->made);
}

nps_err_t nps_compose(const nps_compose_spec_t *spec, nps_model_t ***out, int *count) {
  work_t w = {.spec = spec};
  bool *used = nps_xcalloc((size_t)spec->model_count + 1, sizeof *used);
  char *config = NULL;
  *out = NULL;
  *count = 0;
  w.parts = nps_xcalloc((size_t)spec->model_count + 1, sizeof *w.parts);
  find_used(spec, used);
  nps_err_t err = look_at_models(&w, used);
  if (err == NPS_OK) {
    w.heads = nps_heads_find(w.parts, spec->model_count, used);
    if (changes_heads(&w, used))
      note_heads(&w, used);
    else if (spec->slice_count == 0 && !spec->alignment)
      goto done;
    config = nps_compose_config(spec, w.heads.name != NULL);
    const int places = count_places(spec);
    *out = nps_xcalloc((size_t)places, sizeof **out);
    for (*count = 0; *count < places && err == NPS_OK; ++*count) err = make(&w, *count, config, &(*out)[*count]);
  }
done:
  free(config);
  free(w.parts);
  free(used);
  return err;
}
