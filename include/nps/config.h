/** @file config.h
 *  The YAML config as a typed recipe. Layer 2. Everything here is local and does no I/O but nps_recipe_load().
 *
 *  Keys and forms are a superset of mergekit's. Which parameters a merge method knows is the business of `merge`; whether
 *  models exist that of `model`: here a parameter is a name with a value. */
#ifndef NPS_CONFIG_H
#define NPS_CONFIG_H

#include "nps/base.h"
#include "nps/tensor.h"

/** The value of a parameter in mergekit's forms: a number, a boolean, a text, a list of numbers (or of booleans) over the
 *  layers, or a list of {filter, value}. Numbers are finite, lists are not empty. A quoted number is a number, a quoted true or false
 *  a boolean, as in mergekit. Opaque. */
typedef struct nps_value nps_value_t;

/** A parameter as written. */
typedef struct nps_setting {
  char *name;         /**< owned */
  nps_value_t *value; /**< owned */
  int line;           /**< in the config, from 1; 0 for --set */
} nps_setting_t;

/** The parameters of one level (of a model, of the whole config). */
typedef struct nps_settings {
  nps_setting_t *items; /**< [count], owned */
  int count;
} nps_settings_t;

/** Find a parameter by name.
 *  @return NULL when the level does not have it */
const nps_setting_t *nps_settings_find(const nps_settings_t *settings, const char *name);

/** Evaluate a value as a number for one tensor; booleans give 0 and 1.
 *  Lists of numbers are interpolated linearly: position t·(length − 1); lists of booleans give the entry at the position
 *  rounded down. The first {filter, value} whose filter is part of the tensor's name, or "*", decides.
 *  @param tensor  the tensor's name; NULL matches only "*"
 *  @param t       position within the layers, 0 to 1
 *  @param[out] out  the number
 *  @return false when no filter matches, or a text was written: the next level decides */
bool nps_value_number(const nps_value_t *value, const char *tensor, double t, double *out);

/** Give a value that is one text, else NULL. Owned by the value. */
const char *nps_value_text(const nps_value_t *value);

/** Whether every leaf of a value is a number or boolean. */
bool nps_value_is_numeric(const nps_value_t *value);

/** Whether every leaf of a value is a boolean (true, false). */
bool nps_value_is_boolean(const nps_value_t *value);

/** Whether a value does not vary over layers or tensors: a scalar, a list of one, or a first filter "*" with such. */
bool nps_value_is_plain(const nps_value_t *value);

/** Count the {filter, value} of a value; of other forms 0. */
int nps_value_filter_count(const nps_value_t *value);

/** Give filter i of a value; "*" where none was written. Owned by the value. */
const char *nps_value_filter(const nps_value_t *value, int i);

/** Whether a filter is part of a tensor's name, or "*". @param tensor  NULL matches only "*" */
bool nps_filter_matches(const char *filter, const char *tensor);

/** One entry of `models`. */
typedef struct nps_recipe_model {
  char *model;               /**< path or org/name as written; owned */
  char *name;                /**< explicit or derived, unique; owned */
  nps_settings_t parameters; /**< of this model */
  int line;                  /**< of its entry; 0 for --set */
} nps_recipe_model_t;

/** Layers of one model in a slice. */
typedef struct nps_recipe_source {
  int model;          /**< index into the recipe's models */
  int64_t first, end; /**< layers [first, end), at least one */
  nps_settings_t parameters;
} nps_recipe_source_t;

/** One entry of `slices`. */
typedef struct nps_recipe_slice {
  nps_recipe_source_t *sources; /**< [source_count] at least one, all with as many layers; owned */
  int source_count;
  char *base_model;          /**< as written, or NULL: the config's; owned */
  nps_settings_t parameters; /**< of this slice */
  int line;                  /**< of its entry; 0 for --set */
} nps_recipe_slice_t;

/** Whose vocabulary the merged model has. */
typedef enum nps_tokenizer_source {
  NPS_TOKENIZER_BASE,
  NPS_TOKENIZER_UNION,
  NPS_TOKENIZER_MODEL
} nps_tokenizer_source_t;

/** One entry of `tokenizer.tokens`. Texts are owned. */
typedef struct nps_recipe_token {
  char *token;
  char *model; /**< whose row it takes, as written; or NULL */
  char *from;  /**< that model's token; NULL: the same */
  int64_t id;  /**< that model's row, or -1 */
  bool zero;   /**< its row is zeros */
  bool force;  /**< in all models */
} nps_recipe_token_t;

/** `tokenizer_source` or `tokenizer` */
typedef struct nps_recipe_tokenizer {
  bool given; /**< false: embeddings are merged as they are */
  nps_tokenizer_source_t source;
  char *model;                /**< MODEL: as written; owned */
  nps_recipe_token_t *tokens; /**< [token_count]; owned */
  int token_count;
  int64_t pad; /**< pad_to_multiple_of; 0: none */
} nps_recipe_tokenizer_t;

/** What magnitudes are ranked over. */
typedef enum nps_scope { NPS_SCOPE_MODEL, NPS_SCOPE_TENSOR } nps_scope_t;

/** What is made of the pruned task vectors. */
typedef enum nps_application {
  NPS_APPLICATION_FUSION,     /**< one model of all */
  NPS_APPLICATION_TRANSFER,   /**< a model of each */
  NPS_APPLICATION_COMPRESSION /**< one archive, from which a model of each expands */
} nps_application_t;

/** Whether every task vector makes a model of its own. */
static inline bool nps_application_is_of_each(nps_application_t application) {
  return application != NPS_APPLICATION_FUSION;
}

/** `archive:` */
typedef struct nps_recipe_archive {
  bool given;
  int value_bits;  /**< of a stored value: 4, 8 or 16 */
  bool embed_base; /**< the base is in the archive, not only named there */
} nps_recipe_archive_t;

/** Numbers for every subspace, of all models or of one. */
typedef struct nps_recipe_row {
  char *model;     /**< name of a listed model, or NULL: of all; owned */
  double *numbers; /**< [count] finite; count is the number of subspaces; owned */
  int count;
} nps_recipe_row_t;

/** `nps:` */
typedef struct nps_recipe_nps {
  bool given;
  nps_application_t application;
  int subspaces; /**< M */
  nps_scope_t scope;
  double density; /**< 0 to 1 */
  bool singular;  /**< partition: singular */
  bool sum;       /**< of: sum */
  char **exclude; /**< [exclude_count] spectral_exclude; owned */
  int exclude_count;
  nps_recipe_row_t
      *weights; /**< [weight_rows] none: all 1; with singular M + 1 numbers where the rest's is given; owned */
  int weight_rows;
  nps_recipe_row_t *priorities; /**< [priority_rows] at least 0; none: |w|; owned */
  int priority_rows;
} nps_recipe_nps_t;

typedef enum nps_algorithm {
  NPS_ALGORITHM_CMA_ES,
  NPS_ALGORITHM_SEP_CMA_ES,
  NPS_ALGORITHM_RANDOM,
  NPS_ALGORITHM_NONE
} nps_algorithm_t;

typedef enum nps_stage { NPS_STAGE_PRUNE, NPS_STAGE_FUSE, NPS_STAGE_JOINT } nps_stage_t;

/** Which genome is the result: the best of all, CMA-ES's last mean, or the average of its means. */
typedef enum nps_final { NPS_FINAL_BEST, NPS_FINAL_MEAN, NPS_FINAL_AVERAGE } nps_final_t;

/** Kinds of variables of a search. */
typedef enum nps_variable { NPS_VARIABLE_WEIGHT, NPS_VARIABLE_LOG_PRIORITY, NPS_VARIABLE_LAMBDA } nps_variable_t;
enum { NPS_VARIABLES = 3 };

/** `search:` */
typedef struct nps_recipe_search {
  bool given;
  nps_algorithm_t algorithm;
  nps_stage_t stages[2]; /**< in order; the default depends on the application */
  int stage_count;
  bool vary_weight, vary_density; /**< `variables`, at least one */
  bool per_model;
  double bounds[NPS_VARIABLES][2]; /**< [variable][lower, upper], lower < upper */
  double start_weight, start_log_priority;
  char *start_from; /**< path as written, or NULL; owned */
  int restarts;
  int generations; /**< at least 1 */
  int population;  /**< 0: by the formula; else at least 2 */
  double sigma;    /**< above 0 */
  nps_final_t final;
  int64_t max_evaluations; /**< 0: no limit */
  int ranks_per_model;     /**< that hold the models together; 0: as few as memory allows */
  int patience;            /**< generations; 0: by the formula */
  double max_time;         /**< seconds of a run, then it stops and can be resumed; 0: no limit */
  char *snapshot;          /**< path, or NULL: beside the output; owned */
} nps_recipe_search_t;

typedef enum nps_evaluator { NPS_EVALUATOR_NATIVE, NPS_EVALUATOR_NONE, NPS_EVALUATOR_COMMAND } nps_evaluator_t;
typedef enum nps_metric {
  NPS_METRIC_ACCURACY,
  NPS_METRIC_NLL,
  NPS_METRIC_VALUE /**< whatever a command gives */
} nps_metric_t;
typedef enum nps_objective {
  NPS_OBJECTIVE_MEAN,
  NPS_OBJECTIVE_WORST,
  NPS_OBJECTIVE_NORMALIZED,
  NPS_OBJECTIVE_H_SCORE /**< of accuracies: harmonic mean of that of the models' tasks and that of tasks of no model */
} nps_objective_t;

/** One entry of `fitness.tasks`. Texts are owned. */
typedef struct nps_recipe_task {
  char *name; /**< unique */
  char
      *model; /**< name of a listed model: `model`, else `name` where a model has that name; NULL: a task of no model */
  char *data; /**< path as written; NULL, with a command: none */
  char *group; /**< default: the name */
  char *head;  /**< name of a listed model, or a path, as written; NULL: the task's model */
  int line;
} nps_recipe_task_t;

/** `fitness:` */
typedef struct nps_recipe_fitness {
  bool given;
  nps_evaluator_t evaluator;
  nps_metric_t metric;
  nps_objective_t objective;
  double holdout;        /**< 0 to below 1 */
  int sharpness_samples; /**< perturbations that a candidate's score is the mean over; 0: it is its own */
  double sharpness_rho;  /**< above 0 */
  int batch;             /**< samples, at least 1 */
  char **command;        /**< [command_count] program and arguments, with evaluator command; owned */
  int command_count;
  double timeout;           /**< seconds that the command's answer may take */
  bool less_is_better;      /**< direction, of metric value */
  char *directory;          /**< where models are handed over to it, or NULL; no part of the recipe; owned */
  nps_recipe_task_t *tasks; /**< [task_count]; owned */
  int task_count;
} nps_recipe_fitness_t;

/** A config, checked as far as it can be without looking at other files. All pointers are owned by the recipe. */
typedef struct nps_recipe {
  char *file;         /**< the config's path, for messages; its folder is where paths are looked up first */
  char *merge_method; /**< as written, e.g. "ties" */
  int method_line;
  char *base_model; /**< NULL when there is none */
  int base_line;
  nps_recipe_model_t *models; /**< [model_count] in the order of the config; with slices each model of a source once */
  int model_count;
  nps_recipe_slice_t *slices; /**< [slice_count] none: whole models are merged */
  int slice_count;
  nps_settings_t module;     /**< of the module `default`, between the levels of a slice and of all */
  nps_settings_t parameters; /**< global level */
  nps_recipe_tokenizer_t tokenizer;
  bool copy_tokenizer; /**< the output gets the tokenizer's files; true by default */
  char *chat_template; /**< auto, a name, or a template; or NULL */
  uint64_t seed;
  int64_t memory_per_rank;      /**< bytes; 0: auto */
  bool has_out_dtype;           /**< out_dtype or dtype was given */
  nps_dtype_t out_dtype;        /**< out_dtype, else dtype */
  char *output_path;            /**< OUT, -o, or output.path; NULL when none */
  char *output_head;            /**< name of a listed model, or NULL */
  int64_t shard_size;           /**< largest shard of a Hugging Face folder, bytes */
  nps_recipe_nps_t nps;         /**< merge_method nps only; defaults where not given */
  nps_recipe_archive_t archive; /**< application compression only */
  nps_recipe_search_t search;
  nps_recipe_fitness_t fitness;
} nps_recipe_t;

/** A change from the command line: "key.path" and the value in YAML ("models.0.parameters.weight", "0.3"). */
typedef struct nps_override {
  const char *path;
  const char *value;
} nps_override_t;

/** Parse and check a config text, after applying overrides.
 *  Unknown keys, wrong types, values out of range, keys not built yet: all problems are recorded, with line numbers
 *  and the nearest known key. Keys that mergekit knows and that have no effect here are noted (nps_note()).
 *  @param text       the YAML; @param file  its name, for messages
 *  @param overrides  [n_overrides], in the order of the command line
 *  @param[out] out   freed with nps_recipe_free()
 *  @return NPS_ERR_CONFIG */
nps_err_t nps_recipe_parse(const char *text, const char *file, const nps_override_t *overrides, int n_overrides,
                           nps_recipe_t **out);

/** Read a config file (at most 16 MiB) and parse it. NPS_ERR_CONFIG also when the file cannot be read. */
nps_err_t nps_recipe_load(const char *file, const nps_override_t *overrides, int n_overrides, nps_recipe_t **out);

/** Free a recipe; NULL is fine. */
void nps_recipe_free(nps_recipe_t *recipe);

/** Write the resolved recipe as YAML that parses to the same recipe: defaults filled in, names explicit, overrides
 *  applied; output.path, search.snapshot and search.max_time left out (the same merge has the same recipe wherever it is
 *  written, and however often it was interrupted).
 *  @return freed with free() */
char *nps_recipe_emit(const nps_recipe_t *recipe);

/** Write what scores and steps of a search depend on as lines "key: value": the recipe without paths and without limits
 *  that may change when a search goes on.
 *  @return freed with free() */
char *nps_recipe_emit_search(const nps_recipe_t *recipe);

/** Parse a size: "512MiB", "5GB", "1073741824". KB, MB, GB, TB are decimal, KiB, MiB, GiB, TiB binary.
 *  @return false when it is not a size above 0 that fits */
bool nps_parse_size(const char *text, int64_t *bytes);

#endif
