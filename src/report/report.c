#include "report_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

json_t *nps_report_json_text(const char *text) {
  json_t *string = json_string(text);
  if (string) return string;
  char *ascii = nps_xstrdup(text);
  for (char *c = ascii; *c; c++)
    if ((unsigned char)*c >= 0x80) *c = '?';
  string = json_string(ascii);
  free(ascii);
  return string;
}

static void show_note(void *ctx, const char *text) {
  nps_report_t *report = ctx;
  json_t *fields = json_object();
  json_object_set_new(fields, "text", nps_report_json_text(text));
  nps_report_event(report, "note", fields);
  if (report->quiet) return;
  nps_report_clear_bar(report);
  const char *on = report->err_colour ? "\033[36m" : "", *off = report->err_colour ? "\033[0m" : "";
  fprintf(stderr, "%s: %snote:%s %s\n", report->program, on, off, text);
}

/* Only a log is appended to, or what is empty or no file (a pipe): anything else is a slip on the command line. */
static nps_err_t check_content(const char *path, FILE *log) {
  static const char start[] = "{\"time\":"; /* of every line */
  char found[sizeof start] = "";
  struct stat st;
  if (fstat(fileno(log), &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0) return NPS_OK;
  FILE *file = fopen(path, "re");
  const bool same = file && fread(found, 1, sizeof start - 1, file) == sizeof start - 1 && strcmp(found, start) == 0;
  if (file) fclose(file);
  return same ? NPS_OK : nps_fail(NPS_ERR_CONFIG, "%s: exists and is no log: nothing is appended to it", path);
}

static nps_err_t open_log(const char *path, FILE **out, bool *made) {
  *made = access(path, F_OK) != 0;
  *out = fopen(path, "ae");
  if (!*out) return nps_fail(NPS_ERR_IO, "%s: the log cannot be opened: %s", path, strerror(errno));
  nps_err_t err = check_content(path, *out);
  if (err != NPS_OK) fclose(*out);
  return err;
}

nps_err_t nps_report_open(const nps_report_options_t *options, nps_report_t **out) {
  FILE *log = NULL;
  bool made_log = false;
  *out = NULL;
  if (options->log) NPS_TRY(open_log(options->log, &log, &made_log));
  nps_report_t *report = nps_xcalloc(1, sizeof *report);
  report->program = nps_xstrdup(options->program);
  report->log_path = options->log ? nps_xstrdup(options->log) : NULL;
  report->log = log;
  report->made_log = made_log;
  report->quiet = options->quiet;
  report->verbose = options->verbose;
  report->out_colour = nps_report_colour(stdout);
  report->err_colour = nps_report_colour(stderr);
  report->terminal = nps_report_terminal(stderr);
  nps_note_set_sink(show_note, report);
  *out = report;
  return NPS_OK;
}

void nps_report_close(nps_report_t *report) {
  if (!report) return;
  nps_report_phase_end(report);
  nps_note_set_sink(NULL, NULL);
  if (report->log) fclose(report->log);
  if (report->terminal >= 0) close(report->terminal);
  free(report->program);
  free(report->log_path);
  free(report);
}

void nps_report_drop_log(nps_report_t *report) {
  if (!report || !report->log) return;
  fclose(report->log);
  report->log = NULL;
  if (report->made_log) unlink(report->log_path);
}

/* A log that fails must not end a merge of hours: it is given up with a note. */
static void give_up_log(nps_report_t *report) {
  int cause = errno;
  fclose(report->log);
  report->log = NULL;
  nps_note("%s: the log cannot be written: %s; nothing more is logged", report->log_path, strerror(cause));
}

void nps_report_event(nps_report_t *report, const char *name, json_t *fields) {
  if (!report || !report->log) {
    json_decref(fields);
    return;
  }
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  json_t *event = json_object();
  json_object_set_new(event, "time", json_real((double)now.tv_sec + 1e-9 * (double)now.tv_nsec));
  json_object_set_new(event, "event", json_string(name));
  if (fields) json_object_update(event, fields);
  json_decref(fields);
  char *line = json_dumps(event, JSON_COMPACT);
  json_decref(event);
  bool written = line && fprintf(report->log, "%s\n", line) > 0 && fflush(report->log) == 0;
  free(line);
  if (!written) give_up_log(report);
}

static void print_line(nps_report_t *report, const char *fmt, va_list args) {
  nps_report_clear_bar(report);
  vprintf(fmt, args);
  putchar('\n');
  fflush(stdout);
}

void nps_report_line(nps_report_t *report, const char *fmt, ...) {
  if (!report || report->quiet) return;
  va_list args;
  va_start(args, fmt);
  print_line(report, fmt, args);
  va_end(args);
}

void nps_report_detail(nps_report_t *report, const char *fmt, ...) {
  if (!report || !report->verbose) return;
  va_list args;
  va_start(args, fmt);
  print_line(report, fmt, args);
  va_end(args);
}

static void print_problem(const char *program, const char *text, bool colour) {
  fprintf(stderr, "%s: %serror:%s ", program, colour ? "\033[1;31m" : "", colour ? "\033[0m" : "");
  for (const char *c = text; *c; c++) {
    fputc(*c, stderr);
    if (*c == '\n') fputs("  ", stderr);
  }
  fputc('\n', stderr);
}

/* A model that is named twice is missing once. */
static bool is_told(int problem) {
  for (int i = 0; i < problem; i++)
    if (strcmp(nps_problem_text(i), nps_problem_text(problem)) == 0) return true;
  return false;
}

void nps_report_problems(nps_report_t *report, const char *program) {
  int count = nps_problem_count(), told = 0;
  bool colour = nps_report_colour(stderr);
  if (report) {
    nps_report_clear_bar(report);
    program = report->program;
  }
  fflush(stdout);
  for (int i = 0; i < count; i++) {
    if (is_told(i)) continue;
    told++;
    print_problem(program, nps_problem_text(i), colour);
    if (!report) continue;
    json_t *fields = json_object();
    json_object_set_new(fields, "text", nps_report_json_text(nps_problem_text(i)));
    json_object_set_new(fields, "exit_code", json_integer(nps_err_exit_code(nps_problem_code(i))));
    nps_report_event(report, "error", fields);
  }
  if (told > 1) fprintf(stderr, "%s: %d problems\n", program, told);
  nps_problem_clear();
}
