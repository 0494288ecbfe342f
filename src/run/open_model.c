#include "open_model.h"

#include "nps/archive.h"

#include <stdlib.h>
#include <sys/stat.h>

static nps_err_t open_here(const char *model, nps_model_t **out) {
  char *found = NULL;
  nps_err_t err = nps_model_locate(model, NULL, &found);
  if (err == NPS_OK) err = nps_model_open(found, model, out);
  free(found);
  return err;
}

nps_err_t nps_run_open_model(const nps_comm_t *comm, const char *model, nps_model_t **out) {
  char *text = NULL;
  bool root = nps_comm_rank(comm) == 0;
  NPS_TRY(nps_comm_agree(comm, root ? open_here(model, out) : NPS_OK));
  if (root) text = nps_model_pack(*out);
  nps_comm_bcast_text(comm, &text);
  nps_err_t err = root ? NPS_OK : nps_model_unpack(text, out);
  free(text);
  NPS_TRY(nps_comm_agree(comm, err));
  return nps_archive_verify(comm, (const nps_model_t *const *)out, 1);
}

nps_err_t nps_run_open_beside(const nps_comm_t *comm, const char *base, const nps_model_t *model, nps_model_t **out) {
  bool changed;
  NPS_TRY(nps_run_open_model(comm, base, out));
  return nps_model_name_like(*out, model, &changed);
}

nps_err_t nps_run_refuse_adapter(const nps_model_t *model) {
  if (model->form != NPS_FORM_ADAPTER) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: is a PEFT adapter by itself, expected BASE+%s", model->path, model->path);
}

bool nps_run_same_place(const char *a, const char *b) {
  struct stat x, y;
  return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool nps_run_is_of_model(const nps_model_t *model, const char *path) {
  const nps_derivation_t *d = model->derivation;
  if (!d) return nps_run_same_place(model->path, path);
  return nps_run_is_of_model(d->base, path) || (d->parts && nps_run_is_of_model(d->parts, path));
}
