#include "override.h"

#include "names.h"

#include <stdlib.h>
#include <string.h>

#define MAX_COMPONENTS 64

/* Where the path has led so far: the place of a value, and what is left of the path. */
typedef struct cursor {
  nps_node_t **slot;
  const char *rest; /* the next component; NULL at the end */
  const char *path; /* from its start, for messages */
  nps_place_t place;
  bool at_models; /* the slot is the top-level key `models` */
} cursor_t;

static void advance(cursor_t *c, nps_node_t **slot, size_t component) {
  c->slot = slot;
  c->rest = c->rest[component] == '.' ? c->rest + component + 1 : NULL;
}

static nps_err_t step_mapping(cursor_t *c) {
  nps_node_t *map = *c->slot;
  size_t n = strcspn(c->rest, ".");
  char *key = nps_xstrndup(c->rest, n);
  nps_entry_t *entry = nps_node_find(map, key);
  if (!entry) {
    nps_node_add(map, key, c->place, nps_node_new(NPS_NODE_MAPPING, c->place));
    entry = &map->entries[map->count - 1];
  }
  c->at_models = c->rest == c->path && strcmp(key, "models") == 0;
  free(key);
  advance(c, &entry->value, n);
  return NPS_OK;
}

/* A name may contain dots: the longest that the path starts with counts. */
static int find_model(const nps_node_t *models, const char *rest, size_t *length) {
  if (models->count > NPS_MAX_MODELS) return -1;
  char **names = nps_model_names(models, NULL);
  int found = -1;
  for (int i = 0; i < models->count; i++) {
    size_t n = names[i] ? strlen(names[i]) : 0;
    if (n == 0 || strncmp(names[i], rest, n) != 0 || (rest[n] != '.' && rest[n] != '\0')) continue;
    if (found >= 0 && n <= *length) continue;
    found = i;
    *length = n;
  }
  nps_model_names_free(names, models->count);
  return found;
}

static int find_index(const nps_node_t *list, const char *rest, size_t *length) {
  size_t n = strspn(rest, "0123456789");
  if (n == 0 || n > 6 || (rest[n] != '.' && rest[n] != '\0')) return -1;
  *length = n;
  int index = atoi(rest);
  return index < list->count ? index : -1;
}

/* " or the name of a model: a, b", with the first names. @return owned */
static char *list_models(const nps_node_t *models) {
  enum { MOST = 10 };
  nps_text_t text = {0};
  char shown[72];
  nps_text_add(&text, " or the name of a model");
  if (models->count > NPS_MAX_MODELS) return text.text;
  char **names = nps_model_names(models, NULL);
  int told = 0;
  for (int i = 0; i < models->count && told <= MOST; i++) {
    if (!names[i]) continue;
    nps_text_add(&text, "%s%s", told ? ", " : ": ", told < MOST ? nps_show(names[i], shown) : "…");
    told++;
  }
  nps_model_names_free(names, models->count);
  return text.text;
}

static nps_err_t step_list(cursor_t *c) {
  nps_node_t *list = *c->slot;
  size_t n = 0;
  int index = find_index(list, c->rest, &n);
  if (index < 0 && c->at_models) index = find_model(list, c->rest, &n);
  if (index >= 0) {
    c->at_models = false;
    advance(c, &list->entries[index].value, n);
    return NPS_OK;
  }
  char shown[72], *component = nps_xstrndup(c->rest, strcspn(c->rest, "."));
  nps_show(component, shown);
  free(component);
  if (list->count == 0) return nps_place_fail(c->place, "no entry '%s' in an empty list", shown);
  char *names = c->at_models ? list_models(list) : nps_xstrdup("");
  nps_err_t err = nps_place_fail(c->place, "no entry '%s' in a list of %d, expected an index from 0 to %d%s", shown,
                                 list->count, list->count - 1, names);
  free(names);
  return err;
}

static nps_err_t step(cursor_t *c) {
  nps_node_t *node = *c->slot;
  if (nps_node_is_null(node)) {
    nps_node_free(node);
    node = *c->slot = nps_node_new(NPS_NODE_MAPPING, c->place);
  }
  if (node->kind == NPS_NODE_MAPPING) return step_mapping(c);
  if (node->kind == NPS_NODE_LIST) return step_list(c);
  char found[96];
  return nps_place_fail(c->place, "expected a mapping or list before '%s', found %s", c->rest,
                        nps_node_describe(node, found));
}

/* Bytes of the UTF-8 sequence at s, 0 when it is none. */
static size_t utf8_length(const unsigned char *s) {
  static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  size_t n = s[0] < 0x80 ? 1 : (s[0] & 0xE0) == 0xC0 ? 2 : (s[0] & 0xF0) == 0xE0 ? 3 : (s[0] & 0xF8) == 0xF0 ? 4 : 0;
  uint32_t code = s[0] & (0x7Fu >> n);
  if (n < 2) return n;
  for (size_t i = 1; i < n; i++) {
    if ((s[i] & 0xC0) != 0x80) return 0;
    code = code << 6 | (s[i] & 0x3Fu);
  }
  return code >= least[n] && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF) ? n : 0;
}

static bool is_utf8(const char *text) {
  const unsigned char *s = (const unsigned char *)text;
  size_t n = 1;
  for (; *s && n; s += n) n = utf8_length(s);
  return n > 0;
}

static nps_err_t check_path(const char *path, nps_place_t place) {
  int components = 1;
  bool empty = *path == '\0' || *path == '.';
  for (const char *c = path; *c; c++) {
    if (*c != '.') continue;
    components++;
    if (c[1] == '.' || c[1] == '\0') empty = true;
  }
  if (empty) return nps_place_fail(place, "expected key.path=value, found an empty key");
  if (!is_utf8(path)) return nps_place_fail(place, "expected key.path=value in UTF-8");
  if (components > MAX_COMPONENTS) return nps_place_fail(place, "more than %d keys in a path", MAX_COMPONENTS);
  return NPS_OK;
}

nps_err_t nps_override_apply(nps_node_t *root, const nps_override_t *change, const char *source) {
  cursor_t c = {.slot = &root, .rest = change->path, .path = change->path, .place = {source, 0}};
  nps_node_t *value = NULL;
  NPS_TRY(check_path(change->path, c.place));
  NPS_TRY(nps_yaml_parse(change->value, strlen(change->value), source, false, &value));
  if (!value) {
    value = nps_node_new(NPS_NODE_SCALAR, c.place);
    value->text = nps_xstrdup("");
  }
  while (c.rest) {
    nps_err_t err = step(&c);
    if (err == NPS_OK) continue;
    nps_node_free(value);
    return err;
  }
  nps_node_free(*c.slot);
  *c.slot = value;
  return NPS_OK;
}
