#include "../h5_files.h"
#include "../nps_check_mpi.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char path[600];

static void set_up(void) {
  ck_assert(make_common_folder());
  snprintf(path, sizeof path, "%s/file.h5", folder);
}

static void tear_down(void) {
  remove_common_folder();
  nps_problem_clear();
}

#define DATASETS 40
#define ROWS 97
#define COLUMNS 31

static uint16_t value_at(int dataset, int64_t i) { return (uint16_t)(dataset * 1009 + i * 7 + 3); }

/* Every rank writes its stretch of every dataset, cut anywhere. */
static nps_err_t write_shares(nps_h5_dataset_t *const *d) {
  uint16_t data[ROWS * COLUMNS];
  for (int k = 0; k < DATASETS; k++) {
    const int64_t first = (int64_t)ROWS * COLUMNS * rank / size, end = (int64_t)ROWS * COLUMNS * (rank + 1) / size;
    for (int64_t i = first; i < end; i++) data[i - first] = value_at(k, i);
    NPS_TRY(nps_h5_dataset_write(d[k], first, end - first, data));
  }
  return NPS_OK;
}

static bool read_back(nps_h5_t *file) {
  uint16_t data[ROWS * COLUMNS];
  int fd = open(path, O_RDONLY);
  bool ok = fd >= 0;
  for (int k = 0; ok && k < DATASETS; k++) {
    char name[32];
    nps_h5_info_t info;
    snprintf(name, sizeof name, "layer.%d.weight", k);
    ok = nps_h5_describe(file, "/tensors", name, &info) == NPS_OK && info.known_type && info.dtype == NPS_BF16 &&
         info.contiguous && info.bytes == sizeof data && pread(fd, data, sizeof data, info.offset) == sizeof data;
    for (int64_t i = 0; ok && i < ROWS * COLUMNS; i++) ok = data[i] == value_at(k, i);
  }
  close(fd);
  return ok;
}

START_TEST(ranks_write_their_shares) {
  const int64_t shape[2] = {ROWS, COLUMNS};
  nps_h5_t *file = NULL;
  nps_h5_dataset_t *d[DATASETS] = {NULL};
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert(everywhere(nps_h5_make_group(file, "/tensors") == NPS_OK));
  bool ok = true;
  for (int k = 0; k < DATASETS; k++) {
    char name[32];
    snprintf(name, sizeof name, "layer.%d.weight", k);
    ok = nps_h5_dataset_create(file, "/tensors", name, NPS_BF16, 2, shape, &d[k]) == NPS_OK && ok;
  }
  ck_assert(everywhere(ok));
  ck_assert_int_eq(nps_h5_reserve(file), NPS_OK);
  ck_assert(everywhere(write_shares(d) == NPS_OK));
  for (int k = 0; k < DATASETS; k++) nps_h5_dataset_close(d[k]);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ok = true;
  if (rank == 0) {
    ok = nps_h5_open(path, &file) == NPS_OK && read_back(file);
    nps_h5_abandon(file);
  }
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(small_things_are_written_once) {
  const size_t large = 100000;
  char *big = calloc(large + 1, 1), *text = NULL;
  memset(big, 'y', large);
  const char *const words[2] = {"plain", "ocean"};
  void *bytes = NULL;
  size_t n = 0;
  nps_h5_t *file = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  bool ok = nps_h5_put_attr_text(file, "/", "recipe", big) == NPS_OK;
  ok = nps_h5_put_attr_i64(file, "/", "format_version", 1) == NPS_OK && ok;
  ok = nps_h5_make_group(file, "/tokenizer") == NPS_OK && ok;
  ok = put_bytes(file, "/tokenizer", "tokenizer.json", big, large) == NPS_OK && ok;
  ok = nps_h5_put_texts(file, "/words", words, 2) == NPS_OK && ok;
  ck_assert(everywhere(ok));
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ok = nps_h5_open(path, &file) == NPS_OK;
  ok = ok && nps_h5_get_attr_text(file, "/", "recipe", &text) == NPS_OK && text && strcmp(text, big) == 0;
  ok = ok && nps_h5_get_bytes(file, "/tokenizer/tokenizer.json", &bytes, &n) == NPS_OK && n == large;
  ok = ok && memcmp(bytes, big, large) == 0;
  nps_h5_abandon(file);
  ck_assert(everywhere(ok));
  free(bytes);
  free(text);
  free(big);
}
END_TEST

START_TEST(an_unusable_target_fails_everywhere) {
  nps_h5_t *file = NULL;
  char missing[700];
  snprintf(missing, sizeof missing, "%s/none/file.h5", folder);
  ck_assert(everywhere(nps_h5_create(comm, missing, &file) == NPS_ERR_IO && !file));
  ck_assert(everywhere(nps_problem_count() == (rank == 0 ? 1 : 0)));
  ck_assert(everywhere(rank > 0 || strstr(nps_problem_text(0), "cannot be created: No such file or directory")));
}
END_TEST

/* A folder stands for another user's semaphore. With other MPI libraries nothing is in the way. */
START_TEST(a_semaphore_in_the_way_is_told_of) {
  nps_h5_t *file = NULL;
  char name[100] = "", semaphore[200], target[800];
  if (rank == 0) snprintf(name, sizeof name, "test_h5_mpi-%ld.h5", (long)getpid());
  nps_comm_bcast(comm, name, sizeof name);
  snprintf(semaphore, sizeof semaphore, "/dev/shm/sem.OMPIO_%s", name);
  snprintf(target, sizeof target, "%s/%s", folder, name);
  if (rank == 0) mkdir(semaphore, 0777);
  nps_comm_barrier(comm);
  const nps_err_t err = nps_h5_create(comm, target, &file);
  bool ok = err == NPS_OK || (err == NPS_ERR_IO && !file);
  for (int i = 0; i < nps_problem_count(); i++) ok = ok && strstr(nps_problem_text(i), semaphore);
  nps_problem_clear();
  nps_h5_close(file);
  nps_comm_barrier(comm);
  if (rank == 0) rmdir(semaphore);
  ck_assert(everywhere(ok));
}
END_TEST

/* A limit on the file's size stands for a full disk. */
START_TEST(a_full_disk_fails_everywhere) {
  const int64_t shape[1] = {6000000};
  struct rlimit old, small;
  nps_h5_t *file = NULL;
  nps_h5_dataset_t *d = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert(everywhere(nps_h5_dataset_create(file, "/", "a", NPS_U8, 1, shape, &d) == NPS_OK));
  getrlimit(RLIMIT_FSIZE, &old);
  small = (struct rlimit){5000000, old.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  const nps_err_t err = nps_h5_reserve(file);
  setrlimit(RLIMIT_FSIZE, &old);
  nps_h5_dataset_close(d);
  nps_h5_abandon(file);
  ck_assert(everywhere(err == NPS_ERR_IO));
  ck_assert(everywhere(nps_problem_count() == (rank == 0 ? 1 : 0)));
  ck_assert(everywhere(rank > 0 || strstr(nps_problem_text(0), "cannot be allocated: File too large")));
}
END_TEST

START_TEST(abandoning_leaves_no_problem) {
  const int64_t shape[1] = {1000};
  nps_h5_t *file = NULL;
  nps_h5_dataset_t *d = NULL;
  ck_assert_int_eq(nps_h5_create(comm, path, &file), NPS_OK);
  ck_assert(everywhere(nps_h5_dataset_create(file, "/", "a", NPS_F32, 1, shape, &d) == NPS_OK));
  nps_h5_dataset_close(d);
  nps_h5_abandon(file);
  ck_assert(everywhere(nps_problem_count() == 0));
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("h5_mpi");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, ranks_write_their_shares);
  tcase_add_test(cases, small_things_are_written_once);
  tcase_add_test(cases, an_unusable_target_fails_everywhere);
  tcase_add_test(cases, a_semaphore_in_the_way_is_told_of);
  tcase_add_test(cases, a_full_disk_fails_everywhere);
  tcase_add_test(cases, abandoning_leaves_no_problem);
  return end_mpi(run_tests_everywhere("h5_mpi", cases));
}
