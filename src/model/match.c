#include "model_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
  const nps_model_t *const *inputs;
  int n;
  int base;      /* or -1 */
  int reference; /* the base, else the first input */
  int head;      /* or -1 */
  const nps_dtype_t *dtype;
  nps_layout_t *layout;
  nps_checks_t *checks; /* [n] */
  bool **used;          /* [n][tensors of the input] */
  nps_text_t kept;      /* names of buffers that are the base's alone, the first three */
  int kept_count;
} match_t;

static bool is_quantised_name(const char *name) {
  const char *dot = strrchr(name, '.');
  const char *last = dot ? dot + 1 : name;
  return strstr(name, ".weight") || strncmp(last, "weight", 6) == 0 || strncmp(last, "qweight", 7) == 0;
}

static bool has_quantisation(const nps_model_t *model) {
  json_t *root = nps_json_of(model->config_json);
  const bool found = json_is_object(json_object_get(root, "quantization_config"));
  json_decref(root);
  return found;
}

/* One message for a quantised model, whose every tensor would be reported otherwise. */
static nps_err_t refuse_quantised(const nps_model_t *model) {
  if (!has_quantisation(model)) return NPS_OK;
  for (int i = 0; i < model->tensor_count; i++) {
    const nps_tensor_info_t *t = &model->tensors[i];
    if (nps_dtype_kind(t->dtype) == NPS_KIND_FLOAT || !is_quantised_name(t->name)) continue;
    return nps_fail(NPS_ERR_INPUT,
                    "%s: %s: is quantised (quantization_config in its config, tensor %s is %s); "
                    "dequantise it first",
                    model->name, model->path, t->name, nps_dtype_name(t->dtype));
  }
  return NPS_OK;
}

static nps_err_t refuse_mixture(const nps_model_t *model) {
  if (!model->experts) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT,
                  "%s: %s: is a mixture of experts, which cannot be merged; merge the models that it was made of",
                  model->name, model->path);
}

/* Adapters are merged with adapters of the same kind, or added to a base first. */
static nps_err_t check_adapters(match_t *m) {
  const nps_model_t *reference = m->inputs[m->reference];
  int adapters = 0;
  nps_err_t err = NPS_OK;
  for (int k = 0; k < m->n; k++) adapters += m->inputs[k]->form == NPS_FORM_ADAPTER;
  for (int k = 0; k < m->n; k++) {
    const nps_model_t *input = m->inputs[k];
    if (input->form != NPS_FORM_ADAPTER || input == reference) continue;
    if (adapters == m->n) nps_peft_compare(reference->config_json, input->config_json, reference->name, &m->checks[k]);
  }
  for (int k = 0; k < m->n && adapters < m->n; k++)
    if (m->inputs[k]->form == NPS_FORM_ADAPTER)
      err = nps_fail(NPS_ERR_INPUT, "%s: %s: is a PEFT adapter, but not all models are; expected BASE+%s",
                     m->inputs[k]->name, m->inputs[k]->path, m->inputs[k]->path);
  return err;
}

static int compare_places(const void *a, const void *b) {
  const nps_tensor_info_t *x = *(const nps_tensor_info_t *const *)a, *y = *(const nps_tensor_info_t *const *)b;
  if (x->file != y->file) return x->file < y->file ? -1 : 1;
  if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
  return strcmp(x->name, y->name);
}

/* The tensors in the order they are stored in. */
static const nps_tensor_info_t **in_file_order(const nps_model_t *model) {
  const nps_tensor_info_t **order = nps_xcalloc((size_t)model->tensor_count, sizeof *order);
  for (int i = 0; i < model->tensor_count; i++) order[i] = &model->tensors[i];
  qsort(order, (size_t)model->tensor_count, sizeof *order, compare_places);
  return order;
}

/* Finds a tensor in all inputs. Returns whether the output has it; *lacking: some input lacks a buffer of the base, as newer
 * versions of transformers do not store it. */
static bool find_sources(match_t *m, const nps_tensor_info_t *t, int *source, bool *lacking) {
  const bool buffer = m->base >= 0 && (nps_dtype_kind(t->dtype) == NPS_KIND_EXACT || nps_is_buffer(t));
  bool everywhere = true;
  *lacking = false;
  for (int k = 0; k < m->n; k++) {
    source[k] = nps_model_find(m->inputs[k], t->name);
    if (source[k] >= 0 && m->inputs[k]->tensors[source[k]].absent) {
      m->used[k][source[k]] = true;
      source[k] = -1;
      continue;
    }
    *lacking = *lacking || (source[k] < 0 && buffer);
    if (source[k] >= 0 || buffer) continue;
    everywhere = false;
    if (m->base >= 0) nps_checks_fail(&m->checks[k], "lacks tensor %s of the base", t->name);
  }
  return everywhere;
}

/* Whether a tensor of the base may be of a head that no other model has: none has a name that begins with the same part, and
 * it lies outside of the layers. */
static bool is_lone_head(const match_t *m, const char *name) {
  const size_t part = strcspn(name, ".");
  for (const char *at = name; *at; at += strspn(at, ".")) {
    const size_t n = strcspn(at, ".");
    if (n > 0 && strspn(at, "0123456789") == n) return false;
    at += n;
  }
  for (int k = 0; k < m->n; k++)
    for (int i = 0; k != m->base && i < m->inputs[k]->tensor_count; i++) {
      const char *other = m->inputs[k]->tensors[i].name;
      if (strcspn(other, ".") == part && strncmp(other, name, part) == 0) return false;
    }
  return true;
}

static bool check_kind(match_t *m, int k, const nps_tensor_info_t *t) {
  if (nps_dtype_kind(t->dtype) != NPS_KIND_OPAQUE) return true;
  nps_checks_fail(&m->checks[k], "tensor %s has type %s, which cannot be merged", t->name, nps_dtype_name(t->dtype));
  return false;
}

/* What helps where embeddings have different numbers of rows. */
static const char *hint_of(const nps_tensor_info_t *t, const nps_tensor_info_t *other) {
  const bool rows = t->ndim == 2 && other->ndim == 2 && t->shape[1] == other->shape[1];
  return rows && nps_is_vocabulary(t->name) ? "; tokenizer_source brings different vocabularies together" : "";
}

/* Compares input k's tensor with the reference's. */
static void check_pair(match_t *m, int k, const nps_tensor_info_t *t, const nps_tensor_info_t *other) {
  const nps_dtype_kind_t kind = nps_dtype_kind(t->dtype), other_kind = nps_dtype_kind(other->dtype);
  const char *name = m->inputs[m->reference]->name;
  char a[192], b[192];
  if (other->ndim != t->ndim || memcmp(other->shape, t->shape, (size_t)t->ndim * sizeof *t->shape) != 0)
    nps_checks_fail(&m->checks[k], "tensor %s has shape %s, expected %s as in %s%s", t->name,
                    nps_shape_format(other->ndim, other->shape, a), nps_shape_format(t->ndim, t->shape, b), name,
                    hint_of(t, other));
  if (!check_kind(m, k, other) || kind == NPS_KIND_OPAQUE) return;
  if (kind != other_kind || (kind == NPS_KIND_EXACT && t->dtype != other->dtype))
    nps_checks_fail(&m->checks[k], "tensor %s has type %s, in %s %s", t->name, nps_dtype_name(other->dtype), name,
                    nps_dtype_name(t->dtype));
}

static void add_target(match_t *m, const nps_tensor_info_t *t, nps_action_t action) {
  nps_dtype_t dtype = t->dtype; /* a head's is copied as it is read */
  if (action == NPS_ACTION_MERGE) dtype = m->dtype ? *m->dtype : nps_tensor_written(t);
  m->layout->targets[m->layout->count++] = (nps_target_t){
      .name = t->name, .action = action, .dtype = dtype, .ndim = t->ndim, .shape = t->shape, .count = t->count};
}

static void add_name(nps_text_t *names, int *count, const char *name) {
  if ((*count)++ < 3) nps_text_add(names, "%s%s", names->size ? ", " : "", name);
}

static void end_names(nps_text_t *names, int count) {
  if (count > 3) nps_text_add(names, " and %d more", count - 3);
}

/* A floating-point buffer that some input lacks is the base's, whatever others have. */
static void keep_buffer(match_t *m, const nps_tensor_info_t *t, int *source) {
  for (int k = 0; k < m->n; k++) {
    if (source[k] >= 0) m->used[k][source[k]] = true;
    if (k != m->base) source[k] = -1;
  }
  check_kind(m, m->base, t);
  add_name(&m->kept, &m->kept_count, t->name);
  add_target(m, t, NPS_ACTION_COPY);
}

/* Tells what to do where the base has a head that no other model has. */
static void suggest_body(match_t *m, nps_text_t *names, int count) {
  const nps_model_t *base = m->inputs[m->reference];
  end_names(names, count);
  if (count > 0 && m->layout->count > 0)
    nps_checks_fail(&m->checks[m->reference],
                    "no other model has %s; where that is a head, use the base without it, which transformers makes: "
                    "AutoModel.from_pretrained(\"%s\").save_pretrained(…)",
                    names->text, base->path);
  free(names->text);
}

static void match_common(match_t *m) {
  const nps_model_t *reference = m->inputs[m->reference];
  const nps_tensor_info_t **order = in_file_order(reference);
  nps_text_t lone = {NULL, 0, 0};
  int lone_count = 0;
  for (int i = 0; i < reference->tensor_count; i++) {
    const nps_tensor_info_t *t = order[i];
    int *source = m->layout->source + (size_t)m->layout->count * (size_t)m->n;
    bool lacking;
    if (!find_sources(m, t, source, &lacking)) {
      if (m->base >= 0 && is_lone_head(m, t->name)) add_name(&lone, &lone_count, t->name);
      if (m->base >= 0) /* reported; no extra tensor of the inputs that have it */
        for (int k = 0; k < m->n; k++)
          if (source[k] >= 0) m->used[k][source[k]] = true;
      continue;
    }
    if (lacking && nps_dtype_kind(t->dtype) != NPS_KIND_EXACT) {
      keep_buffer(m, t, source);
      continue;
    }
    check_kind(m, m->reference, t);
    for (int k = 0; k < m->n; k++) {
      if (source[k] < 0) continue;
      m->used[k][source[k]] = true;
      if (k != m->reference) check_pair(m, k, t, &m->inputs[k]->tensors[source[k]]);
    }
    add_target(m, t, nps_dtype_kind(t->dtype) == NPS_KIND_EXACT ? NPS_ACTION_COPY : NPS_ACTION_MERGE);
  }
  suggest_body(m, &lone, lone_count);
  free(order);
}

static void add_head(match_t *m) {
  const nps_model_t *model = m->inputs[m->head];
  const nps_tensor_info_t **order = in_file_order(model);
  for (int i = 0; i < model->tensor_count; i++) {
    const ptrdiff_t index = order[i] - model->tensors;
    if (m->used[m->head][index]) continue;
    int *source = m->layout->source + (size_t)m->layout->count * (size_t)m->n;
    for (int k = 0; k < m->n; k++) source[k] = -1;
    source[m->head] = (int)index;
    if (check_kind(m, m->head, order[i])) add_target(m, order[i], NPS_ACTION_HEAD);
  }
  free(order);
}

/* The extra tensors of an input, the first three by name; empty where there are none. */
static char *list_extras(const match_t *m, int k) {
  nps_text_t names = {NULL, 0, 0};
  int count = 0;
  for (int i = 0; i < m->inputs[k]->tensor_count; i++)
    if (!m->used[k][i]) add_name(&names, &count, m->inputs[k]->tensors[i].name);
  end_names(&names, count);
  return names.text;
}

/* One note for all inputs that have the same extra tensors. */
static void note_extras(const match_t *m) {
  char **extras = nps_xcalloc((size_t)m->n, sizeof *extras);
  for (int k = 0; k < m->n; k++) extras[k] = k == m->head ? NULL : list_extras(m, k);
  for (int k = 0; k < m->n; k++) {
    if (!extras[k]) continue;
    nps_text_t models = {NULL, 0, 0};
    nps_text_add(&models, "%s", m->inputs[k]->name);
    for (int other = k + 1; other < m->n; other++) {
      if (!extras[other] || strcmp(extras[other], extras[k]) != 0) continue;
      nps_text_add(&models, ", %s", m->inputs[other]->name);
      free(extras[other]);
      extras[other] = NULL;
    }
    nps_note("not merged, as %s: %s (of %s)", m->base >= 0 ? "the base lacks them" : "not all models have them",
             extras[k], models.text);
    free(models.text);
    free(extras[k]);
  }
  free(extras);
}

static void note_kept(match_t *m) {
  end_names(&m->kept, m->kept_count);
  if (m->kept_count) nps_note("copied from the base, as not all models store them: %s", m->kept.text);
}

/* Where slices are, a tensor knows its place. */
static const nps_made_t *find_place(const match_t *m, int target) {
  const nps_model_t *reference = m->inputs[m->reference];
  const int source = m->layout->source[(size_t)target * (size_t)m->n + (size_t)m->reference];
  const nps_made_t *made = source >= 0 ? reference->tensors[source].made : NULL;
  return made && made->slice >= 0 ? made : NULL;
}

static void set_layers(match_t *m) {
  nps_layout_t *layout = m->layout;
  const char **names = nps_xcalloc((size_t)layout->count, sizeof *names);
  double *t = nps_xcalloc((size_t)layout->count, sizeof *t);
  for (int i = 0; i < layout->count; i++) names[i] = layout->targets[i].name;
  nps_layer_positions(names, layout->count, m->inputs[m->reference]->config_json, t);
  for (int i = 0; i < layout->count; i++) {
    const nps_made_t *place = find_place(m, i);
    layout->targets[i].layer = place ? place->layer : t[i];
    layout->targets[i].slice = place ? place->slice : 0;
    layout->targets[i].source = layout->source + (size_t)i * (size_t)m->n;
  }
  free(t);
  free(names);
}

static nps_err_t end_checks(match_t *m) {
  nps_err_t err = NPS_OK;
  int merged = 0;
  for (int k = 0; k < m->n; k++) err = nps_err_worse(err, nps_checks_end(&m->checks[k]));
  for (int i = 0; i < m->layout->count; i++) merged += m->layout->targets[i].action != NPS_ACTION_HEAD;
  if (err == NPS_OK && merged == 0) err = nps_fail(NPS_ERR_INPUT, "no tensor is common to all models");
  return err;
}

static nps_err_t match_all(match_t *m) {
  nps_err_t err = NPS_OK;
  for (int k = 0; k < m->n; k++) {
    err = nps_err_worse(err, refuse_quantised(m->inputs[k]));
    err = nps_err_worse(err, refuse_mixture(m->inputs[k]));
  }
  err = nps_err_worse(err, check_adapters(m));
  if (err != NPS_OK) return err;
  match_common(m);
  if (m->head >= 0) add_head(m);
  NPS_TRY(end_checks(m));
  note_extras(m);
  note_kept(m);
  set_layers(m);
  return NPS_OK;
}

nps_err_t nps_layout_match(const nps_model_t *const *inputs, int n, int base, int head, const nps_dtype_t *dtype,
                           nps_layout_t **out) {
  match_t m = {.inputs = inputs, .n = n, .base = base, .reference = base >= 0 ? base : 0, .head = head, .dtype = dtype};
  if (head < 0 && base >= 0 && n == 2) m.head = 1 - base;
  size_t room = (size_t)inputs[m.reference]->tensor_count;
  if (m.head >= 0) room += (size_t)inputs[m.head]->tensor_count;
  m.layout = nps_xcalloc(1, sizeof *m.layout);
  m.layout->inputs = n;
  m.layout->targets = nps_xcalloc(room, sizeof *m.layout->targets);
  m.layout->source = nps_xcalloc(room * (size_t)n + (size_t)n, sizeof *m.layout->source);
  m.checks = nps_xcalloc((size_t)n, sizeof *m.checks);
  m.used = nps_xcalloc((size_t)n, sizeof *m.used);
  for (int k = 0; k < n; k++) {
    m.checks[k].where = inputs[k]->name;
    m.used[k] = nps_xcalloc((size_t)inputs[k]->tensor_count, sizeof(bool));
  }
  nps_err_t err = match_all(&m);
  for (int k = 0; k < n; k++) free(m.used[k]);
  free(m.used);
  free(m.kept.text);
  free(m.checks);
  *out = NULL;
  if (err == NPS_OK)
    *out = m.layout;
  else
    nps_layout_free(m.layout);
  return err;
}

nps_layout_t *nps_layout_copy(const nps_model_t *model) {
  nps_layout_t *layout = nps_xcalloc(1, sizeof *layout);
  const nps_tensor_info_t **order = in_file_order(model);
  layout->inputs = 1;
  layout->targets = nps_xcalloc((size_t)model->tensor_count, sizeof *layout->targets);
  layout->source = nps_xcalloc((size_t)model->tensor_count, sizeof *layout->source);
  for (int i = 0; i < model->tensor_count; i++) {
    const nps_tensor_info_t *t = order[i];
    layout->source[i] = (int)(t - model->tensors);
    layout->targets[i] = (nps_target_t){.name = t->name,
                                        .action = NPS_ACTION_COPY,
                                        .dtype = nps_tensor_written(t),
                                        .ndim = t->ndim,
                                        .shape = t->shape,
                                        .count = t->count,
                                        .source = &layout->source[i]};
  }
  layout->count = model->tensor_count;
  free(order);
  return layout;
}

void nps_layout_free(nps_layout_t *layout) {
  if (!layout) return;
  free(layout->targets);
  free(layout->source);
  free(layout);
}
