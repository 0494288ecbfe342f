#include "cli.h"

#include "nps/report.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 80, HELP_COLUMN = 26 };

typedef struct {
  const cli_program_t *program;
  char *values;
  int operands; /* taken so far */
  cli_request_t request;
} parser_t;

static bool takes_value(const cli_option_t *option) { return option->argument != NULL; }

static nps_err_t store_count(parser_t *p, const cli_option_t *option, const char *value) {
  char *end = NULL;
  errno = 0;
  long number = strtol(value, &end, 10);
  if (errno || end == value || *end || number < 1 || number > INT_MAX)
    return nps_fail(NPS_ERR_CONFIG, "option --%s: expected a whole number from 1 on, found '%s'", option->name, value);
  *(int *)(void *)(p->values + option->field) = (int)number;
  return NPS_OK;
}

static void store_item(parser_t *p, const cli_option_t *option, const char *value) {
  cli_list_t *list = (void *)(p->values + option->field);
  list->items = nps_xrealloc(list->items, (size_t)list->count + 1, sizeof *list->items);
  list->items[list->count++] = value;
}

static nps_err_t store(parser_t *p, const cli_option_t *option, const char *value) {
  if (value && !*value && option->kind != CLI_LATER)
    return nps_fail(NPS_ERR_CONFIG, "option --%s: %s is empty", option->name, option->argument);
  switch (option->kind) {
  case CLI_FLAG:
    *(bool *)(p->values + option->field) = true;
    return NPS_OK;
  case CLI_TEXT:
    *(const char **)(void *)(p->values + option->field) = value;
    return NPS_OK;
  case CLI_COUNT:
    return store_count(p, option, value);
  case CLI_LIST:
    store_item(p, option, value);
    return NPS_OK;
  case CLI_HELP:
    p->request = CLI_SHOW_HELP;
    return NPS_OK;
  case CLI_VERSION:
    p->request = CLI_SHOW_VERSION;
    return NPS_OK;
  case CLI_LATER:
    return nps_fail(NPS_ERR_CONFIG, "option --%s: not built yet", option->name);
  }
  return NPS_OK;
}

static nps_err_t take_operand(parser_t *p, const char *text) {
  const cli_program_t *program = p->program;
  if (p->operands == program->operand_count) return nps_fail(NPS_ERR_CONFIG, "unexpected argument '%s'", text);
  const cli_operand_t *operand = &program->operands[p->operands++];
  if (!*text) return nps_fail(NPS_ERR_CONFIG, "%s is empty", operand->name);
  *(const char **)(void *)(p->values + operand->field) = text;
  return NPS_OK;
}

static nps_err_t fail_unknown(const cli_program_t *program, const char *name) {
  const char **names = nps_xcalloc((size_t)program->option_count + 1, sizeof *names);
  for (int i = 0; i < program->option_count; i++) names[i] = program->options[i].name;
  const char *near = nps_nearest(name, names, program->option_count);
  free(names);
  if (near) return nps_fail(NPS_ERR_CONFIG, "unknown option '--%s', did you mean '--%s'?", name, near);
  return nps_fail(NPS_ERR_CONFIG, "unknown option '--%s'", name);
}

static const cli_option_t *find_name(const cli_program_t *program, const char *name, size_t length) {
  for (int i = 0; i < program->option_count; i++) {
    const cli_option_t *option = &program->options[i];
    if (strlen(option->name) == length && memcmp(option->name, name, length) == 0) return option;
  }
  return NULL;
}

/* Takes what another program knows at argv[*at], with its value. @return whether it is such an option: an error that says what
 * to do */
static bool take_foreign(const cli_program_t *program, const char *name, bool has_value, int argc, int *at) {
  for (int i = 0; i < program->foreign_count; i++) {
    const cli_foreign_t *foreign = &program->foreign[i];
    if (strcmp(foreign->name, name) != 0) continue;
    nps_fail(NPS_ERR_CONFIG, "unknown option '--%s': that is %s's, %s%s", name, program->foreign_program,
             foreign->instead ? "here it is " : "leave it out", foreign->instead ? foreign->instead : "");
    if (foreign->takes_value && !has_value && *at + 1 < argc) ++*at;
    return true;
  }
  return false;
}

/* Takes "--name", "--name=value" or "--name" "value" at argv[*at] and moves *at to the last word taken. */
static nps_err_t take_long(parser_t *p, int argc, char *const argv[], int *at) {
  const char *name = argv[*at] + 2;
  size_t length = strcspn(name, "=");
  const char *value = name[length] ? name + length + 1 : NULL;
  const cli_option_t *option = find_name(p->program, name, length);
  if (!option) {
    char *word = nps_xstrndup(name, length);
    if (!take_foreign(p->program, word, value, argc, at)) fail_unknown(p->program, word);
    free(word);
    return NPS_ERR_CONFIG;
  }
  if (!takes_value(option) && value) return nps_fail(NPS_ERR_CONFIG, "option --%s takes no value", option->name);
  if (takes_value(option) && !value) {
    if (*at + 1 == argc) return nps_fail(NPS_ERR_CONFIG, "option --%s needs %s", option->name, option->argument);
    value = argv[++*at];
  }
  return store(p, option, value);
}

/* Takes "-o" "value", "-ovalue" or "-qv" at argv[*at] and moves *at to the last word taken. */
static nps_err_t take_letters(parser_t *p, int argc, char *const argv[], int *at) {
  for (const char *letter = argv[*at] + 1; *letter; letter++) {
    const cli_option_t *option = NULL;
    for (int i = 0; i < p->program->option_count; i++)
      if (p->program->options[i].letter == *letter) option = &p->program->options[i];
    if (!option) return nps_fail(NPS_ERR_CONFIG, "unknown option '-%c' in '%s'", *letter, argv[*at]);
    if (!takes_value(option)) {
      NPS_TRY(store(p, option, NULL));
      continue;
    }
    if (letter[1]) return store(p, option, letter + 1);
    if (*at + 1 == argc) return nps_fail(NPS_ERR_CONFIG, "option -%c needs %s", *letter, option->argument);
    return store(p, option, argv[++*at]);
  }
  return NPS_OK;
}

nps_err_t cli_parse(const cli_program_t *program, int argc, char *const argv[], void *values, cli_request_t *request) {
  parser_t p = {.program = program, .values = values, .request = CLI_RUN};
  nps_err_t err = NPS_OK;
  bool only_operands = false;
  for (int i = 1; i < argc && p.request == CLI_RUN; i++) {
    const char *word = argv[i];
    if (only_operands || word[0] != '-' || !word[1])
      err = nps_err_worse(err, take_operand(&p, word));
    else if (strcmp(word, "--") == 0)
      only_operands = true;
    else if (word[1] == '-')
      err = nps_err_worse(err, take_long(&p, argc, argv, &i));
    else
      err = nps_err_worse(err, take_letters(&p, argc, argv, &i));
  }
  *request = p.request;
  if (err != NPS_OK || p.request != CLI_RUN) return err;
  for (int i = p.operands; i < program->operand_count; i++)
    if (program->operands[i].required) err = nps_fail(NPS_ERR_CONFIG, "missing argument %s", program->operands[i].name);
  return err;
}

/* Appends words of `text`, from column `column` on, with lines of at most WIDTH that start at `indent`. */
static void add_wrapped(nps_text_t *t, const char *text, int column, int indent) {
  bool first = true;
  while (*text) {
    int length = (int)strcspn(text, " ");
    if (!first && column + 1 + length > WIDTH) {
      nps_text_add(t, "\n%*s", indent, "");
      column = indent;
    } else if (!first) {
      nps_text_add(t, " ");
      column++;
    }
    nps_text_add_bytes(t, text, (size_t)length);
    column += length;
    text += length + (text[length] == ' ');
    first = false;
  }
  nps_text_add(t, "\n");
}

/* Appends "  LEFT      help", the help in its own column. */
static void add_entry(nps_text_t *t, const char *left, const char *help) {
  nps_text_add(t, "  %s", left);
  int column = 2 + (int)strlen(left);
  if (column + 2 > HELP_COLUMN) {
    nps_text_add(t, "\n");
    column = 0;
  }
  nps_text_add(t, "%*s", HELP_COLUMN - column, "");
  add_wrapped(t, help, HELP_COLUMN, HELP_COLUMN);
}

static void add_option(nps_text_t *t, const cli_option_t *option) {
  char letter[8] = "    ";
  if (option->letter) snprintf(letter, sizeof letter, "-%c, ", option->letter);
  char *left = nps_xstrf("%s--%s%s%s", letter, option->name, option->argument ? " " : "",
                         option->argument ? option->argument : "");
  add_entry(t, left, option->help);
  free(left);
}

char *cli_help(const cli_program_t *program) {
  nps_text_t t = {0};
  nps_text_add(&t, "Usage: %s [OPTION]...", program->name);
  for (int i = 0; i < program->operand_count; i++) {
    const cli_operand_t *operand = &program->operands[i];
    nps_text_add(&t, operand->required ? " %s" : " [%s]", operand->name);
  }
  nps_text_add(&t, "\n\n");
  add_wrapped(&t, program->about, 0, 0);
  nps_text_add(&t, "\nArguments:\n");
  for (int i = 0; i < program->operand_count; i++) add_entry(&t, program->operands[i].name, program->operands[i].help);
  nps_text_add(&t, "\nOptions:\n");
  for (int i = 0; i < program->option_count; i++)
    if (program->options[i].kind != CLI_LATER) add_option(&t, &program->options[i]);
  nps_text_add(&t, "\nExamples:\n%s", program->examples);
  nps_text_add(&t, "\n");
  add_wrapped(&t, "Exit codes: " CLI_EXIT_CODES, 0, 0);
  return t.text;
}

static void print_and_free(char *text) {
  fputs(text, stdout);
  free(text);
}

int cli_exit_code(const cli_program_t *program, int exit_code) {
  const bool written = fflush(stdout) == 0 && !ferror(stdout);
  if (written || exit_code != 0) return exit_code;
  fprintf(stderr, "%s: error: standard output cannot be written\n", program->name);
  return nps_err_exit_code(NPS_ERR_IO);
}

bool cli_go_on(const cli_program_t *program, nps_err_t err, cli_request_t request, bool speak, int *exit_code) {
  if (err == NPS_OK && request == CLI_RUN) return true;
  *exit_code = nps_err_exit_code(err);
  if (speak && err == NPS_OK) print_and_free(request == CLI_SHOW_HELP ? cli_help(program) : cli_version(program));
  if (speak && err != NPS_OK) {
    nps_report_problems(NULL, program->name);
    fprintf(stderr, "Try '%s --help'.\n", program->name);
  }
  nps_problem_clear();
  return false;
}
