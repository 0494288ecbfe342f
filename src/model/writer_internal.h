/* What the parts of the writer share: where an output lies, small helpers for files, the two forms. */
#ifndef NPS_MODEL_WRITER_INTERNAL_H
#define NPS_MODEL_WRITER_INTERNAL_H

#include "nps/model.h"

#ifndef PACKAGE_VERSION
#define PACKAGE_VERSION "unknown"
#endif
#define NPS_CREATED_BY "nps-merge " PACKAGE_VERSION

/* ---- output_files.c: single files and output folders; messages name the path and the cause. All local. ---- */

/* Remove a file, or a folder that holds only files and folders of files. Nothing there is fine. */
nps_err_t nps_path_remove(const char *path);

/* Bring a file's data, or a folder's entries, to the device. */
nps_err_t nps_path_sync(const char *path);

/* Write a whole part at an offset, in as many calls as it takes. */
nps_err_t nps_fd_write(int fd, const char *path, const void *data, size_t n, int64_t offset);

/* Write a whole small file into a folder, to the device. The name is only a name: no '/', not "..". */
nps_err_t nps_file_put(const char *folder, const char *name, const void *data, size_t size);

/* Give the size of a file, or the sum over the files in a folder, by st_size, or, where `allocated`, as they
 * occupy the device. 0 when there is nothing. */
int64_t nps_path_bytes(const char *path, bool allocated);

/* ---- output.c: where an output lies and what may be replaced. All local, for rank 0 but for make and clear. ---- */

typedef struct nps_place {
  char *target;     /* as given, without slashes at its end; a symbolic link is followed */
  char *folder;     /* the folder it lies in */
  char *partial;    /* folder/.NAME.partial */
  char *old;        /* folder/NAME.old: an old folder, while it is replaced where two folders cannot be exchanged */
  nps_lock_t *lock; /* NULL: not locked by this place */
  bool locked;      /* its owner has the lock */
  bool hdf5;
} nps_place_t;

nps_err_t nps_place_make(const char *path, nps_place_t *out);

/* Give up the lock that nps_place_prepare() took. */
void nps_place_unlock(nps_place_t *place);

/* Give up the lock and free. */
void nps_place_clear(nps_place_t *place);

/* Look at what is there: nothing, or, with force, an output of the same form. */
nps_err_t nps_place_check(const nps_place_t *place, bool force);

/* Make ready for writing: lock where it is not locked yet, put back what an interrupted run moved away, check again, remove what it left. */
nps_err_t nps_place_prepare(nps_place_t *place, bool force);

/* Put the finished partial output in the target's place. Where that cannot be done it is saved as NAME.complete (-2, …),
 * which no run touches, or, where nothing can be renamed, stays; a problem says where it lies. @return NPS_ERR_IO */
nps_err_t nps_place_finish(const nps_place_t *place, bool force);

/* Exchange an existing folder with the partial one by way of NAME.old, where the file system cannot do it at once. When
 * only the last step fails the old one stays NAME.old, with a note. */
nps_err_t nps_place_by_old(const nps_place_t *place);

/* ---- writer.c and the forms ---- */

typedef struct nps_writer_form {
  /* Create the partial output with all tensors. Collective; the result is agreed on. */
  nps_err_t (*open)(nps_writer_t *writer);
  nps_err_t (*write)(nps_writer_t *writer, int i, int64_t first, int64_t count, const void *data);
  /* Write a part. NULL: the form has none. */
  nps_err_t (*write_part)(nps_writer_t *writer, int part, const void *data);
  /* Write all else, flush to the device, close. Collective; the result is agreed on. */
  nps_err_t (*finish)(nps_writer_t *writer, const nps_digest_t *digest);
  /* Close and free the state, whatever happened before. Collective. */
  void (*close)(nps_writer_t *writer);
} nps_writer_form_t;

/* ---- writer_state.c: what output.state asks for, in an HDF5 file that all ranks have created. Collective as the file is;
 * nothing is done where it asks for nothing. ---- */

nps_err_t nps_state_create(nps_writer_t *writer, nps_h5_t *file);

/* Write what is not tensors, and close the datasets. */
nps_err_t nps_state_finish(nps_writer_t *writer, nps_h5_t *file);

/* Close the datasets, whatever happened before. */
void nps_state_close(nps_writer_t *writer);

/* Give the open file of a writer whose form is HDF5. */
nps_h5_t *nps_writer_file(const nps_writer_t *writer);

extern const nps_writer_form_t nps_writer_hdf5;
extern const nps_writer_form_t nps_writer_folder;

struct nps_writer {
  const nps_comm_t *comm;
  nps_output_t output;
  const nps_layout_t *layout;
  nps_place_t place;
  const nps_writer_form_t *form;
  void *state;             /* the form's */
  nps_h5_dataset_t **kept; /* [layout->count] what output.state asks for, of merged targets; NULL: nothing */
  bool prepared;           /* on rank 0: the partial output is this writer's */
  bool finished;           /* on rank 0: the output is complete, in its place or kept elsewhere */
  int64_t bytes;
};

#endif
