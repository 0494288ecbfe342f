/* PEFT adapters: which tensor of the base each tensor of the adapter changes, and how. */
#include "peft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a tensor of an adapter is, by the end of its name. */
typedef enum { KIND_A, KIND_B, KIND_BIAS, KIND_MAGNITUDE, KIND_VECTOR, KIND_STORED } kind_t;

static const struct {
  const char *end;
  kind_t kind;
  bool embedding;
} ends[] = {{".lora_A.weight", KIND_A, false},
            {".lora_B.weight", KIND_B, false},
            {".lora_B.bias", KIND_BIAS, false},
            {".lora_embedding_A", KIND_A, true},
            {".lora_embedding_B", KIND_B, true},
            {".lora_magnitude_vector", KIND_MAGNITUDE, false},
            {".lora_magnitude_vector.weight", KIND_MAGNITUDE, false},
            {".ia3_l", KIND_VECTOR, false}};

#define PREFIX "base_model.model."

typedef struct {
  nps_model_t *model;
  const nps_model_t *base, *parts;
  nps_peft_t *peft;
  nps_peft_config_t config;
  nps_checks_t checks;
  int *rule_of;   /* [base->tensor_count] index of a rule, or -1 */
  int *stored_of; /* [base->tensor_count] index into parts of what stands for it, or -1 */
  bool *extra;    /* [parts->tensor_count] not in the base */
  char *prefix;   /* what the base's names have before the adapter's, with a dot; or NULL */
  bool drop;      /* the base's names lack the first component of the adapter's */
} plan_t;

/* ---- names ---- */

static kind_t kind_of(const char *name, bool *embedding, size_t *module_length) {
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
    if (!nps_ends_with(name, ends[i].end)) continue;
    *embedding = ends[i].embedding;
    *module_length = strlen(name) - strlen(ends[i].end);
    return ends[i].kind;
  }
  return KIND_STORED;
}

/* Takes a part out of a name. */
static void cut(char *name, const char *part) {
  char *at = strstr(name, part);
  if (at) memmove(at + 1, at + strlen(part), strlen(at + strlen(part)) + 1);
}

/* The name in the base of a tensor that the adapter holds whole. */
static char *stored_name(const char *name) {
  char *plain = nps_xstrdup(name);
  cut(plain, ".base_layer.");
  cut(plain, ".modules_to_save.");
  return plain;
}

/* The module of a tensor of the adapter, as the peft library names it. */
static char *module_of(const char *name) {
  bool embedding = false;
  size_t length = 0;
  kind_of(name, &embedding, &length);
  return nps_xstrndup(name + strlen(PREFIX), length - strlen(PREFIX));
}

/* What the base calls a tensor of the peft library's model: the same, but where one is a model with a head and the other is
 * not (gpt2 has h.0, the adapter transformer.h.0). */
static char *in_base(const plan_t *p, const char *name) {
  const char *dot = strchr(name, '.');
  if (p->prefix) return nps_xstrf("%s%s", p->prefix, name);
  return nps_xstrdup(p->drop && dot ? dot + 1 : name);
}

/* ---- rules ---- */

static nps_peft_rule_t *rule_for(plan_t *p, int w) {
  if (p->rule_of[w] < 0) {
    const nps_tensor_info_t *t = &p->base->tensors[w];
    p->peft->rules = nps_xrealloc(p->peft->rules, (size_t)p->peft->count + 1, sizeof *p->peft->rules);
    p->rule_of[w] = p->peft->count++;
    p->peft->rules[p->rule_of[w]] = (nps_peft_rule_t){
        .w = w, .stored = -1, .a = -1, .b = -1, .magnitude = -1, .vector = -1, .rows = t->ndim ? t->shape[0] : 1};
  }
  return &p->peft->rules[p->rule_of[w]];
}

/* The base's tensor MODULE.LAST, or -1. */
static int find_in_module(const plan_t *p, const char *module, const char *last) {
  char *plain = nps_xstrf("%s.%s", module, last), *name = in_base(p, plain);
  const int w = nps_model_find(p->base, name);
  free(plain);
  free(name);
  return w;
}

static void fail_unfit(plan_t *p, int part, const char *expected) {
  nps_checks_fail(&p->checks, "tensor %s fits no tensor of the base %s, expected %s there",
                  p->parts->tensors[part].name, p->base->path, expected);
}

static void add_stored(plan_t *p, int part, const char *rest) {
  char *name = stored_name(rest), *there = in_base(p, name);
  const int w = nps_model_find(p->base, there);
  if (w >= 0)
    p->stored_of[w] = part;
  else if (nps_peft_is_saved(&p->config, name))
    p->extra[part] = true;
  else
    fail_unfit(p, part, name);
  free(name);
  free(there);
}

static void add_vector(plan_t *p, int part, const char *module, int w) {
  const nps_tensor_info_t *v = &p->parts->tensors[part];
  const int bias = find_in_module(p, module, "bias");
  const bool feedforward = v->ndim == 2 && v->shape[0] == 1;
  rule_for(p, w)->vector = part;
  if (!feedforward && bias >= 0) rule_for(p, bias)->vector = part;
}

static void add_part(plan_t *p, int part, kind_t kind, const char *module) {
  const char *last = kind == KIND_BIAS ? "bias" : "weight";
  const int w = find_in_module(p, module, last);
  if (w < 0) {
    char *expected = nps_xstrf("%s.%s", module, last);
    fail_unfit(p, part, expected);
    free(expected);
    return;
  }
  if (kind == KIND_A) rule_for(p, w)->a = part;
  if (kind == KIND_B || kind == KIND_BIAS) rule_for(p, w)->b = part;
  if (kind == KIND_MAGNITUDE) rule_for(p, w)->magnitude = part;
  if (kind == KIND_VECTOR) add_vector(p, part, module, w);
}

static void sort_part(plan_t *p, int part) {
  const nps_tensor_info_t *t = &p->parts->tensors[part];
  const size_t prefix = strlen(PREFIX);
  bool embedding = false;
  size_t length = 0;
  if (strncmp(t->name, PREFIX, prefix) != 0 || nps_dtype_kind(t->dtype) != NPS_KIND_FLOAT) {
    nps_checks_fail(&p->checks, "tensor %s is %s, expected floating-point numbers under a name that begins with %s",
                    t->name, nps_dtype_name(t->dtype), PREFIX);
    return;
  }
  const kind_t kind = kind_of(t->name + prefix, &embedding, &length);
  if (kind == KIND_STORED) {
    add_stored(p, part, t->name + prefix);
    return;
  }
  if ((kind == KIND_VECTOR) != p->config.ia3) {
    nps_checks_fail(&p->checks, "tensor %s: peft_type is %s", t->name, p->config.ia3 ? "IA3" : "LORA");
    return;
  }
  char *module = nps_xstrndup(t->name + prefix, length);
  add_part(p, part, kind, module);
  free(module);
}

/* ---- how the base's names differ ---- */

/* Whether the base has every module that the adapter changes. */
static bool all_found(const plan_t *p) {
  bool all = true, embedding = false;
  size_t length = 0;
  for (int i = 0; i < p->parts->tensor_count && all; i++) {
    const char *name = p->parts->tensors[i].name;
    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0 || kind_of(name, &embedding, &length) == KIND_STORED) continue;
    char *module = module_of(name);
    all = find_in_module(p, module, "weight") >= 0;
    free(module);
  }
  return all;
}

/* Tries the names as they are, without their first component, and behind every first component of the base's. */
static void find_names(plan_t *p) {
  if (all_found(p)) return;
  p->drop = true;
  if (all_found(p)) return;
  p->drop = false;
  for (int w = 0; w < p->base->tensor_count; w++) {
    const char *name = p->base->tensors[w].name, *dot = strchr(name, '.');
    const size_t length = dot ? (size_t)(dot + 1 - name) : 0;
    if (length == 0 || (w > 0 && strncmp(name, p->base->tensors[w - 1].name, length) == 0)) continue;
    p->prefix = nps_xstrndup(name, length);
    if (all_found(p)) return;
    free(p->prefix);
    p->prefix = NULL;
  }
}

/* ---- shapes ---- */

static const nps_tensor_info_t *part_of(const plan_t *p, int part) {
  return part < 0 ? NULL : &p->parts->tensors[part];
}

static void fail_shape(plan_t *p, int part, const nps_tensor_info_t *w) {
  char found[192], expected[192];
  const nps_tensor_info_t *t = part_of(p, part);
  nps_checks_fail(&p->checks, "tensor %s is %s, which does not fit %s of the base's %s", t->name,
                  nps_shape_format(t->ndim, t->shape, found), nps_shape_format(w->ndim, w->shape, expected), w->name);
}

static void check_rank(plan_t *p, nps_peft_rule_t *rule) {
  double rank = 0;
  char *module = module_of(part_of(p, rule->a)->name);
  if (nps_peft_scale(&p->config, p->checks.where, module, &rank, &rule->scale) != NPS_OK)
    p->checks.count++;
  else if ((double)rule->rank < rank || (double)rule->rank > rank)
    nps_checks_fail(&p->checks, "tensor %s has rank %lld, expected %.17g by adapter_config.json",
                    part_of(p, rule->a)->name, (long long)rule->rank, rank);
  free(module);
}

/* B·A has the shape of W or of its transpose; where both fit, the config tells. */
static void fit_low_rank(plan_t *p, nps_peft_rule_t *rule, const nps_tensor_info_t *w) {
  const nps_tensor_info_t *a = part_of(p, rule->a), *b = part_of(p, rule->b);
  const bool embedding = nps_ends_with(a->name, "_A");
  rule->rank = a->ndim >= 2 ? a->shape[0] : 0;
  if (rule->rank == 0 || rule->rank > INT32_MAX || a->count == 0 || b->ndim < 2 ||
      b->count != b->shape[0] * rule->rank) {
    fail_shape(p, rule->rank && a->count ? rule->b : rule->a, w);
    return;
  }
  const int64_t in = a->count / rule->rank, out = b->shape[0];
  const bool straight = !embedding && out == rule->rows && in == rule->columns;
  const bool turned = w->ndim == 2 && out == rule->columns && in == rule->rows;
  rule->transposed = turned && (!straight || p->config.fan_in_fan_out);
  if (straight || turned)
    check_rank(p, rule);
  else
    fail_shape(p, out == rule->rows || out == rule->columns ? rule->a : rule->b, w);
}

static void fit_magnitude(plan_t *p, const nps_peft_rule_t *rule, const nps_tensor_info_t *w) {
  if (part_of(p, rule->magnitude)->count != (rule->transposed ? rule->columns : rule->rows))
    fail_shape(p, rule->magnitude, w);
}

/* A vector that is added to a bias: one column times 1. */
static void fit_bias(plan_t *p, nps_peft_rule_t *rule, const nps_tensor_info_t *w) {
  double rank = 0;
  char *module = module_of(part_of(p, rule->b)->name);
  if (nps_peft_scale(&p->config, p->checks.where, module, &rank, &rule->scale) != NPS_OK) p->checks.count++;
  free(module);
  rule->rank = 1;
  if (rule->columns != 1 || part_of(p, rule->b)->count != rule->rows) fail_shape(p, rule->b, w);
}

/* [1][in] scales inputs, [out][1] outputs; a weight may be stored [in][out]. */
static void fit_vector(plan_t *p, nps_peft_rule_t *rule, const nps_tensor_info_t *w) {
  const nps_tensor_info_t *v = part_of(p, rule->vector);
  const bool inputs = v->ndim == 2 && v->shape[0] == 1;
  const bool rows = v->count == rule->rows, columns = w->ndim > 1 && v->count == rule->columns;
  if (w->ndim == 1)
    rule->by_columns = false;
  else if (rows && columns)
    rule->by_columns = inputs != p->config.fan_in_fan_out;
  else
    rule->by_columns = columns;
  if (w->ndim > 2 || v->ndim != 2 || !(rows || columns) || (v->shape[0] != 1 && v->shape[1] != 1))
    fail_shape(p, rule->vector, w);
}

static bool lacks_partner(plan_t *p, const nps_peft_rule_t *rule, const nps_tensor_info_t *w) {
  const bool bias = nps_ends_with(w->name, ".bias");
  const bool half = (rule->a < 0) != (rule->b < 0) && !(bias && rule->b >= 0);
  const bool dora = rule->a >= 0 && (rule->magnitude >= 0) != p->config.dora;
  if (half || (rule->magnitude >= 0 && rule->a < 0))
    nps_checks_fail(&p->checks, "tensor %s of the base has one of lora_A and lora_B but not the other", w->name);
  else if (dora)
    nps_checks_fail(&p->checks, "use_dora is %s, but %s has %s lora_magnitude_vector",
                    p->config.dora ? "true" : "false", w->name, p->config.dora ? "no" : "a");
  return half || dora || (rule->magnitude >= 0 && rule->a < 0);
}

static void fit_rule(plan_t *p, nps_peft_rule_t *rule) {
  const nps_tensor_info_t *base = &p->base->tensors[rule->w], *w = base;
  rule->stored = p->stored_of[rule->w];
  if (rule->stored >= 0) w = part_of(p, rule->stored);
  if (nps_dtype_kind(w->dtype) != NPS_KIND_FLOAT || w->count == 0) {
    nps_checks_fail(&p->checks, "tensor %s of the base is %s and cannot be changed", base->name,
                    nps_dtype_name(w->dtype));
    return;
  }
  rule->rows = w->ndim ? w->shape[0] : 1;
  rule->columns = w->count / rule->rows;
  if (lacks_partner(p, rule, base)) return;
  if (rule->a >= 0)
    fit_low_rank(p, rule, base);
  else if (rule->b >= 0)
    fit_bias(p, rule, base);
  if (rule->magnitude >= 0 && rule->rank > 0) fit_magnitude(p, rule, base);
  if (rule->vector >= 0) fit_vector(p, rule, base);
}

/* ---- the catalogue ---- */

static void add_tensor(plan_t *p, const nps_tensor_info_t *from, int first_file, const char *name, int rule) {
  nps_tensor_info_t info = *from;
  info.name = nps_xstrdup(name);
  info.file += first_file;
  info.rule = rule;
  info.written = nps_tensor_written(from);
  if (rule) info.dtype = from->dtype == NPS_F64 ? NPS_F64 : NPS_F32;
  nps_model_add_tensor(p->model, &info);
}

static void make_catalogue(plan_t *p) {
  const int base_files = nps_model_add_files(p->model, p->base), part_files = nps_model_add_files(p->model, p->parts);
  for (int w = 0; w < p->base->tensor_count; w++) {
    const nps_tensor_info_t *t = &p->base->tensors[w];
    const int part = p->stored_of[w], rule = p->rule_of[w] + 1;
    add_tensor(p, part >= 0 ? part_of(p, part) : t, part >= 0 ? part_files : base_files, t->name, rule);
  }
  for (int i = 0; i < p->parts->tensor_count; i++) {
    const nps_tensor_info_t *t = part_of(p, i);
    if (!p->extra[i]) continue;
    char *name = stored_name(t->name + strlen(PREFIX));
    add_tensor(p, t, part_files, name, 0);
    free(name);
  }
}

static void free_rules(void *rules) {
  nps_peft_t *peft = rules;
  free(peft->rules);
  free(peft);
}

static int64_t bytes(const nps_model_t *model) {
  const nps_derivation_t *d = model->derivation;
  const nps_peft_t *peft = d->rules;
  int64_t most = 0;
  for (int i = 0; i < peft->count; i++) most = nps_max64(most, nps_peft_rule_bytes(d, &peft->rules[i]));
  return most;
}

static nps_err_t plan_all(plan_t *p, const char *text) {
  NPS_TRY(nps_peft_config_read(text, p->checks.where, &p->config));
  p->peft->omega = p->config.omega;
  find_names(p);
  for (int i = 0; i < p->parts->tensor_count; i++) sort_part(p, i);
  for (int w = 0; w < p->base->tensor_count; w++) /* what the base computes itself is handed on */
    if (p->base->tensors[w].rule && p->stored_of[w] < 0) rule_for(p, w);
  for (int i = 0; i < p->peft->count; i++) fit_rule(p, &p->peft->rules[i]);
  NPS_TRY(nps_checks_end(&p->checks));
  make_catalogue(p);
  return NPS_OK;
}

static nps_err_t plan(nps_model_t *model) {
  const nps_derivation_t *d = model->derivation;
  plan_t p = {.model = model, .base = d->base, .parts = d->parts, .checks = {d->parts->path, 0}};
  p.peft = model->derivation->rules = nps_xcalloc(1, sizeof *p.peft);
  p.rule_of = nps_xcalloc((size_t)d->base->tensor_count + 1, sizeof *p.rule_of);
  p.stored_of = nps_xcalloc((size_t)d->base->tensor_count + 1, sizeof *p.stored_of);
  p.extra = nps_xcalloc((size_t)d->parts->tensor_count + 1, sizeof *p.extra);
  for (int w = 0; w < d->base->tensor_count; w++) p.rule_of[w] = p.stored_of[w] = -1;
  nps_err_t err = plan_all(&p, d->text);
  nps_peft_config_free(&p.config);
  free(p.rule_of);
  free(p.stored_of);
  free(p.extra);
  free(p.prefix);
  return err;
}

const nps_derivation_form_t nps_peft_form = {.name = "peft",
                                             .plan = plan,
                                             .free_rules = free_rules,
                                             .begin = nps_peft_begin,
                                             .read = nps_peft_read,
                                             .end = nps_peft_end,
                                             .bytes = bytes};
