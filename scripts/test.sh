#!/usr/bin/env bash
# From a fresh clone to passed tests: sets up .venv and runs the tests, and beside them the linters, the type checker and
# the import contracts, whose output comes last. Tools are set up beside the tests too, where a chosen test needs them, and
# their tests wait: a real nsys (from the distribution's packages, into .cache), Chromium (likewise, on the system), a real
# vLLM for CPUs (.venv-vllm, 2 GB).
#
#   scripts/test.sh                                   everything
#   scripts/test.sh -m "not vllm and not browser"     with options of pytest: these tests alone, without the linters
#
# Markers: nsys, vllm, browser, prometheus (the tools), dask, golden, slow. NVTXMOE_TEST_PROCESSES: how many processes (3, as tests
# wait for other processes); 0 runs all tests in this one, as a debugger wants it.
set -euo pipefail
cd "$(dirname "$0")/.."
# Hundreds of tests start a Python: each would compile the same modules again.
unset PYTHONDONTWRITEBYTECODE

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

set_up() { # tool: its output and then its exit status go to files of $work, for which the tests of the tool wait
    local status=0
    case $1 in
    nsys) scripts/install_nsys.sh .cache/nsys ;;
    vllm) scripts/setup_vllm.sh ;;
    browser) scripts/install_chromium.sh ;;
    prometheus) scripts/install_prometheus.sh .cache/prometheus ;;
    esac >"$work/$1.log" 2>&1 || status=$?
    echo "$status" >"$work/$1.new"
    mv "$work/$1.new" "$work/$1.status"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
needed=(nsys browser prometheus vllm)
lint=""
if [ $# -gt 0 ]; then
    scripts/setup_env.sh test
    mapfile -t needed < <(tools "$@")
    wait $! || exit # pytest's status: what is chosen cannot be collected
else
    # Beside downloads and tests, which often wait. vLLM takes longest.
    set_up vllm &
    scripts/setup_env.sh test || { wait && exit 1; }
    scripts/lint.sh >"$work/lint.log" 2>&1 &
    lint=$!
fi
(for tool in "${needed[@]}"; do
    [ "$tool" = vllm ] && [ $# -eq 0 ] || set_up "$tool"
done) &
status=0
.venv/bin/python -m pytest -n "${NVTXMOE_TEST_PROCESSES:-3}" --dist loadgroup --no-loadscope-reorder \
    --setting-up="$work" "$@" || status=$? # apart by a space, the folder would be taken for tests
linted=0
[ -z "$lint" ] || wait "$lint" || linted=$?
[ -z "$lint" ] || cat "$work/lint.log"
wait
for tool in "${needed[@]}"; do
    if [ "$(cat "$work/$tool.status")" != 0 ]; then
        echo "test.sh: $tool could not be set up:" >&2
        cat "$work/$tool.log" >&2
        [ "$status" -ne 0 ] || status=1
    fi
done
[ "$status" -ne 0 ] || status=$linted
exit "$status"
