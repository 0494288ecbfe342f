#include "model_files.h"

#include "../h5_files.h"
#include "../nps_check_mpi.h"

#define GOOD                                                                                                           \
  "{\"__metadata__\":{\"format\":\"pt\"},"                                                                             \
  "\"b.weight\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"                                         \
  "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"                                                     \
  "\"none\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[16,16]},"                                             \
  "\"ids\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[16,24]}}  "

START_TEST(a_single_file_is_read) {
  unsigned char data[16];
  write_file("m.safetensors", GOOD, 24);
  write_text("config.json", "{\"num_hidden_layers\": 2}");
  nps_model_t *m = open_good("m.safetensors");
  ck_assert_int_eq(m->form, NPS_FORM_SAFETENSORS);
  ck_assert_str_eq(m->config_json, "{\"num_hidden_layers\": 2}");
  ck_assert_int_eq(m->tensor_count, 4);
  ck_assert_int_eq(nps_model_find(m, "ids"), 2);
  ck_assert_int_eq(nps_model_find(m, "nothing"), -1);
  const nps_tensor_info_t *t = &m->tensors[1];
  ck_assert_str_eq(t->name, "b.weight");
  ck_assert_int_eq(t->dtype, NPS_BF16);
  ck_assert_int_eq(t->ndim, 2);
  ck_assert_int_eq(t->shape[1], 3);
  ck_assert_int_eq(t->count, 6);
  ck_assert_int_eq(t->offset, (int64_t)(8 + strlen(GOOD) + 4));
  nps_reader_t *reader = nps_reader_new(m, NULL);
  ck_assert_int_eq(nps_reader_read(reader, 1, 2, 3, data), NPS_OK);
  for (int i = 0; i < 6; i++) ck_assert_int_eq(data[i], 4 + 4 + i);
  ck_assert_int_eq(nps_reader_read(reader, 3, 0, 0, data), NPS_OK);
  ck_assert_int_eq(nps_reader_read(reader, 1, 5, 2, data), NPS_ERR_RUNTIME);
  check_problem(0, "tensor b.weight: elements 5 to 7 are outside of its 6");
  nps_problem_clear();
  ck_assert_int_eq(truncate(in_folder("m.safetensors"), (off_t)(8 + strlen(GOOD) + 6)), 0);
  ck_assert_int_eq(nps_reader_read(reader, 1, 0, 3, data), NPS_ERR_INPUT);
  check_problem(0, "m.safetensors: is shorter than when it was checked");
  nps_reader_free(reader);
  nps_model_free(m);
}
END_TEST

START_TEST(packed_catalogues_are_equal) {
  nps_model_t *b = NULL;
  write_file("m.safetensors", GOOD, 24);
  nps_model_t *a = open_good("m.safetensors");
  char *text = nps_model_pack(a);
  ck_assert_int_eq(nps_model_unpack(text, &b), NPS_OK);
  char *again = nps_model_pack(b);
  ck_assert_str_eq(text, again);
  ck_assert_ptr_null(b->config_json);
  ck_assert_int_eq(b->tensors[1].count, 6);
  ck_assert_int_eq(b->tensors[1].offset, a->tensors[1].offset);
  ck_assert_str_eq(b->files[0].path, a->files[0].path);
  nps_model_free(b);
  text[strlen(text) / 2] = '\0';
  ck_assert_int_eq(nps_model_unpack(text, &b), NPS_ERR_RUNTIME);
  free(text);
  free(again);
  nps_model_free(a);
}
END_TEST

#define T(dtype, shape, offsets) "{\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
  const char *header;
  size_t data;
  const char *message;
} bad_headers[] = {
    {"[]", 0, "header does not start with '{'"},
    {"{}", 0, "has no tensors"},
    {"{\"a\":", 0, "header: is not valid JSON: line 1"},
    {"{\"a\":1,\"a\":2}", 0, "header: is not valid JSON: line 1: duplicate object key"},
    {"{\"__metadata__\":[]}", 0, "__metadata__: expected an object"},
    {"{\"__metadata__\":{\"x\":1}}", 0, "__metadata__: x: expected a string"},
    {"{\"t\":1}", 0, "tensor t: expected exactly dtype, shape and data_offsets"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, "tensor t: expected exactly dtype, shape and data_offsets"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"x\":1}}", 4, "tensor t: expected exactly"},
    {"{\"\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "a tensor has an empty name"},
    {T("F31", "[1]", "[0,4]"), 4, "tensor t: unknown type 'F31'"},
    {"{\"t\":{\"dtype\":4,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "tensor t: dtype: expected a string"},
    {T("F32", "1", "[0,4]"), 4, "tensor t: shape: expected a list"},
    {T("F32", "[-1]", "[0,4]"), 4, "tensor t: shape: expected non-negative integers"},
    {T("F32", "[1.0]", "[0,4]"), 4, "tensor t: shape: expected non-negative integers"},
    {T("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "tensor t: has 9 dimensions, at most 8"},
    {T("F32", "[4294967296,4294967296]", "[0,4]"), 4, "shape [4294967296, 4294967296] is too large"},
    {T("F32", "[4611686018427387904]", "[0,4]"), 4, "shape [4611686018427387904] is too large"},
    {T("F32", "[99999999999999999999]", "[0,4]"), 4, "is not valid JSON: line 1: too big integer"},
    {T("F32", "[1]", "[0]"), 4, "tensor t: data_offsets: expected two integers"},
    {T("F32", "[1]", "{}"), 4, "tensor t: data_offsets: expected two integers"},
    {T("F32", "[1]", "[-4,0]"), 4, "tensor t: data_offsets [-4, 0] are no range"},
    {T("F32", "[1]", "[4,0]"), 4, "tensor t: data_offsets [4, 0] are no range"},
    {T("F32", "[1]", "[9223372036854775803,9223372036854775807]"), 4, "are no range"},
    {T("F32", "[2]", "[0,4]"), 4, "tensor t: F32 [2] takes 8 bytes, its data_offsets span 4"},
    {T("F32", "[2]", "[0,8]"), 4, "is truncated: the header promises 70 bytes, the file has 66"},
    {T("F32", "[1]", "[0,4]"), 6, "has 2 bytes after the last tensor"},
    {T("F32", "[1]", "[4,8]"), 8, "4 bytes before tensor t belong to no tensor"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]}}",
     5, "tensors a and b overlap"},
};

START_TEST(malformed_headers_are_refused) {
  write_file("m.safetensors", bad_headers[_i].header, bad_headers[_i].data);
  open_bad("m.safetensors", bad_headers[_i].message);
}
END_TEST

START_TEST(absurd_lengths_are_refused) {
  write_bytes("m.safetensors", "abc", 3);
  open_bad("m.safetensors", "it has 3 bytes, expected at least 8");
  write_bytes("m.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
  open_bad("m.safetensors", "its header claims 18446744073709551615 bytes, at most 100000000");
  write_bytes("m.safetensors", "\x20\0\0\0\0\0\0\0{}", 10);
  open_bad("m.safetensors", "is truncated: the header alone takes 40 bytes, the file has 10");
  write_bytes("m.safetensors", "\0\0\0\0\0\0\0\0", 8);
  open_bad("m.safetensors", "header does not start with '{'");
}
END_TEST

START_TEST(all_problems_are_listed_up_to_a_limit) {
  char header[8192] = "{";
  for (int i = 0; i < 60; i++)
    snprintf(header + strlen(header), sizeof header - strlen(header), "%s\"t%d\":{\"dtype\":\"F9\",\"shape\":[]}",
             i ? "," : "", i);
  strcat(header, "}");
  write_file("m.safetensors", header, 0);
  nps_model_t *model = NULL;
  ck_assert_int_eq(nps_model_open(in_folder("m.safetensors"), "m", &model), NPS_ERR_INPUT);
  ck_assert_int_eq(nps_problem_count(), 51);
  check_problem(50, "m.safetensors: … and 10 more");
}
END_TEST

START_TEST(hdf5_files_are_read) {
  const float data[6] = {1, 2, 3, 4, 5, 6};
  float back[2];
  const int64_t shape[2] = {2, 3};
  nps_sidecar_t *sidecars = NULL;
  int count = 0;
  nps_h5_t *file = NULL;
  nps_h5_dataset_t *d = NULL;
  ck_assert_int_eq(nps_h5_create(comm, in_folder("m.h5"), &file), NPS_OK);
  nps_h5_put_attr_text(file, "/", "format", "nps-merged");
  nps_h5_put_attr_i64(file, "/", "format_version", 1);
  nps_h5_put_attr_text(file, "/", "config_json", "{}");
  nps_h5_make_group(file, "/tensors");
  nps_h5_make_group(file, "/tokenizer");
  put_bytes(file, "/tokenizer", "vocab.txt", "word", 4);
  ck_assert_int_eq(nps_h5_dataset_create(file, "/tensors", "a.weight", NPS_F32, 2, shape, &d), NPS_OK);
  ck_assert_int_eq(nps_h5_dataset_write(d, 0, 6, data), NPS_OK);
  nps_h5_dataset_close(d);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  nps_model_t *m = open_good("m.h5");
  ck_assert_int_eq(m->form, NPS_FORM_HDF5);
  ck_assert_int_eq(m->tensor_count, 1);
  ck_assert_str_eq(m->tensors[0].name, "a.weight");
  ck_assert_str_eq(m->config_json, "{}");
  nps_reader_t *reader = nps_reader_new(m, NULL);
  ck_assert_int_eq(nps_reader_read(reader, 0, 4, 2, back), NPS_OK);
  ck_assert(back[0] >= 5.0F && back[0] <= 5.0F && back[1] >= 6.0F && back[1] <= 6.0F);
  nps_reader_free(reader);
  ck_assert_int_eq(nps_sidecars_read(m, &sidecars, &count), NPS_OK);
  ck_assert_int_eq(count, 1);
  ck_assert_str_eq(sidecars[0].name, "vocab.txt");
  ck_assert_uint_eq(sidecars[0].size, 4);
  nps_sidecars_free(sidecars, count);
  nps_model_free(m);
}
END_TEST

/* Datasets as another program might leave them. */
START_TEST(unusable_datasets_are_refused) {
  const int64_t shape[1] = {3};
  nps_h5_t *file = NULL;
  nps_model_t *m = NULL;
  ck_assert_int_eq(nps_h5_create(comm, in_folder("m.h5"), &file), NPS_OK);
  nps_h5_put_attr_text(file, "/", "format", "nps-merged");
  nps_h5_put_attr_i64(file, "/", "format_version", 1);
  nps_h5_put_attr_text(file, "/", "config_json", "{}");
  nps_h5_make_group(file, "/tensors/group");
  const char *const words[1] = {"word"};
  nps_h5_put_texts(file, "/tensors/words", words, 1);
  nps_h5_put(file, "/tensors/good", NPS_I64, (const int64_t[]){1, 2, 3}, 1, shape);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_model_open(in_folder("m.h5"), "m", &m), NPS_ERR_INPUT);
  ck_assert_int_eq(nps_problem_count(), 2);
  check_problem(0, "m.h5: /tensors/group: expected a dataset, found a group");
  check_problem(1, "m.h5: tensor words: unknown type");
}
END_TEST

START_TEST(an_archive_without_a_base_is_refused) {
  nps_h5_t *file = NULL;
  nps_model_t *m = NULL;
  ck_assert_int_eq(nps_h5_create(comm, in_folder("m.h5"), &file), NPS_OK);
  nps_h5_put_attr_text(file, "/", "format", "nps-archive");
  nps_h5_put_attr_i64(file, "/", "format_version", 1);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  ck_assert_int_eq(nps_model_open(in_folder("m.h5"), "m", &m), NPS_ERR_INPUT);
  check_problem(0, "m.h5: /base has no attribute 'name'");
}
END_TEST

static const struct {
  const char *format;
  int64_t version;
  const char *message;
} bad_formats[] = {
    {NULL, 1, "is no merged model: it has no attribute 'format'"},
    {"other", 1, "expected format 'nps-merged', found 'other'"},
    {"nps-merged", 2, "expected format_version 1, found 2"},
    {"nps-merged", -1, "has no attribute 'format_version'"},
    {"nps-merged", 1, "m.h5: has no tensors"},
};

START_TEST(foreign_hdf5_files_are_refused) {
  nps_h5_t *file = NULL;
  ck_assert_int_eq(nps_h5_create(comm, in_folder("m.h5"), &file), NPS_OK);
  if (bad_formats[_i].format) nps_h5_put_attr_text(file, "/", "format", bad_formats[_i].format);
  if (bad_formats[_i].version >= 0) nps_h5_put_attr_i64(file, "/", "format_version", bad_formats[_i].version);
  ck_assert_int_eq(nps_h5_close(file), NPS_OK);
  open_bad("m.h5", bad_formats[_i].message);
}
END_TEST

/* Every mutation either opens or gives NPS_ERR_INPUT with a message. */
START_TEST(mutated_headers_never_crash) {
  uint64_t state = 12345;
  const size_t n = strlen(GOOD);
  for (int round = 0; round < 2000; round++) {
    char header[600];
    memcpy(header, GOOD, n + 1);
    for (int k = 0; k <= round % 3; k++) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      const size_t at = (size_t)(state >> 33) % n;
      const char *const digits = "0123456789[]{}\",:-eE.";
      header[at] = state & 64 ? digits[(state >> 20) % strlen(digits)] : (char)(1 + (state >> 24) % 255);
    }
    write_file("m.safetensors", header, 24);
    nps_model_t *m = NULL;
    nps_err_t err = nps_model_open(in_folder("m.safetensors"), "m", &m);
    ck_assert_int_eq(err == NPS_OK, m != NULL);
    ck_assert_int_eq(err == NPS_OK, nps_problem_count() == 0);
    ck_assert(err == NPS_OK || err == NPS_ERR_INPUT);
    nps_problem_clear();
    nps_model_free(m);
  }
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("model_open");
  tcase_set_timeout(cases, 60);
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, a_single_file_is_read);
  tcase_add_test(cases, packed_catalogues_are_equal);
  tcase_add_loop_test(cases, malformed_headers_are_refused, 0, (int)(sizeof bad_headers / sizeof *bad_headers));
  tcase_add_test(cases, absurd_lengths_are_refused);
  tcase_add_test(cases, all_problems_are_listed_up_to_a_limit);
  tcase_add_test(cases, hdf5_files_are_read);
  tcase_add_test(cases, unusable_datasets_are_refused);
  tcase_add_test(cases, an_archive_without_a_base_is_refused);
  tcase_add_loop_test(cases, foreign_hdf5_files_are_refused, 0, (int)(sizeof bad_formats / sizeof *bad_formats));
  tcase_add_test(cases, mutated_headers_never_crash);
  return end_mpi(run_tests_everywhere("model_open", cases));
}
