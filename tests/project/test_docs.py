"""README, tutorial and pages say what the program does. ``--update-golden`` rewrites the tutorial's blocks."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import polars as pl
import pytest

from nvtxmoe.cli import command_names, run
from nvtxmoe.commands.demo import CAPTURE
from nvtxmoe_analysis.attribution.placed import CLASSES, REASONS, UNPLACED
from nvtxmoe_analysis.outputs.registry import document_builders, tables
from nvtxmoe_analysis.outputs.spec import FOLDER
from tests.support import fakes
from tests.support.cli import files, spawn
from tests.support.cli import run as run_captured
from tests.support.paths import ROOT
from tests.support.profile_plans import make_nsys
from tests.support.sessions import journal, meta, step_of
from tests.support.written_results import file_set

README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial" / "first-report.md"
#: Pages whose every command line runs.
SHOWN = (README, ROOT / "docs" / "how-to" / "analyze-a-capture.md")
#: Words of a page at most; pages of reference are looked up, not read.
MOST_WORDS, README_WORDS = 1200, 650


def block(name: str) -> str:
    """The text between the tutorial's markers of that name."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TUTORIAL.read_text(), re.DOTALL)
    assert found is not None, name
    return found[1]


def compare(name: str, text: str, update: bool) -> None:
    """The block is the text; or becomes it."""
    if update:
        whole = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda m: m[1] + text + m[2],
            TUTORIAL.read_text(),
            flags=re.DOTALL,
        )
        TUTORIAL.write_text(whole)
    assert block(name) == text


@dataclass(frozen=True)
class Tutorial:
    """The tutorial's commands, run in their order in a folder that has the capture where the clone has it.

    Attributes:
        printed: what each printed.
        of_demo: files that the first one, which is the demo, left in the folder.
    """

    folder: Path
    commands: list[list[str]]
    printed: list[str]
    of_demo: set[str]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Tutorial:
    """All that the tutorial runs, once; the demo in a process of its own, with pipes."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "nvtxmoe").symlink_to(ROOT / "nvtxmoe")
    first, *others = commands = tutorial_commands()
    ran = spawn(*first[1:], cwd=folder, env=os.environ | {"TERM": "xterm-256color"})
    assert (ran.code, ran.err) == (0, "")
    printed, of_demo = [ran.out], {name for name in files(folder) if not name.startswith("nvtxmoe/")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in others:
            ran = run_captured(*words[1:])
            assert (ran.code, ran.err) == (0, ""), words
            printed.append(ran.out)
    return Tutorial(folder, commands, printed, of_demo)


@pytest.mark.slow
def test_demo(tutorial: Tutorial) -> None:
    """In a pipe, so without colours."""
    printed = tutorial.printed[0]
    assert "\x1b" not in printed and "\r" not in printed
    results = {f"nvtxmoe-demo/{FOLDER}/{name}" for name in file_set("csv")}
    assert tutorial.of_demo == results | {"nvtxmoe-demo/report.html", "nvtxmoe-demo/findings.json"}
    assert "\n2 ranks, 51 steps, 48 MoE layers, 8,864 tokens" in printed
    assert "\nWhat next? rebalance experts\n" in printed
    assert "\nCapture complete: " in printed
    assert f"\nResults in nvtxmoe-demo/{FOLDER}:\n" in printed


def test_the_demo_prints_what_the_tutorial_shows(tutorial: Tutorial, update_golden: bool) -> None:
    assert tutorial.commands[0] == ["nvtxmoe", "demo"]
    # A clone's root has the capture below it; the folder has a link to it.
    printed = tutorial.printed[0].replace(str(CAPTURE), str(CAPTURE.relative_to(ROOT)))
    lines = [line.rstrip() for line in printed.splitlines()]
    compare("demo", "```text\n" + "\n".join(lines) + "\n```\n", update_golden)


def test_the_table_in_the_tutorial_is_the_demos(tutorial: Tutorial, update_golden: bool) -> None:
    timings = pl.read_csv(tutorial.folder / "nvtxmoe-demo" / "moe_expert_tracking" / "moe_layer_timings.csv")
    columns = ["rank", "step", "layer_idx", "num_tokens", "kernel_count", "kernel_time_ns", "busy_ns", "launched_by"]
    rows = timings.filter((pl.col("layer_idx") == 0) & pl.col("step").is_in([1, 2, 3])).select(columns).rows()
    text = "| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|\n"
    text += "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)
    compare("table", text, update_golden)


def commands() -> list[str]:
    """Every nvtxmoe command line of the README and the page on analysis."""
    text = "\n".join(page.read_text() for page in SHOWN)
    shell = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.split("#")[0].strip() for part in shell for line in part.splitlines()]
    lines += re.findall(r"`(nvtxmoe [^`\s]+ [^`\n]+)`", text)
    return [line for line in lines if line.startswith("nvtxmoe ")]


@pytest.mark.parametrize("line", commands())
def test_the_commands_run(
    line: str,
    golden_1gpu: Path,
    golden_two_reports: dict[str, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a SQLite export in the place of the report: tests/system/test_end_to_end.py does reports. What works on
    results gets some.

    `profile` shows what it would run: tests/profile/test_profile.py runs it. `doctor` looks at a stand-in for vLLM:
    tests/doctor/test_doctor.py looks at the real one.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report1.sqlite").symlink_to(golden_1gpu)
    (tmp_path / "reports").mkdir()
    for path in golden_two_reports["dp2"]:
        (tmp_path / "reports" / path.name).symlink_to(path)
    journal(tmp_path / "session", [meta(), *step_of(0)])
    replaced = {
        "report1.nsys-rep": "report1.sqlite",
        "/tmp/vllm_profiling/session_TIME": "session",
        "VLLM_PYTHON": sys.executable,
    }
    for shown, meant in replaced.items():
        line = line.replace(shown, meant)
    words = shlex.split(line)
    monkeypatch.setenv("NVTXMOE_NSYS", str(make_nsys(tmp_path)))
    fakes.vllm(tmp_path / "stand-in", "0.32.0", shape="runner_is_layer")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand-in"))
    source = "reports" if words[1] == "place" else "report1.sqlite"  # several ranks have places
    for folder in {"compare": words[2:4], "report": words[2:3], "place": words[2:3]}.get(words[1], []):
        assert run(["analyze", source, "-o", folder]) == 0
    more = ["--dry-run"] if words[1] == "profile" else []
    assert run([words[1], *more, *words[2:]]) == 0, capsys.readouterr()


def test_the_readmes_scripts_are_there() -> None:
    named = set(re.findall(r"(?:^|`)(scripts/[\w.]+)", README.read_text(), re.MULTILINE))
    assert named == {"scripts/quickstart.sh", "scripts/test.sh", "scripts/profile_vllm.sh"}
    assert all((ROOT / name).stat().st_mode & 0o111 for name in named)
    assert "exec scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


def tutorial_commands() -> list[list[str]]:
    """The words of each command that the reader of the tutorial runs, in order."""
    blocks = re.findall(r"<!-- run -->\n```bash\n(.*?)```\n<!-- /run -->", TUTORIAL.read_text(), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


def test_the_tutorials_commands_run(tutorial: Tutorial) -> None:
    assert [words[1] for words in tutorial.commands] == ["demo", "analyze", "place"]
    assert "\nWorth it: " in tutorial.printed[2]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for folder in ("nvtxmoe-demo", "nvtxmoe-demo-decode"):
        assert (tutorial.folder / folder / "report.html").is_file()
        assert any(fnmatch(f"/{folder}/", line) for line in ignored)


def test_the_demo_advises_what_is_sure_before_what_may_be_nothing(tutorial: Tutorial) -> None:
    """Moving experts has an interval above 0; more rows per expert is estimated at more, but from 0 on."""
    document = json.loads((tutorial.folder / "nvtxmoe-demo" / "findings.json").read_text())
    problems = [finding for finding in document["findings"] if finding["kind"] == "cost" and finding["at_stake"]]
    assert [finding["id"] for finding in problems] == ["uneven-ranks", "launch-skew", "active-experts", "other-steps"]
    sure, _, unsure, of_others = (finding["at_stake"] for finding in problems)
    assert of_others["per"] == "steady mixed step" and {sure["per"], unsure["per"]} == {"steady decode step"}
    assert sure["low_us"] > 1000 and unsure["low_us"] == 0 and unsure["us_per_step"] > sure["us_per_step"]


def test_the_tutorial_names_every_command_that_it_does_not_run() -> None:
    """The set-up runs the demo; `doctor`, `profile` and `report` are those of the README."""
    assert "demo" in (ROOT / "scripts" / "quickstart.sh").read_text()
    assert "scripts/quickstart.sh\n" in TUTORIAL.read_text()
    own = TUTORIAL.read_text().partition("## 7. ")[2]
    for line in re.findall(r"^nvtxmoe .*?(?=\s{2,}#)", own, re.MULTILINE):
        assert line in README.read_text(), line


def words_of(page: Path) -> int:
    """Words of a page: what has a letter or a digit between spaces. Parts made from code are looked up, not read."""
    written = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return sum(any(map(str.isalnum, word)) for word in written.split())


def test_pages_are_short() -> None:
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "reference"]
    assert len(pages) > 30
    assert {page.name: words_of(page) for page in pages if words_of(page) > MOST_WORDS} == {}


def test_the_readme_is_short() -> None:
    assert words_of(README) <= README_WORDS


def test_links_lead_somewhere() -> None:
    for page in (README, *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), (page.name, link)


def test_the_page_of_files_has_the_keys_of_every_document() -> None:
    text = (ROOT / "docs" / "reference" / "files.md").read_text()
    for stem in document_builders():
        assert f"\n| `{stem}.json` | " in text, stem


def test_the_demo_writes_the_columns_that_are_declared(tutorial: Tutorial) -> None:
    folder = tutorial.folder / "nvtxmoe-demo" / FOLDER
    for table in tables().values():
        if table.parquet_only:
            columns = list(pl.read_parquet_schema(folder / f"{table.stem}.parquet"))
        else:
            columns = pl.read_csv(folder / f"{table.stem}.csv", n_rows=1).columns
        assert list(table.types) == columns, table.name
    assert {f.name for f in folder.iterdir()} == {
        *(f"{table.stem}.{table.forms[-1]}" for table in tables().values()),
        *(f"{stem}.json" for stem in document_builders()),
    }


def test_the_page_of_attribution_names_each_class_and_reason() -> None:
    folder = ROOT / "docs" / "explanation"
    text = (folder / "attribution.md").read_text() + (folder / "attribution-details.md").read_text()
    for name in (*CLASSES, *REASONS[1:]):
        assert f"`{name}`" in text
    assert CLASSES[UNPLACED] == "unplaced"


@pytest.mark.parametrize("name", command_names())
def test_help_has_an_example_of_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example:\n    nvtxmoe {name}" in out
    assert "--debug" in out
