#include "programs.h"

int main(int argc, char **argv) { return cli_inspect_main(argc, argv); }
