"""The thread that sends counts: it asks for events, builds payloads and calls sinks, so that serving does not."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any

from nvtxmoe.capture.hooks import Hook, registered

#: The recorder, which imports this module.
Recorder = Any

#: Seconds after which what has arrived is sent. In ``IDLE_S`` without a step it is also written.
IDLE_S = 0.1
#: The same while steps run, for sinks whose counts may not wait for other steps.
SOON_S = 0.01
#: Steps after which the thread is woken: to wake it takes the serving thread longer than all else in ``end_step``.
WAKE_EVERY = 16


class SendingThread:
    """Sends what has arrived every ``SOON_S`` or ``IDLE_S``, and when it is woken.

    A failure switches off its hook, ``send``, as a failure of a hook does; what has arrived is then not sent.
    """

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def start(self, recorder: Recorder) -> None:
        """Begin; the thread ends with the recorder."""
        arguments = weakref.ref(recorder), self._asleep, registered(Hook("send"))
        self.thread = threading.Thread(target=_send, args=arguments, name="nvtxmoe-send", daemon=True)
        self.thread.start()

    def wake(self) -> None:
        """Have it send soon. The caller does not wait."""
        if self._asleep.locked():
            with contextlib.suppress(RuntimeError):  # another thread has just woken it
                self._asleep.release()


def _send(recorder: weakref.ref[Recorder], asleep: threading.Lock, hook: Hook) -> None:
    counter, before, wait_s = None, -1, IDLE_S
    while True:
        woken = asleep.acquire(timeout=wait_s)
        counting_recorder = recorder()
        if counting_recorder is None or counting_recorder._closed:
            return
        try:
            if hook.failure is None and counting_recorder._counter is not None:
                if counter is not counting_recorder._counter and counting_recorder._counter.enter_thread():
                    counter = counting_recorder._counter
                if counter is counting_recorder._counter:
                    counting_recorder.send_arrived()
            if wait_s == IDLE_S and not woken and counting_recorder.steps == before and not counting_recorder._open:
                for sink in counting_recorder.recorded.sinks:
                    sink.pause()
        except Exception as error:  # serving is sacred
            hook.fail(error, 0)
        wait_s = SOON_S if counting_recorder.sends_soon and counting_recorder.steps != before else IDLE_S
        before = counting_recorder.steps
        del counting_recorder
