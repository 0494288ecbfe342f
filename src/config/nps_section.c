/* `nps:` and `archive:` */
#include "level.h"
#include "section.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* As nps/delta.h has it, which is above this module; the merge checks it again. */
enum { MAX_SUBSPACES = 256 };

static const nps_word_t applications[] = {{"fusion", NPS_APPLICATION_FUSION},
                                          {"transfer", NPS_APPLICATION_TRANSFER},
                                          {"compression", NPS_APPLICATION_COMPRESSION}};
static const nps_word_t partitions[] = {{"magnitude", false}, {"singular", true}};
static const nps_word_t sources[] = {{"each", false}, {"sum", true}};
static const nps_word_t scopes[] = {{"model", NPS_SCOPE_MODEL}, {"tensor", NPS_SCOPE_TENSOR}};

static nps_recipe_nps_t *section(void *target) { return &((nps_recipe_t *)target)->nps; }

static void read_application(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, applications, COUNT(applications), &word))
    section(target)->application = (nps_application_t)word;
}

static void read_partition(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, partitions, COUNT(partitions), &word)) section(target)->singular = word;
}

static void read_source(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, sources, COUNT(sources), &word)) section(target)->sum = word;
}

/* Parts of names; an empty one would be part of every name. */
static void read_exclude(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_nps_t *nps = section(target);
  char found[96];
  if (value->kind != NPS_NODE_LIST) {
    nps_place_fail(value->place, "%s: expected a list of parts of tensors' names, found %s", what,
                   nps_node_describe(value, found));
    return;
  }
  nps->exclude = nps_xcalloc((size_t)value->count + 1, sizeof *nps->exclude);
  for (int i = 0; i < value->count; i++) {
    const nps_node_t *part = value->entries[i].value;
    if (part->kind == NPS_NODE_SCALAR && *part->text)
      nps->exclude[nps->exclude_count++] = nps_xstrdup(part->text);
    else
      nps_place_fail(part->place, "%s: expected a part of a tensor's name, found %s", what,
                     nps_node_describe(part, found));
  }
}

static void read_subspaces(void *target, const nps_node_t *value, const char *what) {
  int64_t count;
  if (nps_count_read(value, what, 1, MAX_SUBSPACES, &count)) section(target)->subspaces = (int)count;
}

static void read_scope(void *target, const nps_node_t *value, const char *what) {
  int word;
  if (nps_word_read(value, what, scopes, COUNT(scopes), &word)) section(target)->scope = (nps_scope_t)word;
}

static void read_density(void *target, const nps_node_t *value, const char *what) {
  nps_number_read(value, what, 0, false, 1, &section(target)->density);
}

/* M numbers, or {name: [M numbers]}; how many they must be is checked when `subspaces` is known. */
static void read_rows(const nps_node_t *value, const char *what, double least, nps_recipe_row_t **rows, int *count) {
  if (value->kind == NPS_NODE_LIST && value->count == 0) return;
  const bool named = value->kind == NPS_NODE_MAPPING;
  const int room = named ? value->count : 1;
  *rows = nps_xcalloc((size_t)room, sizeof **rows);
  for (int i = 0; i < room; i++) {
    nps_recipe_row_t *row = &(*rows)[*count];
    char *inner = named ? nps_xstrf("%s.%s", what, value->entries[i].key) : nps_xstrdup(what);
    if (nps_numbers_read(named ? value->entries[i].value : value, inner, 0, least, &row->numbers, &row->count)) {
      row->model = named ? nps_xstrdup(value->entries[i].key) : NULL;
      (*count)++;
    }
    free(inner);
  }
}

static void read_weights(void *target, const nps_node_t *value, const char *what) {
  read_rows(value, what, -HUGE_VAL, &section(target)->weights, &section(target)->weight_rows);
}

static void read_priorities(void *target, const nps_node_t *value, const char *what) {
  read_rows(value, what, 0, &section(target)->priorities, &section(target)->priority_rows);
}

static void read_value_bits(void *target, const nps_node_t *value, const char *what) {
  static const nps_word_t widths[] = {{"4", 4}, {"8", 8}, {"16", 16}};
  nps_word_read(value, what, widths, COUNT(widths), &((nps_recipe_t *)target)->archive.value_bits);
}

static void read_embed(void *target, const nps_node_t *value, const char *what) {
  nps_boolean_read(value, what, &((nps_recipe_t *)target)->archive.embed_base);
}

void nps_archive_read(nps_recipe_t *recipe, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"value_bits", NPS_KEY_READ, read_value_bits, NULL},
                                   {"embed_base", NPS_KEY_READ, read_embed, NULL}};
  recipe->archive.given = true;
  nps_level_read(value, what, keys, COUNT(keys), recipe);
}

void nps_nps_read(nps_recipe_t *recipe, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"application", NPS_KEY_READ, read_application, NULL},
                                   {"partition", NPS_KEY_READ, read_partition, NULL},
                                   {"of", NPS_KEY_READ, read_source, NULL},
                                   {"spectral_exclude", NPS_KEY_READ, read_exclude, NULL},
                                   {"subspaces", NPS_KEY_READ, read_subspaces, NULL},
                                   {"scope", NPS_KEY_READ, read_scope, NULL},
                                   {"density", NPS_KEY_READ, read_density, NULL},
                                   {"weights", NPS_KEY_READ, read_weights, NULL},
                                   {"priorities", NPS_KEY_READ, read_priorities, NULL}};
  recipe->nps.given = true;
  nps_level_read(value, what, keys, COUNT(keys), recipe);
}
