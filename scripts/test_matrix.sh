#!/usr/bin/env bash
# Run the tests in an environment of its own for every combination of Python, torch and auto_LiRPA that is at hand.
#
#   scripts/test_matrix.sh [pytest arguments]
#   PYTHONS="python3.11 python3.12" LIRPAS="auto_LiRPA==0.3 /path/to/auto_LiRPA" scripts/test_matrix.sh
#   TORCH="torch==2.4.1 torchvision==0.19.1" PYTHONS=python3.10 scripts/test_matrix.sh tests/test_soundness.py
#   ENVIRONMENTS=folder   where the environments are made and kept; without it they are removed again
#   RESULTS=file          where one row a combination goes, failed ones too: results/test_matrix.jsonl
#
# Interpreters that are not there are named and left out. Prints one line a combination at the end, and fails if one did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHONS="${PYTHONS:-python3.10 python3.11 python3.12 python3.13}"
LIRPAS="${LIRPAS:-auto_LiRPA==0.3}"
TORCH="${TORCH:-$(grep -hoE '^torch(vision)?==[^ ]+' requirements/base.txt | tr '\n' ' ')}"
RESULTS="${RESULTS:-results/test_matrix.jsonl}"
TORCH="${TORCH% }"
place="${ENVIRONMENTS:-$(mktemp -d)}"
[ -n "${ENVIRONMENTS:-}" ] || trap 'rm -rf "$place"' EXIT
lines=()
failed=0

environment() {  # python, auto_LiRPA, folder: install everything there, unless it was
    local python="$1" lirpa="$2" folder="$3"
    [ -e "$folder/installed" ] && return
    "$python" -m venv "$folder" || return 1
    local pip=("$folder/bin/python" -m pip --disable-pip-version-check install -q)
    # Only torch is chosen; the rest is as pinned.
    grep -hvE '^torch(vision)?==' requirements/base.txt requirements/test.txt > "$folder/requirements.txt"
    "${pip[@]}" $TORCH -r "$folder/requirements.txt" || return 1
    "${pip[@]}" --no-deps "$lirpa" || return 1
    touch "$folder/installed"
}

for python in $PYTHONS; do
    if ! "$python" -c '' 2>/dev/null; then
        lines+=("not run  $python: not on this machine")
        continue
    fi
    for lirpa in $LIRPAS; do
        combination="$("$python" --version) $(basename "$lirpa") $TORCH"
        folder="$place/${combination//[^a-zA-Z0-9.]/_}"
        if ! environment "$python" "$lirpa" "$folder"; then
            lines+=("FAILED   $combination: cannot be installed")
            failed=1
            continue
        fi
        OMP_NUM_THREADS=1 PYTHONPATH="$PWD" "$folder/bin/python" -m pytest -n "${PROCESSES:-2}" -q \
            --junitxml "$folder/tests.xml" "$@" && verdict="passed  " || { verdict="FAILED  "; failed=1; }
        PYTHONPATH="$PWD" "$folder/bin/python" -m campaigns.matrix "$folder/tests.xml" --out "$RESULTS" --tests "$*"
        lines+=("$verdict $combination")
    done
done
printf '%s\n' "${lines[@]}"
exit "$failed"
