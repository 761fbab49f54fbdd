"""Draw charts as SVG and PNG, without a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
import vl_convert

from nvtxmoe_analysis.report.embed import rows_of
from nvtxmoe_analysis.report.theme import CONFIG, CONTAINER

PNG_SCALE = 2


def image_files(stem: str, spec: Mapping[str, Any], data: Mapping[str, pl.DataFrame]) -> dict[str, bytes]:
    """Return SVG and PNG of a chart by file name, on white, as it looks when the page opens."""
    full_spec = {**spec, "datasets": {name: rows_of(frame) for name, frame in data.items()}}
    if full_spec.get("width") == "container":
        full_spec["width"] = CONTAINER
    config = {**CONFIG["light"], "background": "white"}
    text = json.dumps(full_spec)
    return {
        f"{stem}.svg": vl_convert.vegalite_to_svg(text, config=config).encode(),
        f"{stem}.png": vl_convert.vegalite_to_png(text, config=config, scale=PNG_SCALE),
    }
