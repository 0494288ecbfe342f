/* nps-merge: merges fine-tuned models by a config. */
#include "nps_merge_options.h"
#include "programs.h"

#include "nps/command.h"
#include "nps/run.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t asked_to_stop;

static void ask_to_stop(int signal) {
  (void)signal;
  asked_to_stop = 1;
}

static bool stop(void) { return asked_to_stop != 0; }

/* Batch systems warn with SIGUSR1 before the time is up, and mpirun passes it on to all ranks. */
static void take_warnings(void) {
  struct sigaction action = {.sa_handler = ask_to_stop, .sa_flags = SA_RESTART};
  sigemptyset(&action.sa_mask);
  sigaction(SIGUSR1, &action, NULL);
}

/* ---- Ctrl-C and SIGTERM in a search ---- */

static const int deadly[] = {SIGINT, SIGTERM};
static char snapshot[PATH_MAX], farewell[PATH_MAX + 80];

/* Calls nothing but what signal handlers may. */
static void say_and_end(int signal_number) {
  static const char nothing[] = "\nnps-merge: interrupted before anything was kept in a snapshot\n";
  const char *text = access(snapshot, F_OK) == 0 ? farewell : nothing;
  if (write(STDERR_FILENO, text, strlen(text)) < 0) text = NULL; /* nothing can be done */
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

/* A signal that is ignored (nohup, a shell's background) stays so. */
static void set_handler(int signal_number, void (*handler)(int)) {
  struct sigaction old, action = {.sa_handler = handler, .sa_flags = SA_NODEFER};
  sigemptyset(&action.sa_mask);
  if (sigaction(signal_number, NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(signal_number, &action, NULL);
}

static void guard_search(const char *path) {
  const size_t count = sizeof deadly / sizeof *deadly;
  for (size_t i = 0; !path && i < count; i++) set_handler(deadly[i], SIG_DFL);
  if (!path || strlen(path) >= sizeof snapshot) return;
  strcpy(snapshot, path);
  snprintf(farewell, sizeof farewell, "\nnps-merge: interrupted; run again with --resume to go on from %s\n", path);
  for (size_t i = 0; i < count; i++) set_handler(deadly[i], say_and_end);
}

static nps_err_t run(const nps_comm_t *comm, const cli_merge_options_t *o) {
  const nps_run_options_t options = {
      .config = o->config,
      .out = o->out,
      .overrides = o->overrides.items,
      .override_count = o->overrides.count,
      .check = o->check,
      .plan = o->plan,
      .ranks = o->ranks,
      .ranks_per_node = o->ranks_per_node,
      .force = o->force,
      .resume = o->resume,
      .stop = stop,
      .guard_search = guard_search,
      .log = o->log,
      .quiet = o->quiet,
      .verbose = o->verbose,
  };
  return nps_run(comm, &options);
}

int cli_merge_main(int argc, char **argv) {
  cli_merge_options_t options;
  cli_request_t request = CLI_RUN;
  int exit_code = 0;
  if (nps_command_supervise(argc, argv, &exit_code)) return exit_code;
  nps_comm_t *comm = cli_start(&argc, &argv);
  take_warnings();
  nps_err_t err = cli_merge_options(argc, argv, &options, &request);
  if (cli_go_on(&cli_merge_program, err, request, nps_comm_rank(comm) == 0, &exit_code))
    exit_code = nps_err_exit_code(run(comm, &options));
  cli_merge_options_free(&options);
  cli_finish(comm);
  return cli_exit_code(&cli_merge_program, exit_code);
}
