/* What follows a model in sentence-transformers: modules.json, and the folders that it names. */
#include "tokenizer.h"

#include "nps/compose.h"

#include <stdlib.h>

static void take_all(nps_sidecar_t *from, int n, nps_sidecar_t **files, int *count) {
  for (int i = 0; i < n; i++) {
    nps_sidecar_set(files, count, from[i].name, from[i].data, from[i].size);
    from[i].data = NULL;
  }
}

nps_err_t nps_sidecars_add_modules(const nps_model_t *const *models, int model_count, nps_sidecar_t **files,
                                   int *count) {
  for (int m = 0; m < model_count && !nps_sidecar_find(*files, *count, "modules.json"); m++) {
    nps_sidecar_t *found = NULL;
    int n = 0;
    NPS_TRY(nps_sidecars_read_modules(models[m], &found, &n));
    if (nps_sidecar_find(found, n, "modules.json")) {
      nps_note("modules.json, and what it names for sentence-transformers, is that of %s", models[m]->name);
      take_all(found, n, files, count);
    }
    nps_sidecars_free(found, n);
  }
  return NPS_OK;
}

void nps_sidecars_note_modules(const nps_sidecar_t *files, int count) {
  for (int i = 0; i < count; i++)
    if (nps_is_module_weights(files[i].name))
      nps_note("%s: is copied as it is: weights of modules that follow the model are not merged", files[i].name);
}
