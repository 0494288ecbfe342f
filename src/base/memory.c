#include "nps/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void *nps_xcalloc(size_t count, size_t size) {
  void *p = calloc(count ? count : 1, size ? size : 1);
  if (!p) nps_fatal("out of memory: %zu × %zu bytes needed", count, size);
  return p;
}

void *nps_xrealloc(void *old, size_t count, size_t size) {
  if (size && count > SIZE_MAX / size) nps_fatal("out of memory: %zu × %zu bytes needed", count, size);
  void *p = realloc(old, count && size ? count * size : 1);
  if (!p) nps_fatal("out of memory: %zu × %zu bytes needed", count, size);
  return p;
}

char *nps_xstrndup(const char *s, size_t n) {
  size_t length = strnlen(s, n);
  char *copy = nps_xcalloc(length + 1, 1);
  memcpy(copy, s, length);
  return copy;
}

char *nps_xstrdup(const char *s) { return nps_xstrndup(s, strlen(s)); }

char *nps_xvstrf(const char *fmt, va_list args) {
  va_list again;
  va_copy(again, args);
  int length = vsnprintf(NULL, 0, fmt, again);
  va_end(again);
  if (length < 0) nps_fatal("a message could not be formatted: %s", fmt);
  char *text = nps_xcalloc((size_t)length + 1, 1);
  vsnprintf(text, (size_t)length + 1, fmt, args);
  return text;
}

char *nps_xstrf(const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *text = nps_xvstrf(fmt, args);
  va_end(args);
  return text;
}

nps_err_t nps_buffer_alloc(size_t bytes, const char *what, void *out) {
  char size[32];
  void *p = NULL;
  const size_t huge_page = (size_t)2 << 20;
  const size_t alignment = bytes >= huge_page ? huge_page : 64;
  if (posix_memalign(&p, alignment, bytes ? bytes : 1) != 0)
    return nps_fail(NPS_ERR_MEMORY, "out of memory: %s needs %s", what, nps_format_bytes((double)bytes, size));
#ifdef MADV_HUGEPAGE
  if (bytes >= huge_page) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  memcpy(out, &p, sizeof p);
  return NPS_OK;
}
