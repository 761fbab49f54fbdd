"""The recorder on its own: profile any PyTorch mixture of experts, with nsys or without."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.recording.cuda_graphs import hook_graphs
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.run_identity import Identity, LayerInfo
from nvtxmoe.capture.sinks import Sink
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.capture.sinks.nvtx import NvtxSink
from nvtxmoe.capture.sinks.nvtx_emitter import make_emitter
from nvtxmoe.capture.startup.settings import DEFAULT_EMITS
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import RANKS, SUFFIX

if TYPE_CHECKING:
    import torch


class MoEExpertProfiler:
    """Recorder of the experts that a model's routers choose; it writes the standard set.

    ``record_expert_selection`` keeps references and returns. On a GPU the counts come to the host without the host
    waiting for them. A layer that is recorded again begins the next step; ``step`` begins and ends one explicitly.

    CUDA graphs: a recording made while a graph is captured stays with the graph. A replay inside
    ``step(num_tokens)`` counts what the graph's routers chose this time.

    Parameters:
        session_dir: gets ``ranks/`` (the journal, written every ``flush_interval`` seconds) and
            ``moe_expert_tracking/`` (the standard set, by ``save_stats``).
        log_interval: steps between steps with token-level rows (experts and weights); 0 for never.
        rank, world_size: of data-parallel processes that share the folder.
        nvtx: also emit NVTX events for nsys, in the form ``payload`` (auto, binary, words).
        pairs: count exactly which experts are chosen together, not only for the sampled tokens.

    Raises:
        NvtxmoeError: the folder holds a recording of this rank.
    """

    def __init__(
        self,
        session_dir: str | PathLike[str],
        *,
        log_interval: int = 100,
        rank: int = 0,
        world_size: int = 1,
        flush_interval: float = 1.0,
        nvtx: bool = False,
        payload: str = "auto",
        pairs: bool = False,
    ) -> None:
        self.session_dir = Path(session_dir)
        if recordings := sorted((self.session_dir / RANKS).glob(f"rank{rank}-*{SUFFIX}")):
            raise NvtxmoeError(
                "a recording of this rank is there already", where=recordings[0], remedy="Give a new folder"
            )
        self._layers: dict[int, LayerInfo] = {}
        self._this_step: set[int] = set()
        self._num_tokens = 0
        self._emitter = make_emitter(payload) if nvtx else None
        self._identity = Identity(
            rank=rank, world_size=world_size, dp_rank=rank if world_size > 1 else None,
            dp_size=world_size if world_size > 1 else None,
        )  # fmt: skip

        def make_sinks(identity: Identity) -> list[Sink]:
            journal = JournalSink(self.session_dir, identity.rank, flush_interval)
            return [journal] if self._emitter is None else [NvtxSink(self._emitter), journal]

        emit = DEFAULT_EMITS | {"pairs"} if pairs else DEFAULT_EMITS
        self._recorder = Recorder(make_sinks, sample_every=log_interval, emit=emit, every_layer=False)
        self._in_step = False
        self._hooked = False
        self._hook_graphs(sys.modules.get("torch"))

    def record_expert_selection(
        self,
        layer_idx: int,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor | None,
        num_experts: int,
        top_k: int,
    ) -> None:
        """Record the experts that one layer's router chose.

        Parameters:
            topk_ids: [num_tokens, top_k], any integer dtype, on a CPU or a GPU. Leave it unchanged until the step ends.
            topk_weights: [num_tokens, top_k], floating; None where there are none.

        Raises:
            ValueError: shapes do not fit together, or do not fit the step.
        """
        if topk_ids.ndim != 2 or topk_ids.shape[1] != top_k:
            raise ValueError(f"topk_ids of layer {layer_idx} is {list(topk_ids.shape)}, not [num_tokens, {top_k}]")
        if topk_weights is not None and topk_weights.shape != topk_ids.shape:
            raise ValueError(
                f"topk_weights of layer {layer_idx} is {list(topk_weights.shape)}, topk_ids {list(topk_ids.shape)}"
            )
        tokens = topk_ids.shape[0]
        if topk_ids.is_cuda:
            self._hook_graphs(sys.modules.get("torch"))
        capturing = self._recorder.graphs.capturing
        if layer_idx in self._this_step and not capturing:
            self._end_step()
        if not capturing and not self._fits(tokens):
            raise ValueError(
                f"layer {layer_idx} has {tokens} tokens in a step of {self._num_tokens}; begin the next one with step()"
            )
        known = self._layers.get(layer_idx)
        if known is not None and (known.num_experts, known.top_k) != (num_experts, top_k):
            raise ValueError(
                f"layer {layer_idx} has {known.num_experts} experts, top-{known.top_k}, "
                f"and is recorded with {num_experts}, top-{top_k}"
            )
        if known is None:
            self._layers[layer_idx] = LayerInfo(layer_idx, f"layer {layer_idx}", num_experts, top_k)
            self._know()
        if not capturing:
            if not self._this_step and not self._in_step:
                self._begin_step(tokens)
            self._this_step.add(layer_idx)
        ids, weights = topk_ids.detach(), None if topk_weights is None else topk_weights.detach()
        self._recorder.routed(RoutingTensors(layer_idx, num_experts, ids, weights))

    @contextmanager
    def step(self, num_tokens: int | None = None) -> Iterator[None]:
        """Make everything that is recorded inside one step.

        Parameters:
            num_tokens: rows that count; further rows are padding. Needed if a CUDA graph is replayed. None: as many
                as the first layer has.
        """
        self._end_step()
        if num_tokens is not None:
            self._begin_step(num_tokens)
            self._in_step = True
        try:
            yield
        finally:
            self._end_step()

    @contextmanager
    def layer(self, layer_idx: int) -> Iterator[None]:
        """Emit an NVTX range around a layer (with ``nvtx=True``), so that its kernels are found."""
        with self._range(f"{schema.LAYER_PREFIX}{layer_idx}", layer_idx, "layer"):
            yield

    @contextmanager
    def phase(self, layer_idx: int, name: str) -> Iterator[None]:
        """Emit an NVTX range around a phase inside a layer: route, dispatch, experts, combine or shared."""
        if name not in schema.PHASES:
            raise ValueError(f"no phase {name!r}; one of {', '.join(schema.PHASES)}")
        with self._range(schema.PHASE_PREFIX + name, layer_idx, "phase"):
            yield

    def save_stats(self) -> Path:
        """Write the standard set of everything recorded so far; it may be called again later.

        Returns:
            The folder ``session_dir/moe_expert_tracking``.

        Raises:
            NvtxmoeError: nothing was recorded, or the folder can't be written.
        """
        if not self._layers:
            raise NvtxmoeError("nothing was recorded", where=self.session_dir, remedy="Call record_expert_selection")
        from nvtxmoe_analysis.analyze import analyze  # noqa: PLC0415  polars only when asked for

        self._end_step()
        self._recorder.flush()
        return analyze([self.session_dir], self.session_dir).folder

    def close(self) -> None:
        """End the journal. Nothing is recorded afterwards."""
        self._end_step()
        self._recorder.close()

    def __enter__(self) -> MoEExpertProfiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hook_graphs(self, torch: Any) -> None:
        if not self._hooked and torch is not None and torch.cuda.is_available():
            hook_graphs(self._recorder.graphs, self._recorder.replayed)
            self._hooked = True

    def _know(self) -> None:
        layers = tuple(self._layers[number] for number in sorted(self._layers))
        identity = self._identity
        self._recorder.model_loaded(
            Identity(
                rank=identity.rank, world_size=identity.world_size, dp_rank=identity.dp_rank,
                dp_size=identity.dp_size, layers=layers,
            )
        )  # fmt: skip

    def _fits(self, tokens: int) -> bool:
        if self._in_step:
            return tokens >= self._num_tokens  # more rows are padding
        return not self._this_step or tokens == self._num_tokens

    def _begin_step(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        if self._recorder.identity is None:
            self._know()
        self._recorder.begin_step(num_tokens, 0, 0, 0)

    def _end_step(self) -> None:
        if self._this_step or self._in_step:
            self._recorder.forward_done()
            self._recorder.end_step()
            self._this_step.clear()
            self._in_step = False

    @contextmanager
    def _range(self, name: str, layer: int, category: str) -> Iterator[None]:
        if self._emitter is None:
            yield
            return
        self._emitter.push(name, layer, category)
        try:
            yield
        finally:
            self._emitter.pop()
