#include "triple_code.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* What zlib takes in one go, of its 32-bit counts, with room for what Deflate may add. */
#define MOST_BYTES ((int64_t)INT32_MAX)

/* Bytes a value takes before Deflate. */
static int64_t width_of(int bits) { return bits > 8 ? 2 : 1; }

int64_t nps_triples_checksum(nps_triple_row_t row, const uint8_t *bytes, const float *scales) {
  uLong crc = crc32(0, Z_NULL, 0);
  if (row.rank > 0) crc = crc32(crc, (const Bytef *)scales, (uInt)(2 * (size_t)row.rank * sizeof *scales));
  if (row.bytes > 0) crc = crc32(crc, bytes, (uInt)row.bytes);
  return (int64_t)crc;
}

/* ---- coding ---- */

/* The codes as bytes: with 16 bits all high bytes, then all low ones. */
static void spread_bytes(int bits, const int16_t *codes, int64_t first, int64_t n, int64_t all, uint8_t *bytes) {
  for (int64_t i = 0; i < n; i++) bytes[first + i] = (uint8_t)(bits > 8 ? (uint16_t)codes[i] >> 8 : codes[i]);
  for (int64_t i = 0; i < n && bits > 8; i++) bytes[all + first + i] = (uint8_t)codes[i];
}

static float round_vector(int bits, int64_t n, float *x, int16_t *codes) {
  const float scale = nps_quantise(x, n, bits, codes);
  nps_dequantise(scale, codes, n, x);
  return scale;
}

/* By frequencies alone, as the values of entries are. */
static nps_err_t pack(const uint8_t *bytes, int64_t n, nps_text_t *out) {
  uint8_t part[4096];
  z_stream z = {0};
  if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 9, Z_HUFFMAN_ONLY) != Z_OK)
    return nps_fail(NPS_ERR_MEMORY, "out of memory: zlib cannot be used");
  z.next_in = (Bytef *)(uintptr_t)bytes;
  z.avail_in = (uInt)n;
  int state = Z_OK;
  while (state == Z_OK) {
    z.next_out = part;
    z.avail_out = sizeof part;
    state = deflate(&z, Z_FINISH);
    nps_text_add_bytes(out, (const char *)part, sizeof part - z.avail_out);
  }
  deflateEnd(&z);
  return NPS_OK;
}

nps_err_t nps_triples_encode(int bits, int64_t rank, int64_t rows, int64_t columns, float *x, nps_text_t *out,
                             float *scales, nps_triple_row_t *row) {
  const int64_t sides = rows + columns, all = rank * sides;
  const size_t before = out->size;
  uint8_t *bytes = NULL;
  int16_t *codes = NULL;
  nps_err_t err = NPS_OK;
  *row = (nps_triple_row_t){.rank = rank};
  if (all * width_of(bits) > MOST_BYTES / 2)
    return nps_fail(NPS_ERR_RUNTIME,
                    "a matrix of %lld × %lld with %lld triples is too large for an archive: lower the density or "
                    "archive.value_bits",
                    (long long)rows, (long long)columns, (long long)rank);
  if (rank == 0) return NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(all * width_of(bits)), "singular vectors", &bytes));
  NPS_GOTO(nps_buffer_alloc((size_t)sides * sizeof *codes, "singular vectors", &codes));
  for (int64_t k = 0; k < rank; k++) {
    scales[2 * k] = round_vector(bits, rows, x + k * sides, codes);
    scales[2 * k + 1] = round_vector(bits, columns, x + k * sides + rows, codes + rows);
    spread_bytes(bits, codes, k * sides, sides, all, bytes);
  }
  NPS_GOTO(pack(bytes, all * width_of(bits), out));
  row->bytes = (int64_t)(out->size - before);
done:
  free(bytes);
  free(codes);
  row->checksum = nps_triples_checksum(*row, (const uint8_t *)out->text + before, scales);
  return err;
}

/* ---- decoding ---- */

static bool unpack(const uint8_t *packed, int64_t n, uint8_t *bytes, int64_t size) {
  z_stream z = {.next_in = (Bytef *)(uintptr_t)packed, .avail_in = (uInt)n};
  if (inflateInit2(&z, -MAX_WBITS) != Z_OK) return false;
  z.next_out = bytes;
  z.avail_out = (uInt)size + 1; /* one more shows what is too long */
  const bool good = inflate(&z, Z_FINISH) == Z_STREAM_END && z.avail_in == 0 && (int64_t)z.total_out == size;
  inflateEnd(&z);
  return good;
}

static void gather(int bits, const uint8_t *bytes, int64_t first, int64_t n, int64_t all, float scale, float *x) {
  for (int64_t i = 0; i < n; i++) {
    const uint8_t *at = bytes + first + i;
    const int16_t code = (int16_t)(bits > 8 ? (int16_t)(uint16_t)(at[0] << 8 | at[all]) : (int8_t)at[0]);
    x[i] = scale * (float)code;
  }
}

static bool is_possible(int bits, nps_triple_row_t row, int64_t rows, int64_t columns) {
  if (row.rank == 0) return row.bytes == 0;
  return row.rank > 0 && row.rank <= nps_min64(rows, columns) && row.bytes > 0 && row.bytes <= MOST_BYTES &&
         row.rank * (rows + columns) * width_of(bits) <= MOST_BYTES / 2;
}

nps_err_t nps_triples_decode(int bits, nps_triple_row_t row, int64_t rows, int64_t columns, const uint8_t *packed,
                             const float *scales, float *u, float *v, const char **wrong) {
  const int64_t sides = rows + columns, all = row.rank * sides, size = all * width_of(bits);
  uint8_t *bytes = NULL;
  *wrong = NULL;
  if (!is_possible(bits, row, rows, columns))
    *wrong = "a number of triples or of bytes that cannot be";
  else if (nps_triples_checksum(row, packed, scales) != row.checksum)
    *wrong = "bytes that do not have their checksum";
  else if (nps_tensor_find_nonfinite(NPS_F32, scales, 2 * row.rank) >= 0)
    *wrong = "a value that is not finite";
  if (*wrong || row.rank == 0) return NPS_OK;
  NPS_TRY(nps_buffer_alloc((size_t)size + 1, "singular vectors", &bytes));
  if (!unpack(packed, row.bytes, bytes, size)) *wrong = "values that do not unpack to its triples";
  for (int64_t k = 0; !*wrong && k < row.rank; k++) {
    gather(bits, bytes, k * sides, rows, all, scales[2 * k], u + k * rows);
    gather(bits, bytes, k * sides + rows, columns, all, scales[2 * k + 1], v + k * columns);
  }
  free(bytes);
  if (!*wrong && (nps_tensor_find_nonfinite(NPS_F32, u, row.rank * rows) >= 0 ||
                  nps_tensor_find_nonfinite(NPS_F32, v, row.rank * columns) >= 0))
    *wrong = "a value that is not finite";
  return NPS_OK;
}
