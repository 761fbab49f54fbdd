#!/usr/bin/env bash
# From a fresh clone to passed tests: sets up .venv and runs the tests, and beside them the linters, the type checker and
# the import contracts, whose output comes last. Tools are set up where a chosen test needs them: a real nsys (from the distribution's
# packages, into .cache), Chromium (likewise, on the system), a real vLLM for CPUs (.venv-vllm, 2 GB).
#
#   scripts/test.sh                                   everything
#   scripts/test.sh -m "not vllm and not browser"     with options of pytest: these tests alone, without the linters
#
# Markers: nsys, vllm, browser, prometheus (the tools), dask, slow. NVTXMOE_TEST_PROCESSES: how many processes (3, as tests
# wait for other processes); 0 runs all tests in this one, as a debugger wants it.
set -euo pipefail
cd "$(dirname "$0")/.."
# Hundreds of tests start a Python: each would compile the same modules again.
unset PYTHONDONTWRITEBYTECODE
scripts/setup_env.sh test

tools() { # options of pytest: the tools that the chosen tests need
    local work status=0
    work=$(mktemp -d)
    .venv/bin/python -m pytest -p no:cacheprovider -p tests.support.needed --needed "$work/needed" \
        --collect-only -q "$@" >"$work/log" 2>&1 || status=$?
    [ "$status" -eq 0 ] || tail -n 30 "$work/log" >&2
    cat "$work/needed" 2>/dev/null || true
    rm -rf "$work"
    return "$status"
}

needed=$(printf '%s\n' nsys vllm browser prometheus)
lint=""
if [ $# -gt 0 ]; then
    needed=$(tools "$@")
else
    # Beside downloads and tests, which often wait.
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    scripts/lint.sh >"$log" 2>&1 &
    lint=$!
fi
for tool in $needed; do
    case $tool in
    nsys) scripts/install_nsys.sh .cache/nsys >/dev/null ;;
    vllm) scripts/setup_vllm.sh ;;
    browser) scripts/install_chromium.sh >/dev/null ;;
    prometheus) scripts/install_prometheus.sh .cache/prometheus >/dev/null ;;
    esac
done
status=0
.venv/bin/python -m pytest -n "${NVTXMOE_TEST_PROCESSES:-3}" --dist loadgroup "$@" || status=$?
if [ -n "$lint" ]; then
    linted=0
    wait "$lint" || linted=$?
    cat "$log"
    [ "$status" -ne 0 ] || status=$linted
fi
exit "$status"
