"""A submitted job's work, in a process of its own: what ``upscale`` does, told as notes.

``python -m dino_ray.submit.work FOLDER`` reads an order from the first line of its standard input, whose end is its own
end; what is sent lies in FOLDER.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any, cast

from dino_ray.batch import Batch
from dino_ray.config import UpscaleConfig
from dino_ray.errors import DinoRayError, for_user
from dino_ray.report.progress import json_lines
from dino_ray.stopping import INTERRUPTED, interrupt, stopped_in_time
from dino_ray.submit.notes import SAID, ImageFailed, Interrupted, Note, pieces, to_line
from dino_ray.submit.order import Order
from dino_ray.submit.pictures import report_there

_HOW_TO_GO_ON = re.compile(r"; [\d,]+ of [\d,]+ cells of .*? are kept; go on with.*$", re.DOTALL)
"""What an error says of a job folder, which is not true of one that goes with the job."""


def main(order: Order, folder: str, stream: IO[str]) -> int:
    """Do the job; returns the exit code.

    Parameters
    ----------
    folder
        On this node; what was sent lies there, and what is to be fetched is made there.
    stream
        Takes the events, reports and failures, a line each.
    """
    started = time.monotonic()
    pairs = order.pairs(folder)
    local = _local_names(order, pairs)

    def say(note: Note) -> None:
        stream.write(local(to_line(note)) + "\n")
        stream.flush()

    def fail(image: int | None, error: DinoRayError) -> None:
        text = str(error) if order.keeps else _HOW_TO_GO_ON.sub("", str(error))
        say(ImageFailed(image, text, error.exit_code))

    def finished(image: Any, canvas: Any, report: Any) -> None:
        number = numbers.get((str(image.source), str(image.output)), 0)
        for piece in pieces(number, local(json.dumps(asdict(report))), before=canvas is None):
            say(piece)

    numbers = {pair: n for n, pair in enumerate(pairs)}
    try:
        config = UpscaleConfig.parse({**order.config, "address": "auto"})
        pictures = report_there(folder) if order.pictures else None
        batch = Batch.check(pairs, config, pictures=pictures, existing=order.existing, strict=order.strict)
        with stopped_in_time(batch.standing.left):
            batch.run(json_lines(cast(IO[str], _Renaming(stream, local))), finished, started)
        by_name = {name: n for n, (name, _) in enumerate(pairs)}
        for name, error in batch.failures:
            fail(by_name.get(name), error)
        return max((error.exit_code for _, error in batch.failures), default=0)
    except KeyboardInterrupt as stop:
        with contextlib.suppress(BrokenPipeError):
            say(Interrupted(str(stop) or "nothing was done yet, and nothing is left behind"))
        return INTERRUPTED
    except Exception as error:
        logging.getLogger(__name__).debug("", exc_info=True)
        fail(None, for_user(error))
        return for_user(error).exit_code


def _local_names(order: Order, pairs: list[tuple[str, str]]) -> Callable[[str], str]:
    """Puts into a line what the user calls files, where it has what they are called on this node."""
    names = [
        (json.dumps(there)[1:-1], json.dumps(here)[1:-1])
        for (source, target), (source_there, target_there) in zip(order.images, pairs, strict=True)
        for there, here in ((source_there, source.shown), (target_there, target.shown))
        if there != here
    ]
    names.sort(
        key=lambda pair: len(pair[0]), reverse=True
    )  # of two that begin alike, the longer one is meant

    def rename(line: str) -> str:
        for there, here in names:
            line = line.replace(there, here)
        return line

    return rename


class _Renaming:
    """A stream whose lines have names replaced."""

    def __init__(self, stream: IO[str], rename: Callable[[str], str]) -> None:
        self._stream, self._rename = stream, rename

    def write(self, text: str) -> int:
        return self._stream.write(self._rename(text))

    def flush(self) -> None:
        self._stream.flush()


def _end_with_driver() -> None:
    """Stop as if asked to once the driver is gone, however it went: nobody else would end this process."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    logging.basicConfig(format=f"{SAID}%(message)s", level=logging.WARNING)
    logging.getLogger("dino_ray").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, interrupt)
    order = Order.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_driver, name="lifeline", daemon=True).start()
    sys.exit(main(order, sys.argv[1], sys.stdout))
