/* nps-inspect: what is inside a model. */
#include "programs.h"

#include "nps/inspect.h"

typedef struct {
  const char *model, *against;
  bool json;
  int spectrum;
} options_t;

#define FIELD(name) offsetof(options_t, name)

static const cli_operand_t operands[] = {
    {"MODEL", true, FIELD(model),
     "A Hugging Face folder, a .safetensors file, a merged .h5 file, org/name in the local Hugging Face cache, "
     "BASE+ADAPTER, or ARCHIVE#NAME, a model in a compressed archive."},
};

static const cli_option_t option_table[] = {
    {"against", 0, CLI_TEXT, "BASE", FIELD(against),
     "Compare with BASE, tensor by tensor: norm of the difference, that norm relative to BASE's, largest change of an "
     "element, number of elements that changed."},
    {"json", 0, CLI_FLAG, NULL, FIELD(json), "Print one JSON object instead of tables."},
    {"spectrum", 0, CLI_COUNT, "K", FIELD(spectrum),
     "Show the K largest singular values of every matrix (with --against: of its difference), the energy they hold, "
     "and "
     "the effective rank."},
    {"version", 0, CLI_VERSION, NULL, 0, "Print the versions of the program and its libraries, and exit."},
    {"help", 'h', CLI_HELP, NULL, 0, "Print this text and exit."},
};

const cli_program_t cli_inspect_program = {
    .name = "nps-inspect",
    .about = "Shows what is inside a model: its tensors with types, shapes, sizes and norms, and for a merged file the "
             "recipe it was made with. NaN and infinity are counted. All tensors are read, part by part; several ranks "
             "(mpirun -np N) share the work and give the same figures.",
    .operands = operands,
    .operand_count = sizeof operands / sizeof *operands,
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
    .examples = "  nps-inspect merged.h5                        what is in a merged file?\n"
                "  nps-inspect tuned --against base --json      what did fine-tuning change?\n"
                "  nps-inspect tuned --against base --spectrum 8   of which rank is it?\n",
};

static nps_err_t inspect(const nps_comm_t *comm, const options_t *options) {
  nps_report_t *report = NULL;
  bool root = nps_comm_rank(comm) == 0;
  nps_report_options_t how = {.program = cli_inspect_program.name, .quiet = options->json};
  nps_err_t err = nps_comm_agree(comm, root ? nps_report_open(&how, &report) : NPS_OK);
  if (err == NPS_OK)
    err = nps_inspect_run(comm, options->model, options->against, options->spectrum, options->json, report);
  if (root) nps_report_problems(report, cli_inspect_program.name);
  nps_report_close(report);
  return err;
}

int cli_inspect_main(int argc, char **argv) {
  nps_comm_t *comm = cli_start(&argc, &argv);
  options_t options = {0};
  cli_request_t request = CLI_RUN;
  int exit_code = 0;
  nps_err_t err = cli_parse(&cli_inspect_program, argc, argv, &options, &request);
  if (cli_go_on(&cli_inspect_program, err, request, nps_comm_rank(comm) == 0, &exit_code))
    exit_code = nps_err_exit_code(inspect(comm, &options));
  cli_finish(comm);
  return cli_exit_code(&cli_inspect_program, exit_code);
}
