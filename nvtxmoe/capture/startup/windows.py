"""Windows of a process, from the settings: their sinks, and the socket on which they are opened and closed."""

from __future__ import annotations

from collections.abc import Sequence

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.window_control import WindowControl
from nvtxmoe.capture.recording.windows import Windows
from nvtxmoe.capture.run_identity import Identity
from nvtxmoe.capture.sinks import Sink
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.capture.startup.session import session_dir
from nvtxmoe.capture.startup.settings import WINDOW_OPEN, Settings
from nvtxmoe.capture.startup.window_socket import WindowSocket
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats.window_socket import WINDOWS


def make_windows(
    settings: Settings,
    recorder: Recorder,
    identity: Identity,
    always: Sequence[Sink],
    nvtx: Sequence[Sink],
    files: bool,
) -> Windows:
    """Return the windows of a process, and listen for who opens and closes them.

    What goes wrong is one warning, and then no window can be opened or closed.

    Parameters:
        always: sinks that take all steps; ``nvtx`` those of all windows.
        files: whether each window has a journal.
    """

    def make_own(number: int) -> list[Sink]:
        if not files:
            return []
        folder = session_dir(settings.output_dir) / WINDOWS
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)  # nsys starts programs with a mask of 0
        return [JournalSink(folder / str(number), identity.rank, settings.flush_interval)]

    windows = Windows(always, nvtx, make_own)
    try:
        if settings.window == WINDOW_OPEN:
            windows.open(1, {})
        WindowSocket(session_dir(settings.output_dir), identity.rank, WindowControl(recorder, windows))
    except (OSError, NvtxmoeError) as error:
        logger().warning("windows can't be opened or closed in this process: %s", error)
    return windows
