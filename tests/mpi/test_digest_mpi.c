#include "../nps_check_mpi.h"
#include "nps/model.h"

#include <fcntl.h>

/* A file of 40 MiB and a bit: two whole blocks of 16 MiB and a short one. The hashes come from Python's hashlib. */
#define SIZE (((int64_t)40 << 20) + 12345)
#define HEADER 5000
#define PATTERN_HEX "f2c6078e73a5ef4068be2b59e02e9288ee46fc7fcb7239155e36ab7461bb3f82"
#define ZERO_HEADER_HEX "63498e6c233bf26725792997fca5e93973bc5f1026fa327e53a8c974373d5a35" /* HEADER zeros, pattern */
#define ZEROS_HEX "8bda09b4a59e127f7a25e5f8bbaf28c94d9db5aba74e429b48fa9c42fc703ab6"
#define EMPTY_HEX "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static char pattern_path[600], zeros_path[600], empty_path[600];
static unsigned char *pattern; /* [SIZE] */

static bool put_file(const char *path, const unsigned char *bytes, int64_t n) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  bool ok = fd >= 0 && ftruncate(fd, n) == 0;
  for (int64_t at = 0; ok && bytes && at < n;) {
    ssize_t put = pwrite(fd, bytes + at, (size_t)(n - at), at);
    ok = put > 0;
    at += put;
  }
  if (fd >= 0) close(fd);
  return ok;
}

static void set_up(void) {
  bool ok = make_common_folder();
  snprintf(pattern_path, sizeof pattern_path, "%s/pattern", folder);
  snprintf(zeros_path, sizeof zeros_path, "%s/zeros", folder);
  snprintf(empty_path, sizeof empty_path, "%s/empty", folder);
  pattern = nps_xcalloc(SIZE, 1);
  for (int64_t i = 0; i < SIZE; i++) pattern[i] = (unsigned char)(i * 31 + 7 + (i >> 16));
  if (rank == 0)
    ok = ok && put_file(pattern_path, pattern, SIZE) && put_file(zeros_path, NULL, SIZE) &&
         put_file(empty_path, NULL, 0);
  ck_assert(everywhere(ok));
}

static void tear_down(void) {
  remove_common_folder();
  free(pattern);
}

static nps_digest_t *start(char *path, int64_t bytes) {
  nps_model_file_t file = {path, bytes, 0};
  nps_model_t model = {.files = &file, .file_count = 1};
  const nps_model_t *models[] = {&model};
  return nps_digest_start(models, 1);
}

/* Tell a digest that [first, end) of the file was read, holding the pattern, in parts of `part` bytes. */
static void feed(nps_digest_t *d, const char *path, int64_t first, int64_t end, int64_t part) {
  for (int64_t at = first; at < end; at += part) {
    int64_t n = at + part < end ? part : end - at;
    nps_digest_feed(d, path, at, pattern + at, (size_t)n);
  }
}

static bool finish_gives(nps_digest_t *d, const char *hex) {
  bool ok = nps_digest_finish(comm, d) == NPS_OK && strcmp(nps_digest_hex(d, 0), hex) == 0;
  nps_digest_free(d);
  return ok;
}

START_TEST(what_nobody_read_is_read_at_the_end) {
  ck_assert(everywhere(finish_gives(start(pattern_path, SIZE), PATTERN_HEX)));
}
END_TEST

START_TEST(an_empty_file_has_the_hash_of_nothing) {
  ck_assert(everywhere(finish_gives(start(empty_path, 0), EMPTY_HEX)));
}
END_TEST

/* The file holds zeros: the pattern's hash shows that bytes that were fed are not read again. */
START_TEST(bytes_that_were_read_in_order_are_not_read_again) {
  nps_digest_t *d = start(zeros_path, SIZE);
  if (rank == size - 1) feed(d, zeros_path, 0, SIZE, 1 << 20);
  ck_assert(everywhere(finish_gives(d, PATTERN_HEX)));
}
END_TEST

START_TEST(ranks_hash_the_blocks_that_they_read) {
  nps_digest_t *d = start(zeros_path, SIZE);
  const int64_t block = (int64_t)16 << 20;
  for (int k = 0; k < 3; k++)
    if (k % size == rank) feed(d, zeros_path, k * block, k < 2 ? (k + 1) * block : SIZE, 999983);
  ck_assert(everywhere(finish_gives(d, PATTERN_HEX)));
}
END_TEST

START_TEST(a_header_that_nobody_reads_is_hashed_when_the_data_behind_it_come) {
  nps_digest_t *d = start(zeros_path, SIZE);
  if (rank == 0) feed(d, zeros_path, HEADER, SIZE, 65536);
  ck_assert(everywhere(finish_gives(d, ZERO_HEADER_HEX)));
}
END_TEST

START_TEST(parts_that_overlap_repeat_or_come_late_do_no_harm) {
  nps_digest_t *d = start(zeros_path, SIZE);
  feed(d, zeros_path, (int64_t)20 << 20, (int64_t)21 << 20, 4096);
  feed(d, zeros_path, (int64_t)30 << 20, (int64_t)33 << 20, 4096);
  feed(d, zeros_path, 0, (int64_t)17 << 20, 1 << 20);
  feed(d, zeros_path, (int64_t)12 << 20, SIZE, 1000003);
  feed(d, zeros_path, 0, SIZE, 1 << 20);
  ck_assert(everywhere(finish_gives(d, PATTERN_HEX)));
}
END_TEST

START_TEST(cuts_anywhere_give_the_same_hash) {
  nps_digest_t *d = start(pattern_path, SIZE);
  feed(d, pattern_path, HEADER + (SIZE - HEADER) * rank / size, HEADER + (SIZE - HEADER) * (rank + 1) / size, 777777);
  ck_assert(everywhere(finish_gives(d, PATTERN_HEX)));
}
END_TEST

START_TEST(files_of_several_models_are_hashed_once_and_kept_in_order) {
  nps_model_file_t first[] = {{zeros_path, SIZE, 0}, {pattern_path, SIZE, 0}};
  nps_model_file_t second[] = {{pattern_path, SIZE, 0}, {empty_path, 0, 0}};
  nps_model_t a = {.files = first, .file_count = 2}, b = {.files = second, .file_count = 2};
  const nps_model_t *models[] = {&a, &b};
  nps_digest_t *d = nps_digest_start(models, 2);
  feed(d, pattern_path, (int64_t)size * 1000 + rank, SIZE, 1 << 20);
  bool ok = nps_digest_finish(comm, d) == NPS_OK && nps_digest_count(d) == 3;
  const char *paths[] = {zeros_path, pattern_path, empty_path}, *hexes[] = {ZEROS_HEX, PATTERN_HEX, EMPTY_HEX};
  for (int i = 0; ok && i < 3; i++)
    ok = strcmp(nps_digest_path(d, i), paths[i]) == 0 && strcmp(nps_digest_hex(d, i), hexes[i]) == 0 &&
         nps_digest_size(d, i) == (i < 2 ? SIZE : 0);
  nps_digest_free(d);
  ck_assert(everywhere(ok));
}
END_TEST

/* Two files whose parts begin and end at different places of their blocks, hashed side by side. One holds zeros, the other
 * the pattern, and both are told to hold the pattern: neither may be read again. */
START_TEST(two_files_at_a_time_have_the_hashes_they_have_alone) {
  nps_model_file_t files[] = {{zeros_path, SIZE, 0}, {pattern_path, SIZE, 0}};
  nps_model_t model = {.files = files, .file_count = 2};
  const nps_model_t *models[] = {&model};
  nps_digest_t *d = nps_digest_start(models, 1);
  int64_t x = 0, y = 0;
  while (x < SIZE || y < SIZE) {
    const int64_t n = SIZE - x < 1234567 ? SIZE - x : 1234567, m = SIZE - y < 7654321 ? SIZE - y : 7654321;
    const nps_digest_part_t one = {zeros_path, x, pattern + x, (size_t)n},
                            other = {pattern_path, y, pattern + y, (size_t)m};
    nps_digest_feed_two(d, &one, &other);
    x += n;
    y += m;
  }
  bool ok = nps_digest_finish(comm, d) == NPS_OK;
  for (int i = 0; i < 2; i++) ok = ok && strcmp(nps_digest_hex(d, i), PATTERN_HEX) == 0;
  nps_digest_free(d);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(two_parts_of_the_same_file_go_one_after_the_other) {
  nps_digest_t *d = start(zeros_path, SIZE);
  const int64_t part = 3000001;
  for (int64_t at = 0; at < SIZE; at += 2 * part) {
    const int64_t middle = at + part < SIZE ? at + part : SIZE, end = middle + part < SIZE ? middle + part : SIZE;
    const nps_digest_part_t one = {zeros_path, at, pattern + at, (size_t)(middle - at)};
    const nps_digest_part_t other = {zeros_path, middle, pattern + middle, (size_t)(end - middle)};
    nps_digest_feed_two(d, &one, &other);
  }
  ck_assert(everywhere(finish_gives(d, PATTERN_HEX)));
}
END_TEST

START_TEST(a_part_of_a_file_that_is_not_hashed_does_not_matter) {
  nps_digest_t *d = start(zeros_path, SIZE);
  for (int64_t at = 0; at < SIZE; at += 1 << 20) {
    const size_t n = SIZE - at < 1 << 20 ? (size_t)(SIZE - at) : 1 << 20;
    nps_digest_feed_two(d, &(nps_digest_part_t){"another", at, pattern, n},
                        &(nps_digest_part_t){zeros_path, at, pattern + at, n});
  }
  ck_assert(everywhere(finish_gives(d, PATTERN_HEX)));
}
END_TEST

/* A file that a finished digest has need not be there any more. */
START_TEST(known_hashes_are_taken) {
  char copy[600];
  snprintf(copy, sizeof copy, "%s/copy", folder);
  if (rank == 0) ck_assert_int_eq(link(pattern_path, copy), 0);
  nps_comm_barrier(comm);
  nps_digest_t *known = start(copy, SIZE), *d = start(copy, SIZE), *other = start(zeros_path, SIZE);
  bool ok = nps_digest_finish(comm, known) == NPS_OK;
  if (rank == 0) remove(copy);
  nps_comm_barrier(comm);
  nps_digest_take(d, known);
  nps_digest_take(other, known); /* has none of these */
  nps_digest_feed(d, copy, 0, "x", 1);
  nps_digest_free(known);
  ok = finish_gives(d, PATTERN_HEX) && ok;
  ok = finish_gives(other, ZEROS_HEX) && ok;
  ck_assert(everywhere(ok));
}
END_TEST

/* Every rank learns of a file that one rank cannot read; rank 0 has the message. */
static bool finish_fails(nps_digest_t *d, const char *message) {
  bool ok = nps_digest_finish(comm, d) == NPS_ERR_INPUT;
  if (rank == 0)
    ok = ok && nps_problem_count() == 1 && strcmp(nps_problem_text(0), message) == 0;
  else
    ok = ok && nps_problem_count() == 0;
  nps_problem_clear();
  nps_digest_free(d);
  return ok;
}

START_TEST(a_file_that_became_shorter_is_an_error_everywhere) {
  nps_digest_t *d = start(zeros_path, SIZE + 1);
  char message[800];
  snprintf(message, sizeof message, "%s: became shorter while it was read: expected %lld bytes", zeros_path,
           (long long)SIZE + 1);
  ck_assert(everywhere(finish_fails(d, message)));
}
END_TEST

START_TEST(a_file_that_vanished_is_an_error_everywhere) {
  char missing[600], message[800];
  snprintf(missing, sizeof missing, "%s/missing", folder);
  snprintf(message, sizeof message, "%s: cannot be read: No such file or directory", missing);
  ck_assert(everywhere(finish_fails(start(missing, 77), message)));
}
END_TEST

START_TEST(sha256_of_bytes) {
  char hex[65];
  nps_sha256_hex("abc", 3, hex); /* FIPS 180-2, B.1 */
  ck_assert_str_eq(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("digest");
  tcase_add_unchecked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, what_nobody_read_is_read_at_the_end);
  tcase_add_test(cases, an_empty_file_has_the_hash_of_nothing);
  tcase_add_test(cases, bytes_that_were_read_in_order_are_not_read_again);
  tcase_add_test(cases, ranks_hash_the_blocks_that_they_read);
  tcase_add_test(cases, a_header_that_nobody_reads_is_hashed_when_the_data_behind_it_come);
  tcase_add_test(cases, parts_that_overlap_repeat_or_come_late_do_no_harm);
  tcase_add_test(cases, cuts_anywhere_give_the_same_hash);
  tcase_add_test(cases, files_of_several_models_are_hashed_once_and_kept_in_order);
  tcase_add_test(cases, two_files_at_a_time_have_the_hashes_they_have_alone);
  tcase_add_test(cases, two_parts_of_the_same_file_go_one_after_the_other);
  tcase_add_test(cases, a_part_of_a_file_that_is_not_hashed_does_not_matter);
  tcase_add_test(cases, known_hashes_are_taken);
  tcase_add_test(cases, a_file_that_became_shorter_is_an_error_everywhere);
  tcase_add_test(cases, a_file_that_vanished_is_an_error_everywhere);
  tcase_add_test(cases, sha256_of_bytes);
  return end_mpi(run_tests_everywhere("digest", cases));
}
