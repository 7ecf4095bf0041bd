#!/usr/bin/env python3
"""Train a classifier whose robustness can be proven: ``python train.py --help``."""

import sys

from expressive_losses.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
