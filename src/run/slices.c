/* Slices: the recipe's become those of what is composed, and the models of the method their places. */
#include "run_internal.h"

#include <stdlib.h>

nps_model_t *const *nps_run_sources(const nps_run_state_t *run, int *count) {
  *count = run->sources ? run->source_count : run->input_count;
  return run->sources ? run->sources : run->inputs;
}

int nps_run_reference(const nps_run_state_t *run) {
  const nps_recipe_t *recipe = run->recipe;
  if (run->source_base >= 0) return run->source_base;
  return run->input_of[recipe->slice_count > 0 ? recipe->slices[0].sources[0].model : 0];
}

/* ---- sources in the order of the method ---- */

static int base_of(const nps_run_state_t *run, int slice) {
  return run->slice_base[slice] >= 0 ? run->slice_base[slice] : run->source_base;
}

/* The source that is the base, which comes first where the method has one; -1: none is. */
static int find_base(const nps_run_state_t *run, int slice) {
  const nps_recipe_slice_t *from = &run->recipe->slices[slice];
  if (run->method->base == NPS_BASE_LISTED) return -1;
  for (int k = 0; k < from->source_count; k++)
    if (run->input_of[from->sources[k].model] == base_of(run, slice)) return k;
  return -1;
}

/* Source k in the order of the method. */
static const nps_recipe_source_t *source_at(const nps_recipe_slice_t *slice, int base, int k) {
  if (base < 0) return &slice->sources[k];
  return &slice->sources[k == 0 ? base : k <= base ? k - 1 : k];
}

static nps_err_t make_slice(const nps_run_state_t *run, int s, nps_slice_t *out) {
  const nps_recipe_slice_t *from = &run->recipe->slices[s];
  const int base = find_base(run, s);
  *out = (nps_slice_t){
      .length = from->sources[0].end - from->sources[0].first, .count = from->source_count, .base = base_of(run, s)};
  out->where = from->line > 0 ? nps_xstrf("%s:%d: slices.%d", run->recipe->file, from->line, s)
                              : nps_xstrf("--set: slices.%d", s);
  out->sources = nps_xcalloc((size_t)out->count, sizeof *out->sources);
  for (int k = 0; k < out->count; k++) {
    const nps_recipe_source_t *source = source_at(from, base, k);
    out->sources[k] = (nps_slice_source_t){run->input_of[source->model], source->first};
  }
  if (base >= 0 || run->method->base == NPS_BASE_LISTED || out->base < 0) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "%s: base_model '%s' is not among its sources, of which %s needs it", out->where,
                  from->base_model ? from->base_model : run->recipe->base_model, run->method->name);
}

/* Whether every slice has a base, in the first place. */
static bool has_bases(const nps_run_state_t *run) {
  for (int s = 0; s < run->recipe->slice_count; s++)
    if (find_base(run, s) < 0) return false;
  return true;
}

nps_err_t nps_run_compose(nps_run_state_t *run) {
  const int slices = run->recipe->slice_count;
  nps_slice_t *slice = nps_xcalloc((size_t)slices + 1, sizeof *slice);
  nps_err_t err = NPS_OK;
  for (int s = 0; s < slices; s++) err = nps_err_worse(err, make_slice(run, s, &slice[s]));
  const nps_compose_spec_t spec = {.models = (const nps_model_t *const *)run->inputs,
                                   .model_count = run->input_count,
                                   .slices = slice,
                                   .slice_count = slices,
                                   .base = run->source_base,
                                   .reference = nps_run_reference(run),
                                   .alignment = run->alignment};
  nps_model_t **made = NULL;
  int count = 0;
  if (err == NPS_OK) err = nps_compose(&spec, &made, &count);
  for (int s = 0; s < slices; s++) {
    free((char *)(uintptr_t)slice[s].where);
    free(slice[s].sources);
  }
  free(slice);
  if (!made) return err;
  run->sources = run->inputs;
  run->source_count = run->input_count;
  run->inputs = made;
  run->input_count = count;
  if (slices > 0) run->base = has_bases(run) ? 0 : -1;
  return err;
}

/* ---- models ---- */

/* The parameters of a slice's sources, in the order of the models; those of a base that is none are left out. */
static nps_merge_slice_t take_settings(const nps_run_state_t *run, int s, int skipped) {
  const nps_recipe_slice_t *from = &run->recipe->slices[s];
  const int base = find_base(run, s);
  nps_merge_slice_t slice = {.settings = &from->parameters, .models = from->source_count - skipped};
  slice.of_model = nps_xcalloc((size_t)run->input_count, sizeof *slice.of_model);
  for (int m = 0; m < slice.models; m++) slice.of_model[m] = &source_at(from, base, m + skipped)->parameters;
  return slice;
}

void nps_run_choose_places(nps_run_state_t *run) {
  const int skipped = run->method->base == NPS_BASE_TASK_VECTORS && run->base >= 0, slices = run->recipe->slice_count;
  run->model_count = run->input_count - skipped;
  run->models = nps_xcalloc((size_t)run->model_count + 1, sizeof *run->models);
  for (int m = 0; m < run->model_count; m++)
    run->models[m] = (nps_merge_model_t){m + skipped, run->inputs[m + skipped]->name, NULL};
  run->slices = nps_xcalloc((size_t)slices, sizeof *run->slices);
  for (int s = 0; s < slices; s++) run->slices[s] = take_settings(run, s, skipped);
}

void nps_run_free_slices(nps_run_state_t *run) {
  for (int s = 0; run->slices && s < run->recipe->slice_count; s++) free(run->slices[s].of_model);
  free(run->slices);
}

/* ---- showing ---- */

void nps_run_show_slices(const nps_run_state_t *run) {
  const nps_recipe_t *recipe = run->recipe;
  int64_t layer = 0;
  for (int s = 0; s < recipe->slice_count; s++) {
    const nps_recipe_slice_t *slice = &recipe->slices[s];
    const int64_t length = slice->sources[0].end - slice->sources[0].first;
    nps_text_t text = {0};
    for (int k = 0; k < slice->source_count; k++) {
      const nps_recipe_source_t *source = &slice->sources[k];
      nps_text_add(&text, "%s%s [%lld, %lld)", k ? ", " : "", recipe->models[source->model].name,
                   (long long)source->first, (long long)source->end);
    }
    nps_report_line(run->report, "  layers [%lld, %lld): %s", (long long)layer, (long long)(layer + length), text.text);
    free(text.text);
    layer += length;
  }
}
