"""Ending when asked to: by Ctrl-C or SIGTERM, in time, whatever is going on."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""

STOP_S = 3.5
"""How long after a signal to stop the process is over at the latest."""


def interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def stopped_in_time(left: Callable[[], str]) -> Iterator[None]:
    """Once a signal asks this process to stop, it ends within ``STOP_S``, whatever it is in the middle of.

    Python handles signals between two of its own instructions; a step of a model, or a decoder, may take longer than
    anybody waits. Finished cells are whole on their disk at any moment, so nothing is lost.
    """
    told, tell = socket.socketpair()
    tell.setblocking(False)
    asked, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while (signum := told.recv(1)) and signum[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        if not signum:
            return
        asked.set()
        time.sleep(STOP_S)
        if not ended.is_set():
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # progress bars hide it
            os.write(2, f"{cursor}dino-ray: interrupted; {left()}\n".encode(errors="backslashreplace"))
        os._exit(INTERRUPTED)

    before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        if asked.is_set():
            # The way out of the process is short, and guarded: more of the same would only disturb it.
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)
        else:
            tell.close()
