/** @file report_private.h
 *  What the files of this module share. */
#ifndef NPS_REPORT_PRIVATE_H
#define NPS_REPORT_PRIVATE_H

#include "nps/report.h"

#include <stdio.h>

struct nps_report {
  char *program;
  char *log_path;
  FILE *log; /* NULL: none */
  bool quiet, verbose;
  bool out_colour;  /* stdout shows colours */
  bool err_colour;  /* stderr shows colours */
  bool err_redraws; /* stderr is a terminal where a line can be drawn again */
  char *title;      /* of the running phase, else NULL */
  int64_t total;
  int64_t done;
  double started; /* of the phase, nps_now() */
  double shown;   /* last bar or line */
  bool bar_shown;
};

/** Whether a stream is a terminal that understands escape sequences / that may show colours. */
bool nps_report_terminal(FILE *stream);
bool nps_report_colour(FILE *stream);

/** Take the bar off the terminal, before something else is printed. */
void nps_report_clear_bar(nps_report_t *report);

/** Count the characters of a UTF-8 text. */
int nps_report_characters(const char *text);

/** Make a JSON string of a text that may not be UTF-8 (paths): foreign bytes become '?'. */
json_t *nps_report_json_text(const char *text);

#endif
