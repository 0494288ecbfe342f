#include "../nps_check_mpi.h"
#include "nps/h5.h"
#include "nps/json.h"
#include "nps/model.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECIPE "merge_method: linear\n"
#define CONFIG "{\"model_type\": \"test\"}\n"
#define CARD "# A merged model\n"

static nps_comm_t *self;
static char h5_path[600], hf_path[600], note[2000];

static const int64_t shapes[][3] = {{300, 257, 3}, {65536 * 2}, {7, 13}, {0}, {65537}, {0, 5}, {3}, {5}, {11, 4099}};
static nps_target_t targets[] = {
    {.name = "z.weight", .dtype = NPS_F32, .ndim = 3, .count = 231300},
    {.name = "layers.0.weight", .dtype = NPS_BF16, .ndim = 1, .count = 131072},
    {.name = "half", .dtype = NPS_F16, .ndim = 2, .count = 91},
    {.name = "steps", .dtype = NPS_I64, .ndim = 0, .count = 1},
    {.name = "mask", .dtype = NPS_BOOL, .ndim = 1, .count = 65537},
    {.name = "nothing", .dtype = NPS_F32, .ndim = 2, .count = 0},
    {.name = "bytes \"quoted\"", .dtype = NPS_U8, .ndim = 1, .count = 3},
    {.name = "wide", .dtype = NPS_F64, .ndim = 1, .count = 5},
    {.name = "odd", .dtype = NPS_F32, .ndim = 2, .count = 45089},
};
enum { TARGETS = sizeof targets / sizeof targets[0] };
static nps_layout_t layout = {targets, TARGETS, 0, NULL};

static nps_sidecar_t sidecars[] = {{"tokenizer.json", "{\"a\": 1}", 8}, {"merges.txt", "", 0}};

static int64_t bytes_of(int i) { return targets[i].count * (int64_t)nps_dtype_size(targets[i].dtype); }

static unsigned char byte_of(int i, int64_t k) {
  unsigned char b = (unsigned char)(k * 7 + (k >> 8) + 13 * i);
  return targets[i].dtype == NPS_BOOL ? b & 1 : b;
}

static void keep_note(void *ctx, const char *text) {
  (void)ctx;
  strncat(note, text, sizeof note - strlen(note) - 2);
  strcat(note, "\n");
}

static void set_up(void) {
  ck_assert(make_common_folder());
  snprintf(h5_path, sizeof h5_path, "%s/merged.h5", folder);
  snprintf(hf_path, sizeof hf_path, "%s/merged", folder);
  for (int i = 0; i < TARGETS; i++) targets[i].shape = shapes[i];
  note[0] = '\0';
}

static void tear_down(void) {
  remove_common_folder();
  nps_problem_clear();
}

/* ---- writing ---- */

static nps_output_t output_to(const char *path) {
  nps_output_t o = {.path = path, .shard_size = 1 << 30, .config_json = CONFIG, .recipe = RECIPE, .model_card = CARD};
  if (rank == 0) {
    o.sidecars = sidecars;
    o.sidecar_count = 2;
  }
  return o;
}

/* Blocks of every tensor are dealt out to the ranks. */
static nps_err_t write_blocks(const nps_comm_t *c, nps_writer_t *w) {
  unsigned char *data = nps_xcalloc(NPS_BLOCK, 8);
  nps_err_t err = NPS_OK;
  int64_t turn = 0;
  for (int i = 0; i < TARGETS; i++)
    for (int64_t first = 0; err == NPS_OK && first < targets[i].count; first += NPS_BLOCK) {
      if (turn++ % nps_comm_size(c) != nps_comm_rank(c)) continue;
      int64_t count = targets[i].count - first < NPS_BLOCK ? targets[i].count - first : NPS_BLOCK;
      int64_t width = (int64_t)nps_dtype_size(targets[i].dtype);
      for (int64_t k = 0; k < count * width; k++) data[k] = byte_of(i, first * width + k);
      err = nps_writer_write(w, i, first, count, data);
    }
  free(data);
  return err;
}

static nps_err_t write_all(const nps_comm_t *c, const nps_output_t *output, const nps_digest_t *digest) {
  nps_writer_t *w = NULL;
  nps_err_t err = nps_writer_open(c, output, &layout, &w);
  if (err == NPS_OK) err = nps_comm_agree(c, write_blocks(c, w));
  if (err == NPS_OK) err = nps_writer_commit(w, digest);
  if (err == NPS_OK && nps_writer_bytes(w) < 1433470) err = NPS_ERR_RUNTIME;
  nps_writer_free(w);
  return err;
}

static nps_digest_t *digest_of(char *path) {
  nps_model_file_t file = {path, 3, 0};
  nps_model_t model = {.files = &file, .file_count = 1};
  const nps_model_t *models[] = {&model};
  nps_digest_t *d = nps_digest_start(models, 1);
  nps_digest_feed(d, path, 0, "abc", 3);
  return nps_digest_finish(comm, d) == NPS_OK ? d : NULL;
}

/* SHA-256(SHA-256("abc")) by hashlib. */
#define ABC_HEX "4f8b42c22dd3729b519ba6f68d2da7cc5b2d606d05daed5ad5128cc03e6c6358"

/* ---- looking ---- */

/* The names in the test's folder (or one below), sorted, with a blank behind each. */
static const char *listing(const char *path) {
  static char text[2000];
  struct dirent **list = NULL;
  int n = scandir(path, &list, NULL, alphasort);
  text[0] = '\0';
  for (int i = 0; i < n; i++) {
    if (strcmp(list[i]->d_name, ".") != 0 && strcmp(list[i]->d_name, "..") != 0) {
      strcat(text, list[i]->d_name);
      strcat(text, " ");
    }
    free(list[i]);
  }
  free(list);
  return text;
}

static bool content_is(const char *path, const char *name, const char *text) {
  char *file = nps_xstrf("%s/%s", path, name), *data = NULL;
  bool ok = nps_file_read(file, 1 << 20, &data, NULL) == NPS_OK && strcmp(data, text) == 0;
  free(file);
  free(data);
  return ok;
}

static bool raw_is(const char *path, int64_t offset, int i) {
  int64_t n = bytes_of(i);
  unsigned char *data = nps_xcalloc((size_t)n, 1);
  int fd = open(path, O_RDONLY);
  bool ok = fd >= 0 && pread(fd, data, (size_t)n, offset) == n;
  for (int64_t k = 0; ok && k < n; k++) ok = data[k] == byte_of(i, k);
  if (fd >= 0) close(fd);
  free(data);
  return ok;
}

static bool h5_tensor_is(nps_h5_t *file, const char *path, int i) {
  nps_h5_info_t info;
  const nps_target_t *t = &targets[i];
  if (nps_h5_describe(file, "/tensors", t->name, &info) != NPS_OK) return false;
  bool ok = info.is_dataset && info.known_type && info.dtype == t->dtype && info.ndim == t->ndim;
  for (int d = 0; d < t->ndim; d++) ok = ok && info.shape[d] == t->shape[d];
  if (t->count == 0) return ok;
  return ok && info.contiguous && info.bytes == bytes_of(i) && raw_is(path, info.offset, i);
}

static bool attribute_is(nps_h5_t *file, const char *name, const char *expected) {
  char *text = NULL;
  bool ok = nps_h5_get_attr_text(file, "/", name, &text) == NPS_OK && text && strcmp(text, expected) == 0;
  free(text);
  return ok;
}

static bool members_are(nps_h5_t *file, const char *group, int expected) {
  char **names = NULL;
  int count = 0;
  bool ok = nps_h5_list(file, group, &names, &count) == NPS_OK && count == expected;
  nps_h5_free_names(names, count);
  return ok;
}

static bool h5_extras_are(nps_h5_t *file) {
  int64_t version = 0;
  bool found = false;
  void *data = NULL;
  size_t bytes = 0;
  char hex[65];
  nps_sha256_hex(RECIPE, strlen(RECIPE), hex);
  bool ok = attribute_is(file, "format", "nps-merged") && attribute_is(file, "config_json", CONFIG) &&
            attribute_is(file, "recipe", RECIPE) && attribute_is(file, "recipe_sha256", hex) &&
            nps_h5_get_attr_i64(file, "/", "format_version", &version, &found) == NPS_OK && found && version == 1;
  ok = ok && members_are(file, "/tensors", TARGETS) && members_are(file, "/provenance", 3) &&
       members_are(file, "/tokenizer", 2);
  ok = ok && nps_h5_get_bytes(file, "/tokenizer/tokenizer.json", &data, &bytes) == NPS_OK && bytes == 8 &&
       memcmp(data, sidecars[0].data, 8) == 0;
  free(data);
  return ok;
}

static bool h5_is_right(const char *path) {
  nps_h5_t *file = NULL;
  bool ok = nps_h5_open(path, &file) == NPS_OK && h5_extras_are(file);
  for (int i = 0; ok && i < TARGETS; i++) ok = h5_tensor_is(file, path, i);
  nps_h5_close(file);
  return ok;
}

/* Check one tensor against a header; *end grows by its bytes. */
static bool entry_is(const char *path, json_t *header, int64_t header_size, int i, int64_t *end) {
  const nps_target_t *t = &targets[i];
  json_t *entry = json_object_get(header, t->name);
  json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
  if (!entry || json_array_size(shape) != (size_t)t->ndim || json_array_size(offsets) != 2) return false;
  bool ok = strcmp(json_string_value(json_object_get(entry, "dtype")), nps_dtype_name(t->dtype)) == 0;
  for (int d = 0; d < t->ndim; d++) ok = ok && json_integer_value(json_array_get(shape, (size_t)d)) == t->shape[d];
  int64_t first = json_integer_value(json_array_get(offsets, 0)), last = json_integer_value(json_array_get(offsets, 1));
  ok = ok && last - first == bytes_of(i) && (header_size + first) % (int64_t)nps_dtype_size(t->dtype) == 0;
  *end += last - first;
  return ok && raw_is(path, header_size + first, i);
}

/* Whether a safetensors file holds exactly the targets [first, last), without holes. */
static bool shard_is(const char *name, int first, int last) {
  char *path = nps_xstrf("%s/%s", hf_path, name), *data = NULL;
  size_t bytes = 0;
  json_t *header = NULL;
  bool ok = nps_file_read(path, 1 << 26, &data, &bytes) == NPS_OK && bytes > 8;
  uint64_t length = 0;
  if (ok) memcpy(&length, data, 8);
  ok = ok && length % 8 == 0 && length < bytes && nps_json_parse(data + 8, length, name, &header) == NPS_OK;
  ok = ok && json_object_size(header) == (size_t)(last - first + 1);
  ok = ok && strcmp(json_string_value(json_object_get(json_object_get(header, "__metadata__"), "format")), "pt") == 0;
  int64_t end = 0;
  for (int i = first; ok && i < last; i++) ok = entry_is(path, header, (int64_t)length + 8, i, &end);
  ok = ok && (int64_t)length + 8 + end == (int64_t)bytes;
  json_decref(header);
  free(data);
  free(path);
  return ok;
}

/* ---- tests ---- */

START_TEST(hdf5_holds_tensors_attributes_and_files) {
  nps_output_t o = output_to(h5_path);
  nps_digest_t *d = digest_of("in put");
  bool ok = d && write_all(comm, &o, d) == NPS_OK && h5_is_right(h5_path);
  ok = ok && strcmp(listing(folder), "merged.h5 ") == 0;
  nps_digest_free(d);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(hdf5_has_the_same_bytes_for_any_number_of_ranks) {
  nps_output_t o = output_to(h5_path);
  char *alone = nps_xstrf("%s/alone.h5", folder), *a = NULL, *b = NULL;
  bool ok = write_all(comm, &o, NULL) == NPS_OK;
  o.path = alone;
  if (rank == 0) {
    size_t m = 0, n = 0;
    ok = ok && write_all(self, &o, NULL) == NPS_OK && nps_file_read(alone, 1 << 26, &a, &m) == NPS_OK &&
         nps_file_read(h5_path, 1 << 26, &b, &n) == NPS_OK && m == n && memcmp(a, b, n) == 0;
  }
  free(alone);
  free(a);
  free(b);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(a_long_config_fits_into_hdf5) {
  nps_output_t o = output_to(h5_path);
  char *config = nps_xcalloc(300001, 1);
  memset(config, 'x', 300000);
  o.config_json = config;
  bool ok = write_all(comm, &o, NULL) == NPS_OK;
  nps_h5_t *file = NULL;
  ok = ok && nps_h5_open(h5_path, &file) == NPS_OK && attribute_is(file, "config_json", config);
  nps_h5_close(file);
  free(config);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(a_folder_of_one_shard) {
  nps_output_t o = output_to(hf_path);
  nps_digest_t *d = digest_of("in put");
  bool ok = d && write_all(comm, &o, d) == NPS_OK && shard_is("model.safetensors", 0, TARGETS);
  ok = ok &&
       strcmp(listing(hf_path), "README.md config.json merges.txt model.safetensors nps-merge.yaml provenance.json "
                                "tokenizer.json ") == 0;
  ok = ok && content_is(hf_path, "config.json", CONFIG) && content_is(hf_path, "README.md", CARD) &&
       content_is(hf_path, "nps-merge.yaml", RECIPE) && content_is(hf_path, "tokenizer.json", "{\"a\": 1}") &&
       content_is(hf_path, "merges.txt", "");
  char *path = nps_xstrf("%s/provenance.json", hf_path);
  json_t *json = NULL, *input;
  ok = ok && nps_json_load(path, &json) == NPS_OK;
  ok = ok && (input = json_array_get(json_object_get(json, "inputs"), 0)) &&
       strcmp(json_string_value(json_object_get(input, "path")), "in put") == 0 &&
       strcmp(json_string_value(json_object_get(input, "sha256")), ABC_HEX) == 0 &&
       json_integer_value(json_object_get(input, "size")) == 3;
  json_decref(json);
  free(path);
  nps_digest_free(d);
  ck_assert(everywhere(ok && strcmp(listing(folder), "merged ") == 0));
}
END_TEST

/* 231300·4 bytes are more than a shard may have; 131072·2 + 91·2 + 8 + 65537 + 3 + 5·8 fit; 45089·4 no more. */
START_TEST(a_folder_of_several_shards_has_an_index) {
  nps_output_t o = output_to(hf_path);
  o.shard_size = 400000;
  bool ok = write_all(comm, &o, NULL) == NPS_OK && shard_is("model-00001-of-00003.safetensors", 0, 1) &&
            shard_is("model-00002-of-00003.safetensors", 1, 8) && shard_is("model-00003-of-00003.safetensors", 8, 9);
  char *path = nps_xstrf("%s/model.safetensors.index.json", hf_path);
  json_t *json = NULL;
  ok = ok && nps_json_load(path, &json) == NPS_OK;
  json_t *map = json_object_get(json, "weight_map");
  int64_t total = 0;
  for (int i = 0; ok && i < TARGETS; i++) {
    const char *shard = json_string_value(json_object_get(map, targets[i].name));
    ok = shard && shard[10] == (i == 0 ? '1' : i < 8 ? '2' : '3');
    total += bytes_of(i);
  }
  ok = ok && json_object_size(map) == TARGETS &&
       json_integer_value(json_object_get(json_object_get(json, "metadata"), "total_size")) == total;
  json_decref(json);
  free(path);
  ck_assert(everywhere(ok));
}
END_TEST

static bool refused(nps_err_t err, nps_err_t expected, const char *message) {
  bool ok = err == expected;
  if (rank == 0)
    ok = ok && nps_problem_count() == 1 && strcmp(nps_problem_text(0), message) == 0;
  else
    ok = ok && nps_problem_count() == 0;
  nps_problem_clear();
  return ok;
}

START_TEST(an_existing_output_stays_without_force_and_goes_with_it) {
  const char *paths[] = {h5_path, hf_path};
  bool ok = true;
  for (int i = 0; i < 2; i++) {
    nps_output_t o = output_to(paths[i]);
    char *message = nps_xstrf("%s: exists already; --force replaces it", paths[i]);
    ok = ok && write_all(comm, &o, NULL) == NPS_OK;
    nps_comm_barrier(comm);
    o.config_json = "{}";
    ok = ok && refused(write_all(comm, &o, NULL), NPS_ERR_CONFIG, message);
    o.force = true;
    ok = ok && write_all(comm, &o, NULL) == NPS_OK;
    free(message);
  }
  nps_h5_t *file = NULL;
  ok = ok && nps_h5_open(h5_path, &file) == NPS_OK && attribute_is(file, "config_json", "{}");
  nps_h5_close(file);
  ok = ok && content_is(hf_path, "config.json", "{}") && shard_is("model.safetensors", 0, TARGETS);
  ck_assert(everywhere(ok && strcmp(listing(folder), "merged merged.h5 ") == 0));
}
END_TEST

START_TEST(without_commit_nothing_is_left) {
  const char *paths[] = {h5_path, hf_path};
  const char *partial[] = {".merged.h5.lock .merged.h5.partial ", ".merged.lock .merged.partial "};
  bool ok = true;
  for (int i = 0; i < 2; i++) {
    nps_output_t o = output_to(paths[i]);
    nps_writer_t *w = NULL;
    ok = ok && nps_writer_open(comm, &o, &layout, &w) == NPS_OK && write_blocks(comm, w) == NPS_OK;
    ok = ok && strcmp(listing(folder), partial[i]) == 0;
    nps_comm_barrier(comm);
    nps_writer_free(w);
    nps_comm_barrier(comm);
    ok = ok && strcmp(listing(folder), "") == 0 && nps_problem_count() == 0;
    nps_comm_barrier(comm);
  }
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(a_complete_output_whose_place_is_taken_is_kept) {
  nps_output_t o = output_to(h5_path);
  nps_writer_t *w = NULL;
  nps_h5_t *file = NULL;
  char *kept = nps_xstrf("%s.complete", h5_path);
  bool ok = nps_writer_open(comm, &o, &layout, &w) == NPS_OK && write_blocks(comm, w) == NPS_OK;
  ok = ok && (rank != 0 || mkdir(h5_path, 0777) == 0);
  ok = ok && nps_writer_commit(w, NULL) == NPS_ERR_IO;
  ok = ok && (rank != 0 || strstr(nps_problem_text(1), "merged.h5: the new output is complete and kept as "));
  nps_problem_clear();
  nps_writer_free(w);
  nps_comm_barrier(comm);
  ok = ok && strcmp(listing(folder), "merged.h5 merged.h5.complete ") == 0;
  ok = ok && nps_h5_open(kept, &file) == NPS_OK && attribute_is(file, "config_json", CONFIG);
  nps_h5_close(file);
  nps_comm_barrier(comm);
  free(kept);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(a_stale_partial_output_is_removed_with_a_note) {
  char *stale_h5 = nps_xstrf("%s/.merged.h5.partial", folder), *stale_hf = nps_xstrf("%s/.merged.partial", folder);
  char *inside = nps_xstrf("%s/model.safetensors", stale_hf);
  bool ok = true;
  if (rank == 0) {
    FILE *f = fopen(stale_h5, "w");
    ok = f && fclose(f) == 0 && mkdir(stale_hf, 0777) == 0 && (f = fopen(inside, "w")) && fclose(f) == 0;
  }
  nps_comm_barrier(comm);
  nps_output_t a = output_to(h5_path), b = output_to(hf_path);
  ok = ok && write_all(comm, &a, NULL) == NPS_OK && write_all(comm, &b, NULL) == NPS_OK;
  char *expected = nps_xstrf("%s: left by an interrupted run, removed\n%s: left by an interrupted run, removed\n",
                             stale_h5, stale_hf);
  ok = ok && strcmp(note, rank == 0 ? expected : "") == 0 && strcmp(listing(folder), "merged merged.h5 ") == 0;
  free(expected);
  free(stale_h5);
  free(stale_hf);
  free(inside);
  ck_assert(everywhere(ok));
}
END_TEST

/* Another run: a writer of rank 0 alone. */
START_TEST(a_second_writer_of_the_same_output_is_refused) {
  const char *paths[] = {h5_path, hf_path};
  bool ok = true;
  for (int i = 0; i < 2; i++) {
    nps_output_t o = output_to(paths[i]);
    char *message = nps_xstrf("%s: another run is writing it", paths[i]);
    nps_writer_t *w = NULL, *second = NULL;
    ok = ok && nps_writer_open(comm, &o, &layout, &w) == NPS_OK;
    if (rank == 0) {
      ok = ok && nps_writer_open(self, &o, &layout, &second) == NPS_ERR_IO && !second && nps_problem_count() == 1 &&
           strcmp(nps_problem_text(0), message) == 0;
      nps_problem_clear();
    }
    nps_comm_barrier(comm);
    ok = ok && write_blocks(comm, w) == NPS_OK && nps_writer_commit(w, NULL) == NPS_OK;
    nps_writer_free(w);
    free(message);
  }
  ck_assert(everywhere(ok && strcmp(listing(folder), "merged merged.h5 ") == 0));
}
END_TEST

/* What a rank meets that does not see rank 0's folder. */
START_TEST(a_shard_that_a_rank_cannot_open) {
  nps_output_t o = output_to(hf_path);
  nps_writer_t *w = NULL;
  char *shard = nps_xstrf("%s/.merged.partial/model.safetensors", folder);
  bool ok = nps_writer_open(comm, &o, &layout, &w) == NPS_OK && (rank != 0 || unlink(shard) == 0);
  nps_comm_barrier(comm);
  nps_err_t err = ok ? nps_writer_write(w, 6, 0, 3, "abc") : NPS_OK;
  char *message = rank == 0
                      ? nps_xstrf("%s: No such file or directory", shard)
                      : nps_xstrf("%s: created by rank 0, cannot be opened by rank %d: No such file or directory; "
                                  "is the folder shared by all nodes?",
                                  shard, rank);
  ok = ok && err == NPS_ERR_IO && strcmp(nps_problem_text(0), message) == 0;
  nps_problem_clear();
  nps_writer_free(w);
  free(message);
  free(shard);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(without_config_a_note_says_so) {
  nps_output_t o = output_to(hf_path);
  o.config_json = NULL;
  bool ok = write_all(comm, &o, NULL) == NPS_OK;
  char *expected = nps_xstrf("%s: there is no config.json, as no input has one\n", hf_path);
  ok = ok && strcmp(note, rank == 0 ? expected : "") == 0;
  free(expected);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(a_missing_folder_fails_everywhere) {
  char *missing = nps_xstrf("%s/missing", folder), *path = nps_xstrf("%s/merged.h5", missing);
  char *message = nps_xstrf("%s: the folder %s cannot be written to: No such file or directory", path, missing);
  nps_output_t o = output_to(path);
  ck_assert(everywhere(refused(write_all(comm, &o, NULL), NPS_ERR_CONFIG, message)));
  free(missing);
  free(path);
  free(message);
}
END_TEST

/* Files of one rank may not grow beyond a limit: its writes fail with EFBIG. */
static bool limited_write(const char *path, const char *partial) {
  nps_output_t o = output_to(path);
  nps_writer_t *w = NULL;
  struct rlimit old, limit;
  bool ok = nps_writer_open(comm, &o, &layout, &w) == NPS_OK && getrlimit(RLIMIT_FSIZE, &old) == 0;
  limit = old;
  limit.rlim_cur = 70000;
  if (rank == size - 1) setrlimit(RLIMIT_FSIZE, &limit);
  nps_err_t err = ok ? write_blocks(comm, w) : NPS_OK;
  ok = ok && err == (rank == size - 1 ? NPS_ERR_IO : NPS_OK);
  ok = ok && (err == NPS_OK || (strncmp(nps_problem_text(0), partial, strlen(partial)) == 0 &&
                                strstr(nps_problem_text(0), "File too large")));
  setrlimit(RLIMIT_FSIZE, &old);
  err = nps_comm_agree(comm, err);
  nps_writer_free(w);
  nps_comm_barrier(comm);
  return ok && err == NPS_ERR_IO && strcmp(listing(folder), "") == 0;
}

START_TEST(a_write_that_fails_on_one_rank_leaves_nothing_and_nobody_waiting) {
  char *h5_partial = nps_xstrf("%s/.merged.h5.partial: ", folder);
  char *hf_partial = nps_xstrf("%s/.merged.partial/model.safetensors: File too large", folder);
  signal(SIGXFSZ, SIG_IGN);
  ck_assert(everywhere(limited_write(hf_path, hf_partial)));
  nps_problem_clear();
  ck_assert(everywhere(limited_write(h5_path, h5_partial)));
  free(h5_partial);
  free(hf_partial);
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  self = nps_comm_self();
  nps_note_set_sink(keep_note, NULL);
  TCase *cases = tcase_create("writer");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, hdf5_holds_tensors_attributes_and_files);
  tcase_add_test(cases, hdf5_has_the_same_bytes_for_any_number_of_ranks);
  tcase_add_test(cases, a_long_config_fits_into_hdf5);
  tcase_add_test(cases, a_folder_of_one_shard);
  tcase_add_test(cases, a_folder_of_several_shards_has_an_index);
  tcase_add_test(cases, an_existing_output_stays_without_force_and_goes_with_it);
  tcase_add_test(cases, without_commit_nothing_is_left);
  tcase_add_test(cases, a_complete_output_whose_place_is_taken_is_kept);
  tcase_add_test(cases, a_stale_partial_output_is_removed_with_a_note);
  tcase_add_test(cases, a_second_writer_of_the_same_output_is_refused);
  tcase_add_test(cases, a_shard_that_a_rank_cannot_open);
  tcase_add_test(cases, without_config_a_note_says_so);
  tcase_add_test(cases, a_missing_folder_fails_everywhere);
  tcase_add_test(cases, a_write_that_fails_on_one_rank_leaves_nothing_and_nobody_waiting);
  const int64_t failed = run_tests_everywhere("writer", cases);
  nps_comm_free(self);
  return end_mpi(failed);
}
