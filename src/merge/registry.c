#include "merge_internal.h"

#include <stdlib.h>
#include <string.h>

/* Adding a method: write its nps_merge_method_t in a file of this folder and add one line here. */
static const nps_merge_method_t *const methods[] = {
    &nps_method_linear,
    &nps_method_task_arithmetic,
    &nps_method_ties,
    &nps_method_dare_linear,
    &nps_method_dare_ties,
    &nps_method_breadcrumbs,
    &nps_method_breadcrumbs_ties,
    &nps_method_della,
    &nps_method_della_linear,
    &nps_method_sce,
    &nps_method_ram,
    &nps_method_ramplus_tl,
    &nps_method_slerp,
    &nps_method_nuslerp,
    &nps_method_multislerp,
    &nps_method_karcher,
    &nps_method_model_stock,
    &nps_method_nearswap,
    &nps_method_arcee_fusion,
    &nps_method_passthrough,
    &nps_method_consensus,
    &nps_method_nps,
    &nps_method_tsv_m,
    &nps_method_iso_c,
    &nps_method_iso_cts,
    &nps_method_knots,
    &nps_method_opcm,
    &nps_method_smile,
};

enum { METHODS = sizeof methods / sizeof *methods };

static const char *const planned[] = {
    "fisher",
    "regmean",
    "pcb",
    "emr",
};

enum { PLANNED = sizeof planned / sizeof *planned };

/* Parameters of planned methods and of mergekit, which a config may hold for a method that does not use them. */
static const char *const other_params[] = {
    "int8_mask", "alpha", "mode", "row_wise", "flatten", "density", "tokenizer",
};

enum { OTHER_PARAMS = sizeof other_params / sizeof *other_params };

const char *const nps_choices_bool[] = {"false", "true", NULL};

nps_err_t nps_merge_method_find(const char *name, const char *where, const nps_merge_method_t **out) {
  const char *names[METHODS + PLANNED];
  for (int i = 0; i < METHODS; i++) {
    if (strcmp(methods[i]->name, name) == 0) {
      *out = methods[i];
      return NPS_OK;
    }
    names[i] = methods[i]->name;
  }
  for (int i = 0; i < PLANNED; i++) {
    if (strcmp(planned[i], name) == 0)
      return nps_fail(NPS_ERR_CONFIG, "%smerge_method '%s' is not built yet", where, name);
    names[METHODS + i] = planned[i];
  }
  const char *nearest = nps_nearest(name, names, METHODS + PLANNED);
  if (nearest) return nps_fail(NPS_ERR_CONFIG, "%sunknown merge_method '%s', did you mean '%s'?", where, name, nearest);
  nps_text_t list = {0};
  for (int i = 0; i < METHODS; i++) nps_text_add(&list, i ? ", %s" : "%s", methods[i]->name);
  nps_err_t err = nps_fail(NPS_ERR_CONFIG, "%sunknown merge_method '%s'; known are %s", where, name, list.text);
  free(list.text);
  return err;
}

const nps_merge_method_t *nps_merge_method_singular(void) { return &nps_method_nps_singular; }

bool nps_merge_param_known(const char *name) {
  for (int i = 0; i < OTHER_PARAMS; i++)
    if (strcmp(other_params[i], name) == 0) return true;
  for (int i = 0; i < METHODS; i++)
    for (int k = 0; k < methods[i]->param_count; k++)
      if (strcmp(methods[i]->params[k].name, name) == 0) return true;
  return false;
}
