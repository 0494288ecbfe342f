#include "../nps_check.h"
#include "nps/tensor.h"

#include <math.h>

enum { VALUES = 65536 };

/* The two 16-bit types, decoded from their definition. */
typedef struct {
  nps_dtype_t dtype;
  int fraction_bits, bias;
} half_t;

static const half_t halves[] = {{NPS_F16, 10, 15}, {NPS_BF16, 7, 127}};

static uint16_t infinity_of(const half_t *h) { return (uint16_t)((2 * h->bias + 1) << h->fraction_bits); }

/* The value of non-negative bits; those of infinity give the number that would follow the largest. */
static double decode(const half_t *h, uint16_t bits) {
  int exponent = bits >> h->fraction_bits, fraction = bits & ((1 << h->fraction_bits) - 1);
  int scale = 1 - h->bias - h->fraction_bits;
  if (exponent == 0) return ldexp(fraction, scale);
  return ldexp(fraction + (1 << h->fraction_bits), scale + exponent - 1);
}

/* Rounds by looking for the two neighbours: their midpoint is exact in float64. */
static uint16_t round_slowly(const half_t *h, double x) {
  const uint16_t sign = signbit(x) ? 0x8000u : 0;
  x = fabs(x);
  uint16_t low = 0, high = infinity_of(h);
  if (x >= decode(h, high)) return high | sign;
  while (high - low > 1) {
    uint16_t middle = (uint16_t)((low + high) / 2);
    if (decode(h, middle) <= x)
      low = middle;
    else
      high = middle;
  }
  double tie = (decode(h, low) + decode(h, high)) / 2;
  bool up = x > tie || (x == tie && low % 2 == 1);
  return (uint16_t)(up ? high : low) | sign;
}

static uint16_t narrow_one(const half_t *h, double x) {
  uint16_t bits = 0;
  nps_tensor_narrow(&x, 1, h->dtype, &bits);
  return bits;
}

static uint64_t any_word(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* Any bits: all exponents are equally likely, NaN and infinity included. */
static double any_double(uint64_t *state) {
  uint64_t bits = any_word(state);
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static bool widens_and_narrows_back(const half_t *h, uint16_t bits) {
  const uint16_t magnitude = bits & 0x7fffu, sign = bits >> 15;
  double wide = 0;
  float single = 0;
  nps_tensor_widen(h->dtype, &bits, 1, &wide);
  nps_tensor_widen_f32(h->dtype, &bits, 1, &single);
  if ((signbit(wide) != 0) != sign || (signbit(single) != 0) != sign) return false;
  const uint16_t back = narrow_one(h, wide);
  if (magnitude > infinity_of(h))
    return isnan(wide) && isnan(single) && (back & 0x7fffu) > infinity_of(h) && back >> 15 == sign;
  double expected = magnitude == infinity_of(h) ? (double)INFINITY : decode(h, magnitude);
  return fabs(wide) == expected && (double)single == wide && back == bits;
}

START_TEST(every_16_bit_value_widens_exactly_and_narrows_back) {
  int wrong = 0;
  for (uint32_t i = 0; i < VALUES; i++) wrong += !widens_and_narrows_back(&halves[_i], (uint16_t)i);
  ck_assert_int_eq(wrong, 0);
}
END_TEST

static bool narrows_to(const half_t *h, double x, uint16_t bits) {
  return narrow_one(h, x) == bits && narrow_one(h, -x) == (bits | 0x8000u);
}

/* Halfway between neighbours, and the float64 values next to it, which would be rounded twice by way of float32. */
START_TEST(all_ties_and_their_neighbours_round_once) {
  const half_t *h = &halves[_i];
  int wrong = 0;
  for (uint16_t low = 0; low < infinity_of(h); low++) {
    const uint16_t high = (uint16_t)(low + 1);
    const double tie = (decode(h, low) + decode(h, high)) / 2;
    wrong += !narrows_to(h, tie, low % 2 == 0 ? low : high);
    wrong += !narrows_to(h, nextafter(tie, INFINITY), high);
    wrong += !narrows_to(h, nextafter(tie, 0), low);
  }
  ck_assert_int_eq(wrong, 0);
}
END_TEST

START_TEST(the_ends_of_the_range_round_as_ieee_754_says) {
  const half_t *h = &halves[_i];
  const uint16_t inf = infinity_of(h), largest = (uint16_t)(inf - 1);
  const double too_large = (decode(h, largest) + decode(h, inf)) / 2;
  ck_assert_uint_eq(narrow_one(h, too_large), inf);
  ck_assert_uint_eq(narrow_one(h, nextafter(too_large, 0)), largest);
  ck_assert_uint_eq(narrow_one(h, 1e300), inf);
  ck_assert_uint_eq(narrow_one(h, -1e300), inf | 0x8000u);
  ck_assert_uint_eq(narrow_one(h, INFINITY), inf);
  ck_assert_uint_eq(narrow_one(h, -INFINITY), inf | 0x8000u);
  ck_assert_uint_eq(narrow_one(h, 0x1p-1074), 0);
  ck_assert_uint_eq(narrow_one(h, -0x1p-1074), 0x8000u);
  ck_assert_uint_eq(narrow_one(h, -0.0), 0x8000u);
  ck_assert_uint_gt(narrow_one(h, (double)NAN) & 0x7fffu, inf);
  ck_assert_uint_gt(narrow_one(h, -(double)NAN) & 0x7fffu, inf);
}
END_TEST

START_TEST(random_values_round_to_the_nearer_neighbour) {
  const half_t *h = &halves[_i];
  uint64_t state = 17;
  int wrong = 0;
  for (int i = 0; i < 400000; i++) {
    double x = any_double(&state);
    if (i % 2) x = (i % 4 == 1 ? 1 : -1) * ldexp(1 + fabs(remainder(x, 1)), (int)(any_word(&state) % 60) - 40);
    wrong += !isnan(x) && narrow_one(h, x) != round_slowly(h, x);
  }
  ck_assert_int_eq(wrong, 0);
}
END_TEST

#ifdef __FLT16_MANT_DIG__
START_TEST(float16_is_the_compilers) {
  uint64_t state = 23;
  int wrong = 0;
  for (int i = 0; i < 400000; i++) {
    double x = ldexp(1 + (double)(any_word(&state) >> 11) * 0x1p-53, (int)(any_word(&state) % 50) - 30);
    if (i % 2) x = -x;
    _Float16 expected = (_Float16)x;
    uint16_t bits = 0;
    memcpy(&bits, &expected, sizeof bits);
    wrong += narrow_one(&halves[0], x) != bits;
  }
  ck_assert_int_eq(wrong, 0);
}
END_TEST
#endif

START_TEST(float32_rounds_to_nearest_even) {
  uint64_t state = 5;
  int wrong = 0;
  for (int i = 0; i < 100000; i++) {
    uint32_t low = (uint32_t)any_word(&state) & 0x7fffffffu;
    if (low >= 0x7f7fffffu) continue;
    float a, b, tie_to;
    memcpy(&a, &low, sizeof a);
    b = nextafterf(a, INFINITY);
    const double tie = ((double)a + (double)b) / 2;
    const double x[] = {tie, nextafter(tie, INFINITY), nextafter(tie, 0), -tie};
    float out[4];
    nps_tensor_narrow(x, 4, NPS_F32, out);
    tie_to = low % 2 == 0 ? a : b;
    wrong += out[0] != tie_to || out[1] != b || out[2] != a || out[3] != -tie_to;
    double back[4];
    nps_tensor_widen(NPS_F32, out, 4, back);
    wrong += back[0] != (double)tie_to || back[3] != -(double)tie_to;
  }
  ck_assert_int_eq(wrong, 0);
}
END_TEST

START_TEST(float64_and_float32_are_passed_on_as_they_are) {
  enum { N = 1001 };
  uint64_t state = 8, bits[N], wide[N], back[N];
  uint32_t single[N], copy[N];
  for (int i = 0; i < N; i++) bits[i] = any_word(&state), single[i] = (uint32_t)any_word(&state);
  nps_tensor_widen(NPS_F64, bits, N, (double *)wide);
  nps_tensor_narrow((const double *)bits, N, NPS_F64, back);
  nps_tensor_widen_f32(NPS_F32, single, N, (float *)copy);
  ck_assert_mem_eq(wide, bits, sizeof bits);
  ck_assert_mem_eq(back, bits, sizeof bits);
  ck_assert_mem_eq(copy, single, sizeof single);
}
END_TEST

enum { LENGTH = 1021, GUARD = 1234 };

/* x: [n] */
static bool equals_single_elements(nps_dtype_t dtype, const double *x, int offset, int n) {
  const size_t size = nps_dtype_size(dtype);
  char stored[(LENGTH + 9) * 4], one[4];
  double wide[LENGTH + 1], wide_one;
  float single[LENGTH + 1], single_one;
  memset(stored, 0x5a, sizeof stored);
  char *at = stored + (size_t)offset * size;
  nps_tensor_narrow(x, n, dtype, at);
  wide[n] = GUARD;
  single[n] = GUARD;
  nps_tensor_widen(dtype, at, n, wide);
  nps_tensor_widen_f32(dtype, at, n, single);
  bool same = at[(size_t)n * size] == 0x5a && wide[n] == GUARD && single[n] == GUARD;
  for (int i = 0; i < n; i++) {
    nps_tensor_narrow(x + i, 1, dtype, one);
    nps_tensor_widen(dtype, one, 1, &wide_one);
    nps_tensor_widen_f32(dtype, one, 1, &single_one);
    same = same && memcmp(at + (size_t)i * size, one, size) == 0 && memcmp(&wide[i], &wide_one, sizeof wide_one) == 0 &&
           memcmp(&single[i], &single_one, sizeof single_one) == 0;
  }
  return same;
}

/* Long arrays go through vector code, single elements do not. */
START_TEST(vector_code_gives_the_bits_of_single_elements) {
  const nps_dtype_t dtype = (nps_dtype_t[]){NPS_F16, NPS_BF16, NPS_F32}[_i];
  uint64_t state = 99;
  double x[LENGTH + 8];
  for (int i = 0; i < LENGTH + 8; i++) x[i] = i % 3 ? any_double(&state) : ldexp((double)(i - 500), i % 41 - 30);
  for (int offset = 0; offset < 8; offset++)
    for (int n = 0; n <= LENGTH; n = n < 70 ? n + 1 : n * 2 + 1)
      ck_assert_msg(equals_single_elements(dtype, x + offset, offset, n), "offset %d, length %d", offset, n);
}
END_TEST

typedef struct {
  nps_dtype_t dtype;
  uint64_t largest, bad[4];
} special_t;

static const special_t specials[] = {
    {NPS_F16, 0x7bffu, {0x7c00u, 0xfc00u, 0x7e00u, 0xfc01u}},
    {NPS_BF16, 0x7f7fu, {0x7f80u, 0xff80u, 0x7fc0u, 0xff81u}},
    {NPS_F32, 0x7f7fffffu, {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xff800001u}},
    {NPS_F64,
     UINT64_C(0x7fefffffffffffff),
     {UINT64_C(0x7ff0000000000000), UINT64_C(0xfff0000000000000), UINT64_C(0x7ff8000000000000),
      UINT64_C(0xfff0000000000001)}},
};

START_TEST(nan_and_infinity_are_found_wherever_they_are) {
  enum { N = 4096 + 77 };
  const special_t *s = &specials[_i];
  const size_t size = nps_dtype_size(s->dtype);
  char *data = nps_xcalloc(N + 1, size);
  for (int i = 0; i <= N; i++) memcpy(data + (size_t)i * size, &s->largest, size);
  ck_assert_int_eq(nps_tensor_find_nonfinite(s->dtype, data, N), -1);
  ck_assert_int_eq(nps_tensor_find_nonfinite(s->dtype, data, 0), -1);
  int wrong = 0;
  for (int i = 0; i < N; i++) {
    char *at = data + (size_t)i * size;
    memcpy(at, &s->bad[i % 4], size);
    wrong += nps_tensor_find_nonfinite(s->dtype, data, N) != i;
    wrong += nps_tensor_find_nonfinite(s->dtype, data + size, N) != i - 1;
    wrong += nps_tensor_find_nonfinite(s->dtype, data, i) != -1;
    memcpy(at, &s->largest, size);
  }
  ck_assert_int_eq(wrong, 0);
  free(data);
}
END_TEST

START_TEST(the_first_of_several_is_found) {
  float x[20000] = {0};
  x[19999] = NAN;
  ck_assert_int_eq(nps_tensor_find_nonfinite(NPS_F32, x, 20000), 19999);
  x[4097] = INFINITY;
  x[4098] = NAN;
  ck_assert_int_eq(nps_tensor_find_nonfinite(NPS_F32, x, 20000), 4097);
}
END_TEST

START_TEST(other_types_have_no_infinity) {
  unsigned char ones[64];
  memset(ones, 0xff, sizeof ones);
  for (int d = 0; d < NPS_DTYPE_COUNT; d++)
    if (nps_dtype_kind((nps_dtype_t)d) != NPS_KIND_FLOAT)
      ck_assert_int_eq(nps_tensor_find_nonfinite((nps_dtype_t)d, ones, 8), -1);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("convert");
  tcase_add_loop_test(cases, every_16_bit_value_widens_exactly_and_narrows_back, 0, 2);
  tcase_add_loop_test(cases, all_ties_and_their_neighbours_round_once, 0, 2);
  tcase_add_loop_test(cases, the_ends_of_the_range_round_as_ieee_754_says, 0, 2);
  tcase_add_loop_test(cases, random_values_round_to_the_nearer_neighbour, 0, 2);
#ifdef __FLT16_MANT_DIG__
  tcase_add_test(cases, float16_is_the_compilers);
#endif
  tcase_add_test(cases, float32_rounds_to_nearest_even);
  tcase_add_test(cases, float64_and_float32_are_passed_on_as_they_are);
  tcase_add_loop_test(cases, vector_code_gives_the_bits_of_single_elements, 0, 3);
  tcase_add_loop_test(cases, nan_and_infinity_are_found_wherever_they_are, 0, 4);
  tcase_add_test(cases, the_first_of_several_is_found);
  tcase_add_test(cases, other_types_have_no_infinity);
  return run_tests("convert", cases);
}
