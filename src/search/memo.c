/* What has been scored: a hash table from (model, task, samples) to scores, in the order in which they were added. */
#include "search_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct nps_memo {
  nps_memo_entry_t *entries; /* [count] */
  int64_t count, room, settled;
  int64_t *slots; /* [slot_count], a power of two: index of an entry + 1, or 0 */
  int64_t slot_count;
};

nps_memo_t *nps_memo_new(void) {
  nps_memo_t *memo = nps_xcalloc(1, sizeof *memo);
  memo->slot_count = 64;
  memo->slots = nps_xcalloc((size_t)memo->slot_count, sizeof *memo->slots);
  return memo;
}

void nps_memo_free(nps_memo_t *memo) {
  if (!memo) return;
  free(memo->entries);
  free(memo->slots);
  free(memo);
}

static bool is_equal(nps_memo_key_t a, nps_memo_key_t b) { return a.half[0] == b.half[0] && a.half[1] == b.half[1]; }

/* The slot of a key: its own, or a free one. */
static int64_t find_slot(const nps_memo_t *memo, nps_memo_key_t key) {
  int64_t at = (int64_t)(key.half[0] & (uint64_t)(memo->slot_count - 1));
  while (memo->slots[at] && !is_equal(memo->entries[memo->slots[at] - 1].key, key))
    at = (at + 1) & (memo->slot_count - 1);
  return at;
}

const nps_score_t *nps_memo_find(const nps_memo_t *memo, nps_memo_key_t key) {
  const int64_t entry = memo->slots[find_slot(memo, key)];
  return entry ? &memo->entries[entry - 1].score : NULL;
}

static void grow(nps_memo_t *memo) {
  memo->room = memo->room ? 2 * memo->room : 32;
  memo->entries = nps_xrealloc(memo->entries, (size_t)memo->room, sizeof *memo->entries);
  free(memo->slots);
  memo->slot_count = 2 * memo->room;
  memo->slots = nps_xcalloc((size_t)memo->slot_count, sizeof *memo->slots);
  for (int64_t i = 0; i < memo->count; i++) memo->slots[find_slot(memo, memo->entries[i].key)] = i + 1;
}

void nps_memo_add(nps_memo_t *memo, nps_memo_key_t key, nps_score_t score) {
  if (nps_memo_find(memo, key)) return;
  if (memo->count == memo->room) grow(memo);
  memo->entries[memo->count] = (nps_memo_entry_t){key, score};
  memo->slots[find_slot(memo, key)] = ++memo->count;
}

void nps_memo_settle(nps_memo_t *memo) { memo->settled = memo->count; }

bool nps_memo_keeps(const nps_memo_t *memo, int64_t i) {
  return i < memo->settled || !isnan(memo->entries[i].score.nll_sum);
}

int64_t nps_memo_count(const nps_memo_t *memo) { return memo->count; }

const nps_memo_entry_t *nps_memo_entry(const nps_memo_t *memo, int64_t i) { return &memo->entries[i]; }

nps_memo_key_t nps_memo_key(nps_memo_key_t before, const void *bytes, size_t n) {
  return (nps_memo_key_t){
      {nps_hash64(before.half[0], bytes, n), nps_hash64(before.half[1] ^ 0x5851F42D4C957F2D, bytes, n)}};
}
