/** @file models.h
 *  Reading models and parameters. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_MODELS_H
#define NPS_CONFIG_MODELS_H

#include "node.h"
#include "nps/config.h"

/** Read a reference to a model (a text, or {model: {path, revision}}) into *out, which must be NULL before. */
void nps_model_read(const nps_node_t *node, const char *what, char **out);

/** Read the parameters of a level, which must be empty before. */
void nps_settings_read(const nps_node_t *node, const char *what, nps_settings_t *settings);

/** Free what a level's parameters own. */
void nps_settings_free(nps_settings_t *settings);

/** Read `models` into the recipe: references, names, parameters. */
void nps_models_read(const nps_node_t *node, const char *what, nps_recipe_t *recipe);

#endif
