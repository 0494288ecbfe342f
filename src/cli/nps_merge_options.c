#include "nps_merge_options.h"

#include "programs.h"

#include <stdlib.h>
#include <string.h>

#define FIELD(name) offsetof(cli_merge_options_t, name)

static const cli_operand_t operands[] = {
    {"CONFIG", true, FIELD(config),
     "YAML file that names the models, the method and its parameters. Configs written for mergekit work too, "
     "for the methods that both know; docs/mergekit.md lists the differences."},
    {"OUT", false, FIELD(out),
     "Where the merged model goes: a file that ends in .h5 (one HDF5 file), or a folder that transformers can load. "
     "Default: output.path of CONFIG."},
};

static const cli_option_t options[] = {
    {"output", 'o', CLI_TEXT, "OUT", FIELD(output), "The same as the argument OUT."},
    {"force", 0, CLI_FLAG, NULL, FIELD(force), "Replace an existing output."},
    {"set", 0, CLI_LIST, "KEY=VALUE", FIELD(set),
     "Change a value of CONFIG for this run, as in --set models.0.parameters.weight=0.3. May be repeated."},
    {"check", 0, CLI_FLAG, NULL, FIELD(check),
     "Only check CONFIG and the models' headers, list every problem, and exit."},
    {"plan", 0, CLI_FLAG, NULL, FIELD(plan),
     "Only show which rank does what, with predicted memory, disk and time, and exit."},
    {"ranks", 0, CLI_COUNT, "N", FIELD(ranks), "With --plan: plan for N ranks instead of those that run."},
    {"ranks-per-node", 0, CLI_COUNT, "K", FIELD(ranks_per_node), "With --plan: how many of them share a node."},
    {"resume", 0, CLI_FLAG, NULL, FIELD(resume),
     "Go on from the snapshot of an interrupted search; start where there is none; do nothing where the output is "
     "complete."},
    {"copy-tokenizer", 0, CLI_FLAG, NULL, FIELD(copy_tokenizer),
     "Copy the tokenizer's files to the output (the default)."},
    {"no-copy-tokenizer", 0, CLI_FLAG, NULL, FIELD(no_copy_tokenizer), "Do not copy them."},
    {"log", 0, CLI_TEXT, "FILE", FIELD(log), "Append every event of the run to FILE, one JSON object a line."},
    {"quiet", 'q', CLI_FLAG, NULL, FIELD(quiet), "Print nothing but errors."},
    {"verbose", 'v', CLI_FLAG, NULL, FIELD(verbose), "Print also the inputs, the plan, and what each step took."},
    {"version", 0, CLI_VERSION, NULL, 0, "Print the versions of the program and its libraries, and exit."},
    {"help", 'h', CLI_HELP, NULL, 0, "Print this text and exit."},
};

/* Those of mergekit-yaml that have no name here. */
static const cli_foreign_t mergekit[] = {
    {"allow-crimes", false, NULL},
    {"async-write", false, NULL},
    {"clone-tensors", false, NULL},
    {"cuda", false, NULL},
    {"device", true, NULL},
    {"gpu-rich", false, NULL},
    {"lazy-unpickle", false, NULL},
    {"lora-merge-cache", true, NULL},
    {"lora-merge-dtype", true, NULL},
    {"low-cpu-memory", false, NULL},
    {"multi-gpu", false, NULL},
    {"num-threads", true, NULL},
    {"out-shard-size", true, "--set output.shard_size=5GB, in bytes"},
    {"random-seed", true, "--set seed=N"},
    {"read-to-gpu", false, NULL},
    {"safe-serialization", false, NULL},
    {"transformers-cache", true, "the variable HF_HUB_CACHE"},
    {"trust-remote-code", false, NULL},
    {"unsafe-truncate-embeddings", false, "tokenizer_source in CONFIG"},
    {"verbosity", true, "--verbose"},
    {"write-model-card", false, NULL},
    {"write-threads", true, NULL},
};

const cli_program_t cli_merge_program = {
    .name = "nps-merge",
    .about =
        "Merges fine-tuned models that started from the same base model into one model with the abilities of "
        "all. CONFIG says which models and how. Started with mpirun or srun, the ranks share the work; memory stays "
        "bounded however large the models are. Nothing is written before all inputs are checked, and the output "
        "appears only when it is complete.",
    .operands = operands,
    .operand_count = sizeof operands / sizeof *operands,
    .options = options,
    .option_count = sizeof options / sizeof *options,
    .foreign_program = "mergekit",
    .foreign = mergekit,
    .foreign_count = sizeof mergekit / sizeof *mergekit,
    .examples = "  mpirun -np 4 nps-merge config.yaml merged.h5     merge on 4 ranks\n"
                "  nps-merge --plan --ranks 64 config.yaml          what would 64 ranks need?\n",
};

static nps_err_t check_together(cli_merge_options_t *o) {
  nps_err_t err = NPS_OK;
  if (o->ranks && !o->plan) err = nps_fail(NPS_ERR_CONFIG, "option --ranks goes with --plan only");
  if (o->ranks_per_node && !o->plan) err = nps_fail(NPS_ERR_CONFIG, "option --ranks-per-node goes with --plan only");
  if (o->plan && o->check) err = nps_fail(NPS_ERR_CONFIG, "options --plan and --check exclude each other");
  if (o->copy_tokenizer && o->no_copy_tokenizer)
    err = nps_fail(NPS_ERR_CONFIG, "options --copy-tokenizer and --no-copy-tokenizer exclude each other");
  if (o->quiet && o->verbose) err = nps_fail(NPS_ERR_CONFIG, "options --quiet and --verbose exclude each other");
  if (o->out && o->output && strcmp(o->out, o->output) != 0)
    err = nps_fail(NPS_ERR_CONFIG, "two outputs are given: argument '%s' and --output '%s'", o->out, o->output);
  if (!o->out) o->out = o->output;
  return err;
}

nps_err_t cli_merge_options(int argc, char *const argv[], cli_merge_options_t *out, cli_request_t *request) {
  *out = (cli_merge_options_t){0};
  nps_err_t err = cli_parse(&cli_merge_program, argc, argv, out, request);
  if (*request != CLI_RUN) return err;
  if (out->copy_tokenizer || out->no_copy_tokenizer)
    cli_overrides_put(&out->overrides, nps_xstrdup("copy_tokenizer"), out->copy_tokenizer ? "true" : "false");
  err = nps_err_worse(err, cli_overrides_add(&out->set, &out->overrides));
  return nps_err_worse(err, check_together(out));
}

void cli_merge_options_free(cli_merge_options_t *o) {
  cli_overrides_free(&o->overrides);
  free(o->set.items);
  *o = (cli_merge_options_t){0};
}
