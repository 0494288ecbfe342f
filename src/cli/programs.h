/** @file programs.h
 *  The programs: their tables, from which come parsing, --help, man page and completion, and what they do. */
#ifndef NPS_CLI_PROGRAMS_H
#define NPS_CLI_PROGRAMS_H

#include "cli.h"

extern const cli_program_t cli_convert_program, cli_eval_program, cli_inspect_program, cli_merge_program;

/** What main() does. @return the exit code */
int cli_convert_main(int argc, char **argv);
int cli_eval_main(int argc, char **argv);
int cli_inspect_main(int argc, char **argv);
int cli_merge_main(int argc, char **argv);

#endif
