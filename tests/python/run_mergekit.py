#!/usr/bin/env python3
"""Merge with mergekit, several configs in one process: run_mergekit.py CONFIG OUT [CONFIG OUT …]"""

import logging
import pathlib
import sys

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

logging.disable(logging.WARNING)
for config, out in zip(sys.argv[1::2], sys.argv[2::2]):
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(pathlib.Path(config).read_text())),
        out,
        MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True),
    )
