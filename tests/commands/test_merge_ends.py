"""When the journals of a session are the whole of a run, and when not."""

from __future__ import annotations

import json
from pathlib import Path

from nvtxmoe.formats.journal import Journal, JournalWriter, record
from tests.commands.test_merge import merged
from tests.support import sessions
from tests.support.journal_reader import records_of_journal
from tests.support.sessions import journal, meta, step, step_of


def test_a_recording_that_goes_on_after_an_end_has_none(tmp_path: Path) -> None:
    """An end counts until something follows; in one block as in several."""
    end = record("end", 1, json.dumps({**sessions.ENDED, "steps": 2}).encode())
    first = b"".join(record(event, 1, payload) for event, payload in [meta(), *step_of(0)])
    more = b"".join(record(event, 1, payload) for event, payload in step_of(1))
    for name, blocks in (("several", [first, end, more]), ("one", [first + end + more])):
        writer = JournalWriter(tmp_path / name / "ranks" / "rank0-100.journal")
        for data in blocks:
            writer.append(data)
        assert merged(tmp_path / name).statuses == {"journals_whole": "fail"}
        journal_of = Journal(writer.path)
        assert len(list(records_of_journal(journal_of))) > 0
        assert journal_of.ended is None
        writer.append(end)
        writer.close()
        assert merged(tmp_path / name).verdict == "complete"


def test_nothing_was_recorded_of_what_was_scheduled(tmp_path: Path) -> None:
    """NVTXMOE_LAYERS names layers that the model does not have: no result reads complete."""
    journal(tmp_path, [meta(layers=[]), step(0), step(1)])
    found = merged(tmp_path)
    assert found.verdict == "incomplete"
    assert (
        found.check("steps_have_counts")[1]
        == "2 steps with tokens, and no layer is recorded (NVTXMOE_LAYERS names none of the model's)."
    )
