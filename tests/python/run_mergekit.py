#!/usr/bin/env python3
"""Merge with mergekit, several configs in one process: run_mergekit.py [--copy-tokenizer] CONFIG OUT [CONFIG OUT …]"""

import logging
import pathlib
import sys

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

logging.disable(logging.WARNING)
words = sys.argv[1:]
copy_tokenizer = words[0] == "--copy-tokenizer"
words = words[copy_tokenizer:]
for config, out in zip(words[::2], words[1::2]):
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(pathlib.Path(config).read_text())),
        out,
        MergeOptions(copy_tokenizer=copy_tokenizer, write_model_card=False, quiet=True),
    )
