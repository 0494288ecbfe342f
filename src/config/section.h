/** @file section.h
 *  The sections of merge_method nps: nps, search, fitness. Private to config. Everything here is local; problems are
 *  recorded. */
#ifndef NPS_CONFIG_SECTION_H
#define NPS_CONFIG_SECTION_H

#include "node.h"
#include "nps/config.h"

/** Set the defaults of all three sections. */
void nps_sections_default(nps_recipe_t *recipe);

/** Read a section into the recipe: `target` is an nps_recipe_t. */
void nps_nps_read(nps_recipe_t *recipe, const nps_node_t *value, const char *what);
void nps_archive_read(nps_recipe_t *recipe, const nps_node_t *value, const char *what);
void nps_search_read(nps_recipe_t *recipe, const nps_node_t *value, const char *what);
void nps_fitness_read(nps_recipe_t *recipe, const nps_node_t *value, const char *what);

/** Check the sections against each other and against the models, once all is read. @param root  the config */
void nps_sections_check(nps_recipe_t *recipe, const nps_node_t *root);

/** Write the sections as YAML that parses to the same. */
void nps_sections_emit(nps_text_t *out, const nps_recipe_t *recipe);

void nps_sections_free(nps_recipe_t *recipe);

/* ---- values (section_values.c) ---- */

/** Read a finite number within [least, most]; above: the lower bound itself is left out. */
bool nps_number_read(const nps_node_t *value, const char *what, double least, bool above, double most, double *out);

/** Read a whole number within [least, most]. */
bool nps_count_read(const nps_node_t *value, const char *what, int64_t least, int64_t most, int64_t *out);

bool nps_boolean_read(const nps_node_t *value, const char *what, bool *out);

/** A word of a key: what it stands for, or that it is not built yet. */
typedef struct nps_word {
  const char *text;
  int value; /**< NPS_WORD_NOT_BUILT: not built yet */
} nps_word_t;
enum { NPS_WORD_NOT_BUILT = -1 };

/** Read one of several words. @param words  [count] */
bool nps_word_read(const nps_node_t *value, const char *what, const nps_word_t *words, int count, int *out);

/** Give the word for a value. */
const char *nps_word_text(const nps_word_t *words, int count, int value);

/** Read a list of exactly or, with count 0, at least one number. @param[out] out  freed with free() */
bool nps_numbers_read(const nps_node_t *value, const char *what, int expected, double least, double **out, int *count);

#endif
