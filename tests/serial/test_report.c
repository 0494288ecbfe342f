/* Reports: bars on a terminal, plain lines elsewhere, logs, tables, problems. Each case runs in a child whose stdout and
 * stderr are a pseudo-terminal or files. */
#include "../nps_check.h"
#include "nps/report.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/wait.h>
#include <time.h>

#define MIB ((int64_t)1 << 20)

typedef void body_fn(void);

static char out_text[1 << 16], err_text[1 << 16]; /* what the last child printed; on a terminal all is in out_text */

static void set_terminal(const char *term, const char *no_color) {
  setenv("TERM", term, 1);
  if (no_color)
    setenv("NO_COLOR", no_color, 1);
  else
    unsetenv("NO_COLOR");
}

static void read_all(int fd, char *text, size_t room) {
  size_t size = 0;
  ssize_t got = 0;
  while (size < room - 1 && (got = read(fd, text + size, room - 1 - size)) > 0) size += (size_t)got;
  text[size] = '\0';
}

static void run_child(body_fn *body) {
  body();
  fflush(stdout);
  fflush(stderr);
  _exit(0);
}

static void expect_success(pid_t child) {
  int status = 0;
  ck_assert_int_eq(waitpid(child, &status, 0), child);
  ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void run_on_terminal(body_fn *body, unsigned short columns) {
  int master = -1;
  struct winsize size = {.ws_row = 24, .ws_col = columns};
  fflush(stdout);
  pid_t child = forkpty(&master, NULL, NULL, &size);
  ck_assert_int_ge(child, 0);
  if (child == 0) run_child(body);
  read_all(master, out_text, sizeof out_text);
  close(master);
  expect_success(child);
}

static void run_on_files(body_fn *body) {
  FILE *out = tmpfile(), *err = tmpfile();
  ck_assert(out && err);
  fflush(stdout);
  pid_t child = fork();
  ck_assert_int_ge(child, 0);
  if (child == 0) {
    dup2(fileno(out), STDOUT_FILENO);
    dup2(fileno(err), STDERR_FILENO);
    run_child(body);
  }
  expect_success(child);
  rewind(out);
  rewind(err);
  read_all(fileno(out), out_text, sizeof out_text);
  read_all(fileno(err), err_text, sizeof err_text);
  fclose(out);
  fclose(err);
}

static nps_report_t *open_report(bool quiet, bool verbose, const char *log) {
  nps_report_options_t options = {.program = "nps-merge", .log = log, .quiet = quiet, .verbose = verbose};
  nps_report_t *report = NULL;
  if (nps_report_open(&options, &report) != NPS_OK) _exit(9);
  return report;
}

static void wait_a_moment(void) { nanosleep(&(struct timespec){0, 150000000}, NULL); }

/* A phase that is half done when it is drawn. */
static void half_done(void) {
  nps_report_t *report = open_report(false, false, NULL);
  nps_report_phase(report, "merging", 1000 * MIB);
  wait_a_moment();
  nps_report_progress(report, 500 * MIB);
  nps_report_phase_end(report);
  nps_report_line(report, "done %d", 7);
  nps_report_close(report);
}

static int count_of(const char *text, const char *part) {
  int count = 0;
  for (const char *at = text; (at = strstr(at, part)) != NULL; at++) count++;
  return count;
}

/* Whether a text has an escape sequence that sets a colour or weight: ESC [ digits and semicolons m. */
static bool has_colour(const char *text) {
  for (const char *at = text; (at = strstr(at, "\033[")) != NULL; at++)
    if (at[2 + strspn(at + 2, "0123456789;")] == 'm') return true;
  return false;
}

START_TEST(test_bar_on_terminal) {
  set_terminal("xterm", NULL);
  run_on_terminal(half_done, 120);
  ck_assert_ptr_nonnull(strstr(out_text, "\rmerging  [\033[32m####################--------------------\033[0m]   50 %  "
                                         "500 MiB of 1000 MiB  "));
  ck_assert_ptr_nonnull(strstr(out_text, "iB/s  "));
  ck_assert_ptr_nonnull(strstr(out_text, " s left\033[K"));
  ck_assert_ptr_nonnull(strstr(out_text, "\r\033[Kdone 7\r\n"));
}
END_TEST

START_TEST(test_no_color) {
  set_terminal("xterm", "1");
  run_on_terminal(half_done, 120);
  ck_assert_ptr_nonnull(strstr(out_text, "\rmerging  [####################--------------------]   50 %  "));
  ck_assert(!has_colour(out_text));
  set_terminal("xterm", "");
  run_on_terminal(half_done, 120);
  ck_assert(has_colour(out_text));
}
END_TEST

START_TEST(test_bar_fits) {
  set_terminal("xterm", "1");
  for (unsigned short columns = 5; columns <= 120; columns = (unsigned short)(columns + 23)) {
    run_on_terminal(half_done, columns);
    for (const char *at = out_text; (at = strchr(at, '\r')) != NULL;) {
      size_t length = strcspn(++at, "\033\r\n");
      ck_assert_msg(length < columns, "%zu characters on %d columns: %.*s", length, (int)columns, (int)length, at);
    }
  }
}
END_TEST

static void many_updates(void) {
  nps_report_t *report = open_report(false, false, NULL);
  nps_report_phase(report, "merging", 1000000);
  for (int64_t i = 0; i < 1000000; i++) nps_report_progress(report, i);
  nps_report_close(report);
}

START_TEST(test_bar_is_not_redrawn_often) {
  set_terminal("xterm", NULL);
  double start = nps_now();
  run_on_terminal(many_updates, 80);
  /* One draw at the start, ten a second, one to clear. */
  ck_assert_int_le(count_of(out_text, "\r"), (int)(10 * (nps_now() - start)) + 2);
}
END_TEST

static void note_under_bar(void) {
  nps_report_t *report = open_report(false, true, NULL);
  nps_report_phase(report, "merging", 10);
  nps_note("something");
  nps_report_close(report);
}

START_TEST(test_note_clears_bar) {
  set_terminal("xterm", "1");
  run_on_terminal(note_under_bar, 80);
  ck_assert_ptr_nonnull(strstr(out_text, "\033[K\r\033[Knps-merge: note: something\r\n"));
  /* verbose: what a phase took stays on the terminal */
  ck_assert_ptr_nonnull(strstr(out_text, "nps-merge: merging: 0 B in 0.0 s (0 B/s)\r\n"));
}
END_TEST

static void expect_plain(const char *text) {
  for (; *text; text++) ck_assert_msg(*text == '\n' || (unsigned char)*text >= 0x20, "control byte %d", *text);
}

START_TEST(test_plain_lines) {
  set_terminal("xterm", NULL);
  run_on_files(half_done);
  ck_assert_str_eq(out_text, "done 7\n");
  ck_assert_int_eq(count_of(err_text, "\n"), 1);
  ck_assert(strncmp(err_text, "nps-merge: merging: 500 MiB in 0.", 33) == 0);
  expect_plain(err_text);
}
END_TEST

START_TEST(test_dumb_terminal) {
  set_terminal("dumb", NULL);
  run_on_terminal(half_done, 80);
  ck_assert_ptr_null(strchr(out_text, '\033'));
  ck_assert(strncmp(out_text, "nps-merge: merging: 500 MiB in 0.", 33) == 0);
  ck_assert_ptr_nonnull(strstr(out_text, "\r\ndone 7\r\n"));
}
END_TEST

/* Stands for mpirun: its process has a pseudo-terminal as stdout and a pipe as stderr, and it passes stderr on. */
static void half_done_under_launcher(void) {
  int master = -1, slave = -1, ends[2];
  char text[4096];
  if (openpty(&master, &slave, NULL, NULL, NULL) != 0 || pipe(ends) != 0) _exit(8);
  pid_t process = fork();
  if (process == 0) {
    setenv("OMPI_COMM_WORLD_RANK", "0", 1);
    dup2(slave, STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    run_child(half_done);
  }
  close(ends[1]);
  read_all(ends[0], text, sizeof text);
  fputs(text, stderr);
  waitpid(process, NULL, 0);
}

START_TEST(test_behind_launcher) {
  set_terminal("xterm", NULL);
  run_on_terminal(half_done_under_launcher, 120);
  ck_assert_ptr_nonnull(
      strstr(out_text, "\rmerging  [\033[32m####################--------------------\033[0m]   50 %  "));
  run_on_files(half_done_under_launcher);
  expect_plain(err_text);
  ck_assert(strncmp(err_text, "nps-merge: merging: 500 MiB in 0.", 33) == 0);
}
END_TEST

static const char *const cells[] = {"model", "norm", "kept", "frañçais", "1.5", "10 %", "c", "120.25", "-"};

static void everything_quiet(void) {
  nps_report_t *report = open_report(true, false, NULL);
  nps_report_phase(report, "merging", 10);
  wait_a_moment();
  nps_report_progress(report, 5);
  nps_report_phase_end(report);
  nps_report_line(report, "a line");
  nps_report_table(report, cells, 3, 3);
  nps_note("a note");
  nps_fail(NPS_ERR_IO, "it broke");
  nps_report_problems(report, "nps-merge");
  nps_report_close(report);
}

START_TEST(test_quiet) {
  run_on_files(everything_quiet);
  ck_assert_str_eq(out_text, "");
  ck_assert_str_eq(err_text, "nps-merge: error: it broke\n");
  set_terminal("xterm", NULL);
  run_on_terminal(everything_quiet, 80);
  ck_assert_str_eq(out_text, "nps-merge: \033[1;31merror:\033[0m it broke\r\n");
}
END_TEST

static void print_table(void) {
  nps_report_t *report = open_report(false, false, NULL);
  nps_report_table(report, cells, 3, 3);
  nps_report_close(report);
}

START_TEST(test_table) {
  run_on_files(print_table);
  ck_assert_str_eq(out_text, "model       norm  kept\n"
                             "----------------------\n"
                             "frañçais     1.5  10 %\n"
                             "c         120.25     -\n");
  set_terminal("xterm", NULL);
  run_on_terminal(print_table, 80);
  ck_assert(strncmp(out_text, "\033[1mmodel       norm  kept\033[0m\r\n", 32) == 0);
  set_terminal("xterm", "1");
  run_on_terminal(print_table, 80);
  ck_assert(!has_colour(out_text));
}
END_TEST

static void print_problems(void) {
  nps_fail(NPS_ERR_CONFIG, "c.yaml: line 3: unknown key");
  nps_fail(NPS_ERR_INPUT, "two things:\nfirst\nsecond");
  nps_report_problems(NULL, "nps-inspect");
  nps_report_problems(NULL, "nps-inspect"); /* only once */
}

START_TEST(test_problems) {
  run_on_files(print_problems);
  ck_assert_str_eq(out_text, "");
  ck_assert_str_eq(err_text, "nps-inspect: error: c.yaml: line 3: unknown key\n"
                             "nps-inspect: error: two things:\n  first\n  second\n"
                             "nps-inspect: 2 problems\n");
}
END_TEST

static void print_notes(void) {
  nps_report_t *report = open_report(false, false, NULL);
  nps_note("first %d", 1);
  nps_report_close(report);
  nps_note("second");
}

START_TEST(test_notes) {
  run_on_files(print_notes);
  ck_assert_str_eq(err_text, "nps-merge: note: first 1\nnote: second\n");
}
END_TEST

static char log_path[600];

static void log_things(void) {
  nps_report_t *report = open_report(false, false, log_path);
  json_t *fields = json_object();
  json_object_set_new(fields, "method", json_string("ties"));
  nps_report_event(report, "start", fields);
  nps_report_phase(report, "merging", 10);
  nps_report_progress(report, 10);
  nps_report_phase_end(report);
  nps_note("bytes \xff");
  nps_fail(NPS_ERR_INPUT, "it broke");
  nps_report_problems(report, "nps-merge");
  nps_report_event(report, "end", NULL);
  nps_report_close(report);
}

/* Parses the next line of the log and checks its event. */
static json_t *next_event(FILE *log, const char *name) {
  char line[4096];
  ck_assert_ptr_nonnull(fgets(line, sizeof line, log));
  json_t *event = json_loads(line, 0, NULL);
  ck_assert_msg(event != NULL, "%s", line);
  ck_assert_str_eq(json_string_value(json_object_get(event, "event")), name);
  ck_assert(json_is_real(json_object_get(event, "time")));
  return event;
}

static void expect_text(FILE *log, const char *name, const char *key, const char *text) {
  json_t *event = next_event(log, name);
  ck_assert_str_eq(json_string_value(json_object_get(event, key)), text);
  json_decref(event);
}

START_TEST(test_log) {
  ck_assert(make_new_folder());
  snprintf(log_path, sizeof log_path, "%s/log.jsonl", folder);
  time_t before = time(NULL);
  for (int i = 0; i < 2; i++) run_on_files(log_things);
  FILE *log = fopen(log_path, "r");
  ck_assert_ptr_nonnull(log);
  for (int i = 0; i < 2; i++) { /* the second run is appended */
    expect_text(log, "start", "method", "ties");
    json_t *phase = next_event(log, "phase");
    ck_assert_int_eq(json_integer_value(json_object_get(phase, "total")), 10);
    ck_assert(json_real_value(json_object_get(phase, "time")) >= (double)before);
    json_decref(phase);
    expect_text(log, "phase_end", "title", "merging");
    expect_text(log, "note", "text", "bytes ?");
    json_t *error = next_event(log, "error");
    ck_assert_str_eq(json_string_value(json_object_get(error, "text")), "it broke");
    ck_assert_int_eq(json_integer_value(json_object_get(error, "exit_code")), 3);
    json_decref(error);
    json_decref(next_event(log, "end"));
  }
  ck_assert_int_eq(fgetc(log), EOF);
  fclose(log);
  remove_all(folder);
}
END_TEST

START_TEST(test_log_cannot_be_opened) {
  nps_report_options_t options = {.program = "nps-merge", .log = "/nonexistent/log.jsonl"};
  nps_report_t *report = NULL;
  ck_assert_int_eq(nps_report_open(&options, &report), NPS_ERR_IO);
  ck_assert_ptr_null(report);
  ck_assert_str_eq(nps_problem_text(0), "/nonexistent/log.jsonl: the log cannot be opened: No such file or directory");
  nps_problem_clear();
}
END_TEST

/* What is no log keeps its bytes. */
START_TEST(test_log_is_no_log) {
  ck_assert(make_new_folder());
  snprintf(log_path, sizeof log_path, "%s/config.yaml", folder);
  FILE *file = fopen(log_path, "w");
  fputs("{\"tim", file);
  fclose(file);
  nps_report_options_t options = {.program = "nps-merge", .log = log_path};
  nps_report_t *report = NULL;
  ck_assert_int_eq(nps_report_open(&options, &report), NPS_ERR_CONFIG);
  ck_assert_ptr_null(report);
  ck_assert_ptr_nonnull(strstr(nps_problem_text(0), "config.yaml: exists and is no log"));
  nps_problem_clear();
  char found[16] = "";
  file = fopen(log_path, "r");
  ck_assert_uint_eq(fread(found, 1, sizeof found, file), 5);
  ck_assert_str_eq(found, "{\"tim");
  fclose(file);
  remove_all(folder);
}
END_TEST

static void log_to_full_device(void) {
  nps_report_t *report = open_report(false, false, "/dev/full");
  nps_report_event(report, "start", NULL);
  nps_report_event(report, "end", NULL);
  nps_report_line(report, "goes on");
  nps_report_close(report);
}

START_TEST(test_log_is_given_up) {
  run_on_files(log_to_full_device);
  ck_assert_str_eq(out_text, "goes on\n");
  ck_assert_str_eq(err_text, "nps-merge: note: /dev/full: the log cannot be written: No space left on device; nothing "
                             "more is logged\n");
}
END_TEST

static void null_report(void) {
  nps_report_event(NULL, "start", json_object());
  nps_report_phase(NULL, "merging", 10);
  nps_report_progress(NULL, 5);
  nps_report_phase_end(NULL);
  nps_report_line(NULL, "a line");
  nps_report_detail(NULL, "a line");
  nps_report_table(NULL, cells, 3, 3);
  nps_report_close(NULL);
}

START_TEST(test_null) {
  run_on_files(null_report);
  ck_assert_str_eq(out_text, "");
  ck_assert_str_eq(err_text, "");
}
END_TEST

static void details(void) {
  for (int verbose = 0; verbose < 2; verbose++) {
    nps_report_t *report = open_report(false, verbose, NULL);
    nps_report_detail(report, "verbose is %d", verbose);
    nps_report_close(report);
  }
}

START_TEST(test_detail) {
  run_on_files(details);
  ck_assert_str_eq(out_text, "verbose is 1\n");
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("report");
  tcase_set_timeout(cases, 60);
  tcase_add_test(cases, test_bar_on_terminal);
  tcase_add_test(cases, test_no_color);
  tcase_add_test(cases, test_bar_fits);
  tcase_add_test(cases, test_bar_is_not_redrawn_often);
  tcase_add_test(cases, test_note_clears_bar);
  tcase_add_test(cases, test_plain_lines);
  tcase_add_test(cases, test_dumb_terminal);
  tcase_add_test(cases, test_behind_launcher);
  tcase_add_test(cases, test_quiet);
  tcase_add_test(cases, test_table);
  tcase_add_test(cases, test_problems);
  tcase_add_test(cases, test_notes);
  tcase_add_test(cases, test_log);
  tcase_add_test(cases, test_log_cannot_be_opened);
  tcase_add_test(cases, test_log_is_no_log);
  tcase_add_test(cases, test_log_is_given_up);
  tcase_add_test(cases, test_null);
  tcase_add_test(cases, test_detail);
  return run_tests("report", cases);
}
