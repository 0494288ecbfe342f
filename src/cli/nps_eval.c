/* nps-eval: scores a model on calibration data. */
#include "overrides.h"
#include "programs.h"

#include "nps/command.h"
#include "nps/eval.h"

#include <stdlib.h>

typedef struct {
  const char *model, *data, *config;
  cli_list_t groups, heads, set;
  int batch; /* 0: not given */
  bool json;
  cli_overrides_t overrides;
} options_t;

enum { DEFAULT_BATCH = 64 };

#define FIELD(name) offsetof(options_t, name)

static const cli_operand_t operands[] = {
    {"MODEL", true, FIELD(model),
     "A Hugging Face folder, a .safetensors file, a merged .h5 file, org/name in the local Hugging Face cache, "
     "BASE+ADAPTER, or ARCHIVE#NAME, a model in a compressed archive."},
};

static const cli_option_t option_table[] = {
    {"data", 0, CLI_TEXT, "FILE", FIELD(data),
     "HDF5 file with one group a task: inputs [samples, channels, height, width] and labels [samples] for images, "
     "input_ids [samples, tokens] for texts. Required without --config."},
    {"group", 0, CLI_LIST, "G", FIELD(groups), "Score on group G of the data; may be repeated. Default: all groups."},
    {"head", 0, CLI_LIST, "[G=]MODEL", FIELD(heads),
     "Take the classifier from MODEL, for group G, or for all groups that no other is given for; may be repeated. "
     "Default: the model's own."},
    {"batch", 0, CLI_COUNT, "N", FIELD(batch), "Samples in one forward pass, 64 by default."},
    {"config", 0, CLI_TEXT, "CONFIG", FIELD(config),
     "Instead of --data: score by the command of CONFIG (fitness.evaluator: command), on its tasks, as a search of "
     "nps-merge would. What the command writes on stderr is shown."},
    {"set", 0, CLI_LIST, "KEY=VALUE", FIELD(set),
     "Change a value of CONFIG, as in --set fitness.timeout=60. May be repeated."},
    {"json", 0, CLI_FLAG, NULL, FIELD(json), "Print one JSON object instead of a table."},
    {"version", 0, CLI_VERSION, NULL, 0, "Print the versions of the program and its libraries, and exit."},
    {"help", 'h', CLI_HELP, NULL, 0, "Print this text and exit."},
};

const cli_program_t cli_eval_program = {
    .name = "nps-eval",
    .about = "Scores a model on calibration data with the native evaluators: accuracy and negative log-likelihood of "
             "every task, and their averages. Several ranks (mpirun -np N) share the samples and give the same "
             "figures. With "
             "--config a command scores it, any program.",
    .operands = operands,
    .operand_count = sizeof operands / sizeof *operands,
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
    .examples = "  nps-eval tuned --data test.h5 --group plain  how good is a model at its task?\n"
                "  nps-eval merged.h5 --data test.h5 --group plain --group blur \\\n"
                "           --head plain=tuned/plain --head blur=tuned/blur\n"
                "                                               and a merged one at all of them?\n"
                "  nps-eval merged.h5 --config config.yaml       what does the command of a search say of it?\n",
};

static nps_err_t evaluate(const nps_comm_t *comm, const options_t *options) {
  nps_report_t *report = NULL;
  bool root = nps_comm_rank(comm) == 0;
  nps_report_options_t how = {.program = cli_eval_program.name, .quiet = options->json};
  const nps_eval_request_t request = {options->model,
                                      options->data,
                                      options->groups.items,
                                      options->groups.count,
                                      options->heads.items,
                                      options->heads.count,
                                      options->batch ? options->batch : DEFAULT_BATCH,
                                      options->config,
                                      options->overrides.items,
                                      options->overrides.count};
  nps_err_t err = nps_comm_agree(comm, root ? nps_report_open(&how, &report) : NPS_OK);
  if (err == NPS_OK) err = nps_eval_run(comm, &request, options->json, report);
  if (root) nps_report_problems(report, cli_eval_program.name);
  nps_report_close(report);
  return err;
}

/* What belongs to --data, and what to --config. */
static nps_err_t check_together(const options_t *o) {
  nps_err_t err = NPS_OK;
  const bool given[] = {o->data, o->groups.count > 0, o->heads.count > 0, o->batch > 0};
  static const char *const names[] = {"data", "group", "head", "batch"};
  if (!o->data && !o->config) err = nps_fail(NPS_ERR_CONFIG, "missing option --data FILE, or --config CONFIG");
  for (size_t i = 0; o->config && i < sizeof given / sizeof *given; i++)
    if (given[i])
      err = nps_fail(NPS_ERR_CONFIG, "option --%s: does not go with --config, whose tasks are scored", names[i]);
  if (o->set.count > 0 && !o->config) err = nps_fail(NPS_ERR_CONFIG, "option --set goes with --config only");
  return err;
}

int cli_eval_main(int argc, char **argv) {
  options_t options = {0};
  cli_request_t request = CLI_RUN;
  int exit_code = 0;
  if (nps_command_supervise(argc, argv, &exit_code)) return exit_code;
  nps_comm_t *comm = cli_start(&argc, &argv);
  nps_err_t err = cli_parse(&cli_eval_program, argc, argv, &options, &request);
  if (err == NPS_OK && request == CLI_RUN)
    err = nps_err_worse(check_together(&options), cli_overrides_add(&options.set, &options.overrides));
  if (cli_go_on(&cli_eval_program, err, request, nps_comm_rank(comm) == 0, &exit_code))
    exit_code = nps_err_exit_code(evaluate(comm, &options));
  free(options.groups.items);
  free(options.heads.items);
  free(options.set.items);
  cli_overrides_free(&options.overrides);
  cli_finish(comm);
  return cli_exit_code(&cli_eval_program, exit_code);
}
