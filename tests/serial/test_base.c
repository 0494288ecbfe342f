#include "../nps_check.h"
#include "nps/base.h"

#include <sys/wait.h>

START_TEST(problems_show_no_control_characters) {
  nps_fail(NPS_ERR_INPUT, "a\x1b[31mb\tc\nd\x7f é");
  ck_assert_str_eq(nps_problem_text(0), "a?[31mb?c\nd? é");
  nps_problem_clear();
}
END_TEST

START_TEST(exit_codes_are_those_of_the_manual) {
  ck_assert_int_eq(nps_err_exit_code(NPS_OK), 0);
  ck_assert_int_eq(nps_err_exit_code(NPS_ERR_RUNTIME), 1);
  ck_assert_int_eq(nps_err_exit_code(NPS_ERR_IO), 1);
  ck_assert_int_eq(nps_err_exit_code(NPS_ERR_MEMORY), 1);
  ck_assert_int_eq(nps_err_exit_code(NPS_ERR_CONFIG), 2);
  ck_assert_int_eq(nps_err_exit_code(NPS_ERR_INPUT), 3);
  ck_assert_int_eq(nps_err_exit_code(NPS_ERR_STOPPED), 4);
}
END_TEST

START_TEST(worse_of_two_codes_has_the_smallest_exit_code) {
  ck_assert_int_eq(nps_err_worse(NPS_OK, NPS_OK), NPS_OK);
  ck_assert_int_eq(nps_err_worse(NPS_OK, NPS_ERR_INPUT), NPS_ERR_INPUT);
  ck_assert_int_eq(nps_err_worse(NPS_ERR_STOPPED, NPS_OK), NPS_ERR_STOPPED);
  ck_assert_int_eq(nps_err_worse(NPS_ERR_INPUT, NPS_ERR_CONFIG), NPS_ERR_CONFIG);
  ck_assert_int_eq(nps_err_worse(NPS_ERR_CONFIG, NPS_ERR_INPUT), NPS_ERR_CONFIG);
  ck_assert_int_eq(nps_err_worse(NPS_ERR_CONFIG, NPS_ERR_IO), NPS_ERR_IO);
}
END_TEST

START_TEST(problems_are_kept_in_order_until_cleared) {
  ck_assert_int_eq(nps_problem_count(), 0);
  ck_assert_int_eq(nps_fail(NPS_ERR_INPUT, "%s: expected %d tensors, found %d", "m.safetensors", 3, 2), NPS_ERR_INPUT);
  ck_assert_int_eq(nps_fail(NPS_ERR_CONFIG, "second"), NPS_ERR_CONFIG);
  ck_assert_int_eq(nps_problem_count(), 2);
  ck_assert_str_eq(nps_problem_text(0), "m.safetensors: expected 3 tensors, found 2");
  ck_assert_int_eq(nps_problem_code(0), NPS_ERR_INPUT);
  ck_assert_str_eq(nps_problem_text(1), "second");
  nps_problem_clear();
  ck_assert_int_eq(nps_problem_count(), 0);
}
END_TEST

static nps_err_t fail_when(bool wrong) { return wrong ? nps_fail(NPS_ERR_IO, "wrong") : NPS_OK; }

static nps_err_t try_both(bool first, bool second, int *passed) {
  NPS_TRY(fail_when(first));
  ++*passed;
  NPS_TRY(fail_when(second));
  ++*passed;
  return NPS_OK;
}

static nps_err_t goto_done(bool wrong, int *freed) {
  nps_err_t err = NPS_OK;
  NPS_GOTO(fail_when(wrong));
  *freed += 10;
done:
  ++*freed;
  return err;
}

START_TEST(macros_pass_the_code_on) {
  int passed = 0, freed = 0;
  ck_assert_int_eq(try_both(false, false, &passed), NPS_OK);
  ck_assert_int_eq(passed, 2);
  ck_assert_int_eq(try_both(false, true, &passed), NPS_ERR_IO);
  ck_assert_int_eq(passed, 3);
  ck_assert_int_eq(try_both(true, true, &passed), NPS_ERR_IO);
  ck_assert_int_eq(passed, 3);
  ck_assert_int_eq(goto_done(false, &freed), NPS_OK);
  ck_assert_int_eq(freed, 11);
  ck_assert_int_eq(goto_done(true, &freed), NPS_ERR_IO);
  ck_assert_int_eq(freed, 12);
  nps_problem_clear();
}
END_TEST

static void keep_note(void *ctx, const char *text) { nps_text_add(ctx, "[%s]", text); }

START_TEST(notes_go_to_the_sink) {
  nps_text_t notes = {0};
  nps_note_set_sink(keep_note, &notes);
  nps_note("base is listed: %s", "left out");
  nps_note("two");
  nps_note_set_sink(NULL, NULL);
  ck_assert_str_eq(notes.text, "[base is listed: left out][two]");
  free(notes.text);
}
END_TEST

static void leave_with_seven(int exit_code) { _exit(exit_code == 1 ? 7 : 8); }

START_TEST(fatal_ends_the_program_through_the_handler) {
  for (int handled = 0; handled < 2; handled++) {
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
      if (freopen("/dev/null", "w", stderr) == NULL) _exit(9);
      if (freopen("/dev/null", "w", stdout) == NULL) _exit(9);
      if (handled) nps_fatal_set_handler(leave_with_seven);
      nps_fatal("broken: %d", 1);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), handled ? 7 : 1);
  }
}
END_TEST

START_TEST(small_allocations_are_cleared_copied_and_formatted) {
  int *zeros = nps_xcalloc(100, sizeof *zeros);
  for (int i = 0; i < 100; i++) ck_assert_int_eq(zeros[i], 0);
  zeros[99] = 5;
  zeros = nps_xrealloc(zeros, 1000, sizeof *zeros);
  ck_assert_int_eq(zeros[99], 5);
  char *copy = nps_xstrdup("layer"), *part = nps_xstrndup("layer", 3), *text = nps_xstrf("%s.%d", copy, 11);
  ck_assert_str_eq(copy, "layer");
  ck_assert_str_eq(part, "lay");
  ck_assert_str_eq(text, "layer.11");
  free(zeros), free(copy), free(part), free(text);
}
END_TEST

START_TEST(large_buffers_are_aligned) {
  for (size_t bytes = 0; bytes < 1000; bytes += 333) {
    char *buffer = NULL;
    ck_assert_int_eq(nps_buffer_alloc(bytes, "a test", &buffer), NPS_OK);
    ck_assert_uint_eq((uintptr_t)buffer % 64, 0);
    memset(buffer, 1, bytes);
    free(buffer);
  }
}
END_TEST

START_TEST(impossible_buffers_are_an_error_that_names_their_use) {
  char *buffer = NULL;
  ck_assert_int_eq(nps_buffer_alloc(SIZE_MAX / 4, "the slab of lm_head.weight", &buffer), NPS_ERR_MEMORY);
  ck_assert_ptr_null(buffer);
  ck_assert_int_eq(nps_problem_count(), 1);
  ck_assert_ptr_nonnull(strstr(nps_problem_text(0), "the slab of lm_head.weight"));
  nps_problem_clear();
}
END_TEST

START_TEST(text_grows) {
  nps_text_t text = {0};
  for (int i = 0; i < 1000; i++) nps_text_add(&text, "%03d,", i);
  ck_assert_uint_eq(text.size, 4000);
  ck_assert_uint_eq(strlen(text.text), 4000);
  ck_assert_int_eq(memcmp(text.text + 4 * 123, "123,", 4), 0);
  nps_text_add_bytes(&text, "a\0b", 3);
  ck_assert_uint_eq(text.size, 4003);
  ck_assert_int_eq(memcmp(text.text + 4000, "a\0b", 4), 0);
  free(text.text);
}
END_TEST

START_TEST(nearest_word_is_close_or_none) {
  const char *words[] = {"density", "weight", "normalize", "t"};
  ck_assert_str_eq(nps_nearest("densty", words, 4), "density");
  ck_assert_str_eq(nps_nearest("wieght", words, 4), "weight");
  ck_assert_str_eq(nps_nearest("normalise", words, 4), "normalize");
  ck_assert_str_eq(nps_nearest("weight", words, 4), "weight");
  ck_assert_ptr_null(nps_nearest("population", words, 4));
  ck_assert_ptr_null(nps_nearest("density", words, 0));
}
END_TEST

START_TEST(bytes_are_written_for_people) {
  char out[32];
  ck_assert_str_eq(nps_format_bytes(0, out), "0 B");
  ck_assert_str_eq(nps_format_bytes(512, out), "512 B");
  ck_assert_str_eq(nps_format_bytes(2.07 * 1024 * 1024 * 1024, out), "2.07 GiB");
  ck_assert_ptr_nonnull(strstr(nps_format_bytes(3e12, out), "TiB"));
}
END_TEST

START_TEST(clock_does_not_run_backwards) {
  double before = nps_now();
  for (int i = 0; i < 1000; i++) {
    double now = nps_now();
    ck_assert_double_ge(now, before);
    before = now;
  }
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("base");
  tcase_add_test(cases, problems_show_no_control_characters);
  tcase_add_test(cases, exit_codes_are_those_of_the_manual);
  tcase_add_test(cases, worse_of_two_codes_has_the_smallest_exit_code);
  tcase_add_test(cases, problems_are_kept_in_order_until_cleared);
  tcase_add_test(cases, macros_pass_the_code_on);
  tcase_add_test(cases, notes_go_to_the_sink);
  tcase_add_test(cases, fatal_ends_the_program_through_the_handler);
  tcase_add_test(cases, small_allocations_are_cleared_copied_and_formatted);
  tcase_add_test(cases, large_buffers_are_aligned);
  tcase_add_test(cases, impossible_buffers_are_an_error_that_names_their_use);
  tcase_add_test(cases, text_grows);
  tcase_add_test(cases, nearest_word_is_close_or_none);
  tcase_add_test(cases, bytes_are_written_for_people);
  tcase_add_test(cases, clock_does_not_run_backwards);
  return run_tests("base", cases);
}
