/* Man pages and shell completion from the tables of options. */
#include "cli.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static bool is_shown(const cli_option_t *option) { return option->kind != CLI_LATER; }

static bool ends_in(const char *text, const char *end) {
  const size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

bool cli_is_path(const char *argument) {
  static const char *const names[] = {"FILE", "OUT", "DST", "SRC", "BASE", "MODEL", "CONFIG"};
  for (size_t i = 0; argument && i < sizeof names / sizeof *names; i++)
    if (ends_in(argument, names[i])) return true;
  return false;
}

/* Up to the first full stop before a space. */
static int first_sentence(const char *text) {
  const char *stop = strstr(text, ". ");
  const size_t n = stop ? (size_t)(stop - text) : strlen(text);
  return (int)(n > 0 && text[n - 1] == '.' ? n - 1 : n);
}

/* ---- man(7) ---- */

/* Text whose characters stand for themselves. */
static void add_roff(nps_text_t *t, const char *text, int n) {
  for (int i = 0; i < n && text[i]; i++) {
    const bool starts_line = i == 0 || text[i - 1] == '\n';
    if (starts_line && (text[i] == '.' || text[i] == '\'')) nps_text_add(t, "\\&");
    if (text[i] == '\\')
      nps_text_add(t, "\\e");
    else if (text[i] == '-')
      nps_text_add(t, "\\-");
    else
      nps_text_add_bytes(t, text + i, 1);
  }
}

static void add_all(nps_text_t *t, const char *text) { add_roff(t, text, (int)strlen(text)); }

static void add_upper(nps_text_t *t, const char *text) {
  for (const char *p = text; *p; p++) {
    const char upper = (char)toupper((unsigned char)*p);
    nps_text_add_bytes(t, &upper, 1);
  }
}

/* NAME's line: the first sentence, up to a colon, without its capital. */
static void add_name(nps_text_t *t, const cli_program_t *program) {
  const char first = (char)tolower((unsigned char)program->about[0]);
  nps_text_add(t, ".SH NAME\n");
  add_all(t, program->name);
  nps_text_add(t, " \\- ");
  nps_text_add_bytes(t, &first, 1);
  const int end = first_sentence(program->about), colon = (int)strcspn(program->about, ":");
  add_roff(t, program->about + 1, (colon < end ? colon : end) - 1);
  nps_text_add(t, "\n");
}

static void add_synopsis(nps_text_t *t, const cli_program_t *program) {
  nps_text_add(t, ".SH SYNOPSIS\n.B ");
  add_all(t, program->name);
  nps_text_add(t, "\n[\\fIOPTION\\fR]...");
  for (int i = 0; i < program->operand_count; i++)
    nps_text_add(t, program->operands[i].required ? " \\fI%s\\fR" : " [\\fI%s\\fR]", program->operands[i].name);
  nps_text_add(t, "\n");
}

static void add_option(nps_text_t *t, const cli_option_t *option) {
  nps_text_add(t, ".TP\n");
  if (option->letter) nps_text_add(t, "\\fB\\-%c\\fR, ", option->letter);
  nps_text_add(t, "\\fB\\-\\-");
  add_all(t, option->name);
  nps_text_add(t, "\\fR");
  if (option->argument) {
    nps_text_add(t, " \\fI");
    add_all(t, option->argument);
    nps_text_add(t, "\\fR");
  }
  nps_text_add(t, "\n");
  add_all(t, option->help);
  nps_text_add(t, "\n");
}

static void add_lists(nps_text_t *t, const cli_program_t *program) {
  nps_text_add(t, ".SH ARGUMENTS\n");
  for (int i = 0; i < program->operand_count; i++) {
    nps_text_add(t, ".TP\n\\fI%s\\fR\n", program->operands[i].name);
    add_all(t, program->operands[i].help);
    nps_text_add(t, "\n");
  }
  nps_text_add(t, ".SH OPTIONS\n");
  for (int i = 0; i < program->option_count; i++)
    if (is_shown(&program->options[i])) add_option(t, &program->options[i]);
}

static void add_see_also(nps_text_t *t, const cli_program_t *program, const cli_program_t *const *others, int count) {
  bool first = true;
  nps_text_add(t, ".SH SEE ALSO\n");
  for (int i = 0; i < count; i++) {
    if (others[i] == program) continue;
    nps_text_add(t, "%s\\fB", first ? "" : ",\n");
    add_all(t, others[i]->name);
    nps_text_add(t, "\\fR(1)");
    first = false;
  }
  nps_text_add(t, "\n");
}

char *cli_man(const cli_program_t *program, const cli_program_t *const *others, int count) {
  nps_text_t t = {0};
  nps_text_add(&t, ".TH ");
  add_upper(&t, program->name);
  nps_text_add(&t, " 1 \"\" \"%s\" \"User Commands\"\n", PACKAGE_STRING);
  add_name(&t, program);
  add_synopsis(&t, program);
  nps_text_add(&t, ".SH DESCRIPTION\n");
  add_all(&t, program->about);
  nps_text_add(&t, "\n");
  add_lists(&t, program);
  nps_text_add(&t, ".SH EXAMPLES\n.nf\n");
  add_all(&t, program->examples);
  nps_text_add(&t, ".fi\n.SH EXIT STATUS\n");
  add_all(&t, CLI_EXIT_CODES);
  nps_text_add(&t, "\n");
  add_see_also(&t, program, others, count);
  return t.text;
}

/* ---- bash ---- */

/* "--name|-n" of the options that take an argument which is, or is not, a path. */
static void add_cases(nps_text_t *t, const cli_program_t *program, bool path, const char *action) {
  bool any = false;
  for (int i = 0; i < program->option_count; i++) {
    const cli_option_t *option = &program->options[i];
    if (!is_shown(option) || !option->argument || cli_is_path(option->argument) != path) continue;
    nps_text_add(t, "%s--%s", any ? "|" : "    ", option->name);
    if (option->letter) nps_text_add(t, "|-%c", option->letter);
    any = true;
  }
  if (any) nps_text_add(t, ") %s ;;\n", action);
}

/* A function's name has no dash. */
static char *function_name(const char *program) {
  char *name = nps_xstrf("_%s", program);
  for (char *p = name; *p; p++)
    if (*p == '-') *p = '_';
  return name;
}

char *cli_bash(const cli_program_t *program) {
  nps_text_t t = {0};
  char *function = function_name(program->name);
  nps_text_add(&t, "# bash completion for %s\n%s() {\n", program->name, function);
  nps_text_add(&t, "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
                   "  if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
                   "  COMPREPLY=()\n"
                   "  case $prev in\n");
  /* Nothing found: the shell completes names of files, unless told not to. */
  add_cases(&t, program, true, "return");
  add_cases(&t, program, false, "compopt +o default; return");
  nps_text_add(&t, "  esac\n  if [[ $cur == -* ]]; then\n    COMPREPLY=($(compgen -W '");
  for (int i = 0, any = 0; i < program->option_count; i++)
    if (is_shown(&program->options[i])) nps_text_add(&t, "%s--%s", any++ ? " " : "", program->options[i].name);
  nps_text_add(&t, "' -- \"$cur\"))\n  fi\n}\ncomplete -o default -F %s %s\n", function, program->name);
  free(function);
  return t.text;
}

/* ---- zsh ---- */

/* Text inside single quotes and [brackets] or :colons:. */
static void add_zsh(nps_text_t *t, const char *text, int n) {
  for (int i = 0; i < n && text[i]; i++) {
    if (text[i] == '\'')
      nps_text_add(t, "'\\''");
    else {
      if (strchr("[]:\\", text[i])) nps_text_add(t, "\\");
      nps_text_add_bytes(t, text + i, 1);
    }
  }
}

static void add_zsh_argument(nps_text_t *t, const char *argument) {
  nps_text_add(t, ":");
  add_zsh(t, argument, (int)strlen(argument));
  nps_text_add(t, cli_is_path(argument) ? ":_files" : ": ");
}

static void add_zsh_option(nps_text_t *t, const cli_option_t *option) {
  const char *equals = option->argument ? "=" : "";
  nps_text_add(t, " \\\n  ");
  if (option->letter && option->kind != CLI_LIST)
    nps_text_add(t, "'(-%c --%s)'{-%c,--%s%s}'[", option->letter, option->name, option->letter, option->name, equals);
  else
    nps_text_add(t, "'%s--%s%s[", option->kind == CLI_LIST ? "*" : "", option->name, equals);
  add_zsh(t, option->help, first_sentence(option->help));
  nps_text_add(t, "]");
  if (option->argument) add_zsh_argument(t, option->argument);
  nps_text_add(t, "'");
}

char *cli_zsh(const cli_program_t *program) {
  nps_text_t t = {0};
  nps_text_add(&t, "#compdef %s\n_arguments -s -S", program->name);
  for (int i = 0; i < program->option_count; i++)
    if (is_shown(&program->options[i])) add_zsh_option(&t, &program->options[i]);
  for (int i = 0; i < program->operand_count; i++) {
    nps_text_add(&t, " \\\n  '%d%s", i + 1, program->operands[i].required ? "" : ":");
    add_zsh_argument(&t, program->operands[i].name);
    nps_text_add(&t, "'");
  }
  nps_text_add(&t, "\n");
  return t.text;
}
