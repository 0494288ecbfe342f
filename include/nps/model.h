/** @file model.h
 *  Models on disk: catalogues, reading, matching, writing, content hashes. Layer 3.
 *
 *  A catalogue says where every tensor's bytes lie: file, offset, length. It comes from headers alone, is made on rank 0
 *  and broadcast as text. Every readable form (safetensors folder or file, merged HDF5) stores a tensor in one piece, so
 *  that reading is one mechanism: pread() from a file at an offset. Tensors that are not stored (a base's with an adapter)
 *  are computed when they are read. */
#ifndef NPS_MODEL_H
#define NPS_MODEL_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/h5.h"
#include "nps/tensor.h"

/** Where rows of a made tensor come from. */
typedef struct nps_row_from {
  int parent;  /**< index into the catalogue's parents */
  int tensor;  /**< of that catalogue */
  int64_t row; /**< the first */
} nps_row_from_t;

/** Consecutive rows of a made tensor. */
typedef struct nps_span {
  int64_t first, count;
  int from; /**< first of its parts */
  int parts; /**< 1: a copy; more: their mean; 0: zeros; NPS_SPAN_MEAN: in every row the mean of all rows before the span */
} nps_span_t;
enum { NPS_SPAN_MEAN = -1 };

/** How a tensor is made of rows of other catalogues' tensors. */
typedef struct nps_made {
  int64_t row;       /**< elements of a row */
  nps_span_t *spans; /**< [span_count] in order, without gaps; owned */
  int span_count;
  nps_row_from_t *from; /**< [from_count] owned */
  int from_count;
  int slice;    /**< slice that it belongs to, or -1: there are none */
  double layer; /**< position t within the slice */
} nps_made_t;

/** One tensor of a catalogue. */
typedef struct nps_tensor_info {
  char *name;        /**< Hugging Face name; owned by the catalogue */
  nps_dtype_t dtype; /**< as it is read */
  int ndim;
  int64_t shape[NPS_MAX_DIMS];
  int64_t count;  /**< elements */
  int file;       /**< index into the model's files */
  int64_t offset; /**< of the first byte, from the start of that file */
  int rule; /**< 0: stored there; else computed when it is read, by a rule of the model's derivation; file and offset
                       then are those of what it is computed from */
  nps_dtype_t written; /**< of computed and made ones: type in an output that keeps types, that of the base */
  nps_made_t *made; /**< how it is made of others, `file` and `offset` then being those of the first; NULL: it is not */
  bool absent;      /**< a place in a slice that has fewer sources than others: it has no part in the merge */
} nps_tensor_info_t;

typedef struct nps_model_file {
  char *path;
  int64_t size;    /**< bytes */
  int64_t changed; /**< nps_file_change_time() when it was opened */
} nps_model_file_t;

/** Give the time of a file's last change (ctime) in ns since the epoch; INT64_MAX: it cannot be looked at. Local. */
int64_t nps_file_change_time(const char *path);

typedef enum nps_model_form {
  NPS_FORM_FOLDER,
  NPS_FORM_SAFETENSORS,
  NPS_FORM_HDF5,
  NPS_FORM_ADAPTER, /**< a PEFT adapter by itself: its own tensors; config_json is its adapter_config.json */
  NPS_FORM_DERIVED, /**< has a derivation */
  NPS_FORM_MADE     /**< of others' tensors: nothing of its own on disk */
} nps_model_form_t;

/** The experts of a mixture: low-rank parts of linear layers, of which routers choose for every token. Owned by the model. */
typedef struct nps_experts {
  struct nps_model *parts; /**< catalogue of "u/NAME" [count][rank][out], "sigma/NAME" [count][rank], "v/NAME"
                                [count][directions][in] of layers, "bias/NAME" [count][out] of their biases */
  char **names;            /**< [count] */
  int count;
  int64_t kg, k, top_k; /**< directions of a router; most triples of an expert; experts chosen for a token */
} nps_experts_t;

/** What the tensors of a model are computed from that are not stored. Owned by the model. */
typedef struct nps_derivation {
  const struct nps_derivation_form *form;
  struct nps_model *base;  /**< the model whose tensors are changed */
  struct nps_model *parts; /**< catalogue of what changes them: the tensors of an adapter */
  char *text;              /**< what the form knows besides: the adapter's config; or NULL */
  void *rules;             /**< made by the form from the other three */
} nps_derivation_t;

/** The catalogue of one model. All pointers are owned by it. */
typedef struct nps_model {
  char *name; /**< for messages and tables */
  char *path; /**< resolved folder or file */
  nps_model_form_t form;
  nps_model_file_t *files; /**< [file_count] weight files */
  int file_count;
  nps_tensor_info_t *tensors; /**< [tensor_count] in byte order of their names */
  int tensor_count;
  char *config_json;                /**< Hugging Face config as text, or NULL */
  nps_experts_t *experts;           /**< of a mixture, whose tensors are the base's; else NULL */
  nps_derivation_t *derivation;     /**< NULL: all tensors are stored */
  const struct nps_model **parents; /**< [parent_count] what its tensors are made of; they are borrowed; else NULL */
  int parent_count;
} nps_model_t;

/** Find a model on disk. Local. BASE+ADAPTER names two folders or files, which are found one by one; its path is theirs with
 *  a plus between them, which a path of a single model may have too. ARCHIVE#NAME names a model in a compressed archive, the
 *  archive alone its base.
 *  Tried in order: `model` in folder `config_dir`, in the current directory, and, where it has the form org/name or
 *  org/name@revision, in the local Hugging Face cache (HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub).
 *  @param config_dir  NULL: only the current directory and the cache
 *  @param[out] path   freed with free()
 *  @return NPS_ERR_INPUT (recorded, with the places that were tried) */
nps_err_t nps_model_locate(const char *model, const char *config_dir, char **path);

/** Read the headers of a model and check them: types, shapes, byte ranges inside the file, no overlap, index files that
 *  agree. Local. All problems are recorded, each naming the file and tensor.
 *  @param path  as from nps_model_locate(); @param name  for messages
 *  @param[out] out  freed with nps_model_free()
 *  @return NPS_ERR_INPUT */
nps_err_t nps_model_open(const char *path, const char *name, nps_model_t **out);

/** Read the headers of the datasets of one group of an HDF5 file: a catalogue of what else than a model is stored so. Local.
 *  @return NPS_ERR_INPUT */
nps_err_t nps_model_open_group(const char *path, const char *group, const char *name, nps_model_t **out);

void nps_model_free(nps_model_t *model);

/** Write a catalogue as text / read it back, to broadcast it. Local. */
char *nps_model_pack(const nps_model_t *model);
nps_err_t nps_model_unpack(const char *text, nps_model_t **out);

/** Give the type of a tensor in an output that keeps types. Local. */
nps_dtype_t nps_tensor_written(const nps_tensor_info_t *info);

/** Predict the bytes that a reader of the model keeps between reads, for computed tensors. Local. */
int64_t nps_model_reader_bytes(const nps_model_t *model);

/** Find a tensor by name. @return its index or -1 */
int nps_model_find(const nps_model_t *model, const char *name);

/** Start a catalogue whose tensors are made of those of others. Local. Freed with nps_model_free().
 *  @param parents  [n] borrowed until then */
nps_model_t *nps_made_new(const char *name, const char *path, const nps_model_t *const *parents, int n);

/** Add a whole tensor of a parent under a name. Local. @return its description, good until the next is added */
nps_tensor_info_t *nps_made_add(nps_model_t *made, const char *name, int parent, int tensor);

/** Begin to make the tensor added last of rows instead of the whole, as many as are added then. Local. */
void nps_made_rows(nps_tensor_info_t *info);

/** Go on with rows: one row that is the mean of parts. Local. @param from  [parts] */
void nps_made_row(nps_tensor_info_t *info, const nps_row_from_t *from, int parts);

/** End with rows that are the mean of all before. Local. */
void nps_made_pad(nps_tensor_info_t *info, int64_t count);

/** Bring the tensors into their order. Local. @return NPS_ERR_INPUT: a name occurs twice, there are none */
nps_err_t nps_made_end(nps_model_t *made);

/** Give the name of the tensor that a made one begins with, or a stored one's own. Local. */
const char *nps_model_origin(const nps_model_t *model, int tensor);

/** Whether a model has norms of the name LayerNorm.weight, and none of the old name LayerNorm.gamma. Local. */
bool nps_model_names_norms(const nps_model_t *model);

/** Name the norms of a model as another names its own: LayerNorm.weight and LayerNorm.bias, or the old LayerNorm.gamma and
 *  LayerNorm.beta. Local, before nps_model_name_like().
 *  @param[out] changed  whether there was such a difference */
nps_err_t nps_model_name_norms(nps_model_t *model, const nps_model_t *like, bool *changed);

/** Name the stored tensors of a model as another names them, where the names differ by what stands before them: transformers
 *  calls a tensor "bert.X" in a model with a head, and "X" in the body alone; norms as by nps_model_name_norms(). Local. It must
 *  be done before anything else knows the tensors by their places.
 *  @param[out] changed  whether there was such a difference */
nps_err_t nps_model_name_like(nps_model_t *model, const nps_model_t *like, bool *changed);

/* ---- matching: what the merged model consists of ---- */

typedef enum nps_action {
  NPS_ACTION_MERGE, /**< floating point: the method is applied */
  NPS_ACTION_COPY,  /**< integers and booleans: copied from the first source; the other sources must be equal. A model
                         may lack those of the base. And buffers (nps_is_buffer()) that not all models have: the base's */
  NPS_ACTION_HEAD   /**< an extra tensor of the head model: copied, in its type there */
} nps_action_t;

/** One tensor of the merged model. */
typedef struct nps_target {
  const char *name; /**< owned by a catalogue */
  nps_action_t action;
  nps_dtype_t dtype; /**< as it is written */
  int ndim;
  const int64_t *shape; /**< owned by a catalogue */
  int64_t count;
  const int *source; /**< [inputs] index of the tensor in every input's catalogue, -1 where it has no part */
  double layer;      /**< position t within its stack of layers, or its slice, 0 to 1; 0 outside of the layers */
  int slice;         /**< slice that it belongs to; 0 where there are none */
} nps_target_t;

/** The tensors of the merged model. */
typedef struct nps_layout {
  nps_target_t *targets; /**< [count] in the order of the first source's files, so that reading is sequential */
  int count;
  int inputs;  /**< catalogues matched */
  int *source; /**< [count × inputs], what the targets point into */
} nps_layout_t;

/** Match catalogues. Local. Merged are exactly the base's tensors; without a base those that all inputs have.
 *  @param inputs  [n] catalogues, all different
 *  @param base    index of the base in inputs, or -1
 *  @param head    index of the input whose extra tensors are copied, or -1; with only one input besides the base: that
 *  @param dtype   type of the merged tensors, or NULL: each tensor's type in the base (else the first input)
 *  @param[out] out  freed with nps_layout_free()
 *  @return NPS_ERR_INPUT: a tensor of the base missing in an input, a shape that differs, a type that cannot be merged,
 *    no common tensor, a mixture of experts. All problems are recorded. Extra tensors that are not copied are noted, once
 *    a model. */
nps_err_t nps_layout_match(const nps_model_t *const *inputs, int n, int base, int head, const nps_dtype_t *dtype,
                           nps_layout_t **out);
void nps_layout_free(nps_layout_t *layout);

/** List all tensors of a model, to be copied as they are. Local. Freed with nps_layout_free(). */
nps_layout_t *nps_layout_copy(const nps_model_t *model);

/** Find a tensor's position within its stack of layers: (stack, index, length), from the first numeric component of its
 *  name; a stack counts when its length is `num_hidden_layers` (n_layer, num_layers) of the config, or, where the config
 *  has none, when it is the longest. t = i/(L−1), 1 for L = 1. Used by nps_layout_match(). Local.
 *  @param names  [count]; @param config_json  may be NULL; @param[out] t  [count] */
void nps_layer_positions(const char *const *names, int count, const char *config_json, double *t);

/** Keys of a config for the number of layers, NULL-terminated. */
extern const char *const nps_layer_keys[];

/** A model's stack of layers. */
typedef struct nps_stack {
  const char *prefix; /**< [size] what comes before the layer's number; owned by the model */
  size_t size;
  int64_t length; /**< layers */
} nps_stack_t;

/** Find the only stack of a model. Local. @return NPS_ERR_INPUT: there is none, or several */
nps_err_t nps_stack_find(const nps_model_t *model, nps_stack_t *out);

/** Split the name of a tensor in a stack. Local.
 *  @param[out] layer  its number
 *  @return what follows the number; NULL: the tensor lies outside */
const char *nps_stack_rest(const nps_stack_t *stack, const char *name, int64_t *layer);

/** Whether the rows of a tensor of that name belong to tokens: embeddings, output heads, their biases. Local. */
bool nps_is_vocabulary(const char *name);

/** Whether a floating-point tensor is a table that models compute from their config, which older versions of transformers stored
 *  and newer ones do not: `inv_freq`, `cos_cached`, `sin_cached`, `masked_bias`, and `attn.bias` or `attention.bias` [1, 1, n, n].
 *  Local. */
bool nps_is_buffer(const nps_tensor_info_t *t);

/** Whether a tensor outside of the layers comes before them: embeddings and what prepares them. Local. */
bool nps_is_before_layers(const char *name);

/** Whether a tensor of that name is an output head that may be tied to the embeddings / the embeddings of tokens. Local. */
bool nps_is_head(const char *name);
bool nps_is_embedding(const char *name);

/* ---- reading ---- */

/** Content hashes of files: SHA-256 over the SHA-256 digests of consecutive blocks of 16 MiB. Blocks are hashed as their
 *  bytes are read for other reasons; what was not read, or not in order, is read at the end. */
typedef struct nps_digest nps_digest_t;

/** Start hashing the files of several models (a file that occurs twice is hashed once). Local. */
nps_digest_t *nps_digest_start(const nps_model_t *const *models, int n);

/** Tell that bytes of a file have been read. Local. They count where they continue a block's hashed part. */
void nps_digest_feed(nps_digest_t *digest, const char *path, int64_t offset, const void *bytes, size_t n);

/** Part of a file that has been read. */
typedef struct nps_digest_part {
  const char *path;
  int64_t offset;
  const void *bytes; /**< [n] borrowed */
  size_t n;
} nps_digest_part_t;

/** Tell that parts of two files have been read, which takes much less time than one after the other. Local. */
void nps_digest_feed_two(nps_digest_t *digest, const nps_digest_part_t *one, const nps_digest_part_t *other);

/** Take the hashes of files that a finished digest has: they are not hashed again. Local, the same on every rank. */
void nps_digest_take(nps_digest_t *digest, const nps_digest_t *finished);

/** Hash what is left, shared among the ranks, and put the digests together. Collective.
 *  @return NPS_ERR_INPUT when a file cannot be read; the same on every rank */
nps_err_t nps_digest_finish(const nps_comm_t *comm, nps_digest_t *digest);

/** Give the files hashed, after nps_digest_finish(). Local. */
int nps_digest_count(const nps_digest_t *digest);
const char *nps_digest_path(const nps_digest_t *digest, int i);
int64_t nps_digest_size(const nps_digest_t *digest, int i);
const char *nps_digest_hex(const nps_digest_t *digest, int i); /* [64] characters */

void nps_digest_free(nps_digest_t *digest);

/** SHA-256 of bytes as 64 hexadecimal digits. Local. */
void nps_sha256_hex(const void *bytes, size_t n, char hex[65]);

/** Reads tensors of one model. */
typedef struct nps_reader nps_reader_t;

/** Prepare reading: files are opened at first use. Local.
 *  @param digest  gets every byte read; may be NULL; must outlive the reader */
nps_reader_t *nps_reader_new(const nps_model_t *model, nps_digest_t *digest);

/** Read elements [first, first + count) of tensor i as they are stored. Local. NPS_ERR_INPUT (names file and cause). */
nps_err_t nps_reader_read(nps_reader_t *reader, int i, int64_t first, int64_t count, void *dst);

/** One of two reads. */
typedef struct nps_read {
  nps_reader_t *reader;
  int tensor;
  void *dst; /**< [count] elements as they are stored */
} nps_read_t;

/** Read elements [first, first + count) of a tensor each of two models, as nps_reader_read() does one after the other, and
 *  hash them side by side, which takes less time. Both readers have the same digest. Local. */
nps_err_t nps_reader_read_two(const nps_read_t read[2], int64_t first, int64_t count);

void nps_reader_free(nps_reader_t *reader);

/* ---- writing ---- */

/** A file that travels with a model: tokenizer, generation config, chat template, modules of sentence-transformers. */
typedef struct nps_sidecar {
  char *name; /**< file name, or MODULE/FILE where it lies in the folder of a module */
  char *data; /**< [size] */
  size_t size;
} nps_sidecar_t;

/** Read a model's sidecars (tokenizer.json, tokenizer.model, tokenizer_config.json, special_tokens_map.json, vocab.json,
 *  vocab.txt, merges.txt, added_tokens.json, spiece.model, generation_config.json, chat_template.jinja,
 *  preprocessor_config.json, modules.json and the files in the folders that it names, …; /tokenizer of a merged HDF5). Local.
 *  NPS_ERR_INPUT also: modules.json names what is no folder of the model's.
 *  @param[out] list  [*count], freed with nps_sidecars_free() */
nps_err_t nps_sidecars_read(const nps_model_t *model, nps_sidecar_t **list, int *count);
void nps_sidecars_free(nps_sidecar_t *list, int count);

/** Read only those sidecars by which sentence-transformers knows what follows the model: modules.json,
 *  config_sentence_transformers.json, sentence_bert_config.json, …, files of modules. As nps_sidecars_read(). */
nps_err_t nps_sidecars_read_modules(const nps_model_t *model, nps_sidecar_t **list, int *count);

/** Whether a sidecar belongs to the tokenizer. */
bool nps_is_tokenizer_file(const char *name);

/** Whether a sidecar holds weights of a module. */
bool nps_is_module_weights(const char *name);

/** Where tensors lie in one safetensors file. Arrays are owned; freed with nps_safetensors_free(). */
typedef struct nps_safetensors {
  char *header; /**< [header_size] what the file begins with */
  size_t header_size;
  int64_t *offset; /**< [count] of a tensor's first byte, from the start of the file */
  int64_t size;    /**< of the whole file */
} nps_safetensors_t;

/** Lay tensors out, by name, type and shape. Local. @param[out] out  freed after errors too
 *  @return NPS_ERR_INPUT: a name that is no UTF-8 */
nps_err_t nps_safetensors_plan(const nps_target_t *targets, int count, nps_safetensors_t *out);
void nps_safetensors_free(nps_safetensors_t *plan);

/** A tensor that a method writes beside the model's, in a group of its own of a merged HDF5. */
typedef struct nps_part {
  const char *group; /**< path, "/experts/u" */
  const char *name;
  nps_dtype_t dtype; /**< floating point, as it is written */
  int ndim;
  int64_t shape[NPS_MAX_DIMS];
  int64_t count;
} nps_part_t;

/** What is written besides tensors. Every rank passes the same; pointers are borrowed until nps_writer_commit(). */
typedef struct nps_output {
  const char *path;              /**< ends in .h5 or .hdf5: merged HDF5; otherwise a Hugging Face folder */
  const char *format;            /**< of the HDF5 file; NULL: "nps-merged" */
  bool force;                    /**< replace an existing output */
  bool locked;                   /**< rank 0 of the caller holds the target's lock */
  int64_t shard_size;            /**< bytes, folder only */
  const char *config_json;       /**< Hugging Face config, or NULL */
  const char *recipe;            /**< resolved YAML; NULL: a folder has none */
  bool adapter;                  /**< the folder is a PEFT adapter: one adapter_model.safetensors, config_json is its
                                      adapter_config.json */
  const char *model_card;        /**< README.md of a folder */
  const nps_sidecar_t *sidecars; /**< [sidecar_count]; only rank 0's are used */
  int sidecar_count;
  const nps_part_t *parts; /**< [part_count] those of a group one after the other; merged HDF5 only */
  int part_count;
  /** Writes more groups into the merged HDF5, or into findings.h5 of a folder, before the output is committed: collective as
   *  the file is (a folder's file belongs to rank 0 alone). NULL: nothing. */
  nps_err_t (*extra)(void *ctx, nps_h5_t *file);
  void *extra_ctx;
  /** Name of a method whose exact updates are kept for a later run, or NULL: merged tensors also have float64 datasets in
   *  /state/NAME/A of the merged HDF5, or of NAME_state.h5 in a folder, written with nps_writer_write_state(). */
  const char *state;
  nps_err_t (*put_state)(void *ctx, nps_h5_t *file); /**< writes the rest of /state/NAME; collective as the file is */
} nps_output_t;

typedef struct nps_writer nps_writer_t;

/** Whether a path names a merged HDF5 file (else a folder). Local. */
bool nps_output_is_hdf5(const char *path);

/** A lock on a file or folder that is to be made, so that two runs never make the same: `.NAME.lock` beside it, which is there
 *  while it is held, and is not locked where a run that was killed left it. */
typedef struct nps_lock nps_lock_t;

/** Take the lock. Local. @return NPS_ERR_IO "TARGET: another run is writing it" */
nps_err_t nps_lock_new(const char *target, nps_lock_t **out);

/** Give the lock up. Local. NULL is fine. */
void nps_lock_free(nps_lock_t *lock);

/** Rename a complete file, which is on the device, over another, and bring its new name to the device. Local. NPS_ERR_IO. */
nps_err_t nps_file_replace(const char *from, const char *to);

/** Check the target before any work. Local, for rank 0: an existing output without `force`, something there that is not
 *  an output of the same form (never replaced), a folder that does not exist (NPS_ERR_CONFIG); a folder that cannot be
 *  written to, not enough free space for `bytes`, another run that writes there (NPS_ERR_IO). Puts back a folder that a
 *  killed run had moved away.
 *  @param[out] lock  the target's lock, held from now on, freed with nps_lock_free(); NULL: it is given up again */
nps_err_t nps_output_check(const nps_output_t *output, int64_t bytes, nps_lock_t **lock);

/** Start writing to `.NAME.partial` beside the target; a stale one is removed with a note. Rank 0 locks it until the
 *  end, where it is not locked yet. Collective.
 *  @param layout  the tensors; must outlive the writer */
nps_err_t nps_writer_open(const nps_comm_t *comm, const nps_output_t *output, const nps_layout_t *layout,
                          nps_writer_t **out);

/** Write elements [first, first + count) of target i, in its type. Local. NPS_ERR_IO (names file and cause). */
nps_err_t nps_writer_write(nps_writer_t *writer, int i, int64_t first, int64_t count, const void *data);

/** Write elements [first, first + count) of what is kept of merged target i. Local. NPS_ERR_IO. */
nps_err_t nps_writer_write_state(nps_writer_t *writer, int i, int64_t first, int64_t count, const double *values);

/** Write a whole part, in its type. Local. NPS_ERR_IO. */
nps_err_t nps_writer_write_part(nps_writer_t *writer, int part, const void *data);

/** Give the recipe of a complete output, file or folder. Local. @return NULL: there is none; freed with free() */
char *nps_output_recipe(const char *path);

/** What a complete output was made from. Arrays are owned; freed with nps_provenance_free(). */
typedef struct nps_provenance {
  int64_t count;
  char **paths;  /**< [count] of input files; NULL: one that is not known */
  char **hashes; /**< [count] as nps_digest_hex() */
  int64_t *sizes;
  int64_t time; /**< files that were last changed before it are as they were read, ns since the epoch */
} nps_provenance_t;

/** Read it from an output, file or folder. Local. count 0: there is none. */
void nps_output_provenance(const char *path, nps_provenance_t *out);
void nps_provenance_free(nps_provenance_t *provenance);

/** Set the provenance's time of a complete output; else it is when that was written. Local. */
void nps_output_set_time(const char *path, int64_t time);

/** Write provenance, flush to the device, agree, rename into place. Collective. A complete output that cannot take its place
 *  is kept as NAME.complete (NPS_ERR_IO).
 *  @param digest  finished; may be NULL */
nps_err_t nps_writer_commit(nps_writer_t *writer, const nps_digest_t *digest);

/** Bytes of the finished output, after nps_writer_commit(). Local. */
int64_t nps_writer_bytes(const nps_writer_t *writer);

/** Free a writer; without a commit before, the partial output is removed. Collective. NULL is fine. */
void nps_writer_free(nps_writer_t *writer);

#endif
