/* nps-convert: a model in another form, or as an adapter. */
#include "programs.h"

#include "nps/convert.h"
#include "nps/model.h"

#include <errno.h>
#include <stdlib.h>

typedef struct {
  const char *source, *target, *base, *energy, *task;
  bool force;
  int rank;
} options_t;

#define FIELD(name) offsetof(options_t, name)

static const cli_operand_t operands[] = {
    {"SRC", true, FIELD(source),
     "A Hugging Face folder, a .safetensors file, a merged .h5 file, org/name in the local Hugging Face cache, or "
     "ARCHIVE#NAME, a model in a compressed archive."},
    {"DST", true, FIELD(target),
     "What is written: a file that ends in .h5 (one HDF5 file), or a folder that transformers or the peft library "
     "loads."},
};

static const cli_option_t option_table[] = {
    {"force", 0, CLI_FLAG, NULL, FIELD(force), "Replace an existing output."},
    {"base", 0, CLI_TEXT, "BASE", FIELD(base),
     "Write a LoRA adapter of the difference between SRC and BASE, with one of the next two options."},
    {"lora-rank", 0, CLI_COUNT, "R", FIELD(rank),
     "Keep the R largest singular values of every linear layer's difference."},
    {"lora-energy", 0, CLI_TEXT, "E", FIELD(energy),
     "Keep as many of every linear layer as hold the part E (0 to 1) of the sum of their squares."},
    {"task", 0, CLI_TEXT, "NAME", FIELD(task),
     "Expand the model NAME of the compressed archive SRC, as SRC#NAME does."},
    {"version", 0, CLI_VERSION, NULL, 0, "Print the versions of the program and its libraries, and exit."},
    {"help", 'h', CLI_HELP, NULL, 0, "Print this text and exit."},
};

const cli_program_t cli_convert_program = {
    .name = "nps-convert",
    .about =
        "Writes a model in another form: all tensors as they are, byte for byte, with the config and the tokenizer "
        "files, from a folder or a .safetensors file to HDF5 and back; of BASE+ADAPTER, the base with a PEFT adapter "
        "put "
        "into it. With --base: what fine-tuning changed in the "
        "linear layers, as a low-rank adapter for the peft library. Several ranks (mpirun -np N) share the work and "
        "give the same files.",
    .operands = operands,
    .operand_count = sizeof operands / sizeof *operands,
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
    .examples = "  nps-convert merged.h5 merged                 a folder that transformers loads\n"
                "  nps-convert model model.h5                   and back\n"
                "  nps-convert archive.h5 plain --task plain    a model of a compressed archive\n"
                "  nps-convert tuned adapter --base base --lora-rank 16\n",
};

static nps_err_t read_energy(const char *text, double *energy) {
  char *end = NULL;
  errno = 0;
  *energy = strtod(text, &end);
  if (errno || end == text || *end || !(*energy > 0 && *energy <= 1))
    return nps_fail(NPS_ERR_CONFIG, "option --lora-energy: expected a number above 0, at most 1, found '%s'", text);
  return NPS_OK;
}

static nps_err_t check_together(const options_t *o, nps_convert_request_t *request) {
  nps_err_t err = NPS_OK;
  if (o->energy) err = read_energy(o->energy, &request->energy);
  if (o->energy && o->rank) err = nps_fail(NPS_ERR_CONFIG, "options --lora-rank and --lora-energy exclude each other");
  if (o->base && !o->energy && !o->rank)
    err = nps_fail(NPS_ERR_CONFIG, "option --base needs --lora-rank R or --lora-energy E");
  if (!o->base && (o->energy || o->rank))
    err = nps_fail(NPS_ERR_CONFIG, "option --lora-%s needs --base BASE", o->rank ? "rank" : "energy");
  if (o->base && o->target && nps_output_is_hdf5(o->target))
    err = nps_fail(NPS_ERR_CONFIG, "%s: an adapter is a folder, expected a name that does not end in .h5", o->target);
  return err;
}

static nps_err_t convert(const nps_comm_t *comm, const nps_convert_request_t *request) {
  nps_report_t *report = NULL;
  bool root = nps_comm_rank(comm) == 0;
  nps_report_options_t how = {.program = cli_convert_program.name};
  nps_err_t err = nps_comm_agree(comm, root ? nps_report_open(&how, &report) : NPS_OK);
  if (err == NPS_OK) err = nps_convert_run(comm, request, report);
  if (root) nps_report_problems(report, cli_convert_program.name);
  nps_report_close(report);
  return err;
}

int cli_convert_main(int argc, char **argv) {
  nps_comm_t *comm = cli_start(&argc, &argv);
  options_t options = {0};
  cli_request_t asked = CLI_RUN;
  int exit_code = 0;
  nps_err_t err = cli_parse(&cli_convert_program, argc, argv, &options, &asked);
  nps_convert_request_t request = {.source = options.source,
                                   .target = options.target,
                                   .force = options.force,
                                   .base = options.base,
                                   .rank = options.rank};
  char *expanded = options.task && options.source ? nps_xstrf("%s#%s", options.source, options.task) : NULL;
  if (expanded) request.source = expanded;
  if (asked == CLI_RUN) err = nps_err_worse(err, check_together(&options, &request));
  if (cli_go_on(&cli_convert_program, err, asked, nps_comm_rank(comm) == 0, &exit_code))
    exit_code = nps_err_exit_code(convert(comm, &request));
  free(expanded);
  cli_finish(comm);
  return cli_exit_code(&cli_convert_program, exit_code);
}
