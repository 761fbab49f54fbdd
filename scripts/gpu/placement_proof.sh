#!/usr/bin/env bash
# Predict what placements of experts would change, move the experts, and measure: on two or more GPUs of one host.
#
#     scripts/gpu/placement_proof.sh OUT [PYTHON]
#     RANKS=8 LAYERS=16 scripts/gpu/placement_proof.sh OUT [PYTHON]
#
# PYTHON has vLLM, and NVTXMOE_PYTHON has nvtxmoe with its analysis (defaults: python3, PYTHON). One capture per case
# with today's placement, then `nvtxmoe place`, fitted on the layers with even numbers, then one capture in which all
# placements take turns. Leaves OUT/proof.md, layers.csv, sums.csv, the predictions and the results. Needs about 30 GB of
# GPU memory per GPU.
set -euo pipefail
out=$1
python=${2:-python3}
analysis=${NVTXMOE_PYTHON:-$python}
here=$(cd "$(dirname "$0")" && pwd)
cases=${CASES:-"skewed even tokens"}
ranks=${RANKS:-2}
layers=${LAYERS:-8}
fit=${FIT_LAYERS:-$(seq -s, 0 2 $((layers - 1)))}
model=(--tp "$ranks" --layers "$layers")
mkdir -p "$out"

nvtxmoe() { "$analysis" -m nvtxmoe "$@"; }

predicted=()
for case in $cases; do
    nvtxmoe profile -o "$out/$case" --log-interval 0 -- \
        "$python" "$here/placement_run.py" "$out/$case-windows.json" --case "$case" "${model[@]}" \
        --blocks "${BLOCKS_BEFORE:-6}"
    nvtxmoe place "$out/$case/moe_expert_tracking" --fit-layers "$fit" --json > "$out/$case-place.json"
    predicted+=("$case=$out/$case-place.json")
done
nvtxmoe profile -o "$out/after" --log-interval 0 -- \
    "$python" "$here/placement_run.py" "$out/after-windows.json" --predicted "${predicted[@]}" "${model[@]}" \
    --blocks "${BLOCKS:-6}"
"$analysis" "$here/placement_compare.py" "$out/after/moe_expert_tracking" "$out/after-windows.json" \
    --predicted "${predicted[@]}" -o "$out"
