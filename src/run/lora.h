/** @file lora.h
 *  What the parts of LoRA extraction share. */
#ifndef NPS_RUN_LORA_H
#define NPS_RUN_LORA_H

#include "nps/convert.h"
#include "nps/inspect.h"

/** A linear layer's weight, which gets a low-rank difference. */
typedef struct nps_lora_matrix {
  int tensor;       /**< index into the model; the base has it too */
  bool transposed;  /**< stored [in][out], as GPT-2 does; else [out][in] */
  int64_t rank;     /**< at least 1 */
  double squares;   /**< ‖τ‖² */
  double captured;  /**< Σσ² of the leading `rank` values */
  int64_t shape[4]; /**< of A: [rank][in], of B: [out][rank] */
  char *name[2];    /**< of A and B, as the peft library has them */
} nps_lora_matrix_t;

/** What a tensor of the fine-tuned model is to an adapter. */
typedef enum nps_lora_kind {
  NPS_LORA_LINEAR,
  NPS_LORA_EXTRA, /**< the base lacks it: a task's head, which travels whole */
  NPS_LORA_EMBEDDING,
  NPS_LORA_BIAS,
  NPS_LORA_NORM, /**< other vectors */
  NPS_LORA_OTHER,
  NPS_LORA_KINDS
} nps_lora_kind_t;

typedef struct nps_lora {
  const nps_comm_t *comm;
  const nps_convert_request_t *request;
  nps_report_t *report;
  nps_model_t *model, *base;
  nps_inspect_t *found; /**< differences of all tensors */
  nps_lora_matrix_t *matrices;
  int count;
  int *owner;               /**< [count] ranks */
  nps_lora_kind_t *kind_of; /**< [model->tensor_count] */
  nps_layout_t *layout;
  char **extra_names; /**< [extra_count] of tensors that the base lacks, as the peft library has them */
  int extra_count;
  char *config, *card;
} nps_lora_t;

/** Find out what each tensor is: from its name, its shape and the config. Local, the same on every rank. */
void nps_lora_sort(nps_lora_t *lora);

/** Give the module of a tensor: its name without the last part. Freed with free(). */
char *nps_lora_module(const char *tensor);

/** Write adapter_config.json / the model card. Local, for rank 0. */
void nps_lora_write_config(nps_lora_t *lora);

/** Show what the adapter holds, by kinds of matrices, and what it does not. Local. @param bytes  of the adapter */
void nps_lora_show(const nps_lora_t *lora, int64_t bytes);

#endif
