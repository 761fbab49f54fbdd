#!/usr/bin/env bash
# From a fresh clone to passed tests: sets up .venv, a real nsys (from the distribution's packages, into .cache),
# Chromium (likewise, on the system) and a real vLLM for CPUs (.venv-vllm), runs the linters, the type checker and the
# tests.
#
#   scripts/test.sh [options of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup_env.sh test
scripts/install_nsys.sh .cache/nsys >/dev/null
scripts/install_chromium.sh >/dev/null
scripts/setup_vllm.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
