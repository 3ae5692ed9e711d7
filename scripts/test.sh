#!/usr/bin/env bash
# All checks: ruff, bash -n, every test. Makes .venv if it is missing.   bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
for script in scripts/*.sh .ci/run; do bash -n "$script"; done
ruff check .
python -m pytest -n "${TEST_PROCESSES:-2}" --durations=10 "$@"
