#include "level.h"

#include <stdlib.h>
#include <string.h>

static const nps_key_t *find_key(const nps_key_t *keys, int count, const char *name) {
  for (int i = 0; i < count; i++)
    if (strcmp(keys[i].name, name) == 0) return &keys[i];
  return NULL;
}

static void fail_unknown(const nps_entry_t *entry, const char *path, const nps_key_t *keys, int count) {
  const char **names = nps_xcalloc((size_t)count, sizeof *names);
  for (int i = 0; i < count; i++) names[i] = keys[i].name;
  const char *near = nps_nearest(entry->key, names, count);
  const nps_key_t *meant = near ? find_key(keys, count, near) : NULL;
  if (meant && meant->instead) near = meant->instead;
  char shown[72];
  nps_show(entry->key, shown);
  const char *in = *path ? " in " : "";
  if (near)
    nps_place_fail(entry->place, "unknown key '%s'%s%s, did you mean '%s'?", shown, in, path, near);
  else
    nps_place_fail(entry->place, "unknown key '%s'%s%s%s", shown, in, path,
                   find_key(keys, count, "parameters") ? "; a method's parameters belong under 'parameters'" : "");
  free(names);
}

static void read_entry(const nps_entry_t *entry, const nps_key_t *key, const char *path, void *target) {
  char *what = nps_xstrf("%s%s%s", path, *path ? "." : "", entry->key);
  switch (key->state) {
  case NPS_KEY_READ:
    if (!nps_node_is_null(entry->value)) key->read(target, entry->value, what);
    break;
  case NPS_KEY_NOT_BUILT:
    nps_place_fail(entry->place, "%s: not built yet", what);
    break;
  case NPS_KEY_NO_EFFECT:
    nps_place_note(entry->place, "key '%s' has no effect here", what);
    break;
  case NPS_KEY_ELSEWHERE:
    break;
  }
  free(what);
}

void nps_level_read(const nps_node_t *node, const char *path, const nps_key_t *keys, int count, void *target) {
  char found[96];
  if (node->kind != NPS_NODE_MAPPING) {
    nps_place_fail(node->place, "%s: expected a mapping, found %s", path, nps_node_describe(node, found));
    return;
  }
  for (int i = 0; i < node->count; i++) {
    const nps_key_t *key = find_key(keys, count, node->entries[i].key);
    if (!key || key->state == NPS_KEY_ELSEWHERE)
      fail_unknown(&node->entries[i], path, keys, count);
    else
      read_entry(&node->entries[i], key, path, target);
  }
}

void nps_text_read(const nps_node_t *value, const char *what, char **out) {
  char found[96];
  if (value->kind != NPS_NODE_SCALAR)
    nps_place_fail(value->place, "%s: expected a text, found %s", what, nps_node_describe(value, found));
  else if (!*value->text)
    nps_place_fail(value->place, "%s: expected a text, found an empty one", what);
  else
    *out = nps_xstrdup(value->text);
}
