/** @file inspect.h
 *  What is inside a model: tensors, norms, differences from another model. Layer 7, part of `run`.
 *
 *  Norms are Frobenius norms in float64, summed over fixed blocks and then in block order: the same bits on any number of
 *  ranks. Big tensors are read in parts, so that memory is bounded. */
#ifndef NPS_INSPECT_H
#define NPS_INSPECT_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/json.h"
#include "nps/model.h"
#include "nps/report.h"

/** What was found about one tensor. */
typedef struct nps_inspect_tensor {
  bool has_norm;     /**< false for types without arithmetic (fp8) */
  double norm;       /**< NaN or infinite where elements are */
  int64_t nonfinite; /**< elements that are NaN or infinite */
  int base;          /**< index of the tensor of that name in the base, or -1 */
  bool compared;     /**< the base has it in the same shape, and both have norms: what follows is set */
  double base_norm;
  double difference; /**< norm of model − base */
  double max;        /**< largest |difference| of an element; NaN where the difference is not finite everywhere */
  int64_t changed;   /**< elements whose values differ */
} nps_inspect_tensor_t;

/** Singular values of a matrix of the model, or of its difference from the base's. */
typedef struct nps_inspect_spectrum {
  int tensor;            /**< index into the model */
  double norm;           /**< ‖A‖ (Frobenius) */
  double effective_rank; /**< exp of the entropy of σ/Σσ (Roy and Vetterli 2007); 0 for zeros */
  double energy;         /**< Σσ² of the leading values / ‖A‖²; 1 for zeros */
  int count;             /**< leading values: K, at most all */
  double *sigma;         /**< [count] descending; owned */
} nps_inspect_spectrum_t;

/** What was found about a model; total is over all tensors. */
typedef struct nps_inspect {
  const nps_model_t *model;
  const nps_model_t *base;       /**< NULL: no comparison */
  nps_inspect_tensor_t *tensors; /**< [model->tensor_count] */
  nps_inspect_tensor_t total;    /**< norms over all tensors that have one; comparison over all compared ones */
  json_t *origin; /**< rank 0, merged HDF5 only, else NULL: {"created_by", "recipe", "recipe_sha256", "method", "base",
                       "models": {name: path}, "inputs"}, as far as known; owned */
  json_t *
      archive; /**< rank 0, where an archive was named, whose base the model is; else NULL: its models, [{"name", "kept",
                        "error", "bytes"}]; owned */
  nps_inspect_spectrum_t *spectra; /**< [spectrum_count] of matrices; owned */
  int spectrum_count;
  struct nps_inspect *experts; /**< of a mixture: its parts; NULL: none; owned */
  char **sidecars;             /**< [sidecar_count] names of tokenizer and other files, rank 0 only; owned */
  int sidecar_count;
} nps_inspect_t;

/** Read all tensors and compute norms and differences. Collective.
 *  @param base    NULL: no comparison
 *  @param report  shows progress on rank 0; may be NULL
 *  @param[out] out  the same on every rank; freed with nps_inspect_free(); models must outlive it
 *  @return NPS_ERR_INPUT when a file cannot be read; the same on every rank */
nps_err_t nps_inspect_scan(const nps_comm_t *comm, const nps_model_t *model, const nps_model_t *base,
                           nps_report_t *report, nps_inspect_t **out);

void nps_inspect_free(nps_inspect_t *inspect);

/** Compute the singular values of all matrices (two dimensions, both at least 2; with a base: those that it has too) that are
 *  finite. Collective: each matrix is one rank's, whole in its memory, the dearest handed out first.
 *  @param leading  how many values are kept of each
 *  @return NPS_ERR_INPUT, NPS_ERR_MEMORY, NPS_ERR_RUNTIME; the same on every rank */
nps_err_t nps_inspect_scan_spectra(const nps_comm_t *comm, nps_inspect_t *inspect, int leading, nps_report_t *report);

/** Give a tensor's kind: its name with layer numbers replaced by "*". Freed with free(). */
char *nps_inspect_kind(const char *name);

/** Put the findings into JSON: {"path", "form", "parameters", "bytes", "norm", "nonfinite": {name: count}, "files",
 *  "origin", "tensors": [{"name", "dtype", "shape", "bytes", "norm"}]}. With a base every tensor also has "difference":
 *  {"norm", "relative", "max", "changed"} or null, and the object "against": {"path", "difference", "only_in_model",
 *  "only_in_base", "not_comparable"}. With spectra: "spectrum": [{"name", "kind", "shape", "norm", "effective_rank", "energy",
 *  "sigma": [values]}]. Of an archive's base: "models": as `archive`. Of a mixture: "experts": {"names", "kg", "k", "top_k", "parameters", "bytes", "nonfinite", "tensors"}.
 *  Numbers that are not finite are null. Local.
 *  @return new reference */
json_t *nps_inspect_json(const nps_inspect_t *inspect);

/** Print the findings for people. Local. */
void nps_inspect_show(const nps_inspect_t *inspect, nps_report_t *report);

/** Read what a model says of itself besides tensors: `origin` and `sidecars`. Local.
 *  @return NPS_ERR_INPUT when a file cannot be read */
nps_err_t nps_inspect_read_origin(nps_inspect_t *inspect);

/** Find, read and show a model: nps-inspect without its options. Collective.
 *  @param path     the model; @param against  the base, or NULL
 *  @param spectrum  how many singular values of every matrix; 0: none
 *  @param as_json  print JSON on stdout instead of tables
 *  @param report   on rank 0; may be NULL */
nps_err_t nps_inspect_run(const nps_comm_t *comm, const char *path, const char *against, int spectrum, bool as_json,
                          nps_report_t *report);

#endif
