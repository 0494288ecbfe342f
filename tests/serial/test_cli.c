/* Command lines: parsing, messages, help and version texts. */
#include "../nps_check.h"
#include "nps_merge_options.h"
#include "programs.h"

static cli_merge_options_t o;
static cli_request_t request;

/* Parses "nps-merge" followed by words up to NULL. */
static nps_err_t parse(const char *const *words) {
  const char *argv[16] = {"nps-merge"};
  int argc = 1;
  while (words[argc - 1]) argv[argc] = words[argc - 1], argc++;
  cli_merge_options_free(&o);
  nps_problem_clear();
  return cli_merge_options(argc, (char *const *)(uintptr_t)argv, &o, &request);
}

#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})

static void expect_problem(int i, const char *text) {
  ck_assert_int_gt(nps_problem_count(), i);
  ck_assert_str_eq(nps_problem_text(i), text);
  ck_assert_int_eq(nps_problem_code(i), NPS_ERR_CONFIG);
}

#define REFUSED(text, ...)                                                                                             \
  do {                                                                                                                 \
    ck_assert_int_eq(PARSE(__VA_ARGS__), NPS_ERR_CONFIG);                                                              \
    expect_problem(0, text);                                                                                           \
    ck_assert_int_eq(nps_problem_count(), 1);                                                                          \
  } while (0)

START_TEST(test_defaults) {
  ck_assert_int_eq(PARSE("c.yaml"), NPS_OK);
  ck_assert_int_eq(request, CLI_RUN);
  ck_assert_str_eq(o.config, "c.yaml");
  ck_assert_ptr_null(o.out);
  ck_assert_ptr_null(o.log);
  ck_assert(!o.plan && !o.check && !o.force && !o.quiet && !o.verbose);
  ck_assert_int_eq(o.ranks, 0);
  ck_assert_int_eq(o.ranks_per_node, 0);
  ck_assert_int_eq(o.overrides.count, 0);
}
END_TEST

START_TEST(test_every_option) {
  ck_assert_int_eq(
      PARSE("--plan", "c.yaml", "--ranks", "64", "--ranks-per-node=16", "m.h5", "--force", "--log=l.json", "-v"),
      NPS_OK);
  ck_assert(o.plan && o.force && o.verbose && !o.quiet && !o.check);
  ck_assert_int_eq(o.ranks, 64);
  ck_assert_int_eq(o.ranks_per_node, 16);
  ck_assert_str_eq(o.config, "c.yaml");
  ck_assert_str_eq(o.out, "m.h5");
  ck_assert_str_eq(o.log, "l.json");
  ck_assert_int_eq(PARSE("--check", "--quiet", "c.yaml"), NPS_OK);
  ck_assert(o.check && o.quiet);
}
END_TEST

START_TEST(test_output_forms) {
  ck_assert_int_eq(PARSE("c.yaml", "-o", "m.h5"), NPS_OK);
  ck_assert_str_eq(o.out, "m.h5");
  ck_assert_int_eq(PARSE("-om.h5", "c.yaml"), NPS_OK);
  ck_assert_str_eq(o.out, "m.h5");
  ck_assert_int_eq(PARSE("-qo", "m.h5", "c.yaml"), NPS_OK);
  ck_assert_str_eq(o.out, "m.h5");
  ck_assert(o.quiet);
  ck_assert_int_eq(PARSE("--output=a=b.h5", "c.yaml"), NPS_OK);
  ck_assert_str_eq(o.out, "a=b.h5");
  ck_assert_int_eq(PARSE("c.yaml", "m.h5", "--output", "m.h5"), NPS_OK);
  ck_assert_str_eq(o.out, "m.h5");
}
END_TEST

START_TEST(test_double_dash) {
  ck_assert_int_eq(PARSE("-q", "--", "-c.yaml", "--force"), NPS_OK);
  ck_assert_str_eq(o.config, "-c.yaml");
  ck_assert_str_eq(o.out, "--force");
  ck_assert(!o.force);
}
END_TEST

START_TEST(test_overrides) {
  ck_assert_int_eq(PARSE("--set", "models.0.parameters.weight=0.3", "c.yaml", "--set=output.path=a=b"), NPS_OK);
  ck_assert_int_eq(o.overrides.count, 2);
  ck_assert_str_eq(o.overrides.items[0].path, "models.0.parameters.weight");
  ck_assert_str_eq(o.overrides.items[0].value, "0.3");
  ck_assert_str_eq(o.overrides.items[1].path, "output.path");
  ck_assert_str_eq(o.overrides.items[1].value, "a=b");
  REFUSED("option --set: expected KEY=VALUE (such as parameters.lambda=0.5), found 'seed'", "c.yaml", "--set", "seed");
  REFUSED("option --set: expected KEY=VALUE (such as parameters.lambda=0.5), found '=1'", "c.yaml", "--set", "=1");
}
END_TEST

START_TEST(test_refused) {
  ck_assert_int_eq(parse((const char *const[]){NULL}), NPS_ERR_CONFIG);
  expect_problem(0, "missing argument CONFIG");
  REFUSED("unexpected argument 'x'", "c.yaml", "m.h5", "x");
  REFUSED("CONFIG is empty", "");
  REFUSED("unknown option '--fource', did you mean '--force'?", "c.yaml", "--fource");
  REFUSED("unknown option '--otuput', did you mean '--output'?", "c.yaml", "--otuput=m.h5");
  REFUSED("unknown option '--zzzzzz'", "c.yaml", "--zzzzzz");
  REFUSED("unknown option '-x' in '-qx'", "c.yaml", "-qx");
  REFUSED("option --log needs FILE", "c.yaml", "--log");
  REFUSED("option -o needs OUT", "c.yaml", "-o");
  REFUSED("option --log: FILE is empty", "c.yaml", "--log=");
  REFUSED("option --force takes no value", "c.yaml", "--force=yes");
  REFUSED("option --ranks: expected a whole number from 1 on, found '0'", "c.yaml", "--plan", "--ranks", "0");
  REFUSED("option --ranks: expected a whole number from 1 on, found '4x'", "c.yaml", "--plan", "--ranks", "4x");
  REFUSED("option --ranks: expected a whole number from 1 on, found '99999999999'", "c.yaml", "--plan",
          "--ranks=99999999999");
  REFUSED("option --ranks goes with --plan only", "c.yaml", "--ranks=4");
  REFUSED("option --ranks-per-node goes with --plan only", "c.yaml", "--ranks-per-node=4");
  REFUSED("options --plan and --check exclude each other", "c.yaml", "--plan", "--check");
  REFUSED("options --quiet and --verbose exclude each other", "c.yaml", "-qv");
  REFUSED("two outputs are given: argument 'a.h5' and --output 'b.h5'", "c.yaml", "a.h5", "-o", "b.h5");
}
END_TEST

START_TEST(test_all_problems) {
  ck_assert_int_eq(PARSE("--fource", "--ranks=x"), NPS_ERR_CONFIG);
  ck_assert_int_eq(nps_problem_count(), 2);
  expect_problem(0, "unknown option '--fource', did you mean '--force'?");
  expect_problem(1, "option --ranks: expected a whole number from 1 on, found 'x'");
}
END_TEST

START_TEST(test_help_and_version_win) {
  ck_assert_int_eq(PARSE("--help"), NPS_OK);
  ck_assert_int_eq(request, CLI_SHOW_HELP);
  ck_assert_int_eq(PARSE("c.yaml", "-h", "--nonsense"), NPS_OK);
  ck_assert_int_eq(request, CLI_SHOW_HELP);
  ck_assert_int_eq(PARSE("--version"), NPS_OK);
  ck_assert_int_eq(request, CLI_SHOW_VERSION);
}
END_TEST

/* Whether a text has this line. */
static bool has_line(const char *text, const char *line) {
  const char *at = strstr(text, line);
  return at && (at == text || at[-1] == '\n') && at[strlen(line)] == '\n';
}

START_TEST(test_help_text) {
  char *help = cli_help(&cli_merge_program);
  ck_assert(has_line(help, "Usage: nps-merge [OPTION]... CONFIG [OUT]"));
  ck_assert(has_line(help, "  -o, --output OUT        The same as the argument OUT."));
  ck_assert(has_line(help, "      --force             Replace an existing output."));
  ck_assert_ptr_nonnull(strstr(help, "mpirun -np 4 nps-merge config.yaml merged.h5"));
  for (int i = 0; i < cli_merge_program.option_count; i++) {
    char *name = nps_xstrf("--%s", cli_merge_program.options[i].name);
    ck_assert_msg((strstr(help, name) != NULL) == (cli_merge_program.options[i].kind != CLI_LATER), "%s", name);
    free(name);
  }
  for (const char *line = help; *line; line += strcspn(line, "\n") + 1)
    ck_assert_msg(strcspn(line, "\n") <= 80, "line wider than 80: %.100s", line);
  free(help);
}
END_TEST

static const cli_program_t *const all[] = {&cli_convert_program, &cli_eval_program, &cli_inspect_program,
                                           &cli_merge_program};

#define PROGRAMS ((int)(sizeof all / sizeof *all))

/* Whether a text has "--name" (its dashes as `dashes`) as a word. */
static bool has_option(const char *text, const char *dashes, const char *name) {
  char *escaped = nps_xstrdup(""), *word;
  for (const char *p = name; *p; p++) {
    char *longer = *p == '-' && dashes[0] == '\\' ? nps_xstrf("%s\\-", escaped) : nps_xstrf("%s%c", escaped, *p);
    free(escaped);
    escaped = longer;
  }
  word = nps_xstrf("%s%s", dashes, escaped);
  bool found = false;
  for (const char *at = strstr(text, word); at; at = strstr(at + 1, word))
    found |= !strchr("-abcdefghijklmnopqrstuvwxyz", at[strlen(word)]) || strncmp(at + strlen(word), "\\fR", 3) == 0;
  free(word);
  free(escaped);
  return found;
}

/* --help, man page and completion have the same options, and all have help. */
START_TEST(test_all_texts_have_all_options) {
  for (int p = 0; p < PROGRAMS; p++) {
    const struct {
      const char *dashes;
      char *text;
    } texts[] = {{"--", cli_help(all[p])},
                 {"\\-\\-", cli_man(all[p], all, PROGRAMS)},
                 {"--", cli_bash(all[p])},
                 {"--", cli_zsh(all[p])}};
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
      for (int i = 0; i < all[p]->option_count; i++) {
        const cli_option_t *option = &all[p]->options[i];
        ck_assert_msg(has_option(texts[k].text, texts[k].dashes, option->name) == (option->kind != CLI_LATER),
                      "%s, text %d: --%s", all[p]->name, (int)k, option->name);
      }
      free(texts[k].text);
    }
  }
}
END_TEST

START_TEST(test_man_page) {
  char *man = cli_man(&cli_merge_program, all, PROGRAMS);
  ck_assert(has_line(man, "[\\fIOPTION\\fR]... \\fICONFIG\\fR [\\fIOUT\\fR]"));
  ck_assert(has_line(man, "\\fB\\-o\\fR, \\fB\\-\\-output\\fR \\fIOUT\\fR"));
  ck_assert(has_line(man, "Replace an existing output."));
  ck_assert_ptr_nonnull(strstr(man, "0 done; 1 failed while running;"));
  ck_assert_ptr_null(strstr(strstr(man, "SEE ALSO"), "merge"));
  ck_assert_ptr_nonnull(strstr(strstr(man, "SEE ALSO"), "\\fBnps\\-eval\\fR(1)"));
  free(man);
}
END_TEST

START_TEST(test_paths) {
  ck_assert(cli_is_path("FILE") && cli_is_path("[G=]MODEL") && cli_is_path("OUT") && cli_is_path("BASE"));
  ck_assert(!cli_is_path("N") && !cli_is_path("KEY=VALUE") && !cli_is_path("G") && !cli_is_path(NULL));
}
END_TEST

START_TEST(test_version_text) {
  char *version = cli_version(&cli_merge_program);
  const char *library = strchr(version, '\n');
  ck_assert(strncmp(version, "nps-merge ", 10) == 0);
  ck_assert_ptr_nonnull(library);
  ck_assert_msg(strstr(library, "MPI") != NULL, "%s", version);
  free(version);
}
END_TEST

/* The letters and names of a table are different. */
START_TEST(test_table_is_unambiguous) {
  const cli_program_t *p = all[_i];
  for (int i = 0; i < p->option_count; i++)
    for (int j = 0; j < i; j++) {
      ck_assert_str_ne(p->options[i].name, p->options[j].name);
      ck_assert(!p->options[i].letter || p->options[i].letter != p->options[j].letter);
    }
}
END_TEST

START_TEST(test_go_on) {
  int exit_code = -1;
  ck_assert(cli_go_on(&cli_merge_program, NPS_OK, CLI_RUN, false, &exit_code));
  ck_assert_int_eq(exit_code, -1);
  ck_assert(!cli_go_on(&cli_merge_program, NPS_OK, CLI_SHOW_HELP, false, &exit_code));
  ck_assert_int_eq(exit_code, 0);
  nps_err_t err = PARSE("--fource");
  ck_assert(!cli_go_on(&cli_merge_program, err, request, false, &exit_code));
  ck_assert_int_eq(exit_code, 2);
  ck_assert_int_eq(nps_problem_count(), 0);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("cli");
  tcase_add_test(cases, test_defaults);
  tcase_add_test(cases, test_every_option);
  tcase_add_test(cases, test_output_forms);
  tcase_add_test(cases, test_double_dash);
  tcase_add_test(cases, test_overrides);
  tcase_add_test(cases, test_refused);
  tcase_add_test(cases, test_all_problems);
  tcase_add_test(cases, test_help_and_version_win);
  tcase_add_test(cases, test_help_text);
  tcase_add_test(cases, test_version_text);
  tcase_add_test(cases, test_all_texts_have_all_options);
  tcase_add_test(cases, test_man_page);
  tcase_add_test(cases, test_paths);
  tcase_add_loop_test(cases, test_table_is_unambiguous, 0, PROGRAMS);
  tcase_add_test(cases, test_go_on);
  const int code = run_tests("cli", cases);
  cli_merge_options_free(&o);
  return code;
}
