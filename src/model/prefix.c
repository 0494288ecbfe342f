/* Names that differ by what stands before them, or as old and new names of norms. transformers puts a body's name and a dot ("bert.") before the names of its
 * tensors where the model has a head, and nothing where it is the body alone. */
#include "model_internal.h"

#include <stdlib.h>
#include <string.h>

/* What stands before a name, with its dot, and how many names are found behind it. */
typedef struct {
  const char *text; /* [size] within a name */
  size_t size;
  int count;
} lead_t;

static void count_lead(lead_t **leads, int *n, const char *text, size_t size) {
  for (int i = 0; i < *n; i++)
    if ((*leads)[i].size == size && strncmp((*leads)[i].text, text, size) == 0) {
      (*leads)[i].count++;
      return;
    }
  *leads = nps_xrealloc(*leads, (size_t)*n + 1, sizeof **leads);
  (*leads)[(*n)++] = (lead_t){text, size, 1};
}

/* What most often stands before the shorter names in the longer ones. */
static lead_t find_lead(const nps_model_t *longer, const nps_model_t *shorter) {
  lead_t *leads = NULL, best = {NULL, 0, 0};
  int n = 0;
  for (int i = 0; i < longer->tensor_count; i++) {
    const char *name = longer->tensors[i].name;
    for (const char *dot = strchr(name, '.'); dot; dot = strchr(dot + 1, '.'))
      if (nps_model_find(shorter, dot + 1) >= 0) count_lead(&leads, &n, name, (size_t)(dot + 1 - name));
  }
  for (int i = 0; i < n; i++)
    if (leads[i].count > best.count) best = leads[i];
  free(leads);
  return best;
}

static int count_same(const nps_model_t *a, const nps_model_t *b) {
  int count = 0;
  for (int i = 0; i < a->tensor_count; i++) count += nps_model_find(b, a->tensors[i].name) >= 0;
  return count;
}

static char *with_lead(lead_t lead, const char *name) { return nps_xstrf("%.*s%s", (int)lead.size, lead.text, name); }

static bool has_with_lead(const nps_model_t *model, lead_t lead, const char *name) {
  char *full = with_lead(lead, name);
  const bool found = nps_model_find(model, full) >= 0;
  free(full);
  return found;
}

/* Whether a name is the body's: `like` has it with the lead, or another that begins with the same part. */
static bool is_of_body(const nps_model_t *model, const nps_model_t *like, lead_t lead, const char *name) {
  const size_t part = strcspn(name, ".");
  if (has_with_lead(like, lead, name)) return true;
  if (nps_model_find(like, name) >= 0) return false;
  for (int i = 0; i < model->tensor_count; i++) {
    const char *other = model->tensors[i].name;
    if (strcspn(other, ".") == part && strncmp(other, name, part) == 0 && has_with_lead(like, lead, other)) return true;
  }
  return false;
}

/* The name without the lead or, where that is to be put before it, with it; NULL where it stays. */
static char *rename_one(const nps_model_t *model, const nps_model_t *like, lead_t put, lead_t cut, const char *name) {
  char *changed = NULL;
  if (put.size > 0 && is_of_body(model, like, put, name)) changed = with_lead(put, name);
  if (cut.size > 0 && strncmp(name, cut.text, cut.size) == 0) changed = nps_xstrdup(name + cut.size);
  if (!changed || nps_model_find(model, changed) < 0) return changed;
  free(changed); /* it has both */
  return NULL;
}

/* ---- old names of norms ---- */

static const char *const norms[2][2] = {{"LayerNorm.weight", "LayerNorm.bias"}, {"LayerNorm.gamma", "LayerNorm.beta"}};

/* Whether a name ends in a norm's, the new or the old; *which: weight or bias. */
static bool is_norm(const char *name, bool old, int *which) {
  for (*which = 0; *which < 2; (*which)++)
    if (nps_ends_with(name, norms[old][*which])) return true;
  return false;
}

static bool has_norms(const nps_model_t *model, bool old) {
  int which;
  for (int i = 0; i < model->tensor_count; i++)
    if (is_norm(model->tensors[i].name, old, &which)) return true;
  return false;
}

bool nps_model_names_norms(const nps_model_t *model) { return has_norms(model, false) && !has_norms(model, true); }

/* Old names become new ones, or new ones old, as the other model has them. */
static bool rename_norms(nps_model_t *model, const nps_model_t *like) {
  const bool old = has_norms(model, true), like_old = has_norms(like, true);
  if (old == like_old || !has_norms(model, old) || !has_norms(like, like_old)) return false;
  if (has_norms(model, like_old) || has_norms(like, old)) return false; /* one has both */
  for (int i = 0; i < model->tensor_count; i++) {
    char *name = model->tensors[i].name;
    int which;
    if (!is_norm(name, old, &which)) continue;
    const size_t stem = strlen(name) - strlen(norms[old][which]);
    model->tensors[i].name = nps_xstrf("%.*s%s", (int)stem, name, norms[like_old][which]);
    free(name);
  }
  return true;
}

/* ---- all ---- */

static bool can_rename(const nps_model_t *model) {
  const bool stored =
      model->form == NPS_FORM_FOLDER || model->form == NPS_FORM_SAFETENSORS || model->form == NPS_FORM_HDF5;
  return stored && !model->experts;
}

nps_err_t nps_model_name_norms(nps_model_t *model, const nps_model_t *like, bool *changed) {
  *changed = can_rename(model) && rename_norms(model, like);
  return *changed ? nps_model_sort(model) : NPS_OK;
}

nps_err_t nps_model_name_like(nps_model_t *model, const nps_model_t *like, bool *changed) {
  *changed = false;
  if (!can_rename(model) || model == like) return NPS_OK;
  NPS_TRY(nps_model_name_norms(model, like, changed));
  const int same = count_same(model, like);
  if (same == model->tensor_count || same == like->tensor_count) return NPS_OK;
  lead_t put = find_lead(like, model), cut = find_lead(model, like);
  if (put.count <= same || put.count < cut.count) put.size = 0;
  if (cut.count <= same || cut.count <= put.count) cut.size = 0;
  if (put.size == 0 && cut.size == 0) return NPS_OK;
  char **names = nps_xcalloc((size_t)model->tensor_count, sizeof *names);
  for (int i = 0; i < model->tensor_count; i++) names[i] = rename_one(model, like, put, cut, model->tensors[i].name);
  for (int i = 0; i < model->tensor_count; i++) {
    if (!names[i]) continue;
    free(model->tensors[i].name);
    model->tensors[i].name = names[i];
    *changed = true;
  }
  free(names);
  return nps_model_sort(model);
}
