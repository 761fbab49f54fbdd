"""An estimate of the time that a layer loses to imbalance, from the layer model of an earlier analysis.

With expert parallelism the rank with the most to do is waited for: a step of a layer loses

    slope x (the largest value over ranks - the mean over ranks)

of a feature of the rank's own load. Without it only features of how uneven the experts are tell anything:

    slope x (value - the value of an even load)

Slopes are those of ``moe_layer_model.json``. A layer and kind of step has no estimate where the model names no such
feature, or one whose slope is not above zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.capture.live.last_steps import FEATURES, KINDS

Floats = npt.NDArray[np.float64]

#: What the best feature is in moe_layer_model.json where it bears a slope, and an alternative that is as good.
BEST, AS_GOOD = ("explains", "cannot_tell_apart"), ("cannot_tell_apart",)
#: Features of the model that differ between ranks, with their position in ``last_steps.FEATURES``.
OF_RANKS = {
    "local_activations": FEATURES.index("activations"),
    "local_active_experts": FEATURES.index("active_experts"),
    "local_max_count": FEATURES.index("max_count"),
}
#: Of those the ones known where data-parallel ranks share experts: only sums add up.
OF_SHARED_RANKS = {"local_activations": OF_RANKS["local_activations"]}
#: Features of the model that tell how uneven the experts of one rank are.
OF_EXPERTS = ("local_max_count", "max_mean_ratio")
BOUNDS = ("low", "estimate", "high")


@dataclass(frozen=True)
class Slope:
    """Nanoseconds for one unit of a feature, with the ends of the interval: ``ns`` is in the order of ``BOUNDS``."""

    feature: str
    ns: tuple[float, float, float]


class ImbalanceTime:
    """Estimates with the slopes of a model.

    Parameters:
        slopes: by layer (None: all) and kind, the best feature first.
    """

    def __init__(self, slopes: Mapping[tuple[int | None, str], Sequence[Slope]]) -> None:
        self._slopes = slopes

    def slope(self, layer: int, kind: str, features: Sequence[str]) -> Slope | None:
        """The first of these features that a layer has a slope of, else that all layers have; None where none has."""
        for key in ((layer, kind), (None, kind)):
            for slope in self._slopes.get(key, ()):
                if slope.feature in features and slope.ns[1] > 0:
                    return slope
        return None

    def lost_ns(
        self,
        layers: Sequence[int],
        kinds: npt.NDArray[np.int64],
        loads: npt.NDArray[Any],
        experts: Floats,
        shared: bool,
    ) -> Floats:
        """Nanoseconds of each step and layer, float64 [3, steps, layers] in the order of ``BOUNDS``; NaN: no estimate.

        Parameters:
            kinds: positions in ``last_steps.KINDS``, [steps].
            loads: [steps, layers, ranks, features] as ``LastSteps.loads``.
            experts: of each layer, [layers].
            shared: whether the ranks' loads are sums over data-parallel ranks.
        """
        values = loads.astype(np.float64)
        steps, _, ranks = values.shape[:3]
        lost = np.full((len(BOUNDS), steps, len(layers)), np.nan)
        features: Sequence[str] = list(OF_SHARED_RANKS if shared else OF_RANKS) if ranks > 1 else OF_EXPERTS
        for place, layer in enumerate(layers):
            for kind in np.unique(kinds).tolist():
                slope = self.slope(layer, KINDS[kind], features)
                if slope is None:
                    continue
                steps_of_kind = np.flatnonzero(kinds == kind)
                excess = _excess(slope.feature, values[steps_of_kind, place], float(experts[place]))
                lost[:, steps_of_kind, place] = np.maximum(np.array(slope.ns)[:, None], 0.0) * excess
        return lost


def _excess(feature: str, values: Floats, experts: float) -> Floats:
    """How much of a feature is beyond what an even load has, [steps]; values are [steps, ranks, features]."""
    if values.shape[1] > 1:
        per_rank = values[:, :, OF_RANKS[feature]]
        excess: Floats = per_rank.max(axis=1) - per_rank.mean(axis=1)
        return excess
    total, largest = values[:, 0, OF_RANKS["local_activations"]], values[:, 0, OF_RANKS["local_max_count"]]
    even = total / experts
    if feature == "local_max_count":
        over: Floats = largest - even
        return over
    ratio: Floats = np.where(total > 0, largest / np.where(total > 0, even, 1.0) - 1.0, 0.0)
    return ratio


def load(path: Path) -> ImbalanceTime:
    """Read ``moe_layer_model.json``.

    Raises:
        OSError: it can't be read.
        ValueError: it is no such file, or has no slope that an estimate can be made of.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        slopes: dict[tuple[int | None, str], list[Slope]] = {}
        for name, kinds in document["layers"].items():
            layer = None if name == "all" else int(name.removeprefix("layer_"))
            for kind, best in kinds.items():
                for row, accepted in ((best, BEST), *((other, AS_GOOD) for other in best["alternatives"])):
                    ends = row["slope_ci_low"], row["slope_ns_per_unit"], row["slope_ci_high"]
                    if row["status"] in accepted and None not in ends:
                        low, middle, high = (float(end) for end in ends)
                        slopes.setdefault((layer, kind), []).append(Slope(row["feature"], (low, middle, high)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no moe_layer_model.json: {type(error).__name__}: {error}") from None
    usable = {*OF_RANKS, *OF_EXPERTS}
    if not any(slope.feature in usable and slope.ns[1] > 0 for features in slopes.values() for slope in features):
        raise ValueError(f"no layer has a slope of {', '.join(sorted(usable))}")
    return ImbalanceTime(slopes)
