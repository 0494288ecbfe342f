/** @file fitness_internal.h
 *  What the sources of fitness share: a network, its family, and reading a Hugging Face config. */
#ifndef NPS_FITNESS_INTERNAL_H
#define NPS_FITNESS_INTERNAL_H

#include "kernels.h"

#include "nps/fitness.h"
#include "nps/json.h"

typedef struct nps_mixture nps_mixture_t;

/** What a forward pass runs on. */
typedef struct nps_pass {
  const float *const *weights;  /**< [tensors of the network] */
  const nps_mixture_t *mixture; /**< the network's; NULL: none */
  float *mixing;                /**< its working memory */
} nps_pass_t;

/** A family of networks: one file, and one line in the table of net.c. */
typedef struct nps_net_family {
  const char *model_type;           /**< of config.json */
  const char *const *linear_layers; /**< NULL-terminated: linear layers of the body are PREFIX.NUMBER.ONE_OF_THESE */

  /** Read the config, add the tensors, set the number of classes. Records all problems.
   *  @param[out] shape  the family's own description, freed with free_shape() also after an error */
  nps_err_t (*describe)(nps_net_t *net, const json_t *config, void **shape);
  void (*free_shape)(void *shape);

  nps_err_t (*check_data)(const nps_net_t *net, const nps_dataset_t *data);
  double (*flops)(const void *shape, const nps_dataset_t *data, int64_t n);
  int64_t (*scratch)(const void *shape, const nps_dataset_t *data, int64_t n); /**< numbers of working memory */
  /** Networks of classes: one row of logits a sample. */
  void (*logits)(const void *shape, const nps_pass_t *pass, const nps_dataset_t *data, const int64_t *samples,
                 int64_t n, float *scratch, float *logits);
  /** Networks that go on with texts, instead of logits: the score, batch by batch. */
  nps_score_t (*score)(const void *shape, const nps_pass_t *pass, const nps_dataset_t *data, const int64_t *samples,
                       int64_t n, float *scratch);
} nps_net_family_t;

extern const nps_net_family_t nps_net_vit, nps_net_llama;

struct nps_net {
  const nps_net_family_t *family;
  const nps_model_t *body, *head; /**< borrowed; head may be NULL */
  bool own_head_first;            /**< the head model gives only what the body lacks; else all of the head */
  nps_net_tensor_t *tensors;      /**< [count] */
  int count;
  int classes;
  void *shape;
  nps_mixture_t *mixture; /**< NULL: the body has no experts */
};

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

/** As nps_net_get_count(), but null stands for a missing key. */
nps_err_t nps_net_get_count_or_null(const nps_net_t *net, const json_t *config, const char *key, int64_t standard,
                                    int64_t *value);

/** Read hidden_act. */
nps_err_t nps_net_get_activation(const nps_net_t *net, const json_t *config, const char *standard,
                                 nps_activation_fn **value);

/** Add what a row of logits gives to a score. @param z  [classes] */
void nps_score_add(nps_score_t *score, const float *z, int classes, int label);

/** Refuse an option that is not implemented: NPS_ERR_INPUT when the key is there and not null, false, empty. */
nps_err_t nps_net_refuse(const nps_net_t *net, const json_t *config, const char *key);

#endif
