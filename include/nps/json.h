/** @file json.h
 *  Reading JSON with checks (jansson underneath). Layer 1. Everything here is local. */
#ifndef NPS_JSON_H
#define NPS_JSON_H

#include "nps/base.h"

#include <jansson.h>

/** Read a whole file into memory.
 *  @param path   the file
 *  @param limit  largest size accepted, bytes
 *  @param[out] data  NUL-terminated contents, freed with free()
 *  @param[out] size  bytes without the NUL; may be NULL
 *  @return NPS_ERR_INPUT (recorded, names the file) when it cannot be read or is larger than the limit */
nps_err_t nps_file_read(const char *path, size_t limit, char **data, size_t *size);

/** Parse JSON text; a repeated key in an object is an error.
 *  @param text   [size] bytes
 *  @param where  what the text is, for the message ("header of FILE")
 *  @param[out] out  new reference, released with json_decref()
 *  @return NPS_ERR_INPUT (recorded, names `where`, line and cause) */
nps_err_t nps_json_parse(const char *text, size_t size, const char *where, json_t **out);

/** Parse JSON as Python's json module writes it, as nps_json_parse(), but for numbers that jansson cannot hold (integers beyond
 *  64 bits, reals beyond float64, NaN, Infinity, -Infinity): they become strings of a private form, numbers for none of
 *  jansson's functions, which nps_json_print() writes as they were. For configs and the like, of which only some keys are read.
 *  @return NPS_ERR_INPUT (recorded, names `where`, line and cause) */
nps_err_t nps_json_parse_python(const char *text, size_t size, const char *where, json_t **out);

/** Parse a text, or what nps_json_print() gave, as nps_json_parse_python(), of equal keys the last one.
 *  @param text  NUL-terminated; may be NULL
 *  @return new reference, released with json_decref(); NULL where there is no text or it is no JSON (nothing is recorded) */
json_t *nps_json_of(const char *text);

/** Write JSON as json_dumps() does, with numbers that nps_json_parse_python() or nps_json_of() kept as they were read.
 *  @param flags  jansson's; without JSON_ENSURE_ASCII
 *  @return freed with free(); NULL where json is NULL or cannot be written */
char *nps_json_print(const json_t *json, size_t flags);

/** Read and parse a JSON file. As nps_file_read() and nps_json_parse(). */
nps_err_t nps_json_load(const char *path, json_t **out);

#endif
