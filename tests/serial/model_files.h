/** @file model_files.h
 *  What the tests of reading models share: a folder of small files written by hand. */
#ifndef NPS_TEST_MODEL_FILES_H
#define NPS_TEST_MODEL_FILES_H

#include "../nps_check.h"
#include "nps/model.h"

static char note[4096];

static void keep_note(void *ctx, const char *text) {
  (void)ctx;
  snprintf(note + strlen(note), sizeof note - strlen(note), "%s\n", text);
}

static void set_up(void) {
  ck_assert(make_new_folder());
  note[0] = '\0';
  nps_note_set_sink(keep_note, NULL);
}

static void tear_down(void) {
  remove_all(folder);
  ck_assert_int_ne(access(folder, F_OK), 0);
  nps_problem_clear();
  nps_note_set_sink(NULL, NULL);
}

/* Names in the folder; four may be in use at once. */
static const char *in_folder(const char *name) {
  static char paths[4][800];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static void write_bytes(const char *name, const void *data, size_t n) {
  FILE *f = fopen(in_folder(name), "w");
  ck_assert_ptr_nonnull(f);
  ck_assert_uint_eq(fwrite(data, 1, n, f), n);
  fclose(f);
}

__attribute__((unused)) static void write_text(const char *name, const char *text) {
  write_bytes(name, text, strlen(text));
}

/* A safetensors file: the header as given and `data` bytes 0, 1, 2, … */
static void write_file(const char *name, const char *header, size_t data) {
  unsigned char bytes[8192];
  const size_t n = strlen(header);
  ck_assert_uint_lt(8 + n + data, sizeof bytes);
  for (size_t i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)n >> (8 * i));
  memcpy(bytes + 8, header, n);
  for (size_t i = 0; i < data; i++) bytes[8 + n + i] = (unsigned char)i;
  write_bytes(name, bytes, 8 + n + data);
}

static void check_problem(int i, const char *part) {
  ck_assert_int_gt(nps_problem_count(), i);
  ck_assert_msg(strstr(nps_problem_text(i), part) != NULL, "'%s' not in '%s'", part, nps_problem_text(i));
}

__attribute__((unused)) static nps_model_t *open_good(const char *name) {
  nps_model_t *model = NULL;
  nps_err_t err = nps_model_open(in_folder(name), "m", &model);
  ck_assert_msg(err == NPS_OK, "%s", nps_problem_count() ? nps_problem_text(0) : "no message");
  return model;
}

/* Opening fails with one problem that holds `part`. */
__attribute__((unused)) static void open_bad(const char *name, const char *part) {
  nps_model_t *model = NULL;
  ck_assert_int_eq(nps_model_open(in_folder(name), "m", &model), NPS_ERR_INPUT);
  ck_assert_ptr_null(model);
  check_problem(0, part);
  ck_assert_msg(nps_problem_count() == 1, "also: %s", nps_problem_count() > 1 ? nps_problem_text(1) : "");
  nps_problem_clear();
}

#endif
