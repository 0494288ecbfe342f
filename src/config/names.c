#include "names.h"

#include <stdlib.h>
#include <string.h>

static const char *text_of(const nps_node_t *map, const char *key) {
  const nps_entry_t *entry = nps_node_find(map, key);
  if (!entry || entry->value->kind != NPS_NODE_SCALAR || nps_node_is_null(entry->value)) return NULL;
  return entry->value->text;
}

/* A path, or mergekit's mapping of path and revision. */
static char *path_text(const nps_node_t *node) {
  if (node->kind == NPS_NODE_SCALAR) return nps_node_is_null(node) || !*node->text ? NULL : nps_xstrdup(node->text);
  const char *path = text_of(node, "path"), *revision = text_of(node, "revision");
  if (!path || !*path) return NULL;
  return revision ? nps_xstrf("%s@%s", path, revision) : nps_xstrdup(path);
}

char *nps_model_text(const nps_node_t *node) {
  if (node->kind == NPS_NODE_SCALAR) return path_text(node);
  const nps_entry_t *model = nps_node_find(node, "model"), *lora = nps_node_find(node, "lora");
  char *path = model ? path_text(model->value) : NULL, *adapter = lora ? path_text(lora->value) : NULL;
  char *both = path && adapter ? nps_xstrf("%s+%s", path, adapter) : NULL;
  free(adapter);
  if (!both) return path;
  free(path);
  return both;
}

static bool ends_with(const char *text, size_t n, const char *end) {
  size_t m = strlen(end);
  return n > m && memcmp(text + n - m, end, m) == 0;
}

/* The last path component, of the adapter if there is one, without revision and file extension. */
static char *default_name(const char *model) {
  size_t n = strlen(model);
  while (n > 1 && model[n - 1] == '/') n--;
  size_t start = n;
  while (start > 0 && model[start - 1] != '/' && !(model[start - 1] == '+' && start < n)) start--;
  const char *name = model + start;
  n -= start;
  const char *at = memchr(name, '@', n);
  if (at && at > name) n = (size_t)(at - name);
  if (ends_with(name, n, ".safetensors"))
    n -= strlen(".safetensors");
  else if (ends_with(name, n, ".h5"))
    n -= strlen(".h5");
  return n ? nps_xstrndup(name, n) : nps_xstrdup("model");
}

static int count_name(char *const *names, int count, const char *name) {
  int found = 0;
  for (int i = 0; i < count; i++) found += names[i] && strcmp(names[i], name) == 0;
  return found;
}

static char *unique_name(char *name, char *const *names, int count, bool *changed) {
  *changed = false;
  if (!count_name(names, count, name)) return name;
  *changed = true;
  for (int k = 2;; k++) {
    char *numbered = nps_xstrf("%s-%d", name, k);
    if (!count_name(names, count, numbered)) {
      free(name);
      return numbered;
    }
    free(numbered);
  }
}

char *nps_model_name(const char *model, char *const *names, int count, bool *changed) {
  return unique_name(default_name(model), names, count, changed);
}

char **nps_model_names(const nps_node_t *models, bool *changed) {
  char **names = nps_xcalloc((size_t)models->count, sizeof *names);
  for (int i = 0; i < models->count; i++) {
    const char *explicit = text_of(models->entries[i].value, "name");
    if (explicit) names[i] = nps_xstrdup(explicit);
  }
  for (int i = 0; i < models->count; i++) {
    const nps_entry_t *entry = nps_node_find(models->entries[i].value, "model");
    char *model = entry && !names[i] ? nps_model_text(entry->value) : NULL;
    bool numbered = false;
    if (model) names[i] = nps_model_name(model, names, models->count, &numbered);
    if (changed) changed[i] = numbered;
    free(model);
  }
  return names;
}

void nps_model_names_free(char **names, int count) {
  for (int i = 0; i < count; i++) free(names[i]);
  free(names);
}
