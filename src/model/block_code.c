#include "block_code.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { MAX_SHIFT = 16 };

struct nps_block_coder {
  int bits;
  z_stream deflate, inflate;
  int16_t *codes;     /* [NPS_BLOCK] of all entries, then of those kept */
  uint16_t *position; /* [NPS_BLOCK] of those kept */
  uint8_t *bytes;     /* [2 NPS_BLOCK + 64] */
};

nps_block_coder_t *nps_block_coder_new(int value_bits) {
  nps_block_coder_t *c = nps_xcalloc(1, sizeof *c);
  c->bits = value_bits;
  c->codes = nps_xcalloc(NPS_BLOCK, sizeof *c->codes);
  c->position = nps_xcalloc(NPS_BLOCK, sizeof *c->position);
  c->bytes = nps_xcalloc(2 * NPS_BLOCK + 64, 1);
  /* Values have no order that a dictionary could find: only their frequencies count. */
  if (deflateInit2(&c->deflate, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 9, Z_HUFFMAN_ONLY) != Z_OK ||
      inflateInit2(&c->inflate, -MAX_WBITS) != Z_OK)
    nps_fatal("zlib cannot be used: out of memory, or another version than at build time");
  return c;
}

void nps_block_coder_free(nps_block_coder_t *c) {
  if (!c) return;
  deflateEnd(&c->deflate);
  inflateEnd(&c->inflate);
  free(c->codes);
  free(c->position);
  free(c->bytes);
  free(c);
}

/* Bytes a value takes before Deflate. */
static int32_t value_width(const nps_block_coder_t *c) { return c->bits > 8 ? 2 : 1; }

int32_t nps_block_checksum(nps_block_row_t row, const uint8_t *positions, const uint8_t *values, const float *scales,
                           int64_t n) {
  uLong crc = crc32(0, (const Bytef *)scales, (uInt)((size_t)nps_units_of(n) * sizeof *scales));
  crc = row.position_bytes ? crc32(crc, positions, (uInt)row.position_bytes) : crc;
  crc = row.value_bytes ? crc32(crc, values, (uInt)row.value_bytes) : crc;
  return (int32_t)(uint32_t)crc;
}

/* ---- positions ---- */

/* The gap before kept entry i: entries between it and the one before. */
static int32_t gap_before(const uint16_t *position, int32_t i) {
  return i > 0 ? position[i] - position[i - 1] - 1 : position[i];
}

/* The number of low bits that takes the least room; the fewest of equals. */
static int choose_shift(const uint16_t *position, int32_t kept) {
  int best = 0;
  int64_t least = INT64_MAX;
  for (int shift = 0; shift <= MAX_SHIFT; shift++) {
    int64_t bits = (int64_t)kept * (shift + 1);
    for (int32_t i = 0; i < kept; i++) bits += gap_before(position, i) >> shift;
    if (bits >= least) break; /* the sum is convex */
    least = bits;
    best = shift;
  }
  return best;
}

static int64_t low_bytes(int32_t kept, int shift) { return ((int64_t)kept * shift + 7) / 8; }

static void set_bit(uint8_t *bytes, int64_t at) { bytes[at / 8] |= (uint8_t)(1u << (at % 8)); }

static int32_t put_positions(nps_block_coder_t *c, int32_t kept, nps_text_t *out) {
  const int shift = choose_shift(c->position, kept);
  uint8_t *low = c->bytes + 1, *high = low + low_bytes(kept, shift);
  int64_t at = 0;
  memset(c->bytes, 0, 2 * NPS_BLOCK + 64);
  c->bytes[0] = (uint8_t)shift;
  for (int32_t i = 0; i < kept; i++) {
    const int32_t gap = gap_before(c->position, i);
    for (int b = 0; b < shift; b++)
      if (gap >> b & 1) set_bit(low, (int64_t)i * shift + b);
    at += gap >> shift;
    set_bit(high, at++);
  }
  const int64_t bytes = high - c->bytes + (at + 7) / 8;
  nps_text_add_bytes(out, (const char *)c->bytes, (size_t)bytes);
  return (int32_t)bytes;
}

/* Up to 16 bits from any place; bytes behind the end count as 0. */
static uint32_t bits_at(const uint8_t *bytes, int64_t size, int64_t at, int count) {
  uint32_t word = 0;
  for (int64_t i = 0; i < 3 && at / 8 + i < size; i++) word |= (uint32_t)bytes[at / 8 + i] << (8 * i);
  return word >> (at % 8) & ((1u << count) - 1);
}

/* Calls for every set bit, in order; at most `most`. @return how many there are, or −1: more */
static int32_t find_set_bits(const uint8_t *bytes, int64_t size, int32_t most, int32_t *where) {
  int32_t found = 0;
  for (int64_t i = 0; i < size; i++)
    for (unsigned left = bytes[i]; left; left &= left - 1) {
      if (found == most) return -1;
      where[found++] = (int32_t)(8 * i) + __builtin_ctz(left);
    }
  return found;
}

static const char *get_positions(nps_block_coder_t *c, nps_block_row_t row, const uint8_t *bytes, int64_t n,
                                 int32_t *ones) {
  const int shift = bytes[0];
  if (shift > MAX_SHIFT) return "positions with more than 16 low bits";
  const int64_t low = low_bytes(row.kept, shift);
  if (1 + low > row.position_bytes) return "fewer low bits of positions than kept entries";
  if (find_set_bits(bytes + 1 + low, row.position_bytes - 1 - low, row.kept, ones) != row.kept)
    return "another number of positions than of kept entries";
  int64_t at = -1;
  for (int32_t i = 0; i < row.kept; i++) {
    const int64_t high = i > 0 ? ones[i] - ones[i - 1] - 1 : ones[i];
    at += (high << shift) + bits_at(bytes + 1, low, (int64_t)i * shift, shift) + 1;
    if (at >= n) return "a position outside of the block";
    c->position[i] = (uint16_t)at;
  }
  return NULL;
}

/* ---- values ---- */

static int32_t put_values(nps_block_coder_t *c, int32_t kept, nps_text_t *out) {
  uint8_t part[4096];
  z_stream *z = &c->deflate;
  const size_t before = out->size;
  for (int32_t i = 0; i < kept; i++) c->bytes[i] = (uint8_t)(c->bits > 8 ? (uint16_t)c->codes[i] >> 8 : c->codes[i]);
  for (int32_t i = 0; i < kept && c->bits > 8; i++) c->bytes[kept + i] = (uint8_t)c->codes[i];
  deflateReset(z);
  z->next_in = c->bytes;
  z->avail_in = (uInt)(kept * value_width(c));
  int state = Z_OK;
  while (state == Z_OK) {
    z->next_out = part;
    z->avail_out = sizeof part;
    state = deflate(z, Z_FINISH);
    nps_text_add_bytes(out, (const char *)part, sizeof part - z->avail_out);
  }
  if (state != Z_STREAM_END) nps_fatal("zlib: %s", z->msg ? z->msg : "values cannot be coded");
  return (int32_t)(out->size - before);
}

static const char *get_values(nps_block_coder_t *c, nps_block_row_t row, const uint8_t *bytes) {
  z_stream *z = &c->inflate;
  const uInt size = (uInt)(row.kept * value_width(c));
  inflateReset(z);
  z->next_in = (Bytef *)(uintptr_t)bytes;
  z->avail_in = (uInt)row.value_bytes;
  z->next_out = c->bytes;
  z->avail_out = size + 1; /* one more shows what is too long */
  if (inflate(z, Z_FINISH) != Z_STREAM_END || z->avail_in > 0 || z->total_out != size)
    return "values that do not unpack to the kept entries";
  for (int32_t i = 0; i < row.kept; i++)
    c->codes[i] =
        (int16_t)(c->bits > 8 ? (int16_t)(uint16_t)(c->bytes[i] << 8 | c->bytes[row.kept + i]) : (int8_t)c->bytes[i]);
  return NULL;
}

/* ---- blocks ---- */

nps_block_row_t nps_block_encode(nps_block_coder_t *c, float *x, int64_t n, nps_text_t *positions, nps_text_t *values,
                                 float *scales) {
  nps_block_row_t row = {0};
  for (int64_t first = 0, unit = 0; first < n; first += NPS_UNIT, unit++) {
    const int64_t count = nps_min64(n - first, NPS_UNIT);
    scales[unit] = nps_quantise(x + first, count, c->bits, c->codes + first);
    nps_dequantise(scales[unit], c->codes + first, count, x + first);
  }
  for (int64_t i = 0; i < n; i++) {
    if (c->codes[i] == 0) continue;
    c->position[row.kept] = (uint16_t)i;
    c->codes[row.kept++] = c->codes[i];
  }
  const size_t position_at = positions->size, value_at = values->size;
  if (row.kept > 0) {
    row.position_bytes = put_positions(c, row.kept, positions);
    row.value_bytes = put_values(c, row.kept, values);
  }
  row.checksum = nps_block_checksum(row, (const uint8_t *)positions->text + position_at,
                                    (const uint8_t *)values->text + value_at, scales, n);
  return row;
}

static void spread(const nps_block_coder_t *c, int32_t kept, const float *scales, int64_t n, float *x) {
  memset(x, 0, (size_t)n * sizeof *x);
  for (int32_t i = 0; i < kept; i++)
    nps_dequantise(scales[c->position[i] / NPS_UNIT], c->codes + i, 1, x + c->position[i]);
}

const char *nps_block_decode(nps_block_coder_t *c, nps_block_row_t row, const uint8_t *positions, const uint8_t *values,
                             const float *scales, int64_t n, float *x) {
  const char *wrong = NULL;
  const bool empty = row.kept == 0 && row.position_bytes == 0 && row.value_bytes == 0;
  if (!empty && (row.kept < 1 || row.kept > n || row.position_bytes < 1 || row.position_bytes > 4 * NPS_BLOCK ||
                 row.value_bytes < 1))
    return "a number of kept entries or of bytes that cannot be";
  if (nps_block_checksum(row, positions, values, scales, n) != row.checksum)
    return "bytes that do not have their checksum";
  if (empty) {
    memset(x, 0, (size_t)n * sizeof *x);
    return NULL;
  }
  int32_t *ones = nps_xcalloc((size_t)row.kept, sizeof *ones);
  wrong = get_positions(c, row, positions, n, ones);
  free(ones);
  if (!wrong) wrong = get_values(c, row, values);
  if (!wrong) spread(c, row.kept, scales, n, x);
  if (!wrong && nps_tensor_find_nonfinite(NPS_F32, x, n) >= 0) wrong = "a value that is not finite";
  return wrong;
}
