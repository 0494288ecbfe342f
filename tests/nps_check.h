/** @file nps_check.h
 *  What the test programs share: how tests are run, and a folder for their files. */
#ifndef NPS_CHECK_H
#define NPS_CHECK_H

#include "nps/base.h"

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[512]; /* where the tests' files go */

/** Run tests in this process and free them. @param tell  as TAP on stdout. @return how many failed */
static inline int count_failures(const char *name, TCase *cases, bool tell) {
  Suite *suite = suite_create(name);
  suite_add_tcase(suite, cases);
  SRunner *runner = srunner_create(suite);
  srunner_set_fork_status(runner, CK_NOFORK);
  if (tell) srunner_set_tap(runner, "-");
  srunner_run_all(runner, CK_SILENT);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed;
}

/** Run the tests of a program without MPI. @return its exit code */
static inline int run_tests(const char *name, TCase *cases) {
  return count_failures(name, cases, true) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/** Make a new empty folder. @return whether it is there */
static inline bool make_new_folder(void) {
  const char *tmp = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/nps-test-XXXXXX", tmp ? tmp : "/tmp");
  return mkdtemp(folder) != NULL;
}

/** Remove a file, or a folder and all in it. */
static inline void remove_all(const char *path) {
  DIR *dir = opendir(path);
  if (dir) {
    for (struct dirent *e; (e = readdir(dir));) {
      char *entry = nps_xstrf("%s/%s", path, e->d_name);
      if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) remove_all(entry);
      free(entry);
    }
    closedir(dir);
  }
  remove(path);
}

/** Random numbers of 31 bits. */
static inline uint64_t next_random(uint64_t *state) {
  *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return *state >> 33;
}

#endif
