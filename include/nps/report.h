/** @file report.h
 *  Events of a run → progress on a terminal, lines, JSON log, tables. Layer 3. Everything here is local: rank 0 has a
 *  report that shows, other ranks one that does not (NULL is accepted everywhere and shows nothing). */
#ifndef NPS_REPORT_H
#define NPS_REPORT_H

#include "nps/base.h"
#include "nps/json.h"

typedef struct nps_report nps_report_t;

typedef struct nps_report_options {
  const char *program; /**< "nps-merge", for messages */
  const char *log;     /**< file for JSON lines, appended to, one object an event, or NULL */
  bool quiet;          /**< only errors */
  bool verbose;        /**< show details, and on a terminal what each phase took */
} nps_report_options_t;

/** Start reporting; notes (nps_note()) go through it from now on. NPS_ERR_IO when the log cannot be opened, NPS_ERR_CONFIG
 *  when it is a file with content that is no log: that is left as it is.
 *  The log gets the events "phase", "phase_end", "note" and "error" by itself. A log that cannot be written later is
 *  given up with a note.
 *  @param[out] out  ended with nps_report_close() */
nps_err_t nps_report_open(const nps_report_options_t *options, nps_report_t **out);

/** Log nothing any more. A log that this run has made, rather than appended to, is removed. */
void nps_report_drop_log(nps_report_t *report);

/** Write an event to the JSON log: {"time": seconds since the epoch, "event": name, …fields}.
 *  @param fields  an object, stolen (released); may be NULL */
void nps_report_event(nps_report_t *report, const char *name, json_t *fields);

/** Make a JSON string of a text that may not be UTF-8 (paths): where it is not, all bytes beyond ASCII become '?'. */
json_t *nps_report_json_text(const char *text);

/** Start a phase with a progress bar (terminal) or a line now and then (otherwise).
 *  @param title  "merging"; @param total  units of work, bytes */
void nps_report_phase(nps_report_t *report, const char *title, int64_t total);

/** Show progress: done of the phase's total, with rate and time left. Cheap; may be called often. */
void nps_report_progress(nps_report_t *report, int64_t done);

/** End the phase: clear the bar. */
void nps_report_phase_end(nps_report_t *report);

/** Show one step of a work whose units are no bytes: a bar with figures that the next one replaces (terminal), or a line
 *  (otherwise), unless quiet. No phase is running. nps_report_steps_end() clears the bar.
 *  @param title  "prune"; @param done, total  steps */
void nps_report_step(nps_report_t *report, const char *title, int64_t done, int64_t total, const char *fmt, ...)
    NPS_PRINTF(5, 6);
void nps_report_steps_end(nps_report_t *report);

/** Write a duration for people: "4.7 s", "3 min 05 s", "2 h 10 min". @param[out] out  [32] characters @return out */
const char *nps_format_seconds(double seconds, char out[32]);

/** Print a line to stdout, unless quiet. */
void nps_report_line(nps_report_t *report, const char *fmt, ...) NPS_PRINTF(2, 3);

/** Print a line to stdout when verbose. */
void nps_report_detail(nps_report_t *report, const char *fmt, ...) NPS_PRINTF(2, 3);

/** Print a table to stdout, unless quiet: columns as wide as their longest cell (UTF-8 counted by characters), the first
 *  left-aligned, the others right-aligned, a line under the header, which is bold on a terminal (NO_COLOR respected).
 *  @param cells  [rows × columns], row by row, the header first */
void nps_report_table(nps_report_t *report, const char *const *cells, int rows, int columns);

/** Print recorded problems to stderr, one line each ("nps-merge: error: …"), once, log them, and forget them. Also works
 *  with report NULL, with `program` as the name. */
void nps_report_problems(nps_report_t *report, const char *program);

/** End reporting; notes go to the default sink again. NULL is fine. */
void nps_report_close(nps_report_t *report);

#endif
