#!/usr/bin/env bash
# All checks: ruff, bash -n, every test. Makes .venv if it is missing.   bash scripts/test.sh [pytest arguments]
# --slow as the first argument runs the campaigns instead: processes killed and inputs spoilt at random, with counts.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
for script in scripts/*.sh .ci/run; do bash -n "$script"; done
ruff check .
if [ "${1:-}" = --slow ]; then
  exec python -m pytest -m slow "${@:2}"
fi
python -m pytest -n "${TEST_PROCESSES:-2}" --durations=10 "$@"
