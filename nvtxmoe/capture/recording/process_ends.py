"""What happens to a recorder in a forked child, and at the end of its process."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from multiprocessing import util
from typing import Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.windows import EveryStep

#: The recorder, which imports this module.
Recorder = Any

#: How long the end of a process waits for a thread that sends, in seconds.
EXIT_LOCK_S = 1.0


#: Before the journal's own exit function (100).
DRAIN_PRIORITY = 101


def close_in_children(recorder: Recorder) -> None:
    """A forked child is not the process that is recorded, and its locks may be held by threads that it lacks."""
    reference = weakref.ref(recorder)

    def closed() -> None:
        recorder = reference()
        if recorder is not None:
            recorder._closed, recorder.recorded, recorder._open = True, EveryStep(), False
            recorder._lock = recorder.graphs.lock = threading.RLock()

    os.register_at_fork(after_in_child=closed)


def drain_at_exit(recorder: Recorder) -> None:
    """Send the counts that have arrived when the process ends without a shutdown, as vLLM's engine does on SIGTERM.

    The sinks then write them: their own exit functions run after this one. Nothing waits for the device.
    """
    reference = weakref.ref(recorder)

    def drain() -> None:
        recorder = reference()
        if recorder is None or recorder._closed or not recorder._lock.acquire(timeout=EXIT_LOCK_S):
            return
        try:
            recorder._arrived()
        except Exception:
            logger().info("the last counts could not be sent", exc_info=True)
        finally:
            recorder._lock.release()

    atexit.register(drain)
    util.Finalize(None, drain, exitpriority=DRAIN_PRIORITY)  # children of multiprocessing leave without atexit
