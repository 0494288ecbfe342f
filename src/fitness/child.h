/** @file child.h
 *  A process with its pipes, under a supervisor. Private to the command evaluator. Local. */
#ifndef NPS_FITNESS_CHILD_H
#define NPS_FITNESS_CHILD_H

#include "nps/command.h"

#include <sys/types.h>

/** −1: closed. Our ends of the pipes do not block. */
typedef struct nps_child {
  pid_t supervisor;
  int in, out, err; /**< the process's stdin, stdout, stderr */
  int socket;       /**< to the supervisor */
  bool ended;
  int status; /**< as of wait(), where `known` */
  bool known;
} nps_child_t;

/** Start a process. @return 0, or an errno value */
int nps_child_start(const nps_command_options_t *options, nps_child_t *child);

/** Look whether it has ended, for at most so many seconds. @return `ended` */
bool nps_child_look(nps_child_t *child, double seconds);

/** Tell how it ended: "ended with exit code 3", "was ended by signal 11 (Segmentation fault)". @return freed with free() */
char *nps_child_end(const nps_child_t *child);

/** Kill it and all it has started; stdout and stderr can still be read to their ends. */
void nps_child_kill(nps_child_t *child);

/** Close what is open. */
void nps_child_close(nps_child_t *child);

/** Write to its stdin, without SIGPIPE. @return as write() */
ssize_t nps_child_write(const nps_child_t *child, const void *bytes, size_t n);

#endif
