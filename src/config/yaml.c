#include "node.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* Far above what a config needs; they keep aliases of aliases and long lists of keys from eating memory and time. */
#define MAX_DEPTH 64
#define MAX_NODES 1000000
#define MAX_KEYS 4096
#define MAX_ANCHORS 1000

typedef struct anchor {
  char *name;
  nps_node_t *node; /* a copy: the original may be dropped as a repeated or merged key */
} anchor_t;

typedef struct loader {
  yaml_parser_t parser;
  const char *text, *source;
  size_t size;
  bool lines;
  int nodes;
  anchor_t *anchors;
  int anchor_count;
} loader_t;

static nps_place_t place_at(const loader_t *l, const yaml_mark_t *mark) {
  int line = mark->line < INT_MAX ? (int)mark->line + 1 : INT_MAX;
  return (nps_place_t){l->source, l->lines ? line : 0};
}

/* The reader of libyaml gives a byte offset only. */
static nps_place_t place_of_offset(const loader_t *l, size_t offset) {
  nps_place_t place = {l->source, l->lines};
  for (size_t i = 0; l->lines && i < offset && i < l->size; i++) place.line += l->text[i] == '\n';
  return place;
}

static bool is_indented_by_tab(const loader_t *l, size_t line) {
  size_t at = 0;
  for (; line > 0 && at < l->size; at++) line -= l->text[at] == '\n';
  while (at < l->size && l->text[at] == ' ') at++;
  return at < l->size && l->text[at] == '\t';
}

static nps_err_t fail_parse(const loader_t *l) {
  const yaml_parser_t *p = &l->parser;
  if (p->error == YAML_MEMORY_ERROR) nps_fatal("out of memory while parsing %s", l->source);
  if (p->error == YAML_READER_ERROR)
    return nps_place_fail(place_of_offset(l, p->problem_offset), "not a text in UTF-8: %s (byte 0x%02X)", p->problem,
                          (unsigned)p->problem_value);
  if (p->error == YAML_SCANNER_ERROR && is_indented_by_tab(l, p->problem_mark.line))
    return nps_place_fail(place_at(l, &p->problem_mark), "tab used for indentation, expected spaces");
  return nps_place_fail(place_at(l, &p->problem_mark), "not YAML: %s%s%s", p->context ? p->context : "",
                        p->context ? ": " : "", p->problem);
}

static nps_err_t next_event(loader_t *l, yaml_event_t *event) {
  return yaml_parser_parse(&l->parser, event) ? NPS_OK : fail_parse(l);
}

static nps_err_t count_node(loader_t *l, nps_place_t place, int depth) {
  if (depth > MAX_DEPTH) return nps_place_fail(place, "nested deeper than %d levels", MAX_DEPTH);
  if (++l->nodes > MAX_NODES)
    return nps_place_fail(place, "more than %d values, those that aliases repeat included", MAX_NODES);
  return NPS_OK;
}

static nps_err_t copy_node(loader_t *l, const nps_node_t *from, nps_place_t alias, int depth, nps_node_t **out) {
  *out = NULL;
  NPS_TRY(count_node(l, alias, depth));
  nps_node_t *node = nps_node_new(from->kind, from->place);
  node->quoted = from->quoted;
  if (from->text) node->text = nps_xstrdup(from->text);
  for (int i = 0; i < from->count; i++) {
    nps_node_t *child;
    nps_err_t err = copy_node(l, from->entries[i].value, alias, depth + 1, &child);
    if (err != NPS_OK) {
      nps_node_free(node);
      return err;
    }
    nps_node_add(node, from->entries[i].key, from->entries[i].place, child);
  }
  *out = node;
  return NPS_OK;
}

static nps_err_t add_anchor(loader_t *l, const yaml_char_t *name, const nps_node_t *node, int depth) {
  if (!name) return NPS_OK;
  if (l->anchor_count == MAX_ANCHORS) return nps_place_fail(node->place, "more than %d anchors", MAX_ANCHORS);
  nps_node_t *copy;
  NPS_TRY(copy_node(l, node, node->place, depth, &copy));
  if (!l->anchors) l->anchors = nps_xcalloc(MAX_ANCHORS, sizeof *l->anchors);
  l->anchors[l->anchor_count++] = (anchor_t){nps_xstrdup((const char *)name), copy};
  return NPS_OK;
}

static nps_err_t parse_alias(loader_t *l, const yaml_event_t *event, int depth, nps_node_t **out) {
  const char *name = (const char *)event->data.alias.anchor;
  nps_place_t place = place_at(l, &event->start_mark);
  for (int i = l->anchor_count - 1; i >= 0; i--)
    if (strcmp(l->anchors[i].name, name) == 0) return copy_node(l, l->anchors[i].node, place, depth, out);
  char shown[72];
  return nps_place_fail(place, "alias '*%s' without an anchor '&%s' before it", nps_show(name, shown), shown);
}

/* Tags other than those that say what is there anyway could change a value's meaning. */
static nps_err_t check_tag(const yaml_char_t *tag, const char *expected, nps_place_t place) {
  if (!tag || strcmp((const char *)tag, "!") == 0 || strcmp((const char *)tag, expected) == 0) return NPS_OK;
  char shown[72];
  return nps_place_fail(place, "tag '%s' is not supported", nps_show((const char *)tag, shown));
}

static nps_err_t parse_scalar(loader_t *l, const yaml_event_t *event, nps_node_t **out) {
  nps_place_t place = place_at(l, &event->start_mark);
  const yaml_char_t *tag = event->data.scalar.tag;
  NPS_TRY(check_tag(tag, YAML_STR_TAG, place));
  if (memchr(event->data.scalar.value, '\0', event->data.scalar.length))
    return nps_place_fail(place, "a text with a NUL character");
  nps_node_t *node = nps_node_new(NPS_NODE_SCALAR, place);
  node->text = nps_xstrdup((const char *)event->data.scalar.value);
  node->quoted = tag || event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
  *out = node;
  return NPS_OK;
}

static nps_err_t parse_node(loader_t *l, yaml_event_t *event, int depth, nps_node_t **out);

static nps_err_t parse_list(loader_t *l, nps_node_t *list, int depth) {
  for (;;) {
    yaml_event_t event;
    NPS_TRY(next_event(l, &event));
    if (event.type == YAML_SEQUENCE_END_EVENT) {
      yaml_event_delete(&event);
      return NPS_OK;
    }
    nps_node_t *item;
    NPS_TRY(parse_node(l, &event, depth, &item));
    nps_node_add(list, NULL, item->place, item);
  }
}

static nps_err_t merge_mapping(loader_t *l, nps_node_t *map, const nps_node_t *from, nps_place_t place, int depth) {
  if (from->kind != NPS_NODE_MAPPING)
    return nps_place_fail(place, "merge key '<<': expected a mapping or a list of mappings");
  for (int i = 0; i < from->count; i++) {
    const nps_entry_t *entry = &from->entries[i];
    if (nps_node_find(map, entry->key)) continue;
    if (map->count == MAX_KEYS) return nps_place_fail(place, "more than %d keys in a mapping", MAX_KEYS);
    nps_node_t *copy;
    NPS_TRY(copy_node(l, entry->value, place, depth, &copy));
    nps_node_add(map, entry->key, entry->place, copy);
  }
  return NPS_OK;
}

/* Keys written in the mapping itself come first, then earlier mappings of the list. */
static nps_err_t apply_merge(loader_t *l, nps_node_t *map, const nps_node_t *value, nps_place_t place, int depth) {
  if (value->kind != NPS_NODE_LIST) return merge_mapping(l, map, value, place, depth);
  for (int i = 0; i < value->count; i++) NPS_TRY(merge_mapping(l, map, value->entries[i].value, place, depth));
  return NPS_OK;
}

/* Put a parsed value under its key; frees it where it cannot be. */
static nps_err_t add_entry(nps_node_t *map, const nps_node_t *key, nps_node_t *value) {
  const nps_entry_t *first = nps_node_find(map, key->text);
  char shown[72];
  if (!first && map->count < MAX_KEYS) {
    nps_node_add(map, key->text, key->place, value);
    return NPS_OK;
  }
  nps_node_free(value);
  if (!first) return nps_place_fail(key->place, "more than %d keys in a mapping", MAX_KEYS);
  if (first->place.line)
    nps_place_fail(key->place, "key '%s' is repeated, first on line %d", nps_show(key->text, shown), first->place.line);
  else
    nps_place_fail(key->place, "key '%s' is repeated", nps_show(key->text, shown));
  return NPS_OK;
}

static nps_err_t parse_pair(loader_t *l, nps_node_t *map, nps_node_t *key, nps_node_t **merge, int depth) {
  yaml_event_t event;
  nps_node_t *value;
  NPS_TRY(next_event(l, &event));
  NPS_TRY(parse_node(l, &event, depth, &value));
  if (key->quoted || strcmp(key->text, "<<") != 0) return add_entry(map, key, value);
  if (!*merge) {
    *merge = value;
    return NPS_OK;
  }
  nps_node_free(value);
  return nps_place_fail(key->place, "key '<<' is repeated");
}

static nps_err_t parse_entries(loader_t *l, nps_node_t *map, nps_node_t **merge, nps_place_t *merge_place, int depth) {
  for (;;) {
    yaml_event_t event;
    nps_node_t *key;
    NPS_TRY(next_event(l, &event));
    if (event.type == YAML_MAPPING_END_EVENT) {
      yaml_event_delete(&event);
      return NPS_OK;
    }
    NPS_TRY(parse_node(l, &event, depth, &key));
    bool had_merge = *merge;
    nps_err_t err = key->kind == NPS_NODE_SCALAR ? parse_pair(l, map, key, merge, depth)
                                                 : nps_place_fail(key->place, "a key is no text");
    if (*merge && !had_merge) *merge_place = key->place;
    nps_node_free(key);
    if (err != NPS_OK) return err;
  }
}

static nps_err_t parse_mapping(loader_t *l, nps_node_t *map, int depth) {
  nps_node_t *merge = NULL;
  nps_place_t place = map->place;
  nps_err_t err = parse_entries(l, map, &merge, &place, depth);
  if (err == NPS_OK && merge) err = apply_merge(l, map, merge, place, depth);
  nps_node_free(merge);
  return err;
}

static nps_err_t parse_collection(loader_t *l, const yaml_event_t *event, int depth, nps_node_t **out) {
  nps_place_t place = place_at(l, &event->start_mark);
  bool list = event->type == YAML_SEQUENCE_START_EVENT;
  NPS_TRY(list ? check_tag(event->data.sequence_start.tag, YAML_SEQ_TAG, place)
               : check_tag(event->data.mapping_start.tag, YAML_MAP_TAG, place));
  nps_node_t *node = nps_node_new(list ? NPS_NODE_LIST : NPS_NODE_MAPPING, place);
  nps_err_t err = list ? parse_list(l, node, depth + 1) : parse_mapping(l, node, depth + 1);
  if (err != NPS_OK) {
    nps_node_free(node);
    return err;
  }
  *out = node;
  return NPS_OK;
}

static const yaml_char_t *anchor_of(const yaml_event_t *event) {
  switch (event->type) {
  case YAML_SCALAR_EVENT:
    return event->data.scalar.anchor;
  case YAML_SEQUENCE_START_EVENT:
    return event->data.sequence_start.anchor;
  case YAML_MAPPING_START_EVENT:
    return event->data.mapping_start.anchor;
  default:
    return NULL;
  }
}

/* Parse the node that an event starts; frees the event. */
static nps_err_t parse_node(loader_t *l, yaml_event_t *event, int depth, nps_node_t **out) {
  *out = NULL;
  nps_err_t err;
  NPS_GOTO(count_node(l, place_at(l, &event->start_mark), depth));
  if (event->type == YAML_ALIAS_EVENT) {
    err = parse_alias(l, event, depth, out);
    goto done;
  }
  NPS_GOTO(event->type == YAML_SCALAR_EVENT ? parse_scalar(l, event, out) : parse_collection(l, event, depth, out));
  err = add_anchor(l, anchor_of(event), *out, depth);
  if (err != NPS_OK) {
    nps_node_free(*out);
    *out = NULL;
  }
done:
  yaml_event_delete(event);
  return err;
}

static nps_err_t expect_end(loader_t *l) {
  yaml_event_t event;
  NPS_TRY(next_event(l, &event)); /* the document's end */
  yaml_event_delete(&event);
  NPS_TRY(next_event(l, &event));
  nps_err_t err = NPS_OK;
  if (event.type != YAML_STREAM_END_EVENT)
    err = nps_place_fail(place_at(l, &event.start_mark), "a second document starts, expected one");
  yaml_event_delete(&event);
  return err;
}

static nps_err_t parse_document(loader_t *l, nps_node_t **out) {
  yaml_event_t event;
  NPS_TRY(next_event(l, &event)); /* the stream's start */
  yaml_event_delete(&event);
  NPS_TRY(next_event(l, &event)); /* a document's start or the stream's end */
  bool empty = event.type == YAML_STREAM_END_EVENT;
  yaml_event_delete(&event);
  if (empty) return NPS_OK;
  NPS_TRY(next_event(l, &event));
  NPS_TRY(parse_node(l, &event, 0, out));
  return expect_end(l);
}

nps_err_t nps_yaml_parse(const char *text, size_t size, const char *source, bool lines, nps_node_t **out) {
  *out = NULL;
  if (size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) text += 3, size -= 3;
  loader_t l = {.text = text, .size = size, .source = source, .lines = lines};
  if (!yaml_parser_initialize(&l.parser)) nps_fatal("out of memory while parsing %s", source);
  yaml_parser_set_encoding(&l.parser, YAML_UTF8_ENCODING);
  yaml_parser_set_input_string(&l.parser, (const unsigned char *)text, size);
  nps_err_t err = parse_document(&l, out);
  if (err != NPS_OK) {
    nps_node_free(*out);
    *out = NULL;
  }
  for (int i = 0; i < l.anchor_count; i++) {
    free(l.anchors[i].name);
    nps_node_free(l.anchors[i].node);
  }
  free(l.anchors);
  yaml_parser_delete(&l.parser);
  return err;
}
