#include "programs.h"

int main(int argc, char **argv) { return cli_convert_main(argc, argv); }
