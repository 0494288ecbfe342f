/** @file scalapack.h
 *  Prototypes of BLACS, PBLAS and ScaLAPACK, which ship none. Fortran's conventions: column-major, by reference, 32-bit counts. */
#ifndef NPS_DMAT_SCALAPACK_H
#define NPS_DMAT_SCALAPACK_H

#include <mpi.h>

extern int Csys2blacs_handle(MPI_Comm comm);
extern void Cfree_blacs_system_handle(int handle);
extern void Cblacs_gridinit(int *context, const char *order, int rows, int columns);
extern void Cblacs_set(int context, int what, int *value);
extern void Cblacs_gridexit(int context);

extern void pdgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k,
                    const double *alpha, const double *a, const int *ia, const int *ja, const int *desca,
                    const double *b, const int *ib, const int *jb, const int *descb, const double *beta, double *c,
                    const int *ic, const int *jc, const int *descc);
extern void pdsyrk_(const char *uplo, const char *trans, const int *n, const int *k, const double *alpha,
                    const double *a, const int *ia, const int *ja, const int *desca, const double *beta, double *c,
                    const int *ic, const int *jc, const int *descc);
extern void pdgeadd_(const char *trans, const int *m, const int *n, const double *alpha, const double *a, const int *ia,
                     const int *ja, const int *desca, const double *beta, double *c, const int *ic, const int *jc,
                     const int *descc);
extern void pdsytrd_(const char *uplo, const int *n, double *a, const int *ia, const int *ja, const int *desca,
                     double *d, double *e, double *tau, double *work, const int *lwork, int *info);
extern void pdstedc_(const char *compz, const int *n, double *d, double *e, double *q, const int *iq, const int *jq,
                     const int *descq, double *work, const int *lwork, int *iwork, const int *liwork, int *info);
extern void pdormtr_(const char *side, const char *uplo, const char *trans, const int *m, const int *n, const double *a,
                     const int *ia, const int *ja, const int *desca, const double *tau, double *c, const int *ic,
                     const int *jc, const int *descc, double *work, const int *lwork, int *info);
extern void pdsyevr_(const char *jobz, const char *range, const char *uplo, const int *n, double *a, const int *ia,
                     const int *ja, const int *desca, const double *vl, const double *vu, const int *il, const int *iu,
                     int *m, int *nz, double *w, double *z, const int *iz, const int *jz, const int *descz,
                     double *work, const int *lwork, int *iwork, const int *liwork, int *info);
extern void pdgesvd_(const char *jobu, const char *jobvt, const int *m, const int *n, double *a, const int *ia,
                     const int *ja, const int *desca, double *s, double *u, const int *iu, const int *ju,
                     const int *descu, double *vt, const int *ivt, const int *jvt, const int *descvt, double *work,
                     const int *lwork, int *info);
extern void pdtran_(const int *m, const int *n, const double *alpha, const double *a, const int *ia, const int *ja,
                    const int *desca, const double *beta, double *c, const int *ic, const int *jc, const int *descc);

#endif
