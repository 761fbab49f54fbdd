#!/usr/bin/env bash
# Makes .venv in the repository with nvtxmoe in it; with "test", also what the tests and linters need, pinned.
#
#   scripts/setup_env.sh [test]
#
# Python: $PYTHON, else the first of python3.13 to python3.10 and python3 that is 3.10 to 3.13. On Debian and Ubuntu
# a missing python3-venv is installed (as root, or with sudo). Nothing is done when .venv is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-run}

# shellcheck source=scripts/lib.sh
. scripts/lib.sh

python=$(need_python python3 python3.13 python3.12 python3.11 python3.10)

stamp=$(cat pyproject.toml requirements-test.txt nvtxmoe/_version.py <(echo "$kind $python $PWD") | sha256sum)
if [ "$(cat .venv/.stamp 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
say "making .venv with $("$python" --version)"
rm -rf .venv
"$python" -m venv .venv || die "could not make .venv; is python3-venv installed?"
# Python compiles what it imports; to compile all that is installed takes as long as to install it.
install=(.venv/bin/python -m pip --disable-pip-version-check -q install --no-compile)
if [ "$kind" = test ]; then
    say "installing what tests and linters need: some minutes"
    "${install[@]}" -r requirements-test.txt
    # The tests run emitters on an nvtx of each kind: this one carries binary payloads, the pinned one does not.
    rm -rf .cache/nvtx-binary
    "${install[@]}" --no-deps --target .cache/nvtx-binary nvtx==0.2.17
fi
say "installing nvtxmoe and its libraries: one to five minutes"
"${install[@]}" -e '.[analysis,load]'
echo "$stamp" >.venv/.stamp
say "$PWD/.venv is ready"
