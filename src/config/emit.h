/** @file emit.h
 *  Writing values as YAML. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_EMIT_H
#define NPS_CONFIG_EMIT_H

#include "nps/base.h"

/** Write a text that YAML reads back as it is, in flow style too, quoted where needed. */
void nps_emit_text(nps_text_t *out, const char *text);

/** Write the fewest digits that give the same number back. */
void nps_emit_number(nps_text_t *out, double number);

#endif
