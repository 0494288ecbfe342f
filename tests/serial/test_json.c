#include "../nps_check.h"
#include "nps/json.h"

#include <sys/stat.h>

static char path[600];

static void set_up(void) {
  ck_assert(make_new_folder());
  snprintf(path, sizeof path, "%s/file.json", folder);
}

static void tear_down(void) { remove_all(folder); }

static void put_file(const char *bytes, size_t n) {
  FILE *f = fopen(path, "wb");
  ck_assert_ptr_nonnull(f);
  ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
  ck_assert_int_eq(fclose(f), 0);
}

static void expect_problem(nps_err_t err, const char *expected) {
  ck_assert_int_eq(err, NPS_ERR_INPUT);
  ck_assert_int_eq(nps_problem_count(), 1);
  ck_assert_str_eq(nps_problem_text(0), expected);
  nps_problem_clear();
}

/* ---- files ---- */

START_TEST(files_are_read_whole) {
  const char bytes[] = {'a', '\0', 'b', '\n', '\xff'};
  char *data = NULL;
  size_t size = 77;
  put_file(bytes, sizeof bytes);
  ck_assert_int_eq(nps_file_read(path, sizeof bytes, &data, &size), NPS_OK);
  ck_assert_uint_eq(size, sizeof bytes);
  ck_assert_mem_eq(data, bytes, sizeof bytes);
  ck_assert_int_eq(data[size], '\0');
  free(data);
  put_file("", 0);
  ck_assert_int_eq(nps_file_read(path, 0, &data, NULL), NPS_OK);
  ck_assert_str_eq(data, "");
  free(data);
}
END_TEST

START_TEST(what_cannot_be_read_is_an_error_that_names_it) {
  char expected[700], *data = NULL;
  snprintf(expected, sizeof expected, "%s: cannot be read: No such file or directory", path);
  expect_problem(nps_file_read(path, 100, &data, NULL), expected);
  snprintf(expected, sizeof expected, "%s: expected a regular file", folder);
  expect_problem(nps_file_read(folder, 100, &data, NULL), expected);
  snprintf(expected, sizeof expected, "%s: has 6 bytes, at most 5 are accepted", path);
  put_file("123456", 6);
  expect_problem(nps_file_read(path, 5, &data, NULL), expected);
  ck_assert_ptr_null(data);
}
END_TEST

/* Nobody writes into it: opening it would wait for ever. */
START_TEST(pipes_are_refused_at_once) {
  char expected[700], *data = NULL;
  ck_assert_int_eq(mkfifo(path, 0600), 0);
  snprintf(expected, sizeof expected, "%s: expected a regular file", path);
  expect_problem(nps_file_read(path, 100, &data, NULL), expected);
}
END_TEST

/* ---- JSON ---- */

START_TEST(json_is_parsed) {
  const char text[] = "{\"a\": [1, 2.5, \"\\u03b8\"], \"b\": {\"a\": null}, \"n\": 9223372036854775807}";
  json_t *root = NULL;
  ck_assert_int_eq(nps_json_parse(text, sizeof text - 1, "text", &root), NPS_OK);
  ck_assert_int_eq(json_integer_value(json_object_get(root, "n")), INT64_MAX);
  ck_assert_uint_eq(json_array_size(json_object_get(root, "a")), 3);
  ck_assert_str_eq(json_string_value(json_array_get(json_object_get(root, "a"), 2)), "θ");
  json_decref(root);
}
END_TEST

/* Only the part that is said to be there is looked at: a header in front of data. */
START_TEST(text_need_not_end_in_nul) {
  json_t *root = NULL;
  ck_assert_int_eq(nps_json_parse("[1]garbage", 3, "text", &root), NPS_OK);
  ck_assert_uint_eq(json_array_size(root), 1);
  json_decref(root);
}
END_TEST

static const struct {
  const char *text;
  size_t size; /* 0: all */
  const char *begin;
} malformed[] = {
    {"", 0, "header of x: is not valid JSON: line 1: "},
    {"{", 0, "header of x: is not valid JSON: line 1: "},
    {"{\"a\": 1,}", 0, "header of x: is not valid JSON: line 1: "},
    {"{\n\n\"a\" 1}", 0, "header of x: is not valid JSON: line 3: "},
    {"{\"a\": 1} {}", 0, "header of x: is not valid JSON: line 1: end of file expected"},
    {"{\"a\": 1, \"a\": 2}", 0, "header of x: is not valid JSON: line 1: duplicate object key"},
    {"{\"a\": {\"b\": 1, \"b\": 1}}", 0, "header of x: is not valid JSON: line 1: duplicate object key"},
    {"17", 0, "header of x: is not valid JSON: line 1: "},
    {"\"text\"", 0, "header of x: is not valid JSON: line 1: "},
    {"{'a': 1}", 0, "header of x: is not valid JSON: line 1: "},
    {"[NaN]", 0, "header of x: is not valid JSON: line 1: "},
    {"[1e999]", 0, "header of x: is not valid JSON: line 1: real number overflow"},
    {"[9223372036854775808]", 0, "header of x: is not valid JSON: line 1: too big integer"},
    {"[\"\xff\"]", 0, "header of x: is not valid JSON: line 1: "},
    {"[\"\xed\xa0\x80\"]", 0, "header of x: is not valid JSON: line 1: "}, /* half of a surrogate pair */
    {"[\"a\0b\"]", 7, "header of x: is not valid JSON: line 1: "},
    {"[\"\\u0000\"]", 0, "header of x: is not valid JSON: line 1: "},
    {"[1, 2]", 4, "header of x: is not valid JSON: line 1: "},
    {"\xef\xbb\xbf{}", 0, "header of x: is not valid JSON: line 1: "}, /* byte order mark */
};

START_TEST(malformed_json_is_an_error_that_names_the_line) {
  const size_t size = malformed[_i].size ? malformed[_i].size : strlen(malformed[_i].text);
  json_t *root = NULL;
  ck_assert_int_eq(nps_json_parse(malformed[_i].text, size, "header of x", &root), NPS_ERR_INPUT);
  ck_assert_ptr_null(root);
  ck_assert_int_eq(nps_problem_count(), 1);
  ck_assert_msg(strncmp(nps_problem_text(0), malformed[_i].begin, strlen(malformed[_i].begin)) == 0, "%s",
                nps_problem_text(0));
  nps_problem_clear();
}
END_TEST

/* Text as Python reads it: what comes back is the same characters, but for blanks. */
static const char *const python_texts[] = {
    "{\"model_max_length\":1000000000000000019884624838656,\"a\":-9223372036854775809}",
    "[9223372036854775807,-9223372036854775808,9223372036854775808]",
    "{\"time_step_limit\":[0.0,Infinity],\"b\":-Infinity,\"c\":NaN}",
    "[1e999,-1E+400,{\"x\":[[NaN]]}]",
    "{\"Infinity\":\"NaN\",\"1000000000000000000000\":\"\\\" NaN, 99999999999999999999 \\\\\"}",
    "[\"θ\",true,false,null,0,-1.5]",
};

START_TEST(numbers_of_python_come_back_as_they_were) {
  const char *text = python_texts[_i];
  json_t *root = NULL;
  ck_assert_int_eq(nps_json_parse_python(text, strlen(text), "text", &root), NPS_OK);
  char *again = nps_json_print(root, JSON_COMPACT);
  ck_assert_str_eq(again, text);
  free(again);
  json_t *same = nps_json_of(text);
  ck_assert(json_equal(root, same));
  json_decref(same);
  json_decref(root);
}
END_TEST

START_TEST(numbers_that_do_not_fit_are_none) {
  json_t *root = nps_json_of("{\"n\": 9223372036854775808, \"x\": NaN, \"i\": 7}");
  ck_assert(!json_is_number(json_object_get(root, "n")) && !json_is_number(json_object_get(root, "x")));
  ck_assert_int_eq(json_integer_value(json_object_get(root, "i")), 7);
  json_decref(root);
  ck_assert_ptr_null(nps_json_of(NULL));
  ck_assert_ptr_null(nps_json_of("[1"));
  ck_assert_ptr_null(nps_json_of(""));
  ck_assert_ptr_null(nps_json_print(NULL, 0));
}
END_TEST

static const char *const no_python[] = {"",
                                        "[",
                                        "[Nan]",
                                        "[+Infinity]",
                                        "[NaN NaN]",
                                        "{NaN: 1}",
                                        "[1e]",
                                        "[01]",
                                        "[--1]",
                                        "{\"a\": \"NaN}",
                                        "[\"a\\",
                                        "{\"a\":1,\"a\":2}",
                                        "[NaN]x",
                                        "[1.e999]",
                                        "[Infinity.]",
                                        "[-]",
                                        "[099999999999999999999]"};

START_TEST(what_python_does_not_read_is_an_error) {
  json_t *root = NULL;
  ck_assert_int_eq(nps_json_parse_python(no_python[_i], strlen(no_python[_i]), "text", &root), NPS_ERR_INPUT);
  ck_assert_ptr_null(root);
  ck_assert_int_eq(nps_problem_count(), 1);
  nps_problem_clear();
}
END_TEST

START_TEST(absurd_nesting_is_an_error) {
  enum { DEPTH = 1000000 };
  char *text = nps_xcalloc(DEPTH, 1);
  json_t *root = NULL;
  memset(text, '[', DEPTH);
  ck_assert_int_eq(nps_json_parse(text, DEPTH, "deep", &root), NPS_ERR_INPUT);
  ck_assert_ptr_nonnull(strstr(nps_problem_text(0), "maximum parsing depth reached"));
  nps_problem_clear();
  free(text);
}
END_TEST

START_TEST(json_files_are_loaded) {
  json_t *root = NULL;
  char expected[700];
  put_file("{\"layers\": 12}\n", 15);
  ck_assert_int_eq(nps_json_load(path, &root), NPS_OK);
  ck_assert_int_eq(json_integer_value(json_object_get(root, "layers")), 12);
  json_decref(root);
  put_file("{\n\"layers\": 12", 14);
  ck_assert_int_eq(nps_json_load(path, &root), NPS_ERR_INPUT);
  snprintf(expected, sizeof expected, "%s: is not valid JSON: line 2: ", path);
  ck_assert_msg(strncmp(nps_problem_text(0), expected, strlen(expected)) == 0, "%s", nps_problem_text(0));
  nps_problem_clear();
  unlink(path);
  snprintf(expected, sizeof expected, "%s: cannot be read: No such file or directory", path);
  expect_problem(nps_json_load(path, &root), expected);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("json");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, files_are_read_whole);
  tcase_add_test(cases, what_cannot_be_read_is_an_error_that_names_it);
  tcase_add_test(cases, pipes_are_refused_at_once);
  tcase_add_test(cases, json_is_parsed);
  tcase_add_test(cases, text_need_not_end_in_nul);
  tcase_add_loop_test(cases, malformed_json_is_an_error_that_names_the_line, 0,
                      (int)(sizeof malformed / sizeof *malformed));
  tcase_add_loop_test(cases, numbers_of_python_come_back_as_they_were, 0,
                      (int)(sizeof python_texts / sizeof *python_texts));
  tcase_add_test(cases, numbers_that_do_not_fit_are_none);
  tcase_add_loop_test(cases, what_python_does_not_read_is_an_error, 0, (int)(sizeof no_python / sizeof *no_python));
  tcase_add_test(cases, absurd_nesting_is_an_error);
  tcase_add_test(cases, json_files_are_loaded);
  return run_tests("json", cases);
}
