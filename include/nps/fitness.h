/** @file fitness.h
 *  Native evaluators: networks from Hugging Face configs, their forward passes in float32 on BLAS, and scores on
 *  calibration data. Layer 5. Everything here is local but what says otherwise.
 *
 *  A network is a description: tensors by name and shape, and a forward pass. It holds no weights: whoever calls gives
 *  an array of pointers, one a tensor, so that candidates, heads and stored models can be mixed. A family of networks is
 *  one nps_net_family_t in src/fitness/ and one line in its table. */
#ifndef NPS_FITNESS_H
#define NPS_FITNESS_H

#include "nps/base.h"
#include "nps/model.h"

/* ---- calibration data ---- */

/** What counts as right, by the conventions of lm-evaluation-harness where texts go on. */
typedef enum {
  NPS_SCORED_PLAIN, /**< each sample's label, or each place of a text by itself */
  NPS_SCORED_EXACT, /**< exact_match: a text, where all its places are right: so greedy decoding gives the answer */
  NPS_SCORED_SUM,   /**< acc: a sample, where the right choice has the largest log-likelihood */
  NPS_SCORED_MEAN   /**< acc_norm: likewise, divided by the choice's length */
} nps_scored_t;

/** One task's samples, images or texts, in memory. All pointers are owned. */
typedef struct nps_dataset {
  char *path;  /**< file */
  char *group; /**< in it */
  int64_t samples;
  int64_t channels, height, width; /**< of an image */
  float *inputs;                   /**< images: [samples][channels][height][width]; texts: NULL */
  int64_t choices;                 /**< texts of a sample, one of which is right; 0: a sample is one text */
  int64_t tokens;                  /**< of a text */
  int32_t *ids;                    /**< texts: [rows][tokens]; images: NULL */
  int32_t *mask;                   /**< [rows][tokens] 0 where there is no token; NULL: there is one everywhere */
  int32_t *types;                  /**< [rows][tokens] token types, of networks that have them; NULL: 0 */
  int32_t *answer;  /**< choices: [texts][tokens] not 0 where a token is part of the answer; NULL: all are */
  int32_t *lengths; /**< choices: [texts] what acc_norm divides by; NULL: the answer's tokens */
  int64_t places;   /**< labels of a text, or tokens of a target; 0: one label a sample */
  int32_t *targets; /**< choices of encoder-decoders: [texts][places], −100 where there is no token; NULL: not those */
  int32_t *labels;  /**< images, choices: [samples]; texts: [samples], or [samples][places], what is asked for at each
                         place, −100: nothing; NULL: the tokens themselves */
  nps_scored_t scored;
} nps_dataset_t;

/** Give the number of texts, choices counted / of rows of input_ids, which the choices of encoder-decoders share. */
int64_t nps_dataset_texts(const nps_dataset_t *data, int64_t samples);
int64_t nps_dataset_rows(const nps_dataset_t *data, int64_t samples);

/** Give the targets of encoder-decoders, [texts][places]: `targets`, or `labels` where a sample has one. */
const int32_t *nps_dataset_targets(const nps_dataset_t *data);

/** Give the number of a sample's labels. */
int64_t nps_dataset_labels(const nps_dataset_t *data);

/** List the groups of a calibration file (HDF5), in byte order. @param[out] names  freed with nps_h5_free_names() */
nps_err_t nps_dataset_groups(const char *path, char ***names, int *count);

/** Read one group: images `inputs` float32 [N, channels, height, width], `labels` int32 [N]; or texts `input_ids` int32
 *  [N, tokens], optional `attention_mask`, `token_type_ids` of the same shape and `labels` [N] or [N, places]; or choices
 *  `input_ids` [N, choices, tokens], optional `attention_mask`, `token_type_ids`, `answer_mask` of the same shape and `lengths`
 *  [N, choices], with `labels` [N]; or choices of encoder-decoders, `input_ids` [N, tokens] with `target_ids` [N, choices,
 *  places] and `labels` [N] (other float and integer types are converted). The group's attribute `metric`: exact_match, acc,
 *  acc_norm.
 *  NPS_ERR_INPUT: not HDF5, a missing group or dataset, shapes that disagree, NaN or infinity, no sample;
 *  the message names file, group and what was expected. @param[out] out  freed with nps_dataset_free() */
nps_err_t nps_dataset_read(const char *path, const char *group, nps_dataset_t **out);
void nps_dataset_free(nps_dataset_t *dataset);

/** Give the bytes of a sample's inputs and labels. */
int64_t nps_dataset_sample_bytes(const nps_dataset_t *dataset);

/* ---- networks ---- */

/** A tensor that a network needs. */
typedef struct nps_net_tensor {
  char *name;      /**< Hugging Face name as in the model; owned by the network */
  bool of_head;    /**< taken from the head model, else from the body */
  bool of_experts; /**< a part of the body's experts */
  int source;      /**< index in the catalogue of the head model, the body, or its experts' parts */
  int64_t count;
  int stage; /**< that uses it */
  int also;  /**< another that does (a tied embedding); -1: none */
} nps_net_tensor_t;

typedef struct nps_net nps_net_t;

/** Make the network of a model. All problems are recorded.
 *  @param body  catalogue with config_json; its tensors are the network's
 *  @param head  catalogue that tensors of the head (classifier.*) which the body lacks are taken from; NULL: none
 *  @param[out] out  freed with nps_net_free(); borrows the catalogues
 *  @return NPS_ERR_INPUT: no config, unknown model_type, an option that is not implemented (named), a missing tensor, a
 *    shape that does not fit the config, experts for what is no linear layer of the network */
nps_err_t nps_net_new(const nps_model_t *body, const nps_model_t *head, nps_net_t **out);

/** The same, but with a head model the tensors of the head (classifier.*) are its own: the body's do not count. */
nps_err_t nps_net_new_with_head(const nps_model_t *body, const nps_model_t *head, nps_net_t **out);

void nps_net_free(nps_net_t *net);

/** Give the tensors of a network. */
int nps_net_tensor_count(const nps_net_t *net);
const nps_net_tensor_t *nps_net_tensor(const nps_net_t *net, int i);

/** Find the weights of linear layers in a model's body: by the family's definition where config.json's model_type has a native
 *  evaluator, else the matrices NAME.weight, [out, in], within numbered layers, embeddings left out. Embeddings, norms, patch
 *  convolutions and heads are none.
 *  @param config_json  may be NULL; @param names, ndim  [count]; @param[out] linear  [count]
 *  @return whether the family is known */
bool nps_net_find_linear(const char *config_json, const char *const *names, const int *ndim, int count, bool *linear);

/** Give the number of classes; of networks that go on with texts the size of the vocabulary. */
int nps_net_classes(const nps_net_t *net);

/** Give the floating-point operations of the matrix products in one forward pass over n samples of the data, without
 *  experts. */
double nps_net_flops(const nps_net_t *net, const nps_dataset_t *data, int64_t n);

/** Check that data fit a network: image size, channels, labels within the classes. NPS_ERR_INPUT. */
nps_err_t nps_net_check_data(const nps_net_t *net, const nps_dataset_t *data);

/** Largest number of samples in a batch: products of larger ones would be too large for BLAS. */
#define NPS_NET_MOST_BATCH 4096

/** Give the bytes of working memory for batches of up to `batch` samples of the data, at most NPS_NET_MOST_BATCH. */
size_t nps_net_scratch_bytes(const nps_net_t *net, const nps_dataset_t *data, int batch);

/** Run a network of classes on samples. Of networks that go on with texts: the logits of the places that are asked for their
 *  next token, in order.
 *  @param weights  [tensors] float32, row-major, in the order of nps_net_tensor()
 *  @param samples  [n] which samples of the data; n at most the batch that scratch was sized for
 *  @param scratch  nps_net_scratch_bytes(), aligned to 64
 *  @param[out] logits  [n][classes] */
void nps_net_logits(const nps_net_t *net, const float *const *weights, const nps_dataset_t *data,
                    const int64_t *samples, int n, void *scratch, float *logits);

/* ---- stages ---- */

/** A network is a chain of stages: the embedding, its layers one by one, the head. Each turns a batch's state into the next
 *  one's, and needs its own tensors only: the stages of one batch can be run on different ranks, or with weights that are made
 *  just before. What goes from stage to stage is the activation, [batch][tokens][width] float32, the beginning of the state.
 *
 *  A stage is one step, or several where a tensor of it is a large table (the embedding of a vocabulary, its head): then each
 *  step needs some rows of the table alone. Steps depend on the network only, so that products have the same shapes wherever
 *  they are made. */
typedef struct nps_net_step {
  int stage;
  int table; /**< tensor of which only a part is needed; -1: none, all of the stage's tensors are needed whole */
  int64_t first, rows;  /**< rows of the table */
  int64_t begin, count; /**< elements of the table */
} nps_net_step_t;

/** Most elements of a table that a step needs, but at least one row. */
#define NPS_TABLE_COUNT ((int64_t)1 << 24)

int nps_net_stages(const nps_net_t *net);
int nps_net_steps(const nps_net_t *net);
const nps_net_step_t *nps_net_step(const nps_net_t *net, int i); /* those of a stage follow each other */

/** Whether a stage uses a tensor / needs it whole in its steps. */
bool nps_net_uses(const nps_net_t *net, int stage, int tensor);
bool nps_net_needs_whole(const nps_net_t *net, int stage, int tensor);

/** Give the numbers (float32) of a batch's activation / of its state, which begins with the activation. */
int64_t nps_net_activation(const nps_net_t *net, const nps_dataset_t *data, int batch);
int64_t nps_net_state(const nps_net_t *net, const nps_dataset_t *data, int batch);

/** Give the bytes of working memory of a step; nothing in it is kept from one step to the next. */
size_t nps_net_step_bytes(const nps_net_t *net, const nps_dataset_t *data, int batch);

/** Run one step on a batch. Steps of a batch are run in order.
 *  @param weights  [tensors] those that the stage needs whole
 *  @param table    the step's part of the table; else NULL
 *  @param scratch  nps_net_step_bytes(), aligned to 64
 *  @param[in,out] state  nps_net_state() numbers, aligned to 64; nothing in it is looked at by the first step */
void nps_net_run(const nps_net_t *net, const nps_net_step_t *step, const float *const *weights, const float *table,
                 const nps_dataset_t *data, const int64_t *samples, int n, void *scratch, float *state);

/* ---- scores ---- */

/** What is known of a model on a task, or on a batch of it. Scores add up. */
typedef struct nps_score {
  int64_t correct; /**< samples (of texts: places) whose largest logit is the label's (of equal ones the first) */
  int64_t total;   /**< samples (of texts: places asked for their next token) */
  double nll_sum;  /**< Σ −ln softmax(logits)[label]; NaN where a logit is not finite */
} nps_score_t;

/** Score a batch whose steps have all been run. */
nps_score_t nps_net_finish(const nps_net_t *net, const nps_dataset_t *data, int n, const float *state);

/** Score logits. @param logits  [n][classes]; @param samples  [n] whose labels count */
nps_score_t nps_logits_score(const float *logits, int classes, const nps_dataset_t *data, const int64_t *samples,
                             int n);

/** Run the network on one batch and score it. Weights, samples and scratch as for nps_net_logits(). */
nps_score_t nps_net_score(const nps_net_t *net, const float *const *weights, const nps_dataset_t *data,
                          const int64_t *samples, int n, void *scratch);

/** Read the tensors of a network that stand in given catalogues into float32 memory.
 *  @param only_head  leave out what comes from the body (those pointers stay NULL)
 *  @param[out] weights  [tensors] each freed with free(), and the array */
nps_err_t nps_net_read_weights(const nps_net_t *net, bool only_head, float ***weights);
void nps_net_free_weights(const nps_net_t *net, float **weights);

#endif
