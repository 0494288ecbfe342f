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

/** Read and parse a JSON file. As nps_file_read() and nps_json_parse(). */
nps_err_t nps_json_load(const char *path, json_t **out);

#endif
