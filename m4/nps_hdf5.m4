# NPS_HDF5: find HDF5 with MPI-IO, and say so when there is only a serial one.
AC_DEFUN([NPS_HDF5], [
AC_ARG_VAR([HDF5_CFLAGS], [compiler flags for parallel HDF5])
AC_ARG_VAR([HDF5_LIBS], [linker flags for parallel HDF5])
AC_CHECK_PROGS([H5PCC], [h5pcc h5pcc.openmpi h5pcc.mpich])
AS_IF([test -n "$H5PCC"], [nps_h5pcc=`$H5PCC -show 2>/dev/null | sed 's/^[[^ ]]* *//; s/  */,/g'`])
AS_CASE([$nps_mpi], [mpich], [nps_h5pkg="hdf5-mpich hdf5-mpi hdf5 hdf5-openmpi"],
        [nps_h5pkg="hdf5-openmpi hdf5-mpi hdf5 hdf5-mpich"])
AC_MSG_CHECKING([for parallel HDF5])
NPS_SEARCH_LIB([HDF5], [$nps_h5pkg], [-lhdf5 $nps_h5pcc], [[
#include <mpi.h>
#include <hdf5.h>
#ifndef H5_HAVE_PARALLEL
#error this HDF5 is serial
#endif]], [[return H5Pset_fapl_mpio(H5Pcreate(H5P_FILE_ACCESS), MPI_COMM_SELF, MPI_INFO_NULL);]])
nps_h5advice="Debian: apt-get install libhdf5-$nps_debian-dev; or set HDF5_CFLAGS and HDF5_LIBS to a parallel HDF5 built with the MPI of $CC"
AS_IF([test $nps_found = yes], [AC_MSG_RESULT([$nps_where])], [
  NPS_SEARCH_LIB([HDF5], [$nps_h5pkg hdf5-serial], [-lhdf5], [[#include <hdf5.h>]], [[return H5open();]])
  AS_IF([test $nps_found = yes], [
    AC_MSG_RESULT([no, a serial one ($nps_where)])
    NPS_MISSING([the HDF5 found ($nps_where) is serial: it lacks MPI-IO (H5Pset_fapl_mpio). $nps_h5advice])], [
    AC_MSG_RESULT([no])
    NPS_MISSING([parallel HDF5 was not found. $nps_h5advice])])])
])
