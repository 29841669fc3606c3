#!/usr/bin/env bash
# Set-up, lint, types and tests:
#
#     ./scripts/test.sh                      # the quick tests
#     ./scripts/test.sh -m 'slow or not slow'   # all of them
#
# Arguments go to pytest. Makes .venv, or takes the environment named in DDFNET_VENV.
set -euo pipefail
called_from=$PWD
CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
ensure_environment test

ruff format --check
ruff check
mypy
exec python -m pytest "$@"
