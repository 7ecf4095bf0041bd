#!/usr/bin/env bash
# Run the tests in an environment of its own for every combination of Python and auto_LiRPA that is at hand.
#
#   scripts/test_matrix.sh [pytest arguments]
#   PYTHONS="python3.11 python3.12" LIRPAS="auto_LiRPA==0.3 /path/to/auto_LiRPA" TORCH=torch==2.4.1 scripts/test_matrix.sh
#
# Interpreters that are not there are named and left out. Prints one line a combination at the end, and fails if one did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHONS="${PYTHONS:-python3.10 python3.11 python3.12 python3.13}"
LIRPAS="${LIRPAS:-auto_LiRPA==0.3}"
TORCH="${TORCH:-}"  # empty: as pinned in requirements/base.txt
lines=()
failed=0

one() {  # python, auto_LiRPA, pytest arguments: set up and test in a folder that is then removed
    local python="$1" lirpa="$2" place
    shift 2
    place="$(mktemp -d)"
    trap 'rm -rf "$place"' RETURN
    "$python" -m venv "$place/venv" || return 1
    local pip=("$place/venv/bin/python" -m pip --disable-pip-version-check install -q)
    "${pip[@]}" -r requirements/base.txt -r requirements/test.txt || return 1
    if [ -n "$TORCH" ]; then "${pip[@]}" "$TORCH" || return 1; fi
    "${pip[@]}" --no-deps "$lirpa" || return 1
    "${pip[@]}" --no-deps --no-build-isolation -e . || return 1
    OMP_NUM_THREADS=1 "$place/venv/bin/python" -m pytest -n 2 -q "$@"
}

for python in $PYTHONS; do
    if ! "$python" -c '' 2>/dev/null; then
        lines+=("not run  $python: not on this machine")
        continue
    fi
    for lirpa in $LIRPAS; do
        if one "$python" "$lirpa" "$@"; then
            lines+=("passed   $("$python" --version), $lirpa ${TORCH}")
        else
            lines+=("FAILED   $("$python" --version), $lirpa ${TORCH}")
            failed=1
        fi
    done
done
printf '%s\n' "${lines[@]}"
exit "$failed"
