#include "../../src/model/model_internal.h"
#include "model_files.h"

#include <sys/stat.h>

#define ONE(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"
#define INDEX(map) "{\"metadata\":{\"total_size\":8},\"weight_map\":" map "}"
#define SHARD1 "model-00001-of-00002.safetensors"
#define SHARD2 "model-00002-of-00002.safetensors"
#define MAP "{\"a\":\"" SHARD1 "\",\"b\":\"" SHARD2 "\"}"

static void write_shards(const char *index) {
  write_file(SHARD1, ONE("a"), 4);
  write_file(SHARD2, ONE("b"), 4);
  if (index) write_text("model.safetensors.index.json", index);
}

START_TEST(shards_are_read_by_their_index) {
  write_shards(INDEX(MAP));
  write_text("config.json", "{\"model_type\":\"x\"}");
  write_text("tokenizer.json", "{}");
  write_text("unknown.txt", "no sidecar");
  nps_model_t *m = open_good("");
  ck_assert_int_eq(m->form, NPS_FORM_FOLDER);
  ck_assert_int_eq(m->file_count, 2);
  ck_assert_int_eq(m->tensor_count, 2);
  ck_assert_int_eq(m->tensors[1].file, 1);
  ck_assert_str_eq(m->config_json, "{\"model_type\":\"x\"}");
  ck_assert_str_eq(note, "");
  nps_sidecar_t *sidecars = NULL;
  int count = 0;
  ck_assert_int_eq(nps_sidecars_read(m, &sidecars, &count), NPS_OK);
  ck_assert_int_eq(count, 1);
  ck_assert_str_eq(sidecars[0].name, "tokenizer.json");
  nps_sidecars_free(sidecars, count);
  nps_model_free(m);
}
END_TEST

START_TEST(a_wrong_total_size_is_noted) {
  write_shards("{\"metadata\":{\"total_size\":9},\"weight_map\":" MAP "}");
  nps_model_free(open_good(""));
  ck_assert_ptr_nonnull(strstr(note, "metadata.total_size is 9, the tensors take 8 bytes"));
}
END_TEST

static const struct {
  const char *index, *message;
} bad_indexes[] = {
    {"{", "model.safetensors.index.json: is not valid JSON"},
    {"[]", "expected an object with weight_map"},
    {"{\"weight_map\":{}}", "expected an object with weight_map"},
    {"{\"weight_map\":[\"a\"]}", "expected an object with weight_map"},
    {INDEX("{\"a\":1,\"b\":\"" SHARD2 "\"}"), "weight_map: a: expected the name of a file"},
    {INDEX("{\"a\":\"../" SHARD1 "\",\"b\":\"" SHARD2 "\"}"), "is not the name of a file in this folder"},
    {INDEX("{\"a\":\"..\",\"b\":\"" SHARD2 "\"}"), "weight_map: a: '..' is not the name of a file in this folder"},
    {INDEX("{\"a\":\"" SHARD1 "\",\"b\":\"gone.safetensors\"}"),
     "weight_map names gone.safetensors, which does not exist"},
    {INDEX("{\"a\":\"" SHARD1 "\",\"b\":\"" SHARD1 "\"}"), "weight_map: tensor b is not in " SHARD1},
    {INDEX("{\"a\":\"" SHARD1 "\",\"b\":\"" SHARD2 "\",\"c\":\"" SHARD2 "\"}"),
     "weight_map: tensor c is not in " SHARD2},
    {INDEX("{\"a\":\"" SHARD2 "\",\"b\":\"" SHARD1 "\"}"), "tensor a is said to be in " SHARD2 ", found in " SHARD1},
};

START_TEST(indexes_that_disagree_are_refused) {
  nps_model_t *m = NULL;
  write_shards(bad_indexes[_i].index);
  ck_assert_int_eq(nps_model_open(folder, "m", &m), NPS_ERR_INPUT);
  check_problem(0, bad_indexes[_i].message);
}
END_TEST

START_TEST(tensors_outside_of_the_index_are_refused) {
  write_shards(INDEX("{\"a\":\"" SHARD1 "\",\"b\":\"" SHARD2 "\"}"));
  write_file(SHARD2,
             "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
             "\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
             2);
  open_bad("", "weight_map lacks tensor c of " SHARD2);
  write_file(SHARD2, ONE("a"), 4);
  open_bad("", "tensor a is stored twice");
  write_file(SHARD2, ONE("b"), 3);
  open_bad("", SHARD2 ": is truncated");
}
END_TEST

START_TEST(shards_without_an_index_are_refused) {
  write_shards(NULL);
  open_bad("", "has 2 .safetensors files (" SHARD1 ", …) but no model.safetensors.index.json");
  unlink(in_folder(SHARD1));
  open_bad("", "has one part of several, " SHARD2 ", and no model.safetensors.index.json");
}
END_TEST

START_TEST(the_single_file_comes_first) {
  write_shards(INDEX(MAP));
  write_file("model.safetensors", ONE("single"), 4);
  nps_model_t *m = open_good("");
  ck_assert_int_eq(m->tensor_count, 1);
  ck_assert_ptr_nonnull(strstr(note, "the index is not used"));
  nps_model_free(m);
}
END_TEST

START_TEST(other_folders_are_refused) {
  open_bad("", "has no weights, expected model.safetensors");
  write_text("pytorch_model.bin", "x");
  open_bad("", "has only .bin weights; convert them with transformers");
  write_file("adapter_model.safetensors", ONE("a"), 4);
  open_bad("", "is a PEFT adapter, but has no adapter_config.json");
  open_bad("gone", "gone: cannot be read: No such file or directory");
  open_bad("pytorch_model.bin", "expected a folder, a .safetensors file or a merged .h5 file");
  write_text("x.h5", "x");
  open_bad("x.h5", "x.h5: is not an HDF5 file");
  mkdir(in_folder("d.safetensors"), 0777);
  open_bad("d.safetensors", "has no weights");
}
END_TEST

START_TEST(a_bad_config_is_refused) {
  write_file("any.safetensors", ONE("a"), 4);
  write_text("config.json", "{\"a\":}");
  open_bad("", "config.json: is not valid JSON: line 1");
  write_text("config.json", "[]");
  open_bad("", "config.json: expected a JSON object");
}
END_TEST

static void check_located(const char *model, const char *dir, const char *end) {
  char *path = NULL;
  ck_assert_int_eq(nps_model_locate(model, dir, &path), NPS_OK);
  ck_assert_msg(strlen(path) >= strlen(end) && strcmp(path + strlen(path) - strlen(end), end) == 0, "%s", path);
  free(path);
}

static void make_cache(void) {
  mkdir(in_folder("hub"), 0777);
  mkdir(in_folder("hub/models--org--name"), 0777);
  mkdir(in_folder("hub/models--org--name/refs"), 0777);
  mkdir(in_folder("hub/models--org--name/snapshots"), 0777);
  mkdir(in_folder("hub/models--org--name/snapshots/abc123"), 0777);
  mkdir(in_folder("hub/models--org--name/snapshots/def456"), 0777);
  write_text("hub/models--org--name/refs/main", "abc123\n");
  write_text("hub/models--org--name/refs/v2", "def456");
}

START_TEST(models_are_found_beside_the_config_and_in_the_cache) {
  char *path = NULL;
  make_cache();
  mkdir(in_folder("local"), 0777);
  unsetenv("HF_HUB_CACHE");
  setenv("HF_HOME", folder, 1);
  check_located("local", folder, "/local");
  check_located(in_folder("local"), NULL, "/local");
  check_located("org/name", folder, "/hub/models--org--name/snapshots/abc123");
  check_located("org/name@v2", NULL, "/hub/models--org--name/snapshots/def456");
  check_located("org/name@abc123", NULL, "/hub/models--org--name/snapshots/abc123");
  ck_assert_int_eq(nps_model_locate("org/other", folder, &path), NPS_ERR_INPUT);
  check_problem(0, "org/other: model not found, tried ");
  check_problem(0, "hub/models--org--other/snapshots/main; models are never downloaded");
  nps_problem_clear();
  ck_assert_int_eq(nps_model_locate("gone", folder, &path), NPS_ERR_INPUT);
  check_problem(0, "/gone, gone");
  nps_problem_clear();
  ck_assert_int_eq(nps_model_locate("", folder, &path), NPS_ERR_INPUT);
  check_problem(0, "the name of a model is empty");
  ck_assert_ptr_null(path);
}
END_TEST

START_TEST(a_revision_that_cannot_be_read_is_the_only_problem) {
  char *path = NULL;
  make_cache();
  mkdir(in_folder("hub/models--org--name/refs/broken"), 0777);
  unsetenv("HF_HUB_CACHE");
  setenv("HF_HOME", folder, 1);
  ck_assert_int_ne(nps_model_locate("org/name@broken", folder, &path), NPS_OK);
  ck_assert_int_eq(nps_problem_count(), 1);
  check_problem(0, "hub/models--org--name/refs/broken: ");
  ck_assert_ptr_null(path);
}
END_TEST

START_TEST(a_file_that_becomes_shorter_while_it_is_read) {
  write_file("m.safetensors", ONE("a"), 4);
  nps_model_t *model = nps_model_new("m", in_folder("m.safetensors"), NPS_FORM_SAFETENSORS);
  ck_assert_int_eq(nps_model_add_file(model, model->path), NPS_OK);
  ck_assert_int_eq(truncate(model->path, 20), 0);
  ck_assert_int_eq(nps_safetensors_read(model, 0), NPS_ERR_INPUT);
  char *message =
      nps_xstrf("%s: became shorter while it was read: expected %zu bytes", model->path, 8 + strlen(ONE("a")) + 4);
  ck_assert_int_eq(nps_problem_count(), 1);
  ck_assert_str_eq(nps_problem_text(0), message);
  free(message);
  nps_model_free(model);
}
END_TEST

START_TEST(the_bundled_examples_are_read) {
  const char *source = getenv("NPS_SRCDIR");
  char path[600];
  nps_model_t *m = NULL;
  snprintf(path, sizeof path, "%s/examples/models/bytes-llama/base", source ? source : ".");
  if (access(path, F_OK) != 0) return;
  ck_assert_int_eq(nps_model_open(path, "base", &m), NPS_OK);
  ck_assert_int_eq(m->file_count, 2);
  const int i = nps_model_find(m, "lm_head.weight");
  ck_assert_int_ge(i, 0);
  ck_assert_int_eq(m->tensors[i].ndim, 2);
  int64_t bytes = 0;
  for (int k = 0; k < m->tensor_count; k++) bytes += m->tensors[k].count * (int64_t)nps_dtype_size(m->tensors[k].dtype);
  ck_assert_int_eq(bytes, 1607936); /* metadata.total_size of its index */
  nps_model_free(m);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("model_folder");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, shards_are_read_by_their_index);
  tcase_add_test(cases, a_wrong_total_size_is_noted);
  tcase_add_loop_test(cases, indexes_that_disagree_are_refused, 0, (int)(sizeof bad_indexes / sizeof *bad_indexes));
  tcase_add_test(cases, tensors_outside_of_the_index_are_refused);
  tcase_add_test(cases, shards_without_an_index_are_refused);
  tcase_add_test(cases, the_single_file_comes_first);
  tcase_add_test(cases, other_folders_are_refused);
  tcase_add_test(cases, a_bad_config_is_refused);
  tcase_add_test(cases, models_are_found_beside_the_config_and_in_the_cache);
  tcase_add_test(cases, a_revision_that_cannot_be_read_is_the_only_problem);
  tcase_add_test(cases, a_file_that_becomes_shorter_while_it_is_read);
  tcase_add_test(cases, the_bundled_examples_are_read);
  return run_tests("model_folder", cases);
}
