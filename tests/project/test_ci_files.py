"""The files of CI and pre-commit agree with the project: its Pythons, its make targets, its pinned tools."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from tests.support.paths import ROOT

yaml: Any = import_module("yaml")
CI = ROOT / ".github" / "workflows" / "ci.yml"
HOOKS = ROOT / ".pre-commit-config.yaml"
#: The distribution that holds a tool, where it has another name.
DISTRIBUTIONS = {"lint-imports": "import-linter"}


def jobs() -> dict[str, Any]:
    """The jobs of the workflow by name."""
    found: dict[str, Any] = yaml.safe_load(CI.read_text(encoding="utf-8"))["jobs"]
    return found


def commands() -> list[str]:
    """Every command line of the workflow."""
    steps = [step for job in jobs().values() for step in job["steps"]]
    return [line for step in steps for line in step.get("run", "").splitlines()]


def hooks() -> dict[str, Any]:
    """The hooks by id."""
    (repo,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local"
    return {hook["id"]: hook for hook in repo["hooks"]}


def test_ci_runs_every_python_that_the_package_claims() -> None:
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert len(claimed) > 1
    assert jobs()["quick"]["strategy"]["matrix"]["python"] == claimed


def test_the_commands_of_ci_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = commands()
    assert "scripts/test.sh" in lines
    for line in lines:
        program, *rest = line.split()
        if program == "make":
            assert rest[0] in targets, line
        elif program.startswith("scripts/"):
            assert (ROOT / program).stat().st_mode & 0o111, line


def test_the_hooks_run_the_pinned_tools() -> None:
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements-test.txt").read_text(), re.MULTILINE))
    assert set(hooks()) == {"ruff", "ruff-format", "mypy", "lint-imports"}
    for hook in hooks().values():
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/"), hook
        name = tool.removeprefix(".venv/bin/")
        assert DISTRIBUTIONS.get(name, name) in pinned, name
        assert hook["language"] == "system"
