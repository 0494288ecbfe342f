# NPS_PROG_MPICC: choose the compiler before AC_PROG_CC looks for one. MPICC comes first, then CC as the user gave it
# (a Cray's `cc`, an Intel wrapper), then the wrappers by their usual names.
AC_DEFUN([NPS_PROG_MPICC], [
AC_ARG_VAR([MPICC], [MPI C compiler wrapper (default: CC if given, else mpicc)])
AS_IF([test -n "$MPICC"], [CC=$MPICC],
      [test -z "$CC"], [
  AS_IF([test -n "$CRAYPE_VERSION"], [nps_wrappers="cc mpicc"],
        [nps_wrappers="mpicc mpicc.openmpi mpicc.mpich mpiicx mpiicc"])
  AC_CHECK_PROGS([CC], [$nps_wrappers])
  AS_IF([test -z "$CC"], [AC_MSG_ERROR([no MPI C compiler found.
  Debian: apt-get install libopenmpi-dev openmpi-bin; elsewhere load an MPI module, or set MPICC=/path/to/mpicc])])])
])

# NPS_CHECK_MPI: the compiler chosen must build MPI programs. Sets nps_mpi to openmpi, mpich or
# other, nps_debian to the word that names of Debian's packages have.
AC_DEFUN([NPS_CHECK_MPI], [
AC_MSG_CHECKING([whether $CC builds MPI programs])
AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <mpi.h>]], [[return MPI_Init(0, 0) + MPI_VERSION - 3;]])],
  [AC_MSG_RESULT([yes])],
  [AC_MSG_RESULT([no])
   AC_MSG_ERROR([$CC does not build MPI programs.
  Debian: apt-get install libopenmpi-dev openmpi-bin; or set MPICC=/path/to/mpicc, or CC to your cluster's wrapper])])
AC_PREPROC_IFELSE([AC_LANG_SOURCE([[
#include <mpi.h>
#ifndef OPEN_MPI
#error not Open MPI
#endif]])], [nps_mpi=openmpi], [
  AC_PREPROC_IFELSE([AC_LANG_SOURCE([[
#include <mpi.h>
#ifndef MPICH_VERSION
#error not MPICH
#endif]])], [nps_mpi=mpich], [nps_mpi=other])])
AS_IF([test $nps_mpi = mpich], [nps_debian=mpich], [nps_debian=openmpi])
AC_ARG_VAR([MPIRUN], [program that starts MPI programs, used by the tests (default: mpirun, mpiexec)])
AC_CHECK_PROGS([MPIRUN], [mpirun mpiexec mpirun.openmpi mpirun.mpich], [mpirun])
])
