/** @file slices.h
 *  Reading and writing `slices` and `modules`. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_SLICES_H
#define NPS_CONFIG_SLICES_H

#include "node.h"
#include "nps/config.h"

/** Read `slices` into the recipe, with the models of their sources; problems are recorded. */
void nps_slices_read(const nps_node_t *node, const char *what, nps_recipe_t *recipe);

/** Read `modules`: only the module `default`, with `models` or `slices`. */
void nps_modules_read(const nps_node_t *node, const char *what, nps_recipe_t *recipe);

/** Check that there is exactly one of `models`, `slices` and `modules`, and what goes with slices. @param root  the config */
void nps_slices_check(const nps_recipe_t *recipe, const nps_node_t *root);

/** Write models or slices as YAML that parses to the same. */
void nps_slices_emit(nps_text_t *out, const nps_recipe_t *recipe);

void nps_slices_free(nps_recipe_t *recipe);

#endif
