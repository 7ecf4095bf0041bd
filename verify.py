#!/usr/bin/env python3
"""Prove the robustness of a trained classifier: ``python verify.py --help``."""

import sys

from expressive_losses.cli import verify_main

if __name__ == "__main__":
    sys.exit(verify_main())
