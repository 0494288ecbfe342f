/** @file base.h
 *  Error codes, recorded problems, notes and memory. Layer 0: includes nothing of the project.
 *
 *  A function that can fail returns nps_err_t. Whoever meets the failure first records one message with nps_fail() and
 *  returns its result; callers pass the code on and record nothing more. Validation may record many problems before it
 *  returns. The program prints the recorded problems once, at the end (nps_comm_agree() brings them to rank 0). */
#ifndef NPS_BASE_H
#define NPS_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define NPS_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define NPS_PRINTF(fmt, args)
#endif

/** Put before the definition of a function with hot loops: it is compiled for several instruction sets and the best is
 *  chosen when the program starts. Element by element the results are the same bits (no contraction, no reassociation). */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12 &&                          \
    !defined(__SANITIZE_ADDRESS__)
#define NPS_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NPS_VECTOR_CLONES
#endif

/** Every error code: name, exit code of the program. NPS_ERRORS(X) expands X(name, exit) for each. */
#define NPS_ERRORS(X)                                                                                                  \
  X(OK, 0)          /* done */                                                                                         \
  X(ERR_RUNTIME, 1) /* failed while running */                                                                         \
  X(ERR_IO, 1)      /* reading or writing failed */                                                                    \
  X(ERR_MEMORY, 1)  /* out of memory */                                                                                \
  X(ERR_CONFIG, 2)  /* the command line or the config is wrong */                                                      \
  X(ERR_INPUT, 3)   /* an input file is missing, corrupt or does not fit the others */                                 \
  X(ERR_STOPPED, 4) /* stopped after saving a snapshot */

typedef enum nps_err {
#define X(name, exit) NPS_##name,
  NPS_ERRORS(X)
#undef X
      NPS_ERR_COUNT
} nps_err_t;

/** Give the exit code (0 to 4) of the program for an error code. Local. */
int nps_err_exit_code(nps_err_t err);

/** Choose the code that several problems are reported under: the smallest exit code but 0 wins (2 before 3, 1 before
 *  both, as a run that failed says nothing about its inputs). Local. */
nps_err_t nps_err_worse(nps_err_t a, nps_err_t b);

/** Return from the calling function when an expression gives an error. */
#define NPS_TRY(expr)                                                                                                  \
  do {                                                                                                                 \
    nps_err_t nps_try_err_ = (expr);                                                                                   \
    if (nps_try_err_ != NPS_OK) return nps_try_err_;                                                                   \
  } while (0)

/** Go to the label `done`, which frees, with the code in the variable `err`, when an expression gives an error. */
#define NPS_GOTO(expr)                                                                                                 \
  do {                                                                                                                 \
    err = (expr);                                                                                                      \
    if (err != NPS_OK) goto done;                                                                                      \
  } while (0)

/** Record one problem and return its code. Local.
 *  @param code  what the function is going to return
 *  @param fmt   one message without a final full stop or newline: file, key or tensor, what was expected and found */
nps_err_t nps_fail(nps_err_t code, const char *fmt, ...) NPS_PRINTF(2, 3);

/** Count the problems recorded in this process and not yet taken. Local. */
int nps_problem_count(void);

/** Give the text of recorded problem i, 0 <= i < nps_problem_count(). Local. Owned by the list. */
const char *nps_problem_text(int i);

/** Give the code of recorded problem i. Local. */
nps_err_t nps_problem_code(int i);

/** Forget all recorded problems. Local. */
void nps_problem_clear(void);

/** Tell the user something that is no error. Local.
 *  Goes to the sink, by default to stderr as "note: TEXT". Ranks other than 0 set a sink that drops notes. */
void nps_note(const char *fmt, ...) NPS_PRINTF(1, 2);

/** Receives notes: text without newline. */
typedef void nps_note_sink_fn(void *ctx, const char *text);

/** Send notes to a sink from now on (NULL: the default one). Local. */
void nps_note_set_sink(nps_note_sink_fn *sink, void *ctx);

/** Drop notes from now on, or no longer: for what has been said already. Nested: each true has its false. Local. */
void nps_note_mute(bool mute);

/** Called once before the process ends because a small allocation failed or an internal invariant broke: must not
 *  return (an MPI program aborts all ranks here). Local. */
void nps_fatal_set_handler(void (*handler)(int exit_code));

/** Print a message and end the program with exit code 1 through the handler. Never returns. Local. */
_Noreturn void nps_fatal(const char *fmt, ...) NPS_PRINTF(1, 2);

/** Allocate small things (names, lists). Never return NULL: no memory for these ends the program through nps_fatal().
 *  What is returned is freed with free(). Local. */
void *nps_xcalloc(size_t count, size_t size);
void *nps_xrealloc(void *old, size_t count, size_t size);
char *nps_xstrdup(const char *s);
char *nps_xstrndup(const char *s, size_t n);
char *nps_xstrf(const char *fmt, ...) NPS_PRINTF(1, 2);
char *nps_xvstrf(const char *fmt, va_list args) NPS_PRINTF(1, 0);

/** Allocate a large buffer, aligned to 64 bytes; not cleared, freed with free(). Local.
 *  @param bytes  size; 0 is taken as 1
 *  @param what   what it is for, as named in the error message
 *  @param[out] out  the buffer
 *  @return NPS_ERR_MEMORY (recorded) when there is none */
nps_err_t nps_buffer_alloc(size_t bytes, const char *what, void *out);

/** A growing text. Zero-initialise; free(text). */
typedef struct nps_text {
  char *text;  /**< NUL-terminated, NULL while empty; owned */
  size_t size; /**< length without the NUL */
  size_t room;
} nps_text_t;

/** Append formatted text. Local. */
void nps_text_add(nps_text_t *t, const char *fmt, ...) NPS_PRINTF(2, 3);

/** Append bytes. Local. */
void nps_text_add_bytes(nps_text_t *t, const char *bytes, size_t n);

/** Replace control characters but newlines by '?', in place: messages quote files, which may hold anything. Local.
 *  @return text */
char *nps_text_printable(char *text);

/** Go on with a 64-bit hash (FNV-1a) over bytes; begin with 0. Not for security. Local. */
uint64_t nps_hash64(uint64_t hash, const void *bytes, size_t n);

/** Find the candidate nearest to a misspelt word: edit distance (transpositions count 1) at most a third of its
 *  length, at least 1. Local.
 *  @return the candidate, or NULL when none is near */
const char *nps_nearest(const char *word, const char *const *candidates, int count);

/** Write a number of bytes for people, in binary units: "512 B", "1.5 MiB", "2.07 GiB". Local.
 *  @param[out] out  [32] characters
 *  @return out */
const char *nps_format_bytes(double bytes, char out[32]);

/** Give the smaller / the larger of two numbers. */
static inline int64_t nps_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t nps_max64(int64_t a, int64_t b) { return a > b ? a : b; }

/** Seconds of a clock that never runs backwards. Local. */
double nps_now(void);

#endif
