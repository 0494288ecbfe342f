#include "../h5_files.h"
#include "../nps_check_mpi.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

static char path[600];

static void set_up(void) {
  ck_assert(make_new_folder());
  snprintf(path, sizeof path, "%s/file.h5", folder);
}

static void tear_down(void) {
  remove_all(folder);
  nps_problem_clear();
}

static void check_problem(const char *part) {
  ck_assert_int_eq(nps_problem_count(), 1);
  ck_assert_msg(strstr(nps_problem_text(0), part) != NULL, "'%s' not in '%s'", part, nps_problem_text(0));
  nps_problem_clear();
}

/* The bytes at the offset a file gives are what was written, in the order given, whatever the pieces. */
static void check_bytes(const nps_h5_info_t *info, const unsigned char *expected, size_t n) {
  unsigned char found[512];
  ck_assert(info->contiguous);
  ck_assert_int_eq(info->bytes, (int64_t)n);
  int fd = open(path, O_RDONLY);
  ck_assert_int_eq(pread(fd, found, n, info->offset), (ssize_t)n);
  close(fd);
  ck_assert_mem_eq(found, expected, n);
}

START_TEST(every_type_is_found_again) {
  const unsigned char data[16] = {1, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1};
  const int64_t shape[1] = {2};
  nps_h5_t *file = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_make_group(file, "/tensors"), NPS_OK);
  for (int t = 0; t <= NPS_BOOL; t++) {
    nps_h5_dataset_t *d = NULL;
    const char *name = nps_dtype_name((nps_dtype_t)t);
    ck_assert_int_eq(nps_h5_dataset_create(file, "/tensors", name, (nps_dtype_t)t, 1, shape, &d), NPS_OK);
    ck_assert_int_eq(nps_h5_dataset_write(d, 0, 2, data), NPS_OK);
    nps_h5_dataset_close(d);
  }
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_OK);
  for (int t = 0; t <= NPS_BOOL; t++) {
    nps_h5_info_t info;
    ck_assert_int_eq(nps_h5_describe(file, "/tensors", nps_dtype_name((nps_dtype_t)t), &info), NPS_OK);
    ck_assert(info.is_dataset && info.known_type);
    ck_assert_int_eq((int)info.dtype, t);
    ck_assert_int_eq(info.ndim, 1);
    ck_assert_int_eq(info.shape[0], 2);
    check_bytes(&info, data, 2 * nps_dtype_size((nps_dtype_t)t));
  }
  nps_h5_abandon(file);
}
END_TEST

/* All pairs of cuts of a 3×4×5 dataset: every range goes through its own set of boxes. */
START_TEST(ranges_are_row_major) {
  const int64_t shape[3] = {3, 4, 5};
  unsigned char data[60];
  for (int i = 0; i < 60; i++) data[i] = (unsigned char)(7 * i + 1);
  nps_h5_t *file = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  for (int cut = 0; cut < 60; cut++) {
    char name[16];
    nps_h5_dataset_t *d = NULL;
    snprintf(name, sizeof name, "d%02d", cut);
    ck_assert_int_eq(nps_h5_dataset_create(file, "/", name, NPS_U8, 3, shape, &d), NPS_OK);
    const int second = cut + (60 - cut) / 3;
    ck_assert_int_eq(nps_h5_dataset_write(d, second, 60 - second, data + second), NPS_OK);
    ck_assert_int_eq(nps_h5_dataset_write(d, cut, second - cut, data + cut), NPS_OK);
    ck_assert_int_eq(nps_h5_dataset_write(d, 0, cut, data), NPS_OK);
    nps_h5_dataset_close(d);
  }
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_OK);
  for (int cut = 0; cut < 60; cut++) {
    char name[16];
    nps_h5_info_t info;
    snprintf(name, sizeof name, "d%02d", cut);
    ck_assert_int_eq(nps_h5_describe(file, "/", name, &info), NPS_OK);
    ck_assert_int_eq(info.ndim, 3);
    check_bytes(&info, data, 60);
  }
  nps_h5_abandon(file);
}
END_TEST

START_TEST(scalars_and_empty_datasets_work) {
  const int64_t none[2] = {0, 7};
  const float one = 1.5F;
  nps_h5_info_t info;
  nps_h5_t *file = NULL;
  nps_h5_dataset_t *d = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_dataset_create(file, "/", "scalar", NPS_F32, 0, NULL, &d), NPS_OK);
  ck_assert_int_eq(nps_h5_dataset_write(d, 0, 1, &one), NPS_OK);
  nps_h5_dataset_close(d);
  ck_assert_int_eq(nps_h5_dataset_create(file, "/", "empty", NPS_BF16, 2, none, &d), NPS_OK);
  ck_assert_int_eq(nps_h5_dataset_write(d, 0, 0, NULL), NPS_OK);
  nps_h5_dataset_close(d);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_describe(file, "/", "scalar", &info), NPS_OK);
  ck_assert_int_eq(info.ndim, 0);
  check_bytes(&info, (const unsigned char *)"\0\0\xc0\x3f", 4);
  ck_assert_int_eq(nps_h5_describe(file, "/", "empty", &info), NPS_OK);
  ck_assert_int_eq(info.shape[1], 7);
  ck_assert_int_eq(info.bytes, 0);
  nps_h5_abandon(file);
}
END_TEST

START_TEST(attributes_and_small_datasets_come_back) {
  const size_t large = 200000;
  char *big = calloc(large + 1, 1), *text = NULL, **names = NULL;
  memset(big, 'x', large);
  const char *const words[2] = {"one", "größer"};
  const int64_t integers[2] = {-1, INT64_MAX}, shape[1] = {2};
  int64_t value = 0;
  int count = 0;
  size_t length = 0;
  void *bytes = NULL;
  bool found = false;
  nps_h5_t *file = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_put_attr_text(file, "/", "big", big), NPS_OK);
  ck_assert_int_eq(nps_h5_put_attr_text(file, "/", "empty", ""), NPS_OK);
  ck_assert_int_eq(nps_h5_put_attr_i64(file, "/", "version", 1), NPS_OK);
  ck_assert_int_eq(nps_h5_make_group(file, "/a/b"), NPS_OK);
  ck_assert_int_eq(put_bytes(file, "/a", "z.json", "{}\0x", 4), NPS_OK);
  ck_assert_int_eq(put_bytes(file, "/a", "nothing", NULL, 0), NPS_OK);
  ck_assert_int_eq(nps_h5_put_texts(file, "/a/texts", words, 2), NPS_OK);
  ck_assert_int_eq(nps_h5_put(file, "/a/b/i", NPS_I64, integers, 1, shape), NPS_OK);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_get_attr_text(file, "/", "big", &text), NPS_OK);
  ck_assert_str_eq(text, big);
  free(text);
  ck_assert_int_eq(nps_h5_get_attr_text(file, "/", "empty", &text), NPS_OK);
  ck_assert_str_eq(text, "");
  free(text);
  ck_assert_int_eq(nps_h5_get_attr_text(file, "/", "none", &text), NPS_OK);
  ck_assert_ptr_null(text);
  ck_assert_int_eq(nps_h5_get_attr_i64(file, "/", "version", &value, &found), NPS_OK);
  ck_assert(found && value == 1);
  ck_assert_int_eq(nps_h5_list(file, "/a", &names, &count), NPS_OK);
  ck_assert_int_eq(count, 4);
  ck_assert_str_eq(names[0], "b");
  ck_assert_str_eq(names[3], "z.json");
  nps_h5_free_names(names, count);
  ck_assert_int_eq(nps_h5_list(file, "/a/none/deeper", &names, &count), NPS_OK);
  ck_assert_int_eq(count, 0);
  ck_assert_int_eq(nps_h5_get_bytes(file, "/a/z.json", &bytes, &length), NPS_OK);
  ck_assert_uint_eq(length, 4);
  ck_assert_mem_eq(bytes, "{}\0x", 4);
  free(bytes);
  ck_assert_int_eq(nps_h5_get_bytes(file, "/a/nothing", &bytes, &length), NPS_OK);
  ck_assert_uint_eq(length, 0);
  free(bytes);
  ck_assert_int_eq(nps_h5_get_attr_i64(file, "/", "big", &value, &found), NPS_ERR_INPUT);
  check_problem("expected one integer");
  ck_assert_int_eq(nps_h5_get_bytes(file, "/a/b/i", &bytes, &length), NPS_ERR_INPUT);
  check_problem("expected a one-dimensional dataset of uint8");
  nps_h5_abandon(file);
  free(big);
}
END_TEST

/* Written as one type, read as another: the values come through. */
START_TEST(datasets_are_read_as_the_type_asked_for) {
  const double reals[6] = {1.5, -0.0, 3e38, -7.25, 1e-3, 2};
  const int64_t integers[3] = {-2147483648, 7, 2147483647}, shape[2] = {2, 3}, three[1] = {3};
  const unsigned char small[3] = {0, 9, 255};
  nps_h5_t *file = NULL;
  int ndim = 0;
  int64_t found[NPS_MAX_DIMS];
  void *data = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_make_group(file, "/g"), NPS_OK);
  ck_assert_int_eq(nps_h5_put(file, "/g/reals", NPS_F64, reals, 2, shape), NPS_OK);
  ck_assert_int_eq(nps_h5_put(file, "/g/integers", NPS_I64, integers, 1, three), NPS_OK);
  ck_assert_int_eq(nps_h5_put(file, "/g/small", NPS_U8, small, 1, three), NPS_OK);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_read(file, "/g/reals", NPS_F32, &ndim, found, &data), NPS_OK);
  ck_assert(ndim == 2 && found[0] == 2 && found[1] == 3);
  for (int i = 0; i < 6; i++) ck_assert(((float *)data)[i] == (float)reals[i]);
  free(data);
  ck_assert_int_eq(nps_h5_read(file, "/g/reals", NPS_F64, &ndim, found, &data), NPS_OK);
  ck_assert_mem_eq(data, reals, sizeof reals);
  free(data);
  ck_assert_int_eq(nps_h5_read(file, "/g/integers", NPS_I32, &ndim, found, &data), NPS_OK);
  for (int i = 0; i < 3; i++) ck_assert_int_eq(((int32_t *)data)[i], integers[i]);
  free(data);
  ck_assert_int_eq(nps_h5_read(file, "/g/small", NPS_I64, &ndim, found, &data), NPS_OK);
  ck_assert(ndim == 1 && found[0] == 3);
  for (int i = 0; i < 3; i++) ck_assert_int_eq(((int64_t *)data)[i], small[i]);
  free(data);
  nps_h5_abandon(file);
}
END_TEST

START_TEST(datasets_that_cannot_be_read_say_why) {
  const double reals[2] = {0, -1e300};
  const int64_t integers[2] = {1, INT64_C(1) << 31}, two[1] = {2};
  nps_h5_t *file = NULL;
  int ndim = 0;
  int64_t found[NPS_MAX_DIMS];
  void *data = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_put(file, "/reals", NPS_F64, reals, 1, two), NPS_OK);
  ck_assert_int_eq(nps_h5_put(file, "/integers", NPS_I64, integers, 1, two), NPS_OK);
  ck_assert_int_eq(nps_h5_make_group(file, "/group"), NPS_OK);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_read(file, "/reals", NPS_F32, &ndim, found, &data), NPS_ERR_INPUT);
  check_problem("/reals holds a value that does not fit type F32");
  ck_assert_int_eq(nps_h5_read(file, "/integers", NPS_I32, &ndim, found, &data), NPS_ERR_INPUT);
  check_problem("/integers holds a value that does not fit type I32");
  ck_assert_int_eq(nps_h5_read(file, "/integers", NPS_F32, &ndim, found, &data), NPS_ERR_INPUT);
  check_problem("/integers: expected a dataset of floating-point numbers");
  ck_assert_int_eq(nps_h5_read(file, "/reals", NPS_I64, &ndim, found, &data), NPS_ERR_INPUT);
  check_problem("/reals: expected a dataset of whole numbers");
  ck_assert_int_eq(nps_h5_read(file, "/group", NPS_F32, &ndim, found, &data), NPS_ERR_INPUT);
  check_problem("/group: expected a dataset, found a group");
  ck_assert_int_eq(nps_h5_read(file, "/none/deeper", NPS_F32, &ndim, found, &data), NPS_ERR_INPUT);
  check_problem("there is no dataset /none/deeper");
  nps_h5_abandon(file);
}
END_TEST

START_TEST(arrays_of_texts_come_back) {
  const char *const words[3] = {"weight[0]", "", "größer"};
  char **texts = NULL;
  int count = 0;
  nps_h5_t *file = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_put_attr_texts(file, "/", "columns", words, 3), NPS_OK);
  ck_assert_int_eq(nps_h5_put_attr_texts(file, "/", "nothing", words, 0), NPS_OK);
  ck_assert_int_eq(nps_h5_put_attr_i64(file, "/", "number", 1), NPS_OK);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_get_attr_texts(file, "/", "columns", &texts, &count), NPS_OK);
  ck_assert_int_eq(count, 3);
  for (int i = 0; i < 3; i++) ck_assert_str_eq(texts[i], words[i]);
  nps_h5_free_names(texts, count);
  ck_assert_int_eq(nps_h5_get_attr_texts(file, "/", "nothing", &texts, &count), NPS_OK);
  ck_assert_int_eq(count, 0);
  nps_h5_free_names(texts, count);
  ck_assert_int_eq(nps_h5_get_attr_texts(file, "/", "none", &texts, &count), NPS_OK);
  ck_assert(texts == NULL && count == 0);
  ck_assert_int_eq(nps_h5_get_attr_texts(file, "/", "number", &texts, &count), NPS_ERR_INPUT);
  check_problem("attribute number of /: expected texts");
  nps_h5_abandon(file);
}
END_TEST

START_TEST(wrong_names_types_and_ranges_are_refused) {
  const int64_t shape[1] = {4}, huge[3] = {INT64_MAX, 2, 2};
  nps_h5_t *file = NULL;
  nps_h5_dataset_t *d = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_dataset_create(file, "/", "a/b", NPS_F32, 1, shape, &d), NPS_ERR_INPUT);
  check_problem("'a/b' cannot be the name");
  ck_assert_int_eq(nps_h5_dataset_create(file, "/", "a", NPS_F8_E4M3, 1, shape, &d), NPS_ERR_INPUT);
  check_problem("F8_E4M3 cannot be stored");
  ck_assert_int_eq(nps_h5_dataset_create(file, "/", "a", NPS_F32, 3, huge, &d), NPS_ERR_INPUT);
  check_problem("the shape is too large");
  ck_assert_int_eq(nps_h5_dataset_create(file, "/none", "a", NPS_F32, 1, shape, &d), NPS_ERR_IO);
  check_problem("dataset a cannot be created in /none");
  ck_assert_int_eq(nps_h5_dataset_create(file, "/", "a", NPS_U8, 1, shape, &d), NPS_OK);
  ck_assert_int_eq(nps_h5_dataset_write(d, 2, 3, "abc"), NPS_ERR_RUNTIME);
  check_problem("elements 2 to 5 are outside of its 4");
  nps_h5_dataset_close(d);
  nps_h5_abandon(file);
}
END_TEST

START_TEST(files_that_cannot_be_used_say_why) {
  nps_h5_t *file = NULL;
  char missing[700];
  snprintf(missing, sizeof missing, "%s/none/file.h5", folder);
  ck_assert_int_eq(nps_h5_create(comm, missing, &file), NPS_ERR_IO);
  check_problem("none/file.h5: cannot be created: No such file or directory");
  ck_assert_ptr_null(file);
  ck_assert_int_eq(nps_h5_open(missing, &file), NPS_ERR_INPUT);
  check_problem("none/file.h5: cannot be opened: No such file or directory");
  FILE *f = fopen(path, "w");
  fputs("no HDF5 here", f);
  fclose(f);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_ERR_INPUT);
  check_problem("file.h5: is not an HDF5 file");
}
END_TEST

START_TEST(a_truncated_file_is_an_error) {
  const int64_t shape[1] = {100000};
  nps_h5_t *file = NULL;
  nps_h5_dataset_t *d = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_dataset_create(file, "/", "a", NPS_U8, 1, shape, &d), NPS_OK);
  nps_h5_dataset_close(d);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(truncate(path, 50000), 0);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_ERR_INPUT);
  check_problem("truncated file");
}
END_TEST

START_TEST(a_locked_file_names_the_way_out) {
  nps_h5_t *file = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  int fd = open(path, O_RDWR);
  ck_assert_int_eq(flock(fd, LOCK_EX), 0);
  ck_assert_int_eq(nps_h5_open(path, &file), NPS_ERR_INPUT);
  check_problem("set HDF5_USE_FILE_LOCKING=FALSE");
  close(fd);
}
END_TEST

/* A limit on the file's size stands for a full disk: the system's cause is told, and nothing crashes. */
START_TEST(a_failing_write_tells_the_cause) {
  const int64_t shape[2] = {1000, 1000};
  char *data = calloc(1000, 1000);
  struct rlimit old, small;
  nps_h5_t *file = NULL;
  nps_h5_dataset_t *d = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert_int_eq(nps_h5_dataset_create(file, "/", "a", NPS_U8, 2, shape, &d), NPS_OK);
  ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
  small = (struct rlimit){500000, old.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
  nps_err_t reserved = nps_h5_reserve(file), written = nps_h5_dataset_write(d, 0, 1000000, data);
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
  ck_assert_int_eq(reserved, NPS_ERR_IO);
  ck_assert_int_eq(written, NPS_ERR_IO);
  ck_assert_int_eq(nps_problem_count(), 2);
  ck_assert_ptr_nonnull(strstr(nps_problem_text(0), "cannot be allocated: File too large"));
  ck_assert_ptr_nonnull(strstr(nps_problem_text(1), "file.h5: dataset a cannot be written: File too large"));
  nps_h5_dataset_close(d);
  nps_h5_abandon(file);
  free(data);
}
END_TEST

START_TEST(two_runs_give_the_same_bytes) {
  const int64_t shape[2] = {10, 10};
  char *image[2];
  struct stat st[2];
  for (int run = 0; run < 2; run++) {
    nps_h5_t *file = NULL;
    nps_h5_dataset_t *d = NULL;
    ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
    ck_assert_int_eq(nps_h5_make_group(file, "/tensors"), NPS_OK);
    ck_assert_int_eq(nps_h5_put_attr_text(file, "/", "format", "nps-merged"), NPS_OK);
    ck_assert_int_eq(nps_h5_dataset_create(file, "/tensors", "a", NPS_BF16, 2, shape, &d), NPS_OK);
    nps_h5_dataset_close(d);
    ck_assert_int_eq(nps_h5_close(file), NPS_OK);
    ck_assert_int_eq(stat(path, &st[run]), 0);
    image[run] = calloc((size_t)st[run].st_size, 1);
    FILE *f = fopen(path, "r");
    ck_assert_uint_eq(fread(image[run], 1, (size_t)st[run].st_size, f), (size_t)st[run].st_size);
    fclose(f);
    if (run == 0) sleep(1);
  }
  ck_assert_int_eq(st[0].st_size, st[1].st_size);
  ck_assert_mem_eq(image[0], image[1], (size_t)st[0].st_size);
  free(image[0]);
  free(image[1]);
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("h5");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, every_type_is_found_again);
  tcase_add_test(cases, ranges_are_row_major);
  tcase_add_test(cases, scalars_and_empty_datasets_work);
  tcase_add_test(cases, attributes_and_small_datasets_come_back);
  tcase_add_test(cases, datasets_are_read_as_the_type_asked_for);
  tcase_add_test(cases, datasets_that_cannot_be_read_say_why);
  tcase_add_test(cases, arrays_of_texts_come_back);
  tcase_add_test(cases, wrong_names_types_and_ranges_are_refused);
  tcase_add_test(cases, files_that_cannot_be_used_say_why);
  tcase_add_test(cases, a_truncated_file_is_an_error);
  tcase_add_test(cases, a_locked_file_names_the_way_out);
  tcase_add_test(cases, a_failing_write_tells_the_cause);
  tcase_add_test(cases, two_runs_give_the_same_bytes);
  return end_mpi(run_tests_everywhere("h5", cases));
}
