/* Bringing a file to the device beside other work. Nothing depends on how fast it is. */
#include "../nps_check.h"
#include "nps/flush.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* Many notes of little, some of which start a flush. */
START_TEST(a_file_is_flushed_while_it_is_written) {
  FILE *file = tmpfile();
  ck_assert_ptr_nonnull(file);
  nps_flush_t *flush = nps_flush_begin(fileno(file));
  for (int i = 0; i < 100; i++) {
    ck_assert_int_eq(pwrite(fileno(file), &i, sizeof i, (off_t)sizeof i * i), sizeof i);
    nps_flush_note(flush, NPS_FLUSH_BYTES / 7);
  }
  ck_assert_int_eq(nps_flush_end(flush, "file"), 0);
  for (int i = 0, found; i < 100; i++) {
    ck_assert_int_eq(pread(fileno(file), &found, sizeof found, (off_t)sizeof found * i), sizeof found);
    ck_assert_int_eq(found, i);
  }
  fclose(file);
}
END_TEST

/* A pipe has no device, which shows when it is flushed. */
START_TEST(a_failure_is_told_at_the_end) {
  int ends[2];
  ck_assert_int_eq(pipe(ends), 0);
  nps_flush_t *flush = nps_flush_begin(ends[1]);
  nps_flush_note(flush, NPS_FLUSH_BYTES);
  ck_assert_int_eq(nps_flush_end(flush, "file"), EINVAL);
  close(ends[0]);
  close(ends[1]);
}
END_TEST

START_TEST(little_is_left_to_who_closes_the_file) {
  int ends[2];
  ck_assert_int_eq(pipe(ends), 0);
  nps_flush_t *flush = nps_flush_begin(ends[1]);
  nps_flush_note(flush, NPS_FLUSH_BYTES - 1);
  ck_assert_int_eq(nps_flush_end(flush, "file"), 0);
  ck_assert_int_eq(nps_flush_end(NULL, "file"), 0);
  close(ends[0]);
  close(ends[1]);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("flush");
  tcase_add_test(cases, a_file_is_flushed_while_it_is_written);
  tcase_add_test(cases, a_failure_is_told_at_the_end);
  tcase_add_test(cases, little_is_left_to_who_closes_the_file);
  return run_tests("flush", cases);
}
