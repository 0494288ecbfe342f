/** @file emit.h
 *  Writing values as YAML. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_EMIT_H
#define NPS_CONFIG_EMIT_H

#include "nps/config.h"

/** Write a text that YAML reads back as it is, in flow style too, quoted where needed. */
void nps_emit_text(nps_text_t *out, const char *text);

/** Write the fewest digits that give the same number back. */
void nps_emit_number(nps_text_t *out, double number);

/** Write "KEY: TEXT" and a newline. */
void nps_emit_pair(nps_text_t *out, const char *key, const char *text);

/** Write `parameters` of a level, nothing where there are none. */
void nps_emit_settings(nps_text_t *out, const nps_settings_t *settings, const char *indent);

#endif
