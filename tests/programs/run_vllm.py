"""Runs a tiny random-weight model on a real vLLM, and says which tokens came out and, on request, what its gates said.

    python tests/programs/run_vllm.py SPEC.json OUT

SPEC is what ``tests.support.vllm_runs.specification`` gives. OUT.json gets the token ids; with ``oracle``,
OUT.rank<R>.npz gets the router logits of every gate call in order. The oracle is a torch forward hook on each gate
module, put there after start-up, and knows nothing of nvtxmoe. Dummy weights are the same in all layers, so gates,
norms and experts are set anew.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

#: Every run has one computing thread a process, so that sums come out the same and two runs fit two cores.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # collective_rpc with functions
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "60",
}
#: Of the key-value cache, so many that no request waits for one. vLLM would fill a gigabyte with zeros.
KV_BLOCKS = 64
MODES: dict[str, dict[str, Any]] = {
    "inproc": {},
    "worker": {"distributed_executor_backend": "mp"},
    "tp2": {"distributed_executor_backend": "mp", "tensor_parallel_size": 2},
}


def fork_processes() -> None:
    """Make vLLM start its processes as forks of this one, as it does where there are GPUs; each spares an import.

    On a CPU vLLM sets the variable to "spawn" whatever it was.
    """
    from vllm import envs  # noqa: PLC0415

    envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"


def look_at_models_here() -> None:
    """Make vLLM look at a model's class in this process.

    It starts a new one, lest this one initialise CUDA. There is none on a CPU, and it would import vLLM again.
    """
    from vllm.model_executor.models import registry  # noqa: PLC0415

    registry._run_in_subprocess = lambda look: look()


def set_weights(worker: Any, seed: int) -> None:
    """In the model's process: distinct gates, norms of one, experts that matter. The same on every rank."""
    import re  # noqa: PLC0415  the function travels by value

    import torch  # noqa: PLC0415

    model = worker.get_model()
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        elif "embed" in name:
            parameter.data.mul_(100.0)
        elif name.endswith(("w13_weight", "w2_weight")):
            parameter.data.mul_(200.0)
        elif name.endswith(("gate.weight", "router.weight")):
            gate = modules[name.rpartition(".")[0]]
            found = re.search(r"layers\.(\d+)\.", name)
            assert found is not None
            chance = torch.Generator().manual_seed(1000 * seed + int(found[1]))
            new = torch.randn(gate.output_size, gate.input_size, generator=chance) / gate.input_size**0.5
            if parameter.numel():
                parameter.data.copy_(new)
            else:  # vLLM has made a packed copy and dropped the weight: give it a new one to pack
                gate.weight = torch.nn.Parameter(new.to(gate.params_dtype), requires_grad=False)
                gate.quant_method.process_weights_after_loading(gate)
            for bias in (gate.bias, getattr(gate, "e_score_correction_bias", None)):
                if bias is not None:
                    bias.data.copy_(torch.randn(bias.shape, generator=chance) * 0.2)


def set_weights_on_loading(seed: int) -> None:
    """The same before anything is packed or compiled, for a model in this process: compiled code keeps its weights."""
    from types import SimpleNamespace  # noqa: PLC0415

    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader  # noqa: PLC0415

    load = DummyModelLoader.load_weights

    def load_and_set(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        load(self, model, *args, **kwargs)
        set_weights(SimpleNamespace(get_model=lambda: model), seed)

    DummyModelLoader.load_weights = load_and_set


def install_oracle(worker: Any) -> None:
    """In the model's process: keep what every gate returns, in order."""
    import re  # noqa: PLC0415

    worker.test_oracle = []

    def keep(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            from vllm.forward_context import get_forward_context  # noqa: PLC0415

            metadata = get_forward_context().attn_metadata
            starts = getattr(next(iter(metadata.values())), "query_start_loc", None)
            lengths = None if starts is None else starts.diff().tolist()
            logits = output[0] if isinstance(output, tuple) else output
            worker.test_oracle.append((layer, lengths, logits.detach().float().numpy().copy()))

        return hook

    for name, module in worker.get_model().named_modules():
        found = re.search(r"layers\.(\d+)\..*\b(gate|router)$", name)
        if found and hasattr(module, "output_size"):
            module.register_forward_hook(keep(int(found[1])))


def save_oracle(worker: Any, out: str) -> None:
    """In the model's process: write OUT.rank<R>.npz, for each gate call and layer the logits and query lengths."""
    import re  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    arrays = {}
    for call, (layer, lengths, logits) in enumerate(worker.test_oracle):
        arrays[f"{call:06d}_{layer}_logits"] = logits
        if lengths is not None:
            arrays[f"{call:06d}_{layer}_lengths"] = np.array(lengths)
    for name, parameter in worker.get_model().named_parameters():
        if name.endswith("e_score_correction_bias"):
            found = re.search(r"layers\.(\d+)\.", name)
            assert found is not None
            arrays[f"bias_{found[1]}"] = parameter.detach().float().numpy()
    np.savez(f"{out}.rank{worker.rank}.npz", **arrays)


def make_llm(spec: dict[str, Any]) -> Any:
    """The engine of a spec, its weights set."""
    from vllm import LLM  # noqa: PLC0415

    if not spec["eager"]:
        set_weights_on_loading(spec["seed"])
    llm = LLM(
        spec["model"],
        dtype="float32",
        enable_prefix_caching=False,
        enforce_eager=spec["eager"],
        load_format="dummy",
        max_model_len=128,
        max_num_batched_tokens=spec["max_num_batched_tokens"],
        max_num_seqs=spec["max_num_seqs"],
        num_gpu_blocks_override=KV_BLOCKS,
        seed=0,
        skip_tokenizer_init=True,
        **MODES[spec["mode"]],
    )
    if spec["eager"]:
        llm.collective_rpc(set_weights, args=(spec["seed"],))
    return llm


def generate(llm: Any, spec: dict[str, Any]) -> list[list[int]]:
    """Token ids of every request, greedily, of exactly the wanted lengths."""
    from vllm import SamplingParams  # noqa: PLC0415

    wanted = [
        SamplingParams(temperature=0, max_tokens=most, ignore_eos=True, detokenize=False) for most in spec["max_tokens"]
    ]
    prompts = [{"prompt_token_ids": ids} for ids in spec["prompts"]]
    return [list(done.outputs[0].token_ids) for done in llm.generate(prompts, wanted, use_tqdm=False)]


def main(spec_path: str, out: str) -> None:
    """Run one spec."""
    spec = json.loads(Path(spec_path).read_text())
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(spec["mode"] != "inproc"))
    if spec["forks"]:
        fork_processes()
    look_at_models_here()
    llm = make_llm(spec)
    said: dict[str, Any] = {"tokens": generate(llm, spec)}
    if spec["oracle"]:
        llm.collective_rpc(install_oracle)
        said["tokens_watched"] = generate(llm, spec)
        llm.collective_rpc(save_oracle, args=(out,))
    Path(out + ".json").write_text(json.dumps(said))
    if spec["patient"]:
        # vLLM kills an engine that takes more than five seconds to end; a worker takes four, and under nsys the killed
        # process's last events would be lost.
        llm.llm_engine.engine_core.shutdown(timeout=60)


if __name__ == "__main__":
    main(*sys.argv[1:])
