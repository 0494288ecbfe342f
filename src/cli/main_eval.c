#include "programs.h"

int main(int argc, char **argv) { return cli_eval_main(argc, argv); }
