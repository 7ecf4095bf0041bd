#!/usr/bin/env bash
# DM-small on MNIST with six methods on short schedules, one network tested at several radii as in the papers. The 28
# committed cells of 39 took 16 hours of a core, most of them for 60 and more epochs. With --results results: writes results/dm_small.jsonl.
exec "$(dirname "$0")/reproduce.sh" scripts/recipes/dm_small.yaml --scale full "$@"
