"""Commands that findings advise, with the captures and results of this folder, so that they can be pasted and run."""

from __future__ import annotations

import shlex
from pathlib import Path

from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.report.results import Source

#: What stands for captures that the results do not name.
UNKNOWN = "REPORT.nsys-rep"
#: More captures than this make a command too long to read.
MOST_CAPTURES = 8


def output_folder(results: Path) -> Path:
    """Return the folder of the report: where ``moe_expert_tracking`` is, or these results themselves."""
    return results.parent if results.name == FOLDER else results


def export_perfetto(source: Source) -> str:
    """Return the command that writes a trace of the capture, with the operations outside of MoE layers."""
    return f"nvtxmoe export {_captures(source)} --perfetto run.pftrace --all"


def analyze_all(source: Source) -> str:
    """Return the command that analyzes the capture without filters, into another folder."""
    return f"nvtxmoe analyze {_captures(source)} -o {_word(f'{_folder(source)}-all', 'DIR')} --report"


def place(source: Source) -> str:
    """Return the command that predicts placements of the experts."""
    return f"nvtxmoe place {_word(_folder(source), 'RESULTS')} -o placements"


def compare(source: Source) -> str:
    """Return the command that compares a later result with this one."""
    return f"nvtxmoe compare {_word(_folder(source), 'BASELINE')} CANDIDATE"


def _captures(source: Source) -> str:
    """Return the captures that were analyzed, as words of a shell; UNKNOWN if they are not known or too many."""
    paths = [str(capture.get("path") or "") for capture in source.document("validation").get("inputs", [])]
    if not 0 < len(paths) <= MOST_CAPTURES:
        return UNKNOWN
    words = [_word(path, "") for path in paths]
    return " ".join(words) if all(words) else UNKNOWN


def _folder(source: Source) -> str:
    return str(output_folder(source.loaded.folder))


def _word(path: str, unknown: str) -> str:
    """Return a path as one word of a shell; ``unknown`` for a path that a terminal does not show as it is."""
    if not path.isprintable() or not path:
        return unknown
    return shlex.quote(f"./{path}" if path.startswith("-") else path)
