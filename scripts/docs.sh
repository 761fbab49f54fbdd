#!/usr/bin/env bash
# Builds the documentation into site/; a link, an anchor or a page of the navigation that is missing is an error.
#
#   scripts/docs.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup_env.sh test
# The theme warns of a later mkdocs than the pinned one.
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
