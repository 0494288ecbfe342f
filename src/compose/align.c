/* Rows of embeddings and heads in the order of the merged vocabulary. */
#include "compose_internal.h"

#include <stdlib.h>

void nps_alignment_free(nps_alignment_t *alignment) {
  if (!alignment) return;
  free(alignment->row);
  free(alignment->rules);
  free(alignment);
}

/* The tensors that are merged into one. */
typedef struct {
  const nps_compose_spec_t *spec;
  const nps_row_part_t *parts; /* [count] */
  int count, base;
  bool averaged; /* some row is made of several */
} rows_t;

static int64_t rows_of(const rows_t *r, const nps_row_part_t *part) {
  return r->spec->models[part->model]->tensors[part->tensor].shape[0];
}

/* The row of a token in a model's tensor. @return whether there is one */
static bool find_row(const rows_t *r, const nps_row_part_t *part, int64_t token, nps_row_from_t *from) {
  const nps_alignment_t *a = r->spec->alignment;
  const int64_t row = a->row[(int64_t)part->model * a->tokens + token];
  *from = (nps_row_from_t){part->model, part->tensor, row};
  return row >= 0 && row < rows_of(r, part);
}

static const nps_row_part_t *find_part(const rows_t *r, int model) {
  for (int i = 0; i < r->count; i++)
    if (r->parts[i].model == model) return &r->parts[i];
  return NULL;
}

/* What a rule says. @param[out] parts  0: zeros */
static nps_err_t follow_rule(const rows_t *r, const char *tensor, const nps_token_rule_t *rule, nps_row_from_t *from,
                             int *parts) {
  *parts = rule->model >= 0;
  if (rule->model < 0) return NPS_OK;
  const nps_row_part_t *part = find_part(r, rule->model);
  const char *name = r->spec->models[rule->model]->name;
  if (!part)
    return nps_fail(NPS_ERR_CONFIG, "tokenizer: token %d is to come from model '%s', which has no part in tensor %s",
                    (int)rule->token, name, tensor);
  if (rule->row >= rows_of(r, part))
    return nps_fail(NPS_ERR_CONFIG, "tokenizer: token %d is to be row %d of model '%s', whose tensor %s has %lld",
                    (int)rule->token, (int)rule->row, name, tensor, (long long)rows_of(r, part));
  *from = (nps_row_from_t){part->model, part->tensor, rule->row};
  return NPS_OK;
}

/* The row of a token that a model lacks: the base's, else the mean of those that have it. @return how many parts */
static int stand_in(const rows_t *r, int64_t token, nps_row_from_t *from) {
  const nps_row_part_t *base = r->base >= 0 ? find_part(r, r->base) : NULL;
  if (base && find_row(r, base, token, from)) return 1;
  int parts = 0;
  for (int i = 0; i < r->count; i++) parts += find_row(r, &r->parts[i], token, &from[parts]);
  return parts;
}

static nps_err_t add_rows(rows_t *r, nps_tensor_info_t *info, const nps_row_part_t *own, nps_row_from_t *from) {
  const nps_alignment_t *a = r->spec->alignment;
  int next = 0;
  for (int64_t token = 0; token < a->tokens; token++) {
    const nps_token_rule_t *rule = NULL;
    if (next < a->rule_count && a->rules[next].token == token) rule = &a->rules[next++];
    int parts = 1;
    if ((rule && rule->force) || !find_row(r, own, token, from)) {
      if (rule)
        NPS_TRY(follow_rule(r, info->name, rule, from, &parts));
      else
        parts = stand_in(r, token, from);
    }
    r->averaged = r->averaged || parts > 1;
    nps_made_row(info, from, parts);
  }
  nps_made_pad(info, a->rows - a->tokens);
  r->averaged = r->averaged || a->rows > a->tokens;
  return NPS_OK;
}

/* Rows of other sizes cannot be put together. */
static nps_err_t check_sizes(const rows_t *r, const nps_tensor_info_t *info) {
  for (int i = 0; i < r->count; i++) {
    const nps_model_t *model = r->spec->models[r->parts[i].model];
    const nps_tensor_info_t *t = &model->tensors[r->parts[i].tensor];
    if (t->ndim == info->ndim && nps_dtype_kind(t->dtype) == NPS_KIND_FLOAT &&
        (t->ndim < 2 || t->shape[1] == info->shape[1]))
      continue;
    char a[192], b[192];
    return nps_fail(NPS_ERR_INPUT, "%s: tensor %s has shape %s, its rows do not fit those of %s (%s)", model->name,
                    t->name, nps_shape_format(t->ndim, t->shape, a), info->name,
                    nps_shape_format(info->ndim, info->shape, b));
  }
  return NPS_OK;
}

/* The type that all rows fit into: the models', where they have one and no row is a mean. */
static nps_dtype_t common_type(const rows_t *r) {
  const nps_tensor_info_t *first = &r->spec->models[r->parts[0].model]->tensors[r->parts[0].tensor];
  bool same = true, wide = false;
  for (int i = 0; i < r->count; i++) {
    const nps_dtype_t dtype = r->spec->models[r->parts[i].model]->tensors[r->parts[i].tensor].dtype;
    same = same && dtype == first->dtype;
    wide = wide || dtype == NPS_F64;
  }
  return same && !r->averaged ? first->dtype : wide ? NPS_F64 : NPS_F32;
}

nps_err_t nps_align_rows(const nps_compose_spec_t *spec, nps_tensor_info_t *info, const nps_row_part_t *own,
                         const nps_row_part_t *parts, int count, int base) {
  rows_t r = {.spec = spec, .parts = parts, .count = count, .base = base};
  if (info->ndim < 1 || info->ndim > 2) return NPS_OK;
  NPS_TRY(check_sizes(&r, info));
  nps_row_from_t *from = nps_xcalloc((size_t)count + 1, sizeof *from);
  nps_made_rows(info);
  nps_err_t err = add_rows(&r, info, own, from);
  info->dtype = common_type(&r);
  free(from);
  return err;
}
