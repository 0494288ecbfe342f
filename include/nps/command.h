/** @file command.h
 *  Any program as evaluator: a process that is kept alive, requests and answers as JSON lines over its stdin and stdout, models
 *  handed over as folders, in memory where there is room. Layer 5, part of `fitness`. Everything here is local.
 *
 *  Nothing is forked: a process of MPI may hold memory that a network card writes to. The program starts itself anew by
 *  posix_spawn() as a small supervisor, without MPI's variables in its environment and with no file but the pipes, and this one
 *  starts the command in a process group of its own. When the process that asks ends, however it does, the supervisor sees its
 *  end of a socket close: it kills the command with all it has started and removes the folder. docs/command-evaluator.md has
 *  the protocol field by field. */
#ifndef NPS_COMMAND_H
#define NPS_COMMAND_H

#include "nps/base.h"
#include "nps/config.h"
#include "nps/fitness.h"
#include "nps/json.h"

/* ---- the process ---- */

/** Be the supervisor where this process was started as one: the first thing that main() does in a program that asks commands.
 *  @param[out] exit_code  set when true is returned
 *  @return whether it was; then the program is to end */
bool nps_command_supervise(int argc, char **argv, int *exit_code);

/** Check that a command's program can be found and run: a path as it is, else a name in PATH.
 *  @param words  [count] program and arguments; @param key  where they come from, for the message
 *  @return NPS_ERR_CONFIG */
nps_err_t nps_command_check(char *const *words, int count, const char *key);

/** A command and how it is spoken to. Borrowed. */
typedef struct nps_command_options {
  char *const *words; /**< [word_count] program and arguments */
  int word_count;
  double timeout;     /**< seconds that an answer may take, the start of the process included */
  int group;          /**< NPS_GROUP in its environment */
  const char *folder; /**< removed when this process ends without nps_command_free(); NULL: none */
  bool shows_stderr;  /**< what it writes on stderr goes to this process's stderr, too */
} nps_command_options_t;

typedef struct nps_command nps_command_t;

/** Make a command and start its process, so that it gets ready while a model is made. Freed with nps_command_free(), which gives
 *  the process a few seconds to end by itself once its stdin is closed. What cannot be started is told when it is asked. */
nps_command_t *nps_command_new(const nps_command_options_t *options);
void nps_command_free(nps_command_t *command);

/** How a request went. */
typedef enum nps_asked {
  NPS_ASKED_ANSWERED, /**< with a JSON object */
  NPS_ASKED_FAILED,   /**< no answer that counts; the process is started anew for the next request */
  NPS_ASKED_GIVEN_UP  /**< `go_on` said so; likewise */
} nps_asked_t;

/** Send a request, an object, and wait for the answer with the same "id". A process that has ended since its last answer is
 *  started again first.
 *  @param go_on  asked some fifty times a second while waiting; false: give up
 *  @param[out] answer  ANSWERED: new reference
 *  @param[out] why     FAILED: what went wrong, with the process's last words on stderr; freed with free() */
nps_asked_t nps_command_ask(nps_command_t *command, const json_t *request, bool (*go_on)(void *ctx), void *ctx,
                            json_t **answer, char **why);

/** Whether the last request failed as the program cannot be run here at all: its process was not to be had, or ended with exit code
 *  127 before any answer. */
bool nps_command_cannot_run(const nps_command_t *command);

/** Note that the last answer made no sense: the process is started anew for the next request. */
void nps_command_distrust(nps_command_t *command);

/** What an answer's scores are to say. */
typedef struct nps_expected {
  nps_metric_t metric;
  bool less_is_better; /**< of values */
} nps_expected_t;

/** Read the scores of an answer: of each task {"correct", "total"}, {"nll_sum", "total"} or {"value", "total"}, as the metric
 *  wants it. Values become losses: nll_sum = −value·total, or value·total where less is better.
 *  @param tasks  [count] names; @param[out] scores  [count]
 *  @return what is wrong with them, freed with free(); NULL: nothing */
char *nps_command_scores(const json_t *answer, const nps_expected_t *expected, const char *const *tasks, int count,
                         nps_score_t *scores);

/** What a command is asked about a model. Borrowed. */
typedef struct nps_question {
  int64_t id;               /**< grows from question to question */
  const char *model;        /**< folder */
  const char *const *tasks; /**< [count] names */
  int count;
  const json_t *about; /**< what the command is told of each task, {NAME: {…}}; of others too */
  double holdout;      /**< part of the samples that is held out; 0: the command is not told of any */
  bool held;           /**< those are asked for; else the others */
  nps_expected_t expected;
} nps_question_t;

/** Make the request. @return new reference */
json_t *nps_command_request(const nps_question_t *question);

/** Ask a question, as nps_command_ask() does, and read the scores. An answer that makes no sense, or gives an error instead of
 *  scores, is a failure.
 *  @param[out] scores  [count] ANSWERED; else they say nothing
 *  @param[out] answer  ANSWERED: new reference; may be NULL */
nps_asked_t nps_command_ask_scores(nps_command_t *command, const nps_question_t *question, bool (*go_on)(void *ctx),
                                   void *ctx, nps_score_t *scores, json_t **answer, char **why);

/** Take back an answer whose scores make no sense beside others: nps_command_distrust().
 *  @param wrong  what is wrong with it; freed @return the whole reason, freed with free() */
char *nps_command_refuse(nps_command_t *command, char *wrong);

/* ---- handing models over ---- */

/** A folder of this process for models that are handed over. */
typedef struct nps_handover nps_handover_t;

/** Check that models can be handed over in a directory, as far as its kind and rights go. NULL: nothing to check.
 *  NPS_ERR_CONFIG. */
nps_err_t nps_handover_check(const char *directory);

/** Make the folder, and remove those of processes on this host that were killed.
 *  @param directory  where; NULL: /dev/shm, TMPDIR or /tmp, the first that has room
 *  @param bytes      room that is needed there
 *  @param[out] out   freed with nps_handover_free(), which removes the folder
 *  @return NPS_ERR_CONFIG: no such directory; NPS_ERR_IO: no room */
nps_err_t nps_handover_new(const char *directory, int64_t bytes, nps_handover_t **out);
void nps_handover_free(nps_handover_t *handover);

/** Give the folder. Owned. */
const char *nps_handover_path(const nps_handover_t *handover);

/** Whether a directory's files lie in memory. NULL: the one that nps_handover_new() would choose first. */
bool nps_handover_in_memory(const char *directory);

/** Keep a small file that every model has: config.json, a tokenizer's, a module's (MODULE/FILE). NPS_ERR_IO. */
nps_err_t nps_handover_keep(nps_handover_t *handover, const char *name, const char *data, size_t size);

/** Begin a model: the folder `id` with those files and an empty model.safetensors. NPS_ERR_IO.
 *  @param[out] model  its folder; owned, valid until nps_handover_end() */
nps_err_t nps_handover_begin(nps_handover_t *handover, int64_t id, const char **model);

/** Write bytes of model.safetensors. NPS_ERR_IO. */
nps_err_t nps_handover_write(nps_handover_t *handover, const void *bytes, size_t n, int64_t at);

/** Close the file: the model is complete. NPS_ERR_IO. */
nps_err_t nps_handover_close(nps_handover_t *handover);

/** Remove the model, whether complete or not. */
void nps_handover_end(nps_handover_t *handover);

#endif
