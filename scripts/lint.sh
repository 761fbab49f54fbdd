#!/usr/bin/env bash
# The linters, bandit, the type checker, the import contracts and the documentation's links, without the tests.
#
#   scripts/lint.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup_env.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/bandit -q -c pyproject.toml -r nvtxmoe analysis recipes
.venv/bin/lint-imports
scripts/docs.sh
