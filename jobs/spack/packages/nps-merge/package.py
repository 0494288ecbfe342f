from spack.package import *


class NpsMerge(AutotoolsPackage):
    """Merges, slims and transfers fine-tuned transformer models on any number of MPI ranks."""

    # Built from the checkout that this recipe lies in: spack dev-build, see docs/install.md.
    version("0.1.0")

    variant("tests", default=False, description="Build what `make check` runs")

    depends_on("c", type="build")
    depends_on("gmake", type="build")
    depends_on("autoconf", type="build")
    depends_on("automake", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("mpi")
    depends_on("hdf5@1.10:+mpi")
    depends_on("blas")
    depends_on("lapack")
    depends_on("scalapack")
    depends_on("libyaml")
    depends_on("jansson")
    depends_on("openssl@1.1:")
    depends_on("zlib-api")
    depends_on("check@0.15:", when="+tests")

    def autoreconf(self, spec, prefix):
        Executable("./autogen.sh")()

    def configure_args(self):
        spec = self.spec
        return [
            f"MPICC={spec['mpi'].mpicc}",
            f"HDF5_CFLAGS={spec['hdf5'].headers.include_flags}",
            f"HDF5_LIBS={spec['hdf5'].libs.ld_flags}",
            f"BLAS_LIBS={spec['blas'].libs.ld_flags}",
            f"LAPACK_LIBS={spec['lapack'].libs.ld_flags}",
            f"SCALAPACK_LIBS={spec['scalapack'].libs.ld_flags}",
            "--enable-tests" if spec.satisfies("+tests") else "--disable-tests",
        ]

    def setup_run_environment(self, env):
        env.prepend_path("PYTHONPATH", f"{self.prefix}/share/nps-merge/python")
