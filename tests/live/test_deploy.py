"""What stands in deploy: promtool accepts it, and it asks for series that there are."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from nvtxmoe.capture.live.series import SERIES
from nvtxmoe.capture.startup.settings import Settings
from tests.support.dashboard import DASHBOARD, DEPLOY, RULES, names_in, queries

NAMES = {one.full_name: one for one in SERIES}


def promtool(folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [str(folder / "promtool"), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration(prometheus_bin: Path) -> None:
    assert "SUCCESS: 9 rules found" in promtool(prometheus_bin, "check", "config", DEPLOY / "prometheus/prometheus.yml")


def test_the_rules_do_what_they_say(prometheus_bin: Path) -> None:
    assert "SUCCESS" in promtool(prometheus_bin, "test", "rules", DEPLOY / "prometheus" / "rules.test.yml")


def test_the_names_and_help_texts_are_as_prometheus_wants_them(prometheus_bin: Path) -> None:
    lines = []
    for one in SERIES:
        lines += [f"# HELP {one.full_name} {one.what}", f"# TYPE {one.full_name} {one.kind}"]
        labels = ",".join(f'{label}="x"' for label in one.labels)
        lines.append(f"{one.full_name}{{{labels}}} 1")
    done = subprocess.run(
        [str(prometheus_bin / "promtool"), "check", "metrics"],
        input="\n".join(lines) + "\n", capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("file", [DASHBOARD, RULES])
def test_only_series_that_there_are(file: Path) -> None:
    asked = names_in(file.read_text())
    assert len(asked) > 4
    assert asked <= set(NAMES)


def test_every_series_has_its_place_on_the_dashboard() -> None:
    """But what tells of the recording itself."""
    shown = {name for _, query in queries() for name in names_in(query)}
    assert set(NAMES) - shown == {
        "nvtxmoe_info", "nvtxmoe_steps_total", "nvtxmoe_assignments_total", "nvtxmoe_layer_assignments_total",
        "nvtxmoe_collect_seconds", "nvtxmoe_estimated_imbalance_coverage_ratio",
    }  # fmt: skip


def test_labels_that_the_dashboard_and_rules_name() -> None:
    """``by (label)``, ``{label=...}`` and ``{{label}}`` of a query are labels of its series, or Prometheus's own."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            known = {label for name in names_in(target["expr"]) for label in NAMES[name].labels} | {"instance", "job"}
            text = target["expr"] + target["legendFormat"]
            named = set(re.findall(r"(\w+)=~?\"", text)) | set(re.findall(r"{{(\w+)}}", text))
            for by in re.findall(r"by \(([^)]*)\)", text):
                named |= {label.strip() for label in by.split(",")}
            assert named <= known, panel["title"]


def test_the_dashboard_is_what_grafana_provisions() -> None:
    """Grafana is not run here: what can be told without it."""
    dashboard = json.loads(DASHBOARD.read_text())
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    assert f"uid: {dashboard['panels'][0]['datasource']['uid']}\n" in source
    compose = (DEPLOY / "compose.yaml").read_text()
    (path,) = re.findall(r"path: (\S+)", (DEPLOY / "grafana/provisioning/dashboards/nvtxmoe.yml").read_text())
    assert f"./grafana/dashboards:{path}:ro" in compose
    assert f"{path}/{DASHBOARD.name}" in compose
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) == 21
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_ports_are_those_of_the_settings() -> None:
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert re.findall(r'targets: \["127.0.0.1:(\d+)"\]', text) == ["8000", str(Settings().metrics_port)]
