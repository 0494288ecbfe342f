#include "nps/base.h"

#include <stdlib.h>
#include <string.h>

void nps_text_add_bytes(nps_text_t *t, const char *bytes, size_t n) {
  if (t->room - t->size <= n) {
    t->room = (t->size + n + 1) * 2;
    t->text = nps_xrealloc(t->text, t->room, 1);
  }
  if (n) memcpy(t->text + t->size, bytes, n);
  t->size += n;
  t->text[t->size] = '\0';
}

void nps_text_add(nps_text_t *t, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *more = nps_xvstrf(fmt, args);
  va_end(args);
  nps_text_add_bytes(t, more, strlen(more));
  free(more);
}

char *nps_text_printable(char *text) {
  for (char *c = text; *c; c++)
    if (((unsigned char)*c < 0x20 && *c != '\n') || *c == 0x7f) *c = '?';
  return text;
}

static int min3(int a, int b, int c) {
  int m = a < b ? a : b;
  return m < c ? m : c;
}

/* Optimal string alignment distance: insertions, deletions, substitutions, swaps of neighbours. */
static int edit_distance(const char *a, const char *b) {
  int n = (int)strlen(a), m = (int)strlen(b);
  int *rows = nps_xcalloc(3 * ((size_t)m + 1), sizeof *rows);
  int *before = rows, *last = rows + m + 1, *now = rows + 2 * (m + 1);
  for (int j = 0; j <= m; j++) last[j] = j;
  for (int i = 1; i <= n; i++) {
    now[0] = i;
    for (int j = 1; j <= m; j++) {
      now[j] = min3(last[j] + 1, now[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < now[j])
        now[j] = before[j - 2] + 1;
    }
    int *oldest = before;
    before = last;
    last = now;
    now = oldest;
  }
  int distance = last[m];
  free(rows);
  return distance;
}

const char *nps_nearest(const char *word, const char *const *candidates, int count) {
  size_t length = strlen(word);
  if (length > 64) return NULL;
  int limit = length < 3 ? 1 : (int)length / 3;
  const char *best = NULL;
  for (int i = 0; i < count; i++) {
    if (strlen(candidates[i]) > 128) continue;
    int distance = edit_distance(word, candidates[i]);
    if (distance <= limit) {
      best = candidates[i];
      limit = distance - 1;
    }
  }
  return best;
}

uint64_t nps_hash64(uint64_t hash, const void *bytes, size_t n) {
  const unsigned char *b = bytes;
  hash ^= UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < n; i++) hash = (hash ^ b[i]) * UINT64_C(0x100000001b3);
  return hash;
}
