#!/usr/bin/env bash
# DM-small on MNIST with six methods on short schedules, one network tested at several radii as in the papers. About two
# hours on one core, and five more for the 60-epoch schedule. With --results results: writes results/dm_small.jsonl.
exec "$(dirname "$0")/reproduce.sh" scripts/recipes/dm_small.yaml --scale full "$@"
