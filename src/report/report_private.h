/** @file report_private.h
 *  What the files of this module share. */
#ifndef NPS_REPORT_PRIVATE_H
#define NPS_REPORT_PRIVATE_H

#include "nps/report.h"

#include <stdio.h>

struct nps_report {
  char *program;
  char *log_path;
  FILE *log;     /* NULL: none */
  bool made_log; /* there was none before */
  bool quiet, verbose;
  bool out_colour; /* stdout shows colours */
  bool err_colour; /* stderr shows colours */
  int terminal;    /* where stderr ends, when lines can be drawn again there, else -1 */
  char *title;     /* of the running phase, else NULL */
  int64_t total;
  int64_t done;
  double started; /* of the phase, nps_now() */
  double shown;   /* last bar or line */
  bool bar_shown;
};

/** Find the terminal on which a stream is shown, also behind Open MPI's mpirun.
 *  @return a descriptor to be closed, or -1 when it is none, or one that knows no escape sequences */
int nps_report_terminal(FILE *stream);

/** Give a terminal's width, characters; 80 when it is not known. */
int nps_report_terminal_width(int terminal);

/** Whether a stream may show colours. */
bool nps_report_colour(FILE *stream);

/** Take the bar off the terminal, before something else is printed. */
void nps_report_clear_bar(nps_report_t *report);

/** Count the characters of a UTF-8 text. */
int nps_report_characters(const char *text);

#endif
