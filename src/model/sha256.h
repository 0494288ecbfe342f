/** @file sha256.h
 *  SHA-256 of streams, two at a time.
 *
 *  The SHA instructions of x86-64 take four cycles each, but a new pair can begin every two: a single stream leaves half
 *  of the unit idle, two independent streams in turn take hardly longer than one. Hashing all inputs is the largest part
 *  of an element-wise merge, and no library has such a function for long streams; elsewhere OpenSSL is used. */
#ifndef NPS_MODEL_SHA256_H
#define NPS_MODEL_SHA256_H

#include "nps/base.h"

#define NPS_SHA_BYTES 32

/** The hash of one stream. Opaque. */
typedef struct nps_sha nps_sha_t;

/** Begin a hash. Local.
 *  @param portable  use OpenSSL even where the processor has SHA instructions */
nps_sha_t *nps_sha_new(bool portable);

/** Continue a hash / two different hashes by n bytes each. Local. */
void nps_sha_add(nps_sha_t *sha, const void *bytes, size_t n);
void nps_sha_add_two(nps_sha_t *one, const void *bytes_of_one, nps_sha_t *other, const void *bytes_of_other, size_t n);

/** End a hash and free it. Local. */
void nps_sha_end(nps_sha_t *sha, unsigned char digest[NPS_SHA_BYTES]);

/** Free a hash that is not ended. NULL is fine. Local. */
void nps_sha_free(nps_sha_t *sha);

#endif
