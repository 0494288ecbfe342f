/* Notes on filters that choose no tensor: a misspelt name, or one behind a filter that matches all. */
#include "merge_internal.h"

#include <stdlib.h>
#include <string.h>

/* Settings with filters, each once, though models share them by YAML's aliases. */
typedef struct {
  const nps_setting_t **items;
  int count;
} found_t;

static void collect(const nps_merge_t *merge, const nps_settings_t *settings, found_t *found) {
  for (int i = 0; settings && i < settings->count; i++) {
    const nps_setting_t *setting = &settings->items[i];
    bool known =
        nps_value_filter_count(setting->value) == 0 || !nps_merge_find_param(merge->spec.method, setting->name);
    for (int k = 0; k < found->count && !known; k++)
      known = setting->line > 0 && found->items[k]->line == setting->line &&
              strcmp(found->items[k]->name, setting->name) == 0;
    if (known) continue;
    found->items = nps_xrealloc(found->items, (size_t)found->count + 1, sizeof(nps_setting_t *));
    found->items[found->count++] = setting;
  }
}

static found_t collect_all(const nps_merge_t *merge) {
  const nps_merge_spec_t *spec = &merge->spec;
  found_t found = {0};
  collect(merge, spec->settings, &found);
  collect(merge, spec->module, &found);
  for (int m = 0; m < spec->model_count; m++) collect(merge, spec->models[m].settings, &found);
  for (int s = 0; s < spec->slice_count; s++) {
    collect(merge, spec->slices[s].settings, &found);
    for (int m = 0; m < spec->slices[s].models; m++) collect(merge, spec->slices[s].of_model[m], &found);
  }
  return found;
}

/* Whether a filter matches some tensor, of the merged model or, where slices give them other names, of a model. */
static bool matches_any(const nps_merge_spec_t *spec, const char *filter) {
  for (int t = 0; t < spec->layout->count; t++)
    if (nps_filter_matches(filter, spec->layout->targets[t].name)) return true;
  for (int i = 0; spec->slice_count > 0 && i < spec->input_count; i++)
    for (int t = 0; t < spec->inputs[i]->tensor_count; t++)
      if (nps_filter_matches(filter, nps_model_origin(spec->inputs[i], t))) return true;
  return false;
}

static void note_of(const nps_merge_t *merge, const nps_setting_t *setting) {
  char where[NPS_WHERE];
  bool all = false;
  nps_merge_where(merge, setting, where);
  for (int i = 0; i < nps_value_filter_count(setting->value); i++) {
    const char *filter = nps_value_filter(setting->value, i);
    if (all)
      nps_note("%sparameter '%s': filter '%s' stands behind one that matches every tensor and has no effect", where,
               setting->name, filter);
    else if (!matches_any(&merge->spec, filter))
      nps_note("%sparameter '%s': filter '%s' is in no tensor's name and has no effect", where, setting->name, filter);
    all = all || strcmp(filter, "*") == 0;
  }
}

void nps_merge_note_filters(const nps_merge_t *merge) {
  const found_t found = collect_all(merge);
  for (int i = 0; i < found.count; i++) note_of(merge, found.items[i]);
  free(found.items);
}
