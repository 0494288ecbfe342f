#include "report_private.h"

#include <stdlib.h>
#include <string.h>

int nps_report_characters(const char *text) {
  int count = 0;
  for (; *text; text++) count += ((unsigned char)*text & 0xC0) != 0x80;
  return count;
}

/* Appends one row: the first cell to the left, the others to the right, no blanks at the end. */
static void add_row(nps_text_t *t, const char *const *cells, const int *widths, int columns) {
  for (int c = 0; c < columns; c++) {
    int blanks = widths[c] - nps_report_characters(cells[c]);
    if (c > 0) nps_text_add(t, "  %*s", blanks, "");
    nps_text_add(t, "%s", cells[c]);
    if (c == 0 && columns > 1) nps_text_add(t, "%*s", blanks, "");
  }
  while (t->size > 0 && t->text[t->size - 1] == ' ') t->text[--t->size] = '\0';
}

void nps_report_table(nps_report_t *report, const char *const *cells, int rows, int columns) {
  if (!report || report->quiet || rows == 0) return;
  nps_report_clear_bar(report);
  int *widths = nps_xcalloc((size_t)columns, sizeof *widths);
  int line = 2 * (columns - 1);
  for (int i = 0; i < rows * columns; i++) {
    int width = nps_report_characters(cells[i]);
    if (width > widths[i % columns]) widths[i % columns] = width;
  }
  for (int c = 0; c < columns; c++) line += widths[c];
  for (int r = 0; r < rows; r++) {
    nps_text_t t = {0};
    add_row(&t, cells + r * columns, widths, columns);
    bool bold = r == 0 && report->out_colour;
    printf("%s%s%s\n", bold ? "\033[1m" : "", t.text ? t.text : "", bold ? "\033[0m" : "");
    free(t.text);
    if (r > 0) continue;
    for (int i = 0; i < line; i++) putchar('-');
    putchar('\n');
  }
  fflush(stdout);
  free(widths);
}
