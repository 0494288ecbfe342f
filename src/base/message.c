#include "nps/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static nps_note_sink_fn *note_sink;
static void *note_ctx;
static int note_mutes;
static void (*fatal_handler)(int exit_code);

void nps_note_set_sink(nps_note_sink_fn *sink, void *ctx) {
  note_sink = sink;
  note_ctx = ctx;
}

void nps_note_mute(bool mute) { note_mutes += mute ? 1 : -1; }

void nps_note(const char *fmt, ...) {
  va_list args;
  if (note_mutes > 0) return;
  va_start(args, fmt);
  char *text = nps_text_printable(nps_xvstrf(fmt, args));
  va_end(args);
  if (note_sink)
    note_sink(note_ctx, text);
  else
    fprintf(stderr, "note: %s\n", text);
  free(text);
}

void nps_fatal_set_handler(void (*handler)(int exit_code)) { fatal_handler = handler; }

_Noreturn void nps_fatal(const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  fputs("fatal: ", stderr);
  vfprintf(stderr, fmt, args);
  fputc('\n', stderr);
  va_end(args);
  if (fatal_handler) fatal_handler(1);
  exit(1);
}

const char *nps_format_bytes(double bytes, char out[32]) {
  static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  int unit = 0;
  while (unit < 6 && (bytes >= 1023.5 || bytes <= -1023.5)) bytes /= 1024, unit++;
  double size = bytes < 0 ? -bytes : bytes;
  snprintf(out, 32,
           unit == 0      ? "%.0f %s"
           : size < 9.995 ? "%.2f %s"
           : size < 99.95 ? "%.1f %s"
                          : "%.0f %s",
           bytes, units[unit]);
  return out;
}

double nps_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
