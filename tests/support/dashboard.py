"""The queries of the dashboard and of the rules, and the names in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "nvtxmoe.json"
RULES = DEPLOY / "prometheus" / "rules.yml"
#: What Grafana puts in, as it would be here.
VARIABLES = {"$__rate_interval": "10s", "$__range": "1m", "$instance": ".*"}


def queries(dashboard: Path = DASHBOARD) -> list[tuple[str, str]]:
    """Panel and query of each target, with Grafana's variables filled in."""
    found = []
    for panel in json.loads(dashboard.read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            found.append((panel["title"], query))
    return found


def names_in(text: str) -> set[str]:
    """Names of our series; those that rules record have a colon, and are left out."""
    return set(re.findall(r"(?<![\w:])nvtxmoe_\w+(?![\w:])", text))
