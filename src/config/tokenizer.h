/** @file tokenizer.h
 *  Reading and writing `tokenizer_source` and `tokenizer`. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_TOKENIZER_H
#define NPS_CONFIG_TOKENIZER_H

#include "node.h"
#include "nps/config.h"

/** Read `tokenizer_source`: base, union, or a model. */
void nps_tokenizer_source_read(const nps_node_t *node, const char *what, nps_recipe_tokenizer_t *tokenizer);

/** Read `tokenizer`. */
void nps_tokenizer_section_read(const nps_node_t *node, const char *what, nps_recipe_tokenizer_t *tokenizer);

/** Check that not both are there. @param root  the config */
void nps_tokenizer_check(const nps_node_t *root);

/** Write it as YAML that parses to the same; nothing where nothing was given. */
void nps_tokenizer_emit(nps_text_t *out, const nps_recipe_tokenizer_t *tokenizer);

void nps_tokenizer_section_free(nps_recipe_tokenizer_t *tokenizer);

#endif
