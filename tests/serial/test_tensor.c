#include "../nps_check.h"
#include "nps/tensor.h"

#include <float.h>
#include <math.h>

START_TEST(types_have_their_safetensors_names_and_sizes) {
  static const struct {
    const char *name;
    nps_dtype_t dtype;
    size_t size;
    nps_dtype_kind_t kind;
  } expected[] = {
      {"F64", NPS_F64, 8, NPS_KIND_FLOAT},          {"F32", NPS_F32, 4, NPS_KIND_FLOAT},
      {"F16", NPS_F16, 2, NPS_KIND_FLOAT},          {"BF16", NPS_BF16, 2, NPS_KIND_FLOAT},
      {"I64", NPS_I64, 8, NPS_KIND_EXACT},          {"I32", NPS_I32, 4, NPS_KIND_EXACT},
      {"I16", NPS_I16, 2, NPS_KIND_EXACT},          {"I8", NPS_I8, 1, NPS_KIND_EXACT},
      {"U64", NPS_U64, 8, NPS_KIND_EXACT},          {"U32", NPS_U32, 4, NPS_KIND_EXACT},
      {"U16", NPS_U16, 2, NPS_KIND_EXACT},          {"U8", NPS_U8, 1, NPS_KIND_EXACT},
      {"BOOL", NPS_BOOL, 1, NPS_KIND_EXACT},        {"F8_E4M3", NPS_F8_E4M3, 1, NPS_KIND_OPAQUE},
      {"F8_E5M2", NPS_F8_E5M2, 1, NPS_KIND_OPAQUE}, {"F8_E8M0", NPS_F8_E8M0, 1, NPS_KIND_OPAQUE},
  };
  ck_assert_uint_eq(sizeof expected / sizeof *expected, NPS_DTYPE_COUNT);
  for (int i = 0; i < NPS_DTYPE_COUNT; i++) {
    nps_dtype_t found = NPS_DTYPE_COUNT;
    ck_assert_str_eq(nps_dtype_name(expected[i].dtype), expected[i].name);
    ck_assert_uint_eq(nps_dtype_size(expected[i].dtype), expected[i].size);
    ck_assert_int_eq(nps_dtype_kind(expected[i].dtype), expected[i].kind);
    ck_assert(nps_dtype_from_name(expected[i].name, &found));
    ck_assert_int_eq(found, expected[i].dtype);
  }
}
END_TEST

START_TEST(unknown_names_of_types_are_refused) {
  nps_dtype_t dtype = NPS_I8;
  const char *const unknown[] = {"", "bf16", "F", "F320", "C64", "float32"};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
    ck_assert_msg(!nps_dtype_from_name(unknown[i], &dtype), "%s", unknown[i]);
  const char *const unknown_to_users[] = {"",      "int8",   "I64",         "BF16", "float8",
                                          "torch", "torch.", "torch.int32", "bool"};
  for (size_t i = 0; i < sizeof unknown_to_users / sizeof *unknown_to_users; i++)
    ck_assert_msg(!nps_dtype_from_user_name(unknown_to_users[i], &dtype), "%s", unknown_to_users[i]);
  ck_assert_int_eq(dtype, NPS_I8);
}
END_TEST

START_TEST(users_names_of_types_are_known) {
  static const struct {
    const char *name;
    nps_dtype_t dtype;
  } expected[] = {
      {"float32", NPS_F32}, {"bfloat16", NPS_BF16}, {"float16", NPS_F16},         {"float64", NPS_F64},
      {"bf16", NPS_BF16},   {"fp16", NPS_F16},      {"torch.bfloat16", NPS_BF16}, {"torch.float32", NPS_F32},
      {"double", NPS_F64},  {"half", NPS_F16}};
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
    nps_dtype_t dtype = NPS_DTYPE_COUNT;
    ck_assert_msg(nps_dtype_from_user_name(expected[i].name, &dtype), "%s", expected[i].name);
    ck_assert_int_eq(dtype, expected[i].dtype);
  }
}
END_TEST

static bool counts(int ndim, const int64_t *shape, int64_t expected) {
  int64_t count = -7;
  return nps_shape_count(ndim, shape, &count) && count == expected;
}

START_TEST(extents_are_multiplied) {
  ck_assert(counts(0, NULL, 1));
  ck_assert(counts(1, (int64_t[]){0}, 0));
  ck_assert(counts(1, (int64_t[]){INT64_MAX}, INT64_MAX));
  ck_assert(counts(2, (int64_t[]){32000, 2048}, 65536000));
  ck_assert(counts(3, (int64_t[]){5, 0, 7}, 0));
  ck_assert(counts(8, (int64_t[]){2, 3, 1, 1, 5, 1, 1, 7}, 210));
  ck_assert(counts(2, (int64_t[]){(int64_t)1 << 31, (int64_t)1 << 31}, (int64_t)1 << 62));
}
END_TEST

START_TEST(shapes_that_cannot_be_are_refused) {
  int64_t count = 0;
  ck_assert(!nps_shape_count(1, (int64_t[]){-1}, &count));
  ck_assert(!nps_shape_count(2, (int64_t[]){-2, -3}, &count));
  ck_assert(!nps_shape_count(2, (int64_t[]){0, -3}, &count));
  ck_assert(!nps_shape_count(2, (int64_t[]){(int64_t)1 << 32, (int64_t)1 << 31}, &count));
  ck_assert(!nps_shape_count(3, (int64_t[]){INT64_MAX, 2, 1}, &count));
  ck_assert(!nps_shape_count(4, (int64_t[]){65536, 65536, 65536, 65536}, &count)); /* 2^64: 0 modulo 2^64 */
  ck_assert(!nps_shape_count(-1, NULL, &count));
  ck_assert(!nps_shape_count(NPS_MAX_DIMS + 1, (int64_t[9]){1, 1, 1, 1, 1, 1, 1, 1, 1}, &count));
}
END_TEST

START_TEST(shapes_are_written_for_people) {
  char out[192];
  ck_assert_str_eq(nps_shape_format(0, NULL, out), "[]");
  ck_assert_str_eq(nps_shape_format(1, (int64_t[]){5}, out), "[5]");
  ck_assert_str_eq(nps_shape_format(2, (int64_t[]){32000, 2048}, out), "[32000, 2048]");
  int64_t long_shape[8];
  for (int i = 0; i < 8; i++) long_shape[i] = INT64_MIN;
  ck_assert_uint_eq(strlen(nps_shape_format(8, long_shape, out)), 8 * 20 + 7 * 2 + 2);
}
END_TEST

/* Values of very different sizes, so that another order of additions gives other bits. */
static double uneven(uint64_t *state) {
  return ldexp((double)next_random(state) / 2147483648.0 - 0.5, (int)(next_random(state) % 40) - 20);
}

enum { LENGTH = 65536 };
enum { SQUARES, PRODUCTS, SUMS };
static float single[LENGTH];
static double left[LENGTH], right[LENGTH];

static void fill(void) {
  uint64_t state = 3;
  for (int i = 0; i < LENGTH; i++) {
    single[i] = (float)uneven(&state);
    left[i] = uneven(&state);
    right[i] = uneven(&state);
  }
}

static void add(int what, nps_lanes_t *lanes, int64_t first, int64_t n) {
  if (what == SQUARES) nps_lanes_add_squares(lanes, single + first, n);
  if (what == PRODUCTS) nps_lanes_add_products(lanes, left + first, right + first, n);
}

static double term(int what, int64_t i) {
  if (what == SQUARES) return (double)single[i] * (double)single[i];
  return left[i] * right[i];
}

START_TEST(lanes_take_every_sixteenth_element_in_order) {
  const int lengths[] = {0, 1, 15, 16, 17, 31, 1000, 65535, LENGTH};
  fill();
  for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
    nps_lanes_t lanes = {{0}};
    double expected[16] = {0};
    add(_i, &lanes, 0, lengths[k]);
    for (int i = 0; i < lengths[k]; i++) expected[i % 16] += term(_i, i);
    ck_assert_mem_eq(lanes.lane, expected, sizeof expected);
  }
}
END_TEST

START_TEST(sums_do_not_depend_on_the_cut) {
  uint64_t state = 11;
  fill();
  nps_lanes_t whole = {{0}};
  add(_i, &whole, 0, LENGTH - 5);
  const double expected = nps_lanes_sum(&whole);
  for (int repeat = 0; repeat < 50; repeat++) {
    nps_lanes_t lanes = {{0}};
    for (int64_t at = 0; at < LENGTH - 5;) {
      int64_t n = 16 * (int64_t)(1 + next_random(&state) % (repeat < 25 ? 8 : 500));
      if (n > LENGTH - 5 - at) n = LENGTH - 5 - at;
      add(_i, &lanes, at, n);
      at += n;
    }
    ck_assert_mem_eq(&lanes, &whole, sizeof lanes);
    ck_assert(nps_lanes_sum(&lanes) == expected);
  }
}
END_TEST

START_TEST(sums_are_close_to_the_exact_one) {
  fill();
  nps_lanes_t lanes = {{0}};
  add(_i, &lanes, 0, LENGTH);
  long double exact = 0, magnitude = 0;
  for (int i = 0; i < LENGTH; i++) {
    long double x =
        _i == PRODUCTS ? (long double)left[i] * (long double)right[i] : (long double)single[i] * (long double)single[i];
    exact += x;
    magnitude += fabsl(x);
  }
  /* At most 4096 additions in a lane, 4 over the lanes. */
  ck_assert(fabsl((long double)nps_lanes_sum(&lanes) - exact) <= magnitude * 4101 * (long double)DBL_EPSILON / 2);
}
END_TEST

START_TEST(names_have_their_fnv_1a_hashes) {
  ck_assert_uint_eq(nps_name_hash(""), UINT64_C(0xcbf29ce484222325));
  ck_assert_uint_eq(nps_name_hash("a"), UINT64_C(0xaf63dc4c8601ec8c));
  ck_assert_uint_eq(nps_name_hash("foobar"), UINT64_C(0x85944171f73967e8));
  ck_assert_uint_eq(nps_name_hash("\xff"), UINT64_C(0xaf64724c8602eb6e));
}
END_TEST

/* Whatever part is asked for: more columns than are worked on at a time, ranks that four does not divide. */
START_TEST(a_matrix_of_low_rank_is_the_sum_of_its_products) {
  enum { RANK = 7, ROWS = 5, COLUMNS = 1100 };
  static float u[RANK * ROWS], v[RANK * COLUMNS], out[ROWS * COLUMNS];
  for (int i = 0; i < RANK * ROWS; i++) u[i] = (float)sin(1 + 3 * i);
  for (int i = 0; i < RANK * COLUMNS; i++) v[i] = (float)cos(2 + 7 * i) / 3;
  const int64_t parts[][2] = {{0, ROWS * COLUMNS}, {0, 1}, {1099, 2}, {700, 2000}, {1100, 2200}, {5499, 1}};
  for (int rank = 0; rank <= RANK; rank++)
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
      const nps_low_rank_t m = {rank, ROWS, COLUMNS, u, v};
      nps_low_rank_entries(&m, parts[p][0], parts[p][1], out);
      for (int64_t i = 0; i < parts[p][1]; i++) {
        const int64_t row = (parts[p][0] + i) / COLUMNS, column = (parts[p][0] + i) % COLUMNS;
        double sum = 0;
        for (int k = 0; k < rank; k++) sum += (double)u[k * ROWS + row] * (double)v[k * COLUMNS + column];
        ck_assert_msg(out[i] == (float)sum, "rank %d, part %zu, entry %d", rank, p, (int)i);
      }
    }
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("tensor");
  tcase_add_test(cases, types_have_their_safetensors_names_and_sizes);
  tcase_add_test(cases, unknown_names_of_types_are_refused);
  tcase_add_test(cases, users_names_of_types_are_known);
  tcase_add_test(cases, extents_are_multiplied);
  tcase_add_test(cases, shapes_that_cannot_be_are_refused);
  tcase_add_test(cases, shapes_are_written_for_people);
  tcase_add_loop_test(cases, lanes_take_every_sixteenth_element_in_order, 0, SUMS);
  tcase_add_loop_test(cases, sums_do_not_depend_on_the_cut, 0, SUMS);
  tcase_add_loop_test(cases, sums_are_close_to_the_exact_one, 0, SUMS);
  tcase_add_test(cases, a_matrix_of_low_rank_is_the_sum_of_its_products);
  tcase_add_test(cases, names_have_their_fnv_1a_hashes);
  return run_tests("tensor", cases);
}
