#include "nps/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

nps_err_t nps_file_read(const char *path, size_t limit, char **data, size_t *size) {
  nps_err_t err = NPS_OK;
  char *buffer = NULL;
  struct stat st;
  /* Asked before it is opened: opening a pipe waits for its other end. */
  if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) return nps_fail(NPS_ERR_INPUT, "%s: expected a regular file", path);
  FILE *f = fopen(path, "rbe");
  if (!f || fstat(fileno(f), &st) != 0) {
    err = nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", path, strerror(errno));
    goto done;
  }
  if ((uint64_t)st.st_size > limit) {
    err = nps_fail(NPS_ERR_INPUT, "%s: has %lld bytes, at most %zu are accepted", path, (long long)st.st_size, limit);
    goto done;
  }
  size_t length = (size_t)st.st_size;
  buffer = nps_xcalloc(length + 1, 1);
  if (fread(buffer, 1, length, f) != length) {
    err = nps_fail(NPS_ERR_INPUT, "%s: cannot be read to its end: %s", path,
                   ferror(f) ? strerror(errno) : "it became shorter");
    goto done;
  }
  *data = buffer;
  if (size) *size = length;
  buffer = NULL;
done:
  free(buffer);
  if (f) fclose(f);
  return err;
}

nps_err_t nps_json_parse(const char *text, size_t size, const char *where, json_t **out) {
  json_error_t error;
  *out = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
  if (*out) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: is not valid JSON: line %d: %s", where, error.line, error.text);
}

nps_err_t nps_json_load(const char *path, json_t **out) {
  char *text = NULL;
  size_t size = 0;
  NPS_TRY(nps_file_read(path, (size_t)256 << 20, &text, &size));
  nps_err_t err = nps_json_parse(text, size, path, out);
  free(text);
  return err;
}
