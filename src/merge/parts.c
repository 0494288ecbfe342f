/* Tensors that a method writes beside the merged ones: planned from shapes, made by the rank that merges the tensor. */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

bool nps_merge_is_whole(const nps_merge_t *merge, int target) {
  const nps_merge_method_t *method = merge->spec.method;
  return method->merge_whole && (!method->whole || method->whole(&merge->tensors[target]));
}

/* ---- the plan ---- */

typedef struct {
  nps_part_t part;
  int target, at;
} planned_t;

static int by_group(const void *a, const void *b) {
  const planned_t *x = a, *y = b;
  const int order = strcmp(x->part.group, y->part.group);
  return order ? order : x->at - y->at;
}

/* Adds the parts of a target to the list. */
static int plan_target(const nps_merge_t *merge, int t, planned_t *list, int count) {
  const nps_merge_spec_t *spec = &merge->spec;
  nps_part_t parts[NPS_MAX_PARTS];
  for (int i = 0; i < NPS_MAX_PARTS; i++) parts[i] = (nps_part_t){.dtype = spec->layout->targets[t].dtype};
  const int n = merge->tensors[t].name ? spec->method->plan_parts(&merge->tensors[t], parts) : 0;
  for (int i = 0; i < n; i++) {
    parts[i].name = merge->tensors[t].name;
    list[count + i] = (planned_t){parts[i], t, count + i};
  }
  return count + n;
}

nps_err_t nps_merge_plan_parts(nps_merge_t *merge) {
  const int targets = merge->spec.layout->count;
  planned_t *list = nps_xcalloc((size_t)targets * NPS_MAX_PARTS + 1, sizeof *list);
  nps_err_t err = NPS_OK;
  int count = 0;
  for (int t = 0; t < targets; t++) count = plan_target(merge, t, list, count);
  qsort(list, (size_t)count, sizeof *list, by_group);
  merge->parts = nps_xcalloc((size_t)count + 1, sizeof *merge->parts);
  merge->part_target = nps_xcalloc((size_t)count + 1, sizeof *merge->part_target);
  merge->part_bytes = nps_xcalloc((size_t)targets + 1, sizeof *merge->part_bytes);
  merge->part_count = count;
  for (int i = 0; i < count && err == NPS_OK; i++) {
    nps_part_t *part = &list[i].part;
    if (!nps_shape_count(part->ndim, part->shape, &part->count) || part->count > INT64_MAX / 16)
      err =
          nps_fail(NPS_ERR_INPUT, "tensor %s: what %s makes of it is too large", part->name, merge->spec.method->name);
    merge->parts[i] = *part;
    merge->part_target[i] = list[i].target;
    merge->part_bytes[list[i].target] += part->count * (int64_t)nps_dtype_size(part->dtype);
  }
  free(list);
  if (err == NPS_OK && count > 0 && !merge->family_known)
    nps_note("the model is of no family with a native evaluator: its linear layers are taken to be the matrices "
             "NAME.weight, [out, in], within numbered layers");
  if (err == NPS_OK && count == 0)
    err = nps_fail(NPS_ERR_INPUT, "%s: %s finds no linear layer in the base model", merge->spec.config_file,
                   merge->spec.method->name);
  return err;
}

const nps_part_t *nps_merge_parts(const nps_merge_t *merge, int *count) {
  *count = merge->part_count;
  return merge->parts;
}

nps_err_t nps_merge_describe_parts(const nps_merge_t *merge, nps_h5_t *file) {
  const nps_merge_spec_t *spec = &merge->spec;
  if (merge->part_count == 0) return NPS_OK;
  const char **names = nps_xcalloc((size_t)spec->model_count, sizeof *names);
  for (int m = 0; m < spec->model_count; m++) names[m] = spec->models[m].name;
  nps_err_t err = spec->method->describe_parts(&merge->tensors[merge->part_target[0]], names, file);
  free(names);
  return err;
}

/* ---- making them ---- */

static nps_err_t put_part(nps_engine_t *e, int part, const double *values) {
  const nps_part_t *p = &e->merge->parts[part];
  void *stored = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)p->count * nps_dtype_size(p->dtype), p->name, &stored));
  nps_tensor_narrow(values, p->count, p->dtype, stored);
  nps_err_t err = nps_tensor_find_nonfinite(p->dtype, stored, p->count) < 0
                      ? nps_writer_write_part(e->writer, part, stored)
                      : nps_fail(NPS_ERR_RUNTIME, "%s/%s: a value is too large for the output type %s", p->group,
                                 p->name, nps_dtype_name(p->dtype));
  free(stored);
  return err;
}

nps_err_t nps_engine_put_parts(nps_engine_t *e, int target, float *const *tau) {
  const nps_merge_t *merge = e->merge;
  int own[NPS_MAX_PARTS], count = 0;
  double *values[NPS_MAX_PARTS] = {NULL};
  nps_err_t err = NPS_OK;
  for (int i = 0; i < merge->part_count; i++)
    if (merge->part_target[i] == target) own[count++] = i;
  if (count == 0) return NPS_OK;
  for (int i = 0; i < count; i++)
    NPS_GOTO(nps_buffer_alloc((size_t)merge->parts[own[i]].count * sizeof(double), "parts of a tensor", &values[i]));
  NPS_GOTO(merge->spec.method->make_parts(&merge->tensors[target], tau, values));
  for (int i = 0; i < count; i++) NPS_GOTO(put_part(e, own[i], values[i]));
done:
  for (int i = 0; i < count; i++) free(values[i]);
  return err;
}
