/** @file engine.h
 *  What the ways of merging share: the engine's state, reading, chunks, writing. */
#ifndef NPS_MERGE_ENGINE_H
#define NPS_MERGE_ENGINE_H

#include "merge_internal.h"

/** Buffers within the slab begin where vector loads like it. */
#define NPS_SLAB_ALIGNMENT ((size_t)64)

typedef struct nps_engine {
  nps_merge_t *merge;
  const nps_plan_t *plan;
  const nps_comm_t *comm;
  nps_comm_t *self; /* this rank alone */
  nps_writer_t *writer;
  nps_reader_t **reader; /* [inputs] */
  nps_reader_t *history; /* of the updates of earlier runs, or NULL */
  nps_merge_progress_fn *progress;
  void *progress_ctx;

  void *state;        /* of the method */
  char *slab;         /* input buffers of one slab, and the output buffer */
  char **raw;         /* [inputs] into slab */
  char *out;          /* into slab: a step of output */
  int slab_target;    /* target whose slab it is, or -1 */
  int64_t slab_first; /* its first element */
  int64_t loaded;     /* elements of it that have been read */
  double **theta;     /* [models][NPS_CHUNK], or NULL */
  float **tau;        /* [models][NPS_CHUNK], or NULL */

  nps_pulse_t *pulse;       /* of the phase in work, else NULL */
  bool stopped;             /* another rank has failed */
  int64_t done;             /* bytes, as nps_merge_work() counts them */
  int64_t *kept;            /* [models] */
  double **norms;           /* [models][own_blocks] sums of squares of the task vectors' blocks */
  int64_t own_blocks;       /* blocks of this rank's pieces */
  int64_t *own_first_block; /* [own pieces] */
  int64_t norm_at;          /* block in work */
  nps_lanes_t *lanes;       /* [models] */

  /* Of methods that merge tensors whole: */
  nps_groups_t *groups; /* grids of the ranks that share them; else NULL */
  double busy;          /* seconds of work, without waiting for others */

  /* Of methods that scale all updates together: */
  double **held;   /* [own pieces][2] θ0 and the update of merged tensors, each [count] */
  double *squares; /* [targets][models + 1] ‖τ_i‖² and ‖update‖² of whole tensors */
  double scale;    /* the factor */
} nps_engine_t;

/** Give the stored type of a target in an input / its stored values from offset `at` of the slab on. */
nps_dtype_t nps_engine_input_dtype(const nps_engine_t *e, const nps_target_t *target, int input);
char *nps_engine_raw_at(const nps_engine_t *e, const nps_target_t *target, int input, int64_t at);

/** Make the slab ready for elements [first, first + count) of a target, unless it is it already. */
void nps_engine_begin_slab(nps_engine_t *e, int t, int64_t first, int64_t count);

/** Read the slab's elements up to `end`, as far as they are not there yet, from all inputs of its target; NaN and infinity
 *  are errors. */
nps_err_t nps_engine_load(nps_engine_t *e, int64_t end);

/** Fill tau or theta with n entries at offset `at` of the loaded slab. */
void nps_engine_fill_chunk(nps_engine_t *e, const nps_target_t *target, int64_t at, int64_t n);

/** Add a chunk of task vectors to the norms of a tensor's models. */
void nps_engine_add_norms(nps_engine_t *e, int models, const nps_merge_chunk_t *chunk);

/** Write what lies in the output buffer: elements [first, first + count) of a piece's target. */
nps_err_t nps_engine_write_out(nps_engine_t *e, const nps_piece_t *piece, int64_t first, int64_t count);

/** Tell how far this rank is; hear whether another failed. */
void nps_engine_beat(nps_engine_t *e, int64_t bytes);

/** Agree among the ranks that share a tensor on a result, and on whether to stop as another rank has failed. Collective over
 *  comm. */
nps_err_t nps_engine_agree_sharers(nps_engine_t *e, const nps_comm_t *comm, nps_err_t err);

/** Merge a tensor whole, and write this rank's part of it, or keep it to be scaled. Collective over the ranks that share it,
 *  and the same result on all of them. */
nps_err_t nps_engine_merge_whole(nps_engine_t *e, const nps_piece_t *piece);

/** Make and write the parts of a tensor that is this rank's alone. @param tau  [models][count] */
nps_err_t nps_engine_put_parts(nps_engine_t *e, int target, float *const *tau);

/** Find the factor of all updates. Collective. */
double nps_engine_find_scale(nps_engine_t *e);

/** Scale and write a tensor that was kept. */
nps_err_t nps_engine_write_held(nps_engine_t *e, const nps_piece_t *piece, double scale);

#endif
