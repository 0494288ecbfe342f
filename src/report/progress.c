#include "report_private.h"

#include <stdlib.h>
#include <string.h>

/* Columns kept for the figures, so that the bar keeps its length while they change. */
enum { SHORTEST_BAR = 10, LONGEST_BAR = 40, FIGURES = 54 };

#define BAR_INTERVAL 0.1
#define LINE_INTERVAL 10.0

const char *nps_format_seconds(double seconds, char out[32]) {
  if (seconds < 9.95)
    snprintf(out, 32, "%.1f s", seconds);
  else if (seconds < 59.5)
    snprintf(out, 32, "%.0f s", seconds);
  else if (seconds < 3570)
    snprintf(out, 32, "%lld min %02lld s", (long long)(seconds + 0.5) / 60, (long long)(seconds + 0.5) % 60);
  else
    snprintf(out, 32, "%lld h %02lld min", (long long)(seconds / 60 + 0.5) / 60, (long long)(seconds / 60 + 0.5) % 60);
  return out;
}

static double fraction(const nps_report_t *r) { return r->total > 0 ? (double)r->done / (double)r->total : 1; }

/* " 45 %  1.20 GiB of 2.66 GiB  310 MiB/s  4.7 s left" */
static void add_figures(nps_text_t *t, const nps_report_t *r, double now) {
  char done[32], total[32], rate[32], left[32];
  double elapsed = now - r->started;
  double speed = elapsed > 0 ? (double)r->done / elapsed : 0;
  nps_text_add(t, "%3d %%  %s of %s", (int)(100 * fraction(r)), nps_format_bytes((double)r->done, done),
               nps_format_bytes((double)r->total, total));
  if (speed <= 0) return;
  nps_text_add(t, "  %s/s  %s left", nps_format_bytes(speed, rate),
               nps_format_seconds((double)(r->total - r->done) / speed, left));
}

static void add_bar(nps_text_t *t, const nps_report_t *r, double part, int width) {
  int full = (int)(part * width);
  nps_text_add(t, "[%s", r->err_colour ? "\033[32m" : "");
  for (int i = 0; i < width; i++) nps_text_add(t, "%s", i < full ? "#" : "-");
  nps_text_add(t, "%s]  ", r->err_colour ? "\033[0m" : "");
}

/* Length of the first `characters` characters of a UTF-8 text, bytes. */
static size_t prefix_bytes(const char *text, int characters) {
  size_t bytes = 0;
  while (text[bytes]) {
    if (((unsigned char)text[bytes] & 0xC0) != 0x80 && characters-- == 0) break;
    bytes++;
  }
  return bytes;
}

/* A line too narrow for a bar shows the figures alone, cut where the terminal ends. */
static void draw(nps_report_t *r, const char *title, double part, const char *figures) {
  nps_text_t line = {0};
  int room = nps_report_terminal_width(r->terminal) - 1, characters = nps_report_characters(figures);
  int beside = characters > FIGURES ? characters : FIGURES;
  int bar = room - nps_report_characters(title) - 2 - 4 - beside;
  nps_text_add(&line, "%s  ", title);
  if (bar >= SHORTEST_BAR) add_bar(&line, r, part, bar < LONGEST_BAR ? bar : LONGEST_BAR);
  nps_text_add(&line, "%s", figures);
  if (bar < SHORTEST_BAR) line.text[prefix_bytes(line.text, room)] = '\0';
  fprintf(stderr, "\r%s\033[K", line.text);
  fflush(stderr);
  r->bar_shown = true;
  free(line.text);
}

static void draw_bar(nps_report_t *r, double now) {
  nps_text_t figures = {0};
  add_figures(&figures, r, now);
  draw(r, r->title, fraction(r), figures.text);
  free(figures.text);
}

void nps_report_clear_bar(nps_report_t *r) {
  if (!r->bar_shown) return;
  fputs("\r\033[K", stderr);
  fflush(stderr);
  r->bar_shown = false;
}

static void print_line(const nps_report_t *r, double now) {
  nps_text_t figures = {0};
  add_figures(&figures, r, now);
  fprintf(stderr, "%s: %s %s\n", r->program, r->title, figures.text);
  free(figures.text);
}

static void print_total(const nps_report_t *r, double seconds) {
  char done[32], rate[32], time[32];
  fprintf(stderr, "%s: %s: %s in %s (%s/s)\n", r->program, r->title, nps_format_bytes((double)r->done, done),
          nps_format_seconds(seconds, time), nps_format_bytes(seconds > 0 ? (double)r->done / seconds : 0, rate));
}

void nps_report_phase(nps_report_t *r, const char *title, int64_t total) {
  if (!r) return;
  nps_report_phase_end(r);
  r->title = nps_xstrdup(title);
  r->total = total;
  r->done = 0;
  r->started = nps_now();
  r->shown = r->started;
  json_t *fields = json_object();
  json_object_set_new(fields, "title", nps_report_json_text(title));
  json_object_set_new(fields, "total", json_integer(total));
  nps_report_event(r, "phase", fields);
  if (r->terminal >= 0 && !r->quiet) draw_bar(r, r->started);
}

void nps_report_progress(nps_report_t *r, int64_t done) {
  if (!r || !r->title) return;
  r->done = done < r->total ? done : r->total;
  if (r->quiet) return;
  double now = nps_now();
  if (now - r->shown < (r->terminal >= 0 ? BAR_INTERVAL : LINE_INTERVAL)) return;
  r->shown = now;
  if (r->terminal >= 0)
    draw_bar(r, now);
  else
    print_line(r, now);
}

void nps_report_phase_end(nps_report_t *r) {
  if (!r || !r->title) return;
  double seconds = nps_now() - r->started;
  nps_report_clear_bar(r);
  if (!r->quiet && (r->terminal < 0 || r->verbose)) print_total(r, seconds);
  json_t *fields = json_object();
  json_object_set_new(fields, "title", nps_report_json_text(r->title));
  json_object_set_new(fields, "done", json_integer(r->done));
  json_object_set_new(fields, "seconds", json_real(seconds));
  nps_report_event(r, "phase_end", fields);
  free(r->title);
  r->title = NULL;
}

void nps_report_step(nps_report_t *r, const char *title, int64_t done, int64_t total, const char *fmt, ...) {
  if (!r || r->quiet) return;
  va_list args;
  va_start(args, fmt);
  char *figures = nps_xvstrf(fmt, args);
  va_end(args);
  if (r->terminal >= 0)
    draw(r, title, total > 0 ? (double)done / (double)total : 1, figures);
  else
    fprintf(stderr, "%s: %s: %s\n", r->program, title, figures);
  free(figures);
}

void nps_report_steps_end(nps_report_t *r) {
  if (r) nps_report_clear_bar(r);
}
