# NPS_TRY_FLAGS(VAR, FLAGS): append to VAR each compiler flag that the compiler takes.
AC_DEFUN([NPS_TRY_FLAGS], [
nps_save_CFLAGS=$CFLAGS
for nps_flag in $2; do
  AC_MSG_CHECKING([whether $CC takes $nps_flag])
  CFLAGS="$nps_save_CFLAGS -Werror $nps_flag"
  AC_COMPILE_IFELSE([AC_LANG_SOURCE([[int main(void) { return 0; }]])],
    [AC_MSG_RESULT([yes]); $1="$$1 $nps_flag"], [AC_MSG_RESULT([no])])
done
CFLAGS=$nps_save_CFLAGS
])

# NPS_AS_NEEDED: set AS_NEEDED and NO_AS_NEEDED to the linker's flags, or to nothing.
AC_DEFUN([NPS_AS_NEEDED], [
AC_MSG_CHECKING([whether the linker knows --as-needed])
nps_save_LDFLAGS=$LDFLAGS
LDFLAGS="$LDFLAGS -Wl,--as-needed -Wl,--no-as-needed"
AC_LINK_IFELSE([AC_LANG_PROGRAM([], [])],
  [AC_MSG_RESULT([yes]); AS_NEEDED=-Wl,--as-needed NO_AS_NEEDED=-Wl,--no-as-needed],
  [AC_MSG_RESULT([no]); AS_NEEDED= NO_AS_NEEDED=])
LDFLAGS=$nps_save_LDFLAGS
AC_SUBST([AS_NEEDED])
AC_SUBST([NO_AS_NEEDED])
])
