# NPS_SEARCH_LIB(VAR, PKG-CONFIG NAMES, LIBRARY FLAGS, PROLOGUE, BODY)
# Look for a library with which PROLOGUE and BODY link: VAR_CFLAGS and VAR_LIBS if the user gave one of them (then
# nothing else), else the default search path, the pkg-config names, and then each word of LIBRARY FLAGS.
# Commas in a word of LIBRARY FLAGS stand for spaces. Sets VAR_CFLAGS, VAR_LIBS, nps_found (yes, no), nps_where.
AC_DEFUN([NPS_SEARCH_LIB], [
nps_save_CFLAGS=$CFLAGS nps_save_LIBS=$LIBS
nps_user_cflags=$$1_CFLAGS nps_user_libs=$$1_LIBS
AS_IF([test -n "$nps_user_cflags$nps_user_libs"], [nps_places=user], [
  nps_places=default
  for nps_pkg in $2; do nps_places="$nps_places pkg-config:$nps_pkg"; done
  for nps_lib in $3; do nps_places="$nps_places $nps_lib"; done])
nps_found=no
for nps_where in $nps_places; do
  AS_CASE([$nps_where],
    [user], [$1_CFLAGS=$nps_user_cflags $1_LIBS=$nps_user_libs],
    [default], [$1_CFLAGS= $1_LIBS=],
    [pkg-config:*], [
      nps_pkg=`echo "$nps_where" | sed 's/^[[^:]]*://'`
      AS_IF([test -n "$PKG_CONFIG" && $PKG_CONFIG --exists "$nps_pkg" 2>/dev/null], [
        $1_CFLAGS=`$PKG_CONFIG --cflags "$nps_pkg"` $1_LIBS=`$PKG_CONFIG --libs "$nps_pkg"`], [continue])],
    [NPS_SPLIT_FLAGS([$1], [`echo "$nps_where" | tr , ' '`])])
  CFLAGS="$nps_save_CFLAGS $$1_CFLAGS" LIBS="$$1_LIBS $nps_save_LIBS"
  AC_LINK_IFELSE([AC_LANG_PROGRAM([$4], [$5])], [nps_found=yes; break])
done
CFLAGS=$nps_save_CFLAGS LIBS=$nps_save_LIBS
AS_IF([test $nps_found = no], [$1_CFLAGS=$nps_user_cflags $1_LIBS=$nps_user_libs],
      [test $nps_where = user], [nps_where="the given $1_CFLAGS and $1_LIBS"])
])

# NPS_SPLIT_FLAGS(VAR, FLAGS): preprocessor flags to VAR_CFLAGS, what the linker takes to VAR_LIBS, all else is dropped.
AC_DEFUN([NPS_SPLIT_FLAGS], [
$1_CFLAGS= $1_LIBS=
for nps_flag in $2; do
  AS_CASE([$nps_flag], [-I*|-D*], [$1_CFLAGS="$$1_CFLAGS $nps_flag"],
          [-L*|-l*|-Wl*|*.a|*.so], [$1_LIBS="$$1_LIBS $nps_flag"])
done])

# NPS_MISSING(MESSAGE): remember what is missing; NPS_STOP_IF_MISSING reports all of it at once.
AC_DEFUN([NPS_MISSING], [nps_missing="$nps_missing
  - $1"])
AC_DEFUN([NPS_STOP_IF_MISSING], [
AS_IF([test -n "$nps_missing"], [AC_MSG_ERROR([cannot build $PACKAGE_NAME:$nps_missing
(jobs/install-deps.sh installs everything on Debian; config.log has the compiler's words)])])])

# NPS_HEADERS(PROLOGUE, TEXT): TEXT when PROLOGUE includes headers.
m4_define([NPS_HEADERS], [m4_if(m4_index([$1], [#include]), [-1], [], [$2])])

# NPS_LIB(VAR, NAME, DEBIAN PACKAGE, PKG-CONFIG NAMES, LIBRARY FLAGS, PROLOGUE, BODY): a library the build needs.
AC_DEFUN([NPS_LIB], [
NPS_HEADERS([$6], [AC_ARG_VAR([$1_CFLAGS], [compiler flags for $2])])
AC_ARG_VAR([$1_LIBS], [linker flags for $2])
AC_MSG_CHECKING([for $2])
NPS_SEARCH_LIB([$1], [$4], [$5], [$6], [$7])
AS_IF([test $nps_found = yes], [AC_MSG_RESULT([$nps_where])], [
  AC_MSG_RESULT([no])
  NPS_MISSING([$2 was not found. Debian: apt-get install $3; or set $1_LIBS[]NPS_HEADERS([$6], [ (and $1_CFLAGS)])])])
])
