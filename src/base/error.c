#include "nps/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int exit_codes[NPS_ERR_COUNT] = {
#define X(name, exit) exit,
    NPS_ERRORS(X)
#undef X
};

typedef struct {
  nps_err_t code;
  char *text;
} problem_t;

static struct {
  problem_t *items;
  int count;
} problems;

int nps_err_exit_code(nps_err_t err) { return exit_codes[err]; }

nps_err_t nps_err_worse(nps_err_t a, nps_err_t b) {
  if (a == NPS_OK) return b;
  if (b == NPS_OK) return a;
  return nps_err_exit_code(b) < nps_err_exit_code(a) ? b : a;
}

nps_err_t nps_fail(nps_err_t code, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *text = nps_xvstrf(fmt, args);
  va_end(args);
  problems.items = nps_xrealloc(problems.items, (size_t)problems.count + 1, sizeof(problem_t));
  problems.items[problems.count++] = (problem_t){code, nps_text_printable(text)};
  return code;
}

int nps_problem_count(void) { return problems.count; }

const char *nps_problem_text(int i) { return problems.items[i].text; }

nps_err_t nps_problem_code(int i) { return problems.items[i].code; }

void nps_problem_clear(void) {
  for (int i = 0; i < problems.count; i++) free(problems.items[i].text);
  free(problems.items);
  problems.items = NULL;
  problems.count = 0;
}
