/* Lists of the small files that travel with a model. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

nps_sidecar_t *nps_sidecar_find(nps_sidecar_t *list, int count, const char *name) {
  for (int i = 0; i < count; i++)
    if (strcmp(list[i].name, name) == 0) return &list[i];
  return NULL;
}

void nps_sidecar_set(nps_sidecar_t **list, int *count, const char *name, char *data, size_t size) {
  nps_sidecar_t *file = nps_sidecar_find(*list, *count, name);
  if (!file) {
    *list = nps_xrealloc(*list, (size_t)*count + 1, sizeof **list);
    file = &(*list)[(*count)++];
    *file = (nps_sidecar_t){.name = nps_xstrdup(name)};
  }
  free(file->data);
  file->data = data;
  file->size = size;
}

void nps_sidecar_drop(nps_sidecar_t *list, int *count, const char *name) {
  nps_sidecar_t *file = nps_sidecar_find(list, *count, name);
  if (!file) return;
  free(file->name);
  free(file->data);
  *file = list[--*count];
}
