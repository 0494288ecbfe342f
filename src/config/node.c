#include "node.h"

#include <stdlib.h>
#include <string.h>

nps_node_t *nps_node_new(nps_node_kind_t kind, nps_place_t place) {
  nps_node_t *node = nps_xcalloc(1, sizeof *node);
  node->kind = kind;
  node->place = place;
  return node;
}

void nps_node_free(nps_node_t *node) {
  if (!node) return;
  for (int i = 0; i < node->count; i++) {
    free(node->entries[i].key);
    nps_node_free(node->entries[i].value);
  }
  free(node->entries);
  free(node->text);
  free(node);
}

void nps_node_add(nps_node_t *node, const char *key, nps_place_t place, nps_node_t *value) {
  if (node->count == node->room) {
    node->room = node->room ? 2 * node->room : 4;
    node->entries = nps_xrealloc(node->entries, (size_t)node->room, sizeof *node->entries);
  }
  node->entries[node->count++] = (nps_entry_t){.key = key ? nps_xstrdup(key) : NULL, .place = place, .value = value};
}

nps_entry_t *nps_node_find(const nps_node_t *node, const char *key) {
  if (node->kind != NPS_NODE_MAPPING) return NULL;
  for (int i = 0; i < node->count; i++)
    if (strcmp(node->entries[i].key, key) == 0) return &node->entries[i];
  return NULL;
}

const char *nps_show(const char *text, char out[72]) {
  size_t n = strlen(text), keep = n <= 60 ? n : 57;
  /* never cut a UTF-8 sequence in two */
  while (keep < n && keep > 0 && ((unsigned char)text[keep] & 0xC0) == 0x80) keep--;
  for (size_t i = 0; i < keep; i++) out[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7F ? ' ' : text[i];
  memcpy(out + keep, keep < n ? "..." : "", keep < n ? 4 : 1);
  return out;
}

static char *place_text(nps_place_t place, const char *fmt, va_list args) NPS_PRINTF(2, 0);

static char *place_text(nps_place_t place, const char *fmt, va_list args) {
  char *what = nps_xvstrf(fmt, args);
  char *text =
      place.line ? nps_xstrf("%s:%d: %s", place.source, place.line, what) : nps_xstrf("%s: %s", place.source, what);
  free(what);
  return text;
}

nps_err_t nps_place_fail(nps_place_t place, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *text = place_text(place, fmt, args);
  va_end(args);
  nps_fail(NPS_ERR_CONFIG, "%s", text);
  free(text);
  return NPS_ERR_CONFIG;
}

void nps_place_note(nps_place_t place, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *text = place_text(place, fmt, args);
  va_end(args);
  nps_note("%s", text);
  free(text);
}
