/* Models whose tensors are computed when they are read, from a base's and from what lies beside it. */
#include "nps/archive.h"

#include "archive_read.h"
#include "peft.h"

#include <stdlib.h>
#include <string.h>

/* Every form has one line here. */
static const nps_derivation_form_t *const forms[] = {&nps_archive_form, &nps_peft_form, &nps_sara_form};

const nps_derivation_form_t *nps_derivation_form(const char *name) {
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
    if (strcmp(forms[i]->name, name) == 0) return forms[i];
  return NULL;
}

nps_err_t nps_model_derive(const nps_derivation_form_t *form, const char *name, const char *path, nps_model_t *base,
                           nps_model_t *parts, char *text, nps_model_t **out) {
  nps_model_t *model = nps_model_new(name, path, NPS_FORM_DERIVED);
  model->derivation = nps_xcalloc(1, sizeof *model->derivation);
  *model->derivation = (nps_derivation_t){.form = form, .base = base, .parts = parts, .text = text};
  if (base->config_json) model->config_json = nps_xstrdup(base->config_json);
  nps_err_t err = form->plan(model);
  if (err == NPS_OK) err = nps_model_sort(model);
  *out = NULL;
  if (err == NPS_OK)
    *out = model;
  else
    nps_model_free(model);
  return err;
}

void nps_derivation_free(nps_derivation_t *d) {
  if (!d) return;
  if (d->rules) d->form->free_rules(d->rules);
  nps_model_free(d->base);
  nps_model_free(d->parts);
  free(d->text);
  free(d);
}

nps_dtype_t nps_tensor_written(const nps_tensor_info_t *info) {
  return info->rule || info->made ? info->written : info->dtype;
}

int64_t nps_model_reader_bytes(const nps_model_t *model) {
  const nps_derivation_t *d = model->derivation;
  if (model->form == NPS_FORM_MADE) return nps_made_reader_bytes(model);
  return d ? d->form->bytes(model) + nps_model_reader_bytes(d->base) : 0;
}

/* ---- BASE+ADAPTER ---- */

static bool leads_somewhere(const char *path) {
  char *base = NULL, *beside = NULL;
  const bool found = nps_path_exists(path) || nps_path_split(path, &base, &beside) || nps_archive_split(path);
  free(base);
  free(beside);
  return found;
}

/* The last plus between two paths that lead somewhere: a base may have a plus itself. */
bool nps_path_split(const char *path, char **base, char **beside) {
  *base = *beside = NULL;
  if (nps_path_exists(path)) return false;
  for (size_t n = strlen(path); n-- > 1;) {
    if (path[n] != '+' || !nps_path_exists(path + n + 1)) continue;
    char *left = nps_xstrndup(path, n);
    if (leads_somewhere(left)) {
      *base = left;
      *beside = nps_xstrdup(path + n + 1);
      return true;
    }
    free(left);
  }
  return false;
}
