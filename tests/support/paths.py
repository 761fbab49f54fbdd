"""Where things of the repository are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden"
INSTALLED_NSYS = ROOT / ".cache" / "nsys" / "bin" / "nsys"
INSTALLED_PROMETHEUS = ROOT / ".cache" / "prometheus" / "usr" / "bin"
INSTALLED_VLLM = ROOT / ".venv-vllm" / "bin" / "python"
