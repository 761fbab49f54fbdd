#!/usr/bin/env bash
# From a fresh clone to the first result: sets up .venv and runs the demo. Needs no GPU and no nsys.
#
#   scripts/quickstart.sh [options of `nvtxmoe demo`]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/setup_env.sh"
echo "quickstart.sh: analyzing the capture that ships with nvtxmoe" >&2
"$root/.venv/bin/nvtxmoe" demo "$@"
echo "nvtxmoe is $root/.venv/bin/nvtxmoe (or: source $root/.venv/bin/activate)"
