#include "programs.h"

int main(int argc, char **argv) { return cli_merge_main(argc, argv); }
