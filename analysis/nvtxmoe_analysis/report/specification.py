"""Charts of altair as Vega-Lite specifications.

altair checks each part of a chart against Vega-Lite's schema when it is made, again whenever it is copied into a larger
chart, and once more at the end: a third of the time of a report. Charts are made by our code alone, so the tests check
the specifications instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import altair as alt
from altair.utils import schemapi


@contextmanager
def unvalidated() -> Iterator[None]:
    """Make charts of altair without checks against the schema."""
    with schemapi.debug_mode(False):
        yield


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return a chart as a page draws it: without a theme and a version of the schema.

    The page has a theme of its own, by colour scheme, and its scripts fit any 6.x.
    """
    with unvalidated():  # parts are copied, and made anew
        spec: dict[str, Any] = chart.to_dict(validate=False)
    return {key: value for key, value in spec.items() if key not in ("config", "$schema")}
