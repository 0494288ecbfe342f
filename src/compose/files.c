/* Lists of the small files that travel with a model. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

bool nps_is_tokenizer_file(const char *name) {
  static const char *const names[] = {"added_tokens.json",
                                      "chat_template.jinja",
                                      "chat_template.json",
                                      "merges.txt",
                                      "sentencepiece.bpe.model",
                                      "special_tokens_map.json",
                                      "spiece.model",
                                      "tekken.json",
                                      "tokenizer.json",
                                      "tokenizer.model",
                                      "tokenizer_config.json",
                                      "vocab.json",
                                      "vocab.txt"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(name, names[i]) == 0) return true;
  return false;
}

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
