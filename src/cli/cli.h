/** @file cli.h
 *  Command lines from tables: one table of operands and options gives parsing, --help, the man page and shell completion.
 *  Values go to fields of a plain struct, by offset. Every rank parses, rank 0 speaks. */
#ifndef NPS_CLI_H
#define NPS_CLI_H

#include "nps/base.h"
#include "nps/comm.h"

typedef enum cli_kind {
  CLI_FLAG,    /**< field: bool */
  CLI_TEXT,    /**< field: const char *; the last one given counts; not empty */
  CLI_COUNT,   /**< field: int, 1 or more */
  CLI_LIST,    /**< field: cli_list_t; may be repeated */
  CLI_HELP,    /**< show the help text */
  CLI_VERSION, /**< show versions */
  CLI_LATER    /**< known but not built yet: refused, not in the help text */
} cli_kind_t;

/** The texts given for a repeatable option. */
typedef struct cli_list {
  const char **items; /**< [count]; the array is freed by the struct's owner, the texts belong to argv */
  int count;
} cli_list_t;

typedef struct cli_option {
  const char *name; /**< without dashes: "output" */
  char letter;      /**< 'o', or 0 */
  cli_kind_t kind;
  const char *argument; /**< its name in the help text ("OUT"); NULL for kinds without one; see cli_is_path() */
  size_t field;         /**< offset in the values struct */
  const char *help;     /**< one or two sentences, wrapped when shown */
} cli_option_t;

/** An argument by position: a CLI_TEXT. */
typedef struct cli_operand {
  const char *name; /**< "CONFIG" */
  bool required;    /**< required ones come first */
  size_t field;
  const char *help;
} cli_operand_t;

/** An option of another program for the same work, which users bring along. */
typedef struct cli_foreign {
  const char *name;    /**< without dashes */
  bool takes_value;    /**< as the next word */
  const char *instead; /**< what does the same here; NULL: nothing is needed */
} cli_foreign_t;

typedef struct cli_program {
  const char *name;              /**< "nps-merge" */
  const char *about;             /**< what it does, wrapped when shown */
  const cli_operand_t *operands; /**< [operand_count] */
  int operand_count;
  const cli_option_t *options; /**< [option_count] */
  int option_count;
  const char *foreign_program;  /**< "mergekit" */
  const cli_foreign_t *foreign; /**< [foreign_count] that are no options here, or NULL */
  int foreign_count;
  const char *examples; /**< whole lines, each with its newline */
} cli_program_t;

typedef enum cli_request { CLI_RUN, CLI_SHOW_HELP, CLI_SHOW_VERSION } cli_request_t;

/** Start MPI; notes are dropped on all ranks but 0, and a fatal error on one rank ends them all. Collective.
 *  @return all ranks; given to cli_finish() */
nps_comm_t *cli_start(int *argc, char ***argv);

/** End MPI. Collective. */
void cli_finish(nps_comm_t *comm);

/** Parse a command line: `--opt value`, `--opt=value`, `-o value`, `-ovalue`, letters in one (`-qv`), `--`; options and
 *  operands in any order. Local.
 *  @param[out] values  the struct of the table's offsets; fields not given keep their values
 *  @param[out] request  what is asked for; help and version win over everything after them
 *  @return NPS_ERR_CONFIG, all problems recorded */
nps_err_t cli_parse(const cli_program_t *program, int argc, char *const argv[], void *values, cli_request_t *request);

/** Write the help text as --help shows it. Local. @return freed with free() */
char *cli_help(const cli_program_t *program);

/** What the exit codes mean, for the texts. */
#define CLI_EXIT_CODES                                                                                                 \
  "0 done; 1 failed while running; 2 the command line or the config is wrong; 3 an input file is missing, corrupt or " \
  "does not fit the others; 4 stopped by a signal or a time limit, with a snapshot that --resume goes on from "        \
  "(nps-merge only)."

/** Whether an argument of this name is a path: FILE, OUT, DST, CONFIG, and whatever names a model. Local. */
bool cli_is_path(const char *argument);

/** Write the man page in man(7)'s language / the completion for bash / for zsh. Local.
 *  @param others  [count] programs to refer to @return freed with free() */
char *cli_man(const cli_program_t *program, const cli_program_t *const *others, int count);
char *cli_bash(const cli_program_t *program);
char *cli_zsh(const cli_program_t *program);

/** Write the versions as --version shows them: the program's, then MPI's and HDF5's. Local.
 *  @return freed with free() */
char *cli_version(const cli_program_t *program);

/** Give the exit code of a program that is about to end: 1 where it would be 0 but stdout could not be written (said on
 *  stderr). Local. */
int cli_exit_code(const cli_program_t *program, int exit_code);

/** Answer --help and --version on stdout; after a wrong command line print the recorded problems and a hint to --help
 *  on stderr. All problems are forgotten. Local.
 *  @param err    what parsing gave
 *  @param speak  false on ranks that keep quiet
 *  @param[out] exit_code  set when the program is to end
 *  @return whether the program is to go on */
bool cli_go_on(const cli_program_t *program, nps_err_t err, cli_request_t request, bool speak, int *exit_code);

#endif
