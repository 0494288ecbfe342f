#include "../../src/model/writer_internal.h"
#include "../nps_check.h"
#include "nps/flush.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

static char target[600], h5_target[600], note[3000];

/* Failures that no test can bring about otherwise: these take the place of the C library's functions. */
static const char *refused_name; /* nothing can be renamed to it */
static int lock_cause;           /* why no lock can be had */
static int interruptions;        /* of the next calls of fsync() and fdatasync() */
static ino_t synced;             /* what was brought to the device last */

int rename(const char *from, const char *to) {
  if (!refused_name || strcmp(to, refused_name) != 0) return renameat(AT_FDCWD, from, AT_FDCWD, to);
  errno = EIO;
  return -1;
}

int flock(int fd, int operation) {
  if (lock_cause == 0) return (int)syscall(SYS_flock, fd, operation);
  errno = lock_cause;
  return -1;
}

static int sync_call(int fd, long call) {
  struct stat st;
  if (interruptions > 0) {
    interruptions--;
    errno = EINTR;
    return -1;
  }
  if (fstat(fd, &st) == 0) synced = st.st_ino;
  return (int)syscall(call, fd);
}

int fsync(int fd) { return sync_call(fd, SYS_fsync); }

int fdatasync(int fd) { return sync_call(fd, SYS_fdatasync); }

static const char *in_folder(const char *name) {
  static char path[4][1200];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
  return path[turn];
}

static void put(const char *name, const char *data, size_t size) {
  FILE *f = fopen(in_folder(name), "w");
  ck_assert_ptr_nonnull(f);
  ck_assert_uint_eq(fwrite(data, 1, size, f), size);
  ck_assert_int_eq(fclose(f), 0);
}

static void make_folder(const char *name) { ck_assert_int_eq(mkdir(in_folder(name), 0777), 0); }

static bool there(const char *name) { return access(in_folder(name), F_OK) == 0; }

static void keep_note(void *ctx, const char *text) {
  (void)ctx;
  snprintf(note, sizeof note, "%s", text);
}

static void set_up(void) {
  ck_assert(make_new_folder());
  snprintf(target, sizeof target, "%s/merged", folder);
  snprintf(h5_target, sizeof h5_target, "%s/merged.h5", folder);
  nps_note_set_sink(keep_note, NULL);
  note[0] = '\0';
}

static void tear_down(void) {
  remove_all(folder);
  nps_problem_clear();
  nps_note_set_sink(NULL, NULL);
}

static nps_err_t check(const char *path, bool force, int64_t bytes) {
  nps_output_t output = {.path = path, .force = force};
  return nps_output_check(&output, bytes, NULL);
}

/* The check fails with one problem: TARGET and the rest of the message. */
static void check_fails(const char *path, bool force, nps_err_t code, const char *rest) {
  ck_assert_int_eq(check(path, force, 0), code);
  ck_assert_int_eq(nps_problem_count(), 1);
  char *expected = nps_xstrf("%s%s", path, rest);
  ck_assert_str_eq(nps_problem_text(0), expected);
  free(expected);
  nps_problem_clear();
}

START_TEST(names_tell_the_form) {
  ck_assert(nps_output_is_hdf5("merged.h5"));
  ck_assert(nps_output_is_hdf5("a/b.hdf5"));
  ck_assert(!nps_output_is_hdf5("merged"));
  ck_assert(!nps_output_is_hdf5("merged.h5/"));
  ck_assert(!nps_output_is_hdf5("merged.safetensors"));
}
END_TEST

START_TEST(places_lie_beside_the_target) {
  static const char *const cases[][4] = {{"out", "out", ".", ".out.partial"},
                                         {"out//", "out", ".", ".out.partial"},
                                         {"./a.h5", "./a.h5", ".", "./.a.h5.partial"},
                                         {"x/y/out/", "x/y/out", "x/y", "x/y/.out.partial"},
                                         {"/out", "/out", "/", "/.out.partial"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    nps_place_t place;
    ck_assert_int_eq(nps_place_make(cases[i][0], &place), NPS_OK);
    ck_assert_str_eq(place.target, cases[i][1]);
    ck_assert_str_eq(place.folder, cases[i][2]);
    ck_assert_str_eq(place.partial, cases[i][3]);
    nps_place_clear(&place);
  }
}
END_TEST

START_TEST(paths_without_a_name_are_refused) {
  static const char *const cases[] = {"", "/", ".", "..", "a/.."};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *message = nps_xstrf("\"%s\": expected the name of an output file or folder", cases[i]);
    ck_assert_int_eq(check(cases[i], false, 0), NPS_ERR_CONFIG);
    ck_assert_str_eq(nps_problem_text(0), message);
    nps_problem_clear();
    free(message);
  }
}
END_TEST

START_TEST(a_free_name_is_fine) {
  ck_assert_int_eq(check(target, false, 1000), NPS_OK);
  ck_assert_int_eq(check(h5_target, false, 1000), NPS_OK);
}
END_TEST

START_TEST(a_link_leads_to_the_place) {
  make_folder("far");
  put("far/config.json", "{}", 2);
  ck_assert_int_eq(symlink(in_folder("far"), target), 0);
  nps_place_t place;
  ck_assert_int_eq(nps_place_make(target, &place), NPS_OK);
  ck_assert_str_eq(strrchr(place.target, '/'), "/far");
  nps_place_clear(&place);
  ck_assert_int_eq(symlink("nowhere", h5_target), 0);
  check_fails(h5_target, true, NPS_ERR_CONFIG, ": is a symbolic link that leads nowhere: No such file or directory");
}
END_TEST

START_TEST(an_existing_output_needs_force) {
  put("merged.h5", "\211HDF\r\n\032\nrest", 12);
  make_folder("merged");
  put("merged/config.json", "{}", 2);
  check_fails(h5_target, false, NPS_ERR_CONFIG, ": exists already; --force replaces it");
  check_fails(target, false, NPS_ERR_CONFIG, ": exists already; --force replaces it");
  ck_assert_int_eq(check(h5_target, true, 0), NPS_OK);
  ck_assert_int_eq(check(target, true, 0), NPS_OK);
}
END_TEST

START_TEST(what_is_no_hdf5_file_is_never_replaced) {
  put("merged.h5", "a thesis", 8);
  check_fails(h5_target, true, NPS_ERR_CONFIG, ": exists and is no HDF5 file, it is never replaced");
  put("merged.h5", "", 0);
  check_fails(h5_target, false, NPS_ERR_CONFIG, ": exists and is no HDF5 file, it is never replaced");
  unlink(h5_target);
  make_folder("merged.h5");
  check_fails(h5_target, true, NPS_ERR_CONFIG, ": is a folder, which an HDF5 file never replaces");
}
END_TEST

START_TEST(what_is_no_model_folder_is_never_replaced) {
  put("merged", "x", 1);
  check_fails(target, true, NPS_ERR_CONFIG,
              ": is a file, which a model folder never replaces (a merged HDF5 file ends in .h5)");
  unlink(target);
  make_folder("merged");
  ck_assert_int_eq(check(target, true, 0), NPS_OK); /* empty: nothing to lose */
  put("merged/thesis.tex", "x", 1);
  check_fails(target, true, NPS_ERR_CONFIG, ": has no config.json and no *.safetensors file: it is never replaced");
  put("merged/model.safetensors", "x", 1);
  ck_assert_int_eq(check(target, true, 0), NPS_OK);
  make_folder("merged/src");
  check_fails(target, true, NPS_ERR_CONFIG,
              ": has a folder in it (src), expected only a model's files: it is never replaced");
}
END_TEST

START_TEST(folders_that_cannot_be_written_to) {
  char rest[800];
  char *missing = nps_xstrf("%s/no/merged.h5", folder), *below = nps_xstrf("%s/file/merged.h5", folder);
  snprintf(rest, sizeof rest, ": the folder %s/no cannot be written to: No such file or directory", folder);
  check_fails(missing, false, NPS_ERR_CONFIG, rest);
  put("file", "", 0);
  snprintf(rest, sizeof rest, ": %s/file is no folder", folder);
  check_fails(below, false, NPS_ERR_CONFIG, rest);
  /* Root may write everywhere but there. */
  static const char *const start = "/proc/self/merged.h5: the folder /proc/self cannot be written to: ";
  ck_assert_int_eq(check("/proc/self/merged.h5", false, 0), NPS_ERR_IO);
  ck_assert_int_eq(strncmp(nps_problem_text(0), start, strlen(start)), 0);
  free(missing);
  free(below);
}
END_TEST

START_TEST(too_little_space_is_told_with_both_numbers) {
  struct statvfs fs;
  char rest[1300];
  ck_assert_int_eq(check(h5_target, false, INT64_C(1) << 60), NPS_ERR_IO);
  snprintf(rest, sizeof rest, "%s: needs 1.00 EiB (an output that it replaces stays until then), %s has ", h5_target,
           folder);
  ck_assert_int_eq(strncmp(nps_problem_text(0), rest, strlen(rest)), 0);
  ck_assert_int_eq(statvfs(folder, &fs), 0);
  ck_assert_int_eq(check(h5_target, false, (int64_t)(fs.f_bavail * fs.f_frsize / 2)), NPS_OK);
}
END_TEST

/* ---- replacing a folder ---- */

static nps_place_t place_with(const char *old_content, const char *new_content) {
  nps_place_t place;
  ck_assert_int_eq(nps_place_make(target, &place), NPS_OK);
  if (old_content) {
    make_folder("merged");
    put("merged/config.json", old_content, strlen(old_content));
  }
  if (new_content) {
    make_folder(".merged.partial");
    put(".merged.partial/config.json", new_content, strlen(new_content));
  }
  return place;
}

static void content_is(const char *name, const char *expected) {
  char found[64] = "";
  FILE *f = fopen(in_folder(name), "r");
  ck_assert_ptr_nonnull(f);
  ck_assert(fgets(found, sizeof found, f) == found);
  fclose(f);
  ck_assert_str_eq(found, expected);
}

START_TEST(a_finished_folder_takes_the_place_of_the_old_one) {
  nps_place_t place = place_with("old", "new");
  ck_assert_int_eq(nps_place_finish(&place, true), NPS_OK);
  content_is("merged/config.json", "new");
  ck_assert(!there(".merged.partial") && !there("merged.old"));
  nps_place_clear(&place);
}
END_TEST

/* Finishing fails with two problems: why, and where the complete output lies. */
static void finish_keeps(bool force, const char *why, const char *kept, const char *how) {
  nps_place_t place;
  ck_assert_int_eq(nps_place_make(target, &place), NPS_OK);
  ck_assert_int_eq(nps_place_finish(&place, force), NPS_ERR_IO);
  char *first = nps_xstrf("%s: %s", target, why);
  char *second =
      nps_xstrf("%s: the new output is complete and kept as %s: move it to its place%s", target, in_folder(kept), how);
  ck_assert_int_eq(nps_problem_count(), 2);
  ck_assert_str_eq(nps_problem_text(0), first);
  ck_assert_str_eq(nps_problem_text(1), second);
  nps_problem_clear();
  nps_place_clear(&place);
  free(first);
  free(second);
}

START_TEST(a_complete_output_without_a_place_is_kept) {
  nps_place_t place = place_with(NULL, "new");
  make_folder("merged");
  put("merged/notes.txt", "x", 1);
  finish_keeps(true, "has no config.json and no *.safetensors file: it is never replaced", "merged.complete", "");
  content_is("merged.complete/config.json", "new");
  ck_assert(!there(".merged.partial") && there("merged/notes.txt"));
  /* A run after it leaves it alone, and keeps its own elsewhere. */
  unlink(in_folder("merged/notes.txt"));
  ck_assert_int_eq(nps_place_prepare(&place, true), NPS_OK);
  put("merged/config.json", "other", 5);
  put(".merged.partial/config.json", "newer", 5);
  finish_keeps(false, "exists already; --force replaces it", "merged.complete-2", "");
  content_is("merged.complete-2/config.json", "newer");
  content_is("merged.complete/config.json", "new");
  content_is("merged/config.json", "other");
  nps_place_clear(&place);
}
END_TEST

START_TEST(a_complete_output_that_cannot_be_renamed_is_kept) {
  nps_place_t place = place_with(NULL, "new");
  char *message = nps_xstrf("%s: cannot be renamed to %s: Input/output error", place.partial, target);
  refused_name = target;
  ck_assert_int_eq(nps_place_finish(&place, true), NPS_ERR_IO);
  refused_name = NULL;
  ck_assert_str_eq(nps_problem_text(0), message);
  content_is("merged.complete/config.json", "new");
  ck_assert(!there(".merged.partial") && !there("merged"));
  free(message);
  nps_place_clear(&place);
}
END_TEST

START_TEST(two_folders_change_places_by_way_of_a_third_name) {
  nps_place_t place = place_with("old", "new");
  ck_assert_int_eq(nps_place_by_old(&place), NPS_OK);
  content_is("merged/config.json", "new");
  content_is(".merged.partial/config.json", "old");
  ck_assert(!there("merged.old"));
  nps_place_clear(&place);
}
END_TEST

START_TEST(a_failed_change_of_places_is_undone) {
  nps_place_t place = place_with("old", NULL);
  ck_assert_int_eq(nps_place_by_old(&place), NPS_ERR_IO);
  char *message = nps_xstrf("%s: cannot be renamed to %s: No such file or directory", place.partial, target);
  ck_assert_str_eq(nps_problem_text(0), message);
  content_is("merged/config.json", "old");
  ck_assert(!there("merged.old") && !there("merged/.nps-merge-replaced"));
  free(message);
  nps_place_clear(&place);
}
END_TEST

START_TEST(an_old_folder_that_cannot_be_put_back_is_told_of) {
  nps_place_t place = place_with("old", "new");
  refused_name = target;
  ck_assert_int_eq(nps_place_by_old(&place), NPS_ERR_IO);
  refused_name = NULL;
  ck_assert_int_eq(nps_problem_count(), 2);
  char *message =
      nps_xstrf("%s: the old output cannot be put back (Input/output error), it now lies in %s.old", target, target);
  ck_assert_str_eq(nps_problem_text(1), message);
  content_is("merged.old/config.json", "old");
  nps_problem_clear();
  /* The next run puts it back. */
  check_fails(target, false, NPS_ERR_CONFIG, ": exists already; --force replaces it");
  content_is("merged/config.json", "old");
  free(message);
  nps_place_clear(&place);
}
END_TEST

START_TEST(an_old_folder_that_cannot_be_removed_is_worth_a_note) {
  nps_place_t place = place_with("old", "new");
  refused_name = place.partial;
  ck_assert_int_eq(nps_place_by_old(&place), NPS_OK);
  refused_name = NULL;
  char *message = nps_xstrf("the replaced output could not be removed: %s.old: cannot be renamed to %s: "
                            "Input/output error",
                            target, place.partial);
  ck_assert_str_eq(note, message);
  ck_assert_int_eq(nps_problem_count(), 0);
  content_is("merged/config.json", "new");
  free(message);
  nps_place_clear(&place);
}
END_TEST

START_TEST(a_folder_of_the_users_in_the_way_stays) {
  nps_place_t place = place_with("old", "new");
  make_folder("merged.old");
  char *message = nps_xstrf("%s.old: is in the way of replacing %s", target, target);
  ck_assert_int_eq(nps_place_by_old(&place), NPS_ERR_IO);
  ck_assert_str_eq(nps_problem_text(0), message);
  content_is("merged/config.json", "old");
  ck_assert(there("merged.old"));
  free(message);
  nps_place_clear(&place);
}
END_TEST

START_TEST(what_an_interrupted_run_moved_away_is_put_back) {
  make_folder("merged.old");
  put("merged.old/config.json", "old", 3);
  put("merged.old/.nps-merge-replaced", "", 0);
  check_fails(target, false, NPS_ERR_CONFIG, ": exists already; --force replaces it");
  content_is("merged/config.json", "old");
  ck_assert(!there("merged.old") && !there("merged/.nps-merge-replaced"));
  char *message = nps_xstrf("%s: put back from %s.old, where an interrupted run had moved it", target, target);
  ck_assert_str_eq(note, message);
  free(message);
}
END_TEST

START_TEST(a_folder_that_the_user_moved_away_is_not_put_back) {
  make_folder("merged.old");
  put("merged.old/config.json", "old", 3);
  ck_assert_int_eq(check(target, false, 0), NPS_OK);
  ck_assert(there("merged.old") && !there("merged"));
}
END_TEST

START_TEST(an_old_folder_that_was_replaced_is_removed_by_the_next_run) {
  nps_place_t place = place_with("new", NULL);
  make_folder("merged.old");
  put("merged.old/.nps-merge-replaced", "", 0);
  ck_assert_int_eq(nps_place_prepare(&place, true), NPS_OK);
  char *message = nps_xstrf("%s: left by an interrupted run, removed", place.partial);
  ck_assert_str_eq(note, message);
  content_is("merged/config.json", "new");
  ck_assert(!there("merged.old"));
  free(message);
  nps_place_clear(&place);
}
END_TEST

/* ---- locks ---- */

START_TEST(two_runs_do_not_write_to_one_output) {
  nps_place_t first, second;
  ck_assert_int_eq(nps_place_make(h5_target, &first), NPS_OK);
  ck_assert_int_eq(nps_place_make(h5_target, &second), NPS_OK);
  ck_assert_int_eq(nps_place_prepare(&first, false), NPS_OK);
  put(".merged.h5.partial", "half", 4);
  check_fails(h5_target, false, NPS_ERR_IO, ": another run is writing it");
  char *message = nps_xstrf("%s: another run is writing it", h5_target);
  ck_assert_int_eq(nps_place_prepare(&second, true), NPS_ERR_IO);
  ck_assert_str_eq(nps_problem_text(0), message);
  nps_place_clear(&second);
  content_is(".merged.h5.partial", "half");
  ck_assert(there(".merged.h5.lock"));
  nps_place_clear(&first);
  ck_assert(!there(".merged.h5.lock"));
  ck_assert_str_eq(note, "");
  free(message);
}
END_TEST

START_TEST(a_lock_file_that_was_left_disturbs_nobody) {
  nps_place_t place;
  put(".merged.lock", "", 0);
  ck_assert_int_eq(check(target, false, 0), NPS_OK);
  ck_assert(!there(".merged.lock"));
  put(".merged.lock", "", 0);
  ck_assert_int_eq(nps_place_make(target, &place), NPS_OK);
  ck_assert_int_eq(nps_place_prepare(&place, false), NPS_OK);
  ck_assert(there(".merged.lock"));
  nps_place_clear(&place);
  ck_assert(!there(".merged.lock"));
}
END_TEST

START_TEST(without_locks_a_run_goes_on) {
  nps_place_t place;
  lock_cause = ENOSYS;
  ck_assert_int_eq(nps_place_make(target, &place), NPS_OK);
  ck_assert_int_eq(nps_place_prepare(&place, false), NPS_OK);
  lock_cause = 0;
  ck_assert(there(".merged.partial") && !there(".merged.lock"));
  nps_place_clear(&place);
}
END_TEST

START_TEST(files_are_put_under_plain_names_only) {
  static const char *const bad[] = {"", ".", "..", "a/b", "/etc/x"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    char *message = nps_xstrf("%s: \"%s\" is no file name", folder, bad[i]);
    ck_assert_int_eq(nps_file_put(folder, bad[i], "x", 1), NPS_ERR_INPUT);
    ck_assert_str_eq(nps_problem_text(0), message);
    nps_problem_clear();
    free(message);
  }
  ck_assert_int_eq(nps_file_put(folder, "merges.txt", "abc", 3), NPS_OK);
  content_is("merges.txt", "abc");
}
END_TEST

/* ---- to the device ---- */

START_TEST(a_replaced_file_has_its_name_on_the_device) {
  struct stat st;
  char *from = nps_xstrdup(in_folder("new"));
  put("new", "new", 3);
  put("kept", "old", 3);
  ck_assert_int_eq(nps_file_replace(from, in_folder("kept")), NPS_OK);
  content_is("kept", "new");
  ck_assert(stat(folder, &st) == 0 && synced == st.st_ino);
  free(from);
}
END_TEST

/* By signals, on some network file systems. */
START_TEST(interrupted_flushes_are_repeated) {
  struct stat st;
  interruptions = 3;
  ck_assert_int_eq(nps_file_put(folder, "a", "abc", 3), NPS_OK);
  ck_assert(interruptions == 0 && stat(in_folder("a"), &st) == 0 && synced == st.st_ino);
  const int fd = open(in_folder("a"), O_WRONLY);
  nps_flush_t *flush = nps_flush_begin(fd);
  interruptions = 3;
  synced = 0;
  nps_flush_note(flush, NPS_FLUSH_BYTES);
  ck_assert_int_eq(nps_flush_end(flush, "a"), 0);
  ck_assert(interruptions == 0 && synced == st.st_ino);
  close(fd);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("output");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, names_tell_the_form);
  tcase_add_test(cases, places_lie_beside_the_target);
  tcase_add_test(cases, paths_without_a_name_are_refused);
  tcase_add_test(cases, a_free_name_is_fine);
  tcase_add_test(cases, a_link_leads_to_the_place);
  tcase_add_test(cases, an_existing_output_needs_force);
  tcase_add_test(cases, what_is_no_hdf5_file_is_never_replaced);
  tcase_add_test(cases, what_is_no_model_folder_is_never_replaced);
  tcase_add_test(cases, folders_that_cannot_be_written_to);
  tcase_add_test(cases, too_little_space_is_told_with_both_numbers);
  tcase_add_test(cases, a_finished_folder_takes_the_place_of_the_old_one);
  tcase_add_test(cases, a_complete_output_without_a_place_is_kept);
  tcase_add_test(cases, a_complete_output_that_cannot_be_renamed_is_kept);
  tcase_add_test(cases, two_folders_change_places_by_way_of_a_third_name);
  tcase_add_test(cases, a_failed_change_of_places_is_undone);
  tcase_add_test(cases, an_old_folder_that_cannot_be_put_back_is_told_of);
  tcase_add_test(cases, an_old_folder_that_cannot_be_removed_is_worth_a_note);
  tcase_add_test(cases, a_folder_of_the_users_in_the_way_stays);
  tcase_add_test(cases, what_an_interrupted_run_moved_away_is_put_back);
  tcase_add_test(cases, a_folder_that_the_user_moved_away_is_not_put_back);
  tcase_add_test(cases, an_old_folder_that_was_replaced_is_removed_by_the_next_run);
  tcase_add_test(cases, two_runs_do_not_write_to_one_output);
  tcase_add_test(cases, a_lock_file_that_was_left_disturbs_nobody);
  tcase_add_test(cases, without_locks_a_run_goes_on);
  tcase_add_test(cases, files_are_put_under_plain_names_only);
  tcase_add_test(cases, a_replaced_file_has_its_name_on_the_device);
  tcase_add_test(cases, interrupted_flushes_are_repeated);
  return run_tests("output", cases);
}
