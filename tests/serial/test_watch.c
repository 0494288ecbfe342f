/* The watchdog: what it tells, and when it is silent. Nothing depends on how fast it is. */
#include "../nps_check.h"
#include "nps/watch.h"

#include <fcntl.h>
#include <time.h>

static char told[1 << 16];
static int before = -1; /* the real stderr */

static void pause_for(double seconds) {
  const struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
  nanosleep(&t, NULL);
}

static void catch_stderr(void) {
  FILE *file = tmpfile();
  ck_assert_ptr_nonnull(file);
  before = dup(STDERR_FILENO);
  ck_assert_int_ge(dup2(fileno(file), STDERR_FILENO), 0);
  fcntl(STDERR_FILENO, F_SETFL, O_APPEND);
  fclose(file);
}

static void read_stderr(void) {
  const ssize_t n = pread(STDERR_FILENO, told, sizeof told - 1, 0);
  told[n < 0 ? 0 : n] = '\0';
}

static void give_stderr_back(void) {
  dup2(before, STDERR_FILENO);
  close(before);
}

/* Waits until a text was told, at most 30 s. */
static bool is_told(const char *text) {
  for (int i = 0; i < 3000; i++) {
    read_stderr();
    if (strstr(told, text)) return true;
    pause_for(0.01);
  }
  return false;
}

START_TEST(tells_the_innermost) {
  catch_stderr();
  nps_watch_start("test: rank 3 on n1", 0.05, false);
  nps_watch_begin("merging", NULL);
  nps_watch_begin("reading", "model.safetensors");
  const bool inner = is_told("test: rank 3 on n1 has been reading model.safetensors for ");
  nps_watch_end();
  const bool outer = is_told("test: rank 3 on n1 has been merging for ");
  nps_watch_end();
  const bool idle = is_told("test: rank 3 on n1 has been busy for ");
  nps_watch_stop();
  give_stderr_back();
  ck_assert_msg(inner && outer && idle, "%s", told);
}
END_TEST

START_TEST(is_silent_while_it_waits_for_others) {
  catch_stderr();
  nps_watch_start("test", 0.02, false);
  nps_watch_begin_wait();
  pause_for(0.3);
  nps_watch_begin("reading", "x");
  const bool reading = is_told("test has been reading x");
  nps_watch_stop();
  give_stderr_back();
  ck_assert_msg(reading && !strstr(told, "waiting"), "%s", told);
  nps_watch_end();
  nps_watch_end();
}
END_TEST

START_TEST(tells_waiting_where_asked) {
  catch_stderr();
  nps_watch_start("test", 0.02, true);
  nps_watch_begin_wait();
  const bool waiting = is_told("test has been waiting for the other ranks for ");
  nps_watch_end();
  nps_watch_stop();
  give_stderr_back();
  ck_assert_msg(waiting, "%s", told);
}
END_TEST

/* Silence of an hour is not reached. */
START_TEST(is_silent_before_its_time) {
  catch_stderr();
  for (int i = 0; i < 2; i++) {
    nps_watch_start("test", i == 0 ? 3600 : 0, true);
    for (int k = 0; k < 40; k++) nps_watch_begin("doing", "too much"); /* deeper than what is kept */
    pause_for(0.1);
    for (int k = 0; k < 40; k++) nps_watch_end();
    nps_watch_beat();
    nps_watch_stop();
  }
  read_stderr();
  give_stderr_back();
  ck_assert_str_eq(told, "");
}
END_TEST

START_TEST(reads_and_writes) {
  char text[8] = "";
  FILE *file = tmpfile();
  ck_assert_ptr_nonnull(file);
  ck_assert_int_eq(nps_watch_pwrite(fileno(file), "abc", 3, 2, "x"), 3);
  ck_assert_int_eq(nps_watch_fsync(fileno(file), "x"), 0);
  ck_assert_int_eq(nps_watch_pread(fileno(file), text, 7, 3, "x"), 2);
  ck_assert_str_eq(text, "bc");
  ck_assert_int_eq(nps_watch_pread(-1, text, 1, 0, "x"), -1);
  fclose(file);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("watch");
  tcase_set_timeout(cases, 120);
  tcase_add_test(cases, tells_the_innermost);
  tcase_add_test(cases, is_silent_while_it_waits_for_others);
  tcase_add_test(cases, tells_waiting_where_asked);
  tcase_add_test(cases, is_silent_before_its_time);
  tcase_add_test(cases, reads_and_writes);
  return run_tests("watch", cases);
}
