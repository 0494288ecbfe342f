#include "cli.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include <mpi.h>
#include <string.h>

char *cli_version(const cli_program_t *program) {
  char library[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  nps_text_t t = {0};
  /* Allowed before MPI_Init. Some libraries add their build's host and configure line. */
  MPI_Get_library_version(library, &length);
  library[strcspn(library, ",\n")] = '\0';
  nps_text_add(&t, "%s %s\n%s\n", program->name, PACKAGE_VERSION, library);
  return t.text;
}
