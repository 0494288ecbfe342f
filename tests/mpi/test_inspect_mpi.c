/* Norms, differences and counts of models written here byte by byte; expected values come from plain loops. */
#include "../h5_files.h"
#include "../nps_check_mpi.h"
#include "nps/inspect.h"

#include <math.h>

enum { BIG = 3 * NPS_BLOCK + 1000 };

static char *path_of(const char *name) { return nps_xstrf("%s/%s", folder, name); }

/* ---- writing safetensors files ---- */

typedef struct {
  nps_text_t header, data;
} file_t;

static void add_tensor(file_t *f, const char *name, const char *dtype, const char *shape, const void *data,
                       size_t bytes) {
  nps_text_add(&f->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
               f->header.size ? "," : "{", name, dtype, shape, f->data.size, f->data.size + bytes);
  nps_text_add_bytes(&f->data, data, bytes);
}

static bool write_file(file_t *f, const char *name) {
  char *path = path_of(name);
  FILE *out = fopen(path, "wb");
  nps_text_add(&f->header, "}");
  uint64_t header_size = f->header.size;
  bool good = out && fwrite(&header_size, sizeof header_size, 1, out) == 1 &&
              fwrite(f->header.text, 1, header_size, out) == header_size &&
              fwrite(f->data.text, 1, f->data.size, out) == f->data.size;
  good = out && fclose(out) == 0 && good;
  free(path);
  free(f->header.text);
  free(f->data.text);
  return good;
}

/* The same numbers on every rank: a small linear congruence, values of either sign. */
static float value_at(int stream, int i) {
  uint32_t x = (uint32_t)i * 2654435761u + (uint32_t)stream * 40503u;
  x ^= x >> 15;
  x *= 2246822519u;
  return (float)(int32_t)(x >> 8) / 8388608.0f - 1.0f;
}

static float base_at(int i) { return value_at(1, i); }

/* Every third element differs from the base. */
static float model_at(int i) { return i % 3 == 0 ? base_at(i) + value_at(2, i) / 64 : base_at(i); }

static bool write_models(void) {
  float *x = nps_xcalloc(BIG, sizeof *x), *y = nps_xcalloc(BIG, sizeof *y);
  for (int i = 0; i < BIG; i++) x[i] = model_at(i), y[i] = base_at(i);
  const int64_t ids[4] = {0, 1, INT64_MAX, -3}, base_ids[4] = {0, 1, INT64_MAX - 1, -3};
  const uint16_t bf16[3] = {0x3f80, 0xc000, 0x4040}; /* 1, -2, 3 */
  const float bf16_base[3] = {1, -2, 5}, odd[4] = {1, NAN, -INFINITY, 2}, odd_base[4] = {1, NAN, 0, 2};
  file_t f = {0};
  add_tensor(&f, "big", "F32", "197608", x, BIG * sizeof *x);
  add_tensor(&f, "half", "BF16", "3", bf16, sizeof bf16);
  add_tensor(&f, "ids", "I64", "4", ids, sizeof ids);
  add_tensor(&f, "model_only", "F32", "2", odd_base + 2, 8);
  add_tensor(&f, "odd", "F32", "2,2", odd, sizeof odd);
  add_tensor(&f, "unlike", "F32", "2,1", odd_base + 2, 8);
  bool good = write_file(&f, "model.safetensors");
  f = (file_t){0};
  add_tensor(&f, "base_only", "F32", "1", y, 4);
  add_tensor(&f, "big", "F32", "197608", y, BIG * sizeof *y);
  add_tensor(&f, "half", "F32", "3", bf16_base, sizeof bf16_base);
  add_tensor(&f, "ids", "I64", "4", base_ids, sizeof base_ids);
  add_tensor(&f, "odd", "F32", "2,2", odd_base, sizeof odd_base);
  add_tensor(&f, "unlike", "F32", "1,2", odd_base + 2, 8);
  good = write_file(&f, "base.safetensors") && good;
  free(x);
  free(y);
  return good;
}

/* ---- scanning ---- */

static nps_model_t *model, *base;
static nps_inspect_t *inspect;

static nps_model_t *open_file(const char *name) {
  nps_model_t *m = NULL;
  char *path = path_of(name);
  ck_assert(everywhere(nps_model_open(path, name, &m) == NPS_OK));
  free(path);
  return m;
}

static void setup(void) {
  ck_assert(make_common_folder());
  ck_assert(everywhere(rank != 0 || write_models()));
  model = open_file("model.safetensors");
  base = open_file("base.safetensors");
  ck_assert_int_eq(nps_inspect_scan(comm, model, base, NULL, &inspect), NPS_OK);
}

static void teardown(void) {
  nps_inspect_free(inspect);
  nps_model_free(model);
  nps_model_free(base);
  remove_common_folder();
}

static const nps_inspect_tensor_t *found(const char *name) { return &inspect->tensors[nps_model_find(model, name)]; }

START_TEST(test_norms_of_a_big_tensor) {
  long double squares = 0, base_squares = 0, differences = 0;
  double max = 0;
  int64_t changed = 0;
  for (int i = 0; i < BIG; i++) {
    long double x = model_at(i), y = base_at(i);
    squares += x * x;
    base_squares += y * y;
    differences += (x - y) * (x - y);
    changed += model_at(i) != base_at(i);
    max = fmax(max, fabs((double)(x - y)));
  }
  const nps_inspect_tensor_t *t = found("big");
  ck_assert(t->has_norm && t->compared);
  ck_assert_double_eq_tol(t->norm, (double)sqrtl(squares), 1e-12 * t->norm);
  ck_assert_double_eq_tol(t->base_norm, (double)sqrtl(base_squares), 1e-12 * t->norm);
  ck_assert_double_eq_tol(t->difference, (double)sqrtl(differences), 1e-12 * t->difference);
  ck_assert(t->max == max);
  ck_assert_int_gt(changed, BIG / 4);
  ck_assert_int_eq(t->changed, changed);
  ck_assert_int_eq(t->nonfinite, 0);
}
END_TEST

/* The documented order of the sum: 16 lanes a block, the lanes folded in halves, blocks in order. */
START_TEST(test_sum_has_the_fixed_order) {
  double sum = 0;
  for (int first = 0; first < BIG; first += NPS_BLOCK) {
    double lane[16] = {0};
    for (int i = first; i < BIG && i < first + NPS_BLOCK; i++)
      lane[i % 16] += (double)model_at(i) * (double)model_at(i);
    for (int width = 8; width > 0; width /= 2)
      for (int j = 0; j < width; j++) lane[j] += lane[j + width];
    sum += lane[0];
  }
  ck_assert(found("big")->norm == sqrt(sum));
}
END_TEST

START_TEST(test_types) {
  ck_assert(found("half")->norm == sqrt(14.0));
  ck_assert(found("half")->compared);
  ck_assert(found("half")->difference == 2.0);
  ck_assert(found("half")->max == 2.0);
  ck_assert_int_eq(found("half")->changed, 1);
  /* float64 gives both the same value, the integers differ */
  ck_assert_int_eq(found("ids")->changed, 1);
  ck_assert(found("ids")->difference == 0.0);
}
END_TEST

START_TEST(test_nonfinite) {
  const nps_inspect_tensor_t *t = found("odd");
  ck_assert_int_eq(t->nonfinite, 2);
  ck_assert(!isfinite(t->norm) && !isfinite(t->difference) && isnan(t->max));
  ck_assert_int_eq(t->changed, 1); /* NaN against NaN is no change */
  ck_assert_int_eq(inspect->total.nonfinite, 2);
}
END_TEST

START_TEST(test_one_side_only) {
  ck_assert_int_eq(found("model_only")->base, -1);
  ck_assert(!found("model_only")->compared && !found("unlike")->compared);
  ck_assert_int_ge(found("unlike")->base, 0);
}
END_TEST

/* Gives the only text of an array. */
static const char *only_text(const json_t *object, const char *key) {
  const json_t *array = json_object_get(object, key);
  ck_assert_uint_eq(json_array_size(array), 1);
  return json_string_value(json_array_get(array, 0));
}

START_TEST(test_json) {
  json_t *root = nps_inspect_json(inspect);
  char *text = json_dumps(root, 0);
  ck_assert_ptr_nonnull(text);
  ck_assert(!strstr(text, "nan") && !strstr(text, "inf"));
  free(text);
  const json_t *tensors = json_object_get(root, "tensors"), *odd = json_array_get(tensors, 4);
  ck_assert_uint_eq(json_array_size(tensors), 6);
  ck_assert_str_eq(json_string_value(json_object_get(odd, "name")), "odd");
  ck_assert_str_eq(json_string_value(json_object_get(odd, "dtype")), "F32");
  ck_assert_int_eq(json_integer_value(json_array_get(json_object_get(odd, "shape"), 1)), 2);
  ck_assert_int_eq(json_integer_value(json_object_get(odd, "bytes")), 16);
  ck_assert(json_is_null(json_object_get(odd, "norm")));
  ck_assert(json_is_null(json_object_get(json_object_get(odd, "difference"), "norm")));
  ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(odd, "difference"), "changed")), 1);
  ck_assert(json_is_null(json_object_get(json_array_get(tensors, 3), "difference")));
  ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(root, "nonfinite"), "odd")), 2);
  ck_assert_int_eq(json_integer_value(json_object_get(root, "parameters")), BIG + 3 + 4 + 2 + 4 + 2);
  ck_assert_int_eq(json_integer_value(json_object_get(root, "bytes")), 4 * BIG + 6 + 32 + 8 + 16 + 8);
  const json_t *against = json_object_get(root, "against");
  ck_assert_str_eq(only_text(against, "only_in_model"), "model_only");
  ck_assert_str_eq(only_text(against, "only_in_base"), "base_only");
  ck_assert_str_eq(only_text(against, "not_comparable"), "unlike");
  json_decref(root);
}
END_TEST

/* A file that became shorter after its header was read: every rank gets the code, rank 0 the message. */
START_TEST(test_truncated) {
  char *path = path_of("base.safetensors");
  nps_inspect_t *none = NULL;
  nps_comm_barrier(comm);
  ck_assert(everywhere(rank != 0 || truncate(path, 4096) == 0));
  nps_err_t err = nps_inspect_scan(comm, model, base, NULL, &none);
  bool named = nps_problem_count() > 0 && strstr(nps_problem_text(0), "base.safetensors") != NULL;
  nps_problem_clear();
  ck_assert(everywhere(err == NPS_ERR_INPUT && !none));
  ck_assert(everywhere(named == (rank == 0)));
  free(path);
}
END_TEST

/* ---- what a merged file says of itself ---- */

static bool write_merged(const char *path, const char *recipe) {
  nps_h5_t *file = NULL;
  const char *const inputs[] = {"base.safetensors", "a.safetensors", "b.safetensors"};
  nps_comm_t *self = nps_comm_self();
  const bool ok = nps_h5_create(self, path, &file) == NPS_OK && nps_h5_make_group(file, "/tensors") == NPS_OK &&
                  nps_h5_make_group(file, "/tokenizer") == NPS_OK &&
                  put_bytes(file, "/tokenizer", "vocab.txt", "a\nb\n", 4) == NPS_OK &&
                  nps_h5_put_attr_text(file, "/", "format", "nps-merged") == NPS_OK &&
                  nps_h5_put_attr_i64(file, "/", "format_version", 1) == NPS_OK &&
                  nps_h5_put_attr_text(file, "/", "created_by", "nps-merge 9.9") == NPS_OK &&
                  nps_h5_put_attr_text(file, "/", "recipe", recipe) == NPS_OK &&
                  nps_h5_make_group(file, "/provenance") == NPS_OK &&
                  nps_h5_put_texts(file, "/provenance/path", inputs, 3) == NPS_OK && nps_h5_close(file) == NPS_OK;
  nps_comm_free(self);
  return ok;
}

static bool has_text(const json_t *object, const char *key, const char *text) {
  const char *found_text = json_string_value(json_object_get(object, key));
  return text ? found_text && strcmp(found_text, text) == 0 : found_text == NULL;
}

/* Whether the origin read from a merged file with this recipe is as expected; readable: the method is known. */
static bool origin_is_right(const char *recipe, bool readable) {
  char *path = path_of("merged.h5");
  nps_model_t merged = {.name = path, .path = path, .form = NPS_FORM_HDF5};
  nps_inspect_t *i = nps_xcalloc(1, sizeof *i);
  i->model = &merged;
  bool good = write_merged(path, recipe) && nps_inspect_read_origin(i) == NPS_OK && i->origin &&
              has_text(i->origin, "created_by", "nps-merge 9.9") && has_text(i->origin, "recipe", recipe) &&
              has_text(i->origin, "method", readable ? "linear" : NULL) &&
              json_integer_value(json_object_get(i->origin, "inputs")) == 3 && i->sidecar_count == 1 &&
              strcmp(i->sidecars[0], "vocab.txt") == 0;
  if (good && readable) good = has_text(json_object_get(i->origin, "models"), "second", "models/b");
  good = good && nps_problem_count() == 0;
  nps_problem_clear();
  nps_inspect_free(i);
  unlink(path);
  free(path);
  return good;
}

START_TEST(test_origin) {
  const char *recipe = "merge_method: linear\nmodels:\n- {model: models/a, name: first}\n"
                       "- {model: models/b, name: second}\n";
  bool root = rank == 0;
  ck_assert(everywhere(!root || origin_is_right(recipe, true)));
  ck_assert(everywhere(!root || origin_is_right("from: a later version\n", false)));
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("inspect");
  tcase_add_checked_fixture(cases, setup, teardown);
  tcase_add_test(cases, test_norms_of_a_big_tensor);
  tcase_add_test(cases, test_sum_has_the_fixed_order);
  tcase_add_test(cases, test_types);
  tcase_add_test(cases, test_nonfinite);
  tcase_add_test(cases, test_one_side_only);
  tcase_add_test(cases, test_json);
  tcase_add_test(cases, test_truncated);
  tcase_add_test(cases, test_origin);
  return end_mpi(run_tests_everywhere("inspect", cases));
}
