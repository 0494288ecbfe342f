/* della and della_linear (Deep et al., arXiv 2406.11617), of the task-arithmetic family: an entry stays with a probability
 * that grows with the rank of its magnitude within its row.
 *
 * A rank needs its whole row, and rows are longer than chunks. So a rank's piece of a tensor has whole rows, and a statistics
 * pass gathers each row from its chunks, sorts it, and notes what stays, a bit an entry and model, until the merging pass.
 * That is a 32nd of the task vectors' memory, and rows are sorted one at a time: a tensor of any size can be merged, by
 * several ranks, without being held whole. */
#include "combine.h"
#include "nps/rng.h"
#include "task_family.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DENSITY = NPS_FAMILY_DENSITY, EPSILON = NPS_FAMILY_OWN, RESCALE };

typedef struct {
  int models;
  nps_block_sums_t *all, *kept; /* [models] sums of magnitudes, a row in the place of a block */
  double *scale;                /* [models] */
  uint8_t **choice;             /* [models] a bit an entry of this rank's piece, set where it stays */
  int64_t first;                /* of the piece; -1: not known yet */
  float **row;                  /* [models][longest row] the row in work */
  uint64_t *key, *other;        /* [longest row] */
  uint32_t *rank;               /* [longest row] */
  uint32_t *word;               /* [longest row + 3] */
  uint8_t *stays;               /* [longest row] bits */
} state_t;

static bool drops_some(const nps_merge_tensor_t *tensor, int model) {
  return tensor->param[DENSITY][model] > 0 && tensor->param[DENSITY][model] < 1;
}

static bool check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  (void)first;
  for (int m = 0; m < tensor->models; m++) {
    const double density = tensor->param[DENSITY][m], epsilon = tensor->param[EPSILON][m];
    if (!drops_some(tensor, m) || (density - epsilon > 0 && density + epsilon < 1)) continue;
    snprintf(why, 160, "density ± epsilon must lie within (0, 1), found %g ± %g", density, epsilon);
    return false;
  }
  if (tensor->row_length > UINT32_MAX) snprintf(why, 160, "a row has more than 2^32 − 1 entries");
  return tensor->row_length <= UINT32_MAX;
}

static int passes(const nps_merge_tensor_t *tensors, int count) { return nps_family_all_dense(tensors, count) ? 0 : 1; }

/* ---- the state ---- */

static void *state_new(const nps_merge_spec_t *spec) {
  const size_t models = (size_t)spec->model_count, longest = (size_t)nps_merge_extent(spec->layout).row;
  state_t *s = nps_xcalloc(1, sizeof *s);
  s->models = spec->model_count;
  s->all = nps_xcalloc(models, sizeof *s->all);
  s->kept = nps_xcalloc(models, sizeof *s->kept);
  s->scale = nps_xcalloc(models, sizeof *s->scale);
  s->choice = nps_xcalloc(models, sizeof *s->choice);
  s->row = nps_xcalloc(models, sizeof *s->row);
  for (int m = 0; m < s->models; m++) s->row[m] = nps_xcalloc(longest, sizeof **s->row);
  s->key = nps_xcalloc(longest, sizeof *s->key);
  s->other = nps_xcalloc(longest, sizeof *s->other);
  s->rank = nps_xcalloc(longest, sizeof *s->rank);
  s->word = nps_xcalloc(longest + 3, sizeof *s->word);
  s->stays = nps_xcalloc(longest / 8 + 1, 1);
  return s;
}

static void state_free(void *state) {
  state_t *s = state;
  for (int m = 0; m < s->models; m++) {
    nps_block_sums_free(&s->all[m]);
    nps_block_sums_free(&s->kept[m]);
    free(s->choice[m]);
    free(s->row[m]);
  }
  free(s->all);
  free(s->kept);
  free(s->scale);
  free(s->choice);
  free(s->row);
  free(s->key);
  free(s->other);
  free(s->rank);
  free(s->word);
  free(s->stays);
  free(s);
}

static size_t state_bytes(const nps_merge_spec_t *spec) {
  const nps_extent_t most = nps_merge_extent(spec->layout);
  const int64_t sums = 2 * (int64_t)sizeof(double) * most.rows, choice = most.count / 8 + 1;
  return (size_t)(spec->model_count * (sums + choice + 4 * most.row) + (2 * 8 + 2 * 4) * most.row + most.row / 8);
}

static void start(void *state, const nps_merge_tensor_t *tensor) {
  state_t *s = state;
  const int64_t rows = tensor->count / nps_max64(tensor->row_length, 1);
  for (int m = 0; m < tensor->models; m++) {
    nps_block_sums_start(&s->all[m], rows * NPS_BLOCK);
    nps_block_sums_start(&s->kept[m], rows * NPS_BLOCK);
    free(s->choice[m]);
    s->choice[m] = nps_xcalloc((size_t)tensor->count / 8 + 1, 1); /* of other ranks' pieces never touched */
  }
  s->first = -1;
}

/* ---- a row ---- */

enum { DIGITS = 3, DIGIT_BITS = 11, DIGIT_VALUES = 1 << DIGIT_BITS };

/* Keys are sorted by insertion up to so many. */
enum { FEW = 64 };

static unsigned digit_of(uint64_t key, int digit) { return key >> (32 + DIGIT_BITS * digit) & (DIGIT_VALUES - 1); }

/* [n] the bits of a magnitude, and below them the place from the row's end: of equals the earlier is larger. */
static void make_keys(const float *x, int64_t n, uint64_t *key) {
  for (int64_t i = 0; i < n; i++) {
    const float magnitude = fabsf(x[n - 1 - i]);
    uint32_t bits;
    memcpy(&bits, &magnitude, sizeof bits);
    key[i] = (uint64_t)bits << 32 | (uint64_t)i;
  }
}

static void sort_few(uint64_t *key, int64_t n) {
  for (int64_t i = 1; i < n; i++) {
    const uint64_t x = key[i];
    int64_t at = i;
    for (; at > 0 && key[at - 1] > x; at--) key[at] = key[at - 1];
    key[at] = x;
  }
}

/* Sorts keys that ascend in their lower halves, digit by digit of the upper ones. Returns where they are then. */
static const uint64_t *sort_many(uint64_t *key, uint64_t *other, int64_t n) {
  uint32_t place[DIGITS][DIGIT_VALUES] = {{0}};
  for (int64_t i = 0; i < n; i++)
    for (int d = 0; d < DIGITS; d++) place[d][digit_of(key[i], d)]++;
  for (int d = 0; d < DIGITS; d++) {
    uint32_t before = 0;
    if (place[d][digit_of(key[0], d)] == n) continue;
    for (int v = 0; v < DIGIT_VALUES; v++) {
      const uint32_t count = place[d][v];
      place[d][v] = before;
      before += count;
    }
    for (int64_t i = 0; i < n; i++) other[place[d][digit_of(key[i], d)]++] = key[i];
    uint64_t *sorted = other;
    other = key;
    key = sorted;
  }
  return key;
}

/* [n] the rank of each entry, from 0. */
static void find_ranks(const float *x, int64_t n, uint64_t *key, uint64_t *other, uint32_t *rank) {
  const uint64_t *sorted = key;
  make_keys(x, n, key);
  if (n <= FEW)
    sort_few(key, n);
  else
    sorted = sort_many(key, other, n);
  for (int64_t r = 0; r < n; r++) rank[n - 1 - (int64_t)(sorted[r] & UINT32_MAX)] = (uint32_t)r;
}

/* Chooses the entries of a row that stay, [n] bits: where the entry's word is below p × 2^32,
 * p = density − ε + 2ε·rank/(n − 1). */
NPS_VECTOR_CLONES
static void choose(const uint32_t *rank, const uint32_t *word, int64_t n, double density, double epsilon,
                   uint8_t *stays) {
  const double least = n > 1 ? density - epsilon : density, last = n > 1 ? (double)(n - 1) : 1;
  for (int64_t at = 0; at < n; at += 8) {
    const int64_t count = nps_min64(n - at, 8);
    uint8_t bits = 0;
    for (int64_t i = 0; i < count; i++) {
      const double p = least + 2 * epsilon * (double)rank[at + i] / last;
      bits |= (uint8_t)(((double)word[at + i] < p * 4294967296.0) << i);
    }
    stays[at / 8] = bits;
  }
}

/* Puts n bits, those after them in the last byte 0, to others, of which those at `at` and later are still 0. */
static void put_bits(const uint8_t *bits, int64_t n, int64_t at, uint8_t *out) {
  const int shift = (int)(at % 8);
  out += at / 8;
  for (int64_t i = 0; i < (n + 7) / 8; i++) {
    out[i] |= (uint8_t)(bits[i] << shift);
    if (bits[i] >> (8 - shift)) out[i + 1] |= (uint8_t)(bits[i] >> (8 - shift));
  }
}

/* Of the row in work, which begins at `first` of the tensor: the words of its entries are those at their places in the stream
 * (the tensor's key, model). */
static void choose_row(state_t *s, const nps_merge_tensor_t *tensor, int model, int64_t first) {
  const int64_t n = tensor->row_length, skipped = first % 4;
  nps_lanes_t all = {{0}}, kept = {{0}};
  find_ranks(s->row[model], n, s->key, s->other, s->rank);
  nps_rng_words(tensor->key, (uint32_t)model, first - skipped, skipped + n, s->word);
  choose(s->rank, s->word + skipped, n, tensor->param[DENSITY][model], tensor->param[EPSILON][model], s->stays);
  put_bits(s->stays, n, first - s->first, s->choice[model]);
  nps_add_magnitudes(&all, &kept, s->row[model], s->stays, n);
  s->all[model].block[first / n] = nps_lanes_sum(&all);
  s->kept[model].block[first / n] = nps_lanes_sum(&kept);
}

static void scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  (void)pass;
  state_t *s = state;
  const int64_t length = tensor->row_length;
  if (s->first < 0) s->first = chunk->first;
  for (int64_t at = 0, n; at < chunk->count; at += n) {
    const int64_t place = (chunk->first + at) % length;
    n = nps_merge_within_row(tensor, chunk, at);
    for (int m = 0; m < tensor->models; m++) memcpy(s->row[m] + place, chunk->tau[m] + at, (size_t)n * sizeof(float));
    for (int m = 0; m < tensor->models && place + n == length; m++)
      if (drops_some(tensor, m)) choose_row(s, tensor, m, chunk->first + at - place);
  }
}

static void reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  (void)pass;
  state_t *s = state;
  for (int m = 0; m < tensor->models; m++) {
    const double all = nps_block_sums_total(&s->all[m], comm), kept = nps_block_sums_total(&s->kept[m], comm);
    s->scale[m] = tensor->param[RESCALE][0] == 0 ? 1 : nps_family_l1_factor(all, kept);
  }
}

/* ---- merging ---- */

/* Returns the factors of the models; NULL: 1. */
static const double *drop(const state_t *s, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                          int64_t *kept) {
  for (int m = 0; m < tensor->models; m++)
    if (tensor->param[DENSITY][m] < 1)
      kept[m] += nps_drop(chunk->tau[m], s->choice[m] + (chunk->first - s->first) / 8, chunk->count);
    else
      kept[m] += chunk->count;
  return s ? s->scale : NULL;
}

static void della_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                        int64_t *kept) {
  nps_family_consensus(tensor, chunk, drop(state, tensor, chunk, kept), out);
}

static void della_linear_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                               double *out, int64_t *kept) {
  nps_family_sum(tensor, chunk, drop(state, tensor, chunk, kept), out);
}

#define DELLA_METHOD(normalized)                                                                                       \
  .base = NPS_BASE_TASK_VECTORS, .min_models = 1,                                                                      \
  .params = {NPS_FAMILY_PARAMS(normalized), NPS_FAMILY_PARAM_DENSITY,                                                  \
             [EPSILON] = {.name = "epsilon", .per_model = true, .fallback = 0.15, .least = 0, .most = 1},              \
             [RESCALE] = {.name = "rescale", .kind = NPS_PARAM_CHOICE, .fallback = 1, .choices = nps_choices_bool}},   \
  .param_count = 6, .element_seconds = 13e-9, .whole_rows = nps_merge_always_rows, .check = check, .passes = passes,   \
  .state_new = state_new, .state_free = state_free, .state_bytes = state_bytes, .start = start, .scan = scan,          \
  .reduce = reduce

const nps_merge_method_t nps_method_della = {
    .name = "della",
    .summary = "random entries of the task vectors, more of the larger ones of each row, with the elected sign",
    DELLA_METHOD(1),
    .merge = della_merge,
};

const nps_merge_method_t nps_method_della_linear = {
    .name = "della_linear",
    .summary = "random entries of the task vectors, more of the larger ones of each row, summed",
    DELLA_METHOD(0),
    .merge = della_linear_merge,
};
