/* Writes a man page or a completion file to stdout: nps-pages man|bash|zsh PROGRAM. Used by make, not installed. */
#include "programs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAMS 4

static char *write_page(const char *kind, const cli_program_t *program, const cli_program_t *const *all) {
  if (strcmp(kind, "man") == 0) return cli_man(program, all, PROGRAMS);
  if (strcmp(kind, "bash") == 0) return cli_bash(program);
  return strcmp(kind, "zsh") == 0 ? cli_zsh(program) : NULL;
}

int main(int argc, char **argv) {
  const cli_program_t *const all[PROGRAMS] = {&cli_convert_program, &cli_eval_program, &cli_inspect_program,
                                              &cli_merge_program};
  char *text = NULL;
  for (int i = 0; argc == 3 && i < PROGRAMS; i++)
    if (strcmp(all[i]->name, argv[2]) == 0) text = write_page(argv[1], all[i], all);
  if (!text) {
    fprintf(stderr, "Usage: nps-pages man|bash|zsh PROGRAM\n");
    return 2;
  }
  fputs(text, stdout);
  free(text);
  return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}
