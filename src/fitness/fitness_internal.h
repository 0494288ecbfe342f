/** @file fitness_internal.h
 *  What the sources of fitness share: a network, its family, and reading a Hugging Face config. */
#ifndef NPS_FITNESS_INTERNAL_H
#define NPS_FITNESS_INTERNAL_H

#include "kernels.h"

#include "nps/fitness.h"
#include "nps/json.h"

typedef struct nps_mixture nps_mixture_t;

/** What is known of one row of logits, which comes in parts. */
typedef struct nps_tally {
  double most;         /**< the largest logit so far */
  double sum;          /**< Σ exp(logit − most); NaN: a logit was not finite */
  double own;          /**< the label's logit */
  int32_t best, label; /**< the class of the largest, of equal ones the first; label −1: no row */
  int64_t text;        /**< of the batch */
} nps_tally_t;

/** What a step of a forward pass runs on. */
typedef struct nps_pass {
  const float *const *weights;  /**< [tensors of the network] those that the stage needs whole */
  const float *table;           /**< the step's part of the table; NULL: none */
  const nps_mixture_t *mixture; /**< the network's; NULL: none */
  float *mixing;                /**< its working memory */
  const nps_dataset_t *data;
  const int64_t *samples; /**< [n] */
  int64_t n;
  float *x;             /**< the activation */
  nps_tally_t *tallies; /**< [rows] of the rows of logits */
  int64_t rows;         /**< most of them */
  float *logits;        /**< where they are wanted: [rows][classes]; else NULL */
  int classes;
} nps_pass_t;

/** A family of networks: one file, and one line in the table of net.c. */
typedef struct nps_net_family {
  const char *model_type;           /**< of config.json */
  const void *variant;              /**< what tells families of one file apart; NULL: there is one only */
  const char *const *linear_layers; /**< NULL-terminated: linear layers of the body are PREFIX.NUMBER.ONE_OF_THESE */

  /** Read the config, add the tensors, set the number of classes. Records all problems.
   *  @param[out] shape  the family's own description, freed with free_shape() also after an error */
  nps_err_t (*describe)(nps_net_t *net, const json_t *config, void **shape);
  void (*free_shape)(void *shape);

  nps_err_t (*check_data)(const nps_net_t *net, const nps_dataset_t *data);
  double (*flops)(const void *shape, const nps_dataset_t *data, int64_t n);
  int64_t (*activation)(const void *shape, const nps_dataset_t *data, int64_t n); /**< numbers from stage to stage */
  int64_t (*rows)(const void *shape, const nps_dataset_t *data, int64_t n);       /**< most rows of logits */
  int64_t (*scratch)(const void *shape, const nps_dataset_t *data, int64_t n);    /**< numbers of a step's memory */
  /** Run a step: pass->x is made by the embedding, changed by the layers; the head gives rows of logits to
   *  nps_pass_take(). */
  void (*run)(const void *shape, const nps_pass_t *pass, const nps_net_step_t *step, float *scratch);
} nps_net_family_t;

extern const nps_net_family_t nps_net_vit, nps_net_llama, nps_net_mistral, nps_net_qwen2, nps_net_qwen3, nps_net_bert,
    nps_net_roberta, nps_net_xlm_roberta, nps_net_gpt2, nps_net_t5, nps_net_mt5, nps_net_gemma2, nps_net_gemma3,
    nps_net_clip, nps_net_clip_vision;

struct nps_net {
  const nps_net_family_t *family;
  const nps_model_t *body, *head; /**< borrowed; head may be NULL */
  bool own_head_first;            /**< the head model gives only what the body lacks; else all of the head */
  nps_net_tensor_t *tensors;      /**< [count] */
  int count;
  int stages, stage;     /**< how many; the one whose tensors are being added */
  nps_net_step_t *steps; /**< [step_count] */
  int step_count;
  int classes;
  void *shape;
  nps_mixture_t *mixture; /**< NULL: the body has no experts */
};

/** Say that the tensors which are added next are those of a stage. */
void nps_net_begin_stage(nps_net_t *net, int stage);

/** Say that another stage uses a tensor too. */
void nps_net_share(nps_net_t *net, int tensor, int stage);

/** Add the steps of a stage, in order of the stages: one / as many as the rows of a table need. */
void nps_net_add_step(nps_net_t *net, int stage);
void nps_net_add_table(nps_net_t *net, int stage, int tensor, int64_t rows, int64_t width);

/** Add a tensor: its source, type and shape are checked, and problems recorded.
 *  @param is_head  may come from the head model
 *  @param[out] index  of the tensor; set also after an error */
nps_err_t nps_net_add(nps_net_t *net, const char *name, bool is_head, int ndim, const int64_t *shape, int *index);

/** Append a tensor to the list, whose source is not known yet. @return valid until the next one is appended */
nps_net_tensor_t *nps_net_append(nps_net_t *net, const char *name);

/** Check the type and shape of a catalogue's tensor. */
nps_err_t nps_net_check_tensor(const nps_model_t *model, const nps_tensor_info_t *info, int ndim, const int64_t *shape);

/** Find a tensor's description in the head model or the body, wherever it would be taken from. @return NULL: nowhere */
const nps_tensor_info_t *nps_net_look_up(const nps_net_t *net, const char *name, bool is_head, bool *of_head);

/** Read a key of the config; a missing one gives the default. Problems name the model, the key, and what was found. */
nps_err_t nps_net_get_count(const nps_net_t *net, const json_t *config, const char *key, int64_t standard,
                            int64_t *value); /**< 1 to 2^20 */
nps_err_t nps_net_get_pair(const nps_net_t *net, const json_t *config, const char *key, int64_t standard,
                           int64_t value[2]); /**< a count, or a list of two */
nps_err_t nps_net_get_number(const nps_net_t *net, const json_t *config, const char *key, double standard,
                             double *value); /**< 0 or more */
nps_err_t nps_net_get_bool(const nps_net_t *net, const json_t *config, const char *key, bool standard, bool *value);
nps_err_t nps_net_get_text(const nps_net_t *net, const json_t *config, const char *key, const char *standard,
                           const char **value);

/** Check that problem_type, where there is one, has one label a sample. */
nps_err_t nps_net_check_problem_type(const nps_net_t *net, const json_t *config);

/** As nps_net_get_count(), but null stands for a missing key. */
nps_err_t nps_net_get_count_or_null(const nps_net_t *net, const json_t *config, const char *key, int64_t standard,
                                    int64_t *value);

/** Read hidden_act / the key that names the activation. */
nps_err_t nps_net_get_activation(const nps_net_t *net, const json_t *config, const char *standard,
                                 nps_activation_fn **value);
nps_err_t nps_net_find_activation(const nps_net_t *net, const json_t *config, const char *key, const char *standard,
                                  nps_activation_fn **value);

/** Take a row of logits, or a part of it; parts come in order.
 *  @param row  among those of the batch, from 0; @param label  its class; @param z  [count] of the classes from `first` on */
void nps_pass_take(const nps_pass_t *pass, int64_t row, int label, const float *z, int64_t first, int64_t count);

/** Take a row of logits of each sample of the batch. @param z  [n][classes] */
void nps_pass_take_samples(const nps_pass_t *pass, const float *z, int64_t classes);

/** The `rows` of families that give a row of logits a sample. */
int64_t nps_pass_sample_rows(const void *shape, const nps_dataset_t *data, int64_t n);

/** Refuse an option that is not implemented: NPS_ERR_INPUT when the key is there and not null, false, empty. */
nps_err_t nps_net_refuse(const nps_net_t *net, const json_t *config, const char *key);

#endif
