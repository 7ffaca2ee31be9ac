"""Structured logs: every event of a job, and whatever else is logged, as a line of JSON.

Events are records of the logger ``dino_ray.events``, which hands them to its own handlers only: on a terminal they are
progress, not messages. Records carry the fields of their event in ``record.fields``; faults are warnings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_ray import places
from dino_ray.engine.protocol import JobEvent, Listener
from dino_ray.errors import UsageError
from dino_ray.files import check_place
from dino_ray.report.narration import Narrator, message, plain_fields

if TYPE_CHECKING:
    from dino_ray.request import Image

EVENTS = logging.getLogger("dino_ray.events")
EVENTS.propagate = False
EVENTS.setLevel(logging.INFO)

_ALL = logging.getLogger("dino_ray")


class EventLog:
    """Logs the events of a command's images; costs next to nothing while nobody has asked for them."""

    def __init__(self) -> None:
        self._narrator = Narrator()

    def listener(self, image: Image) -> Listener:
        """For the events of one image."""
        return self.about({"job": places.shown(image.place or ""), "image": image.name})

    def about(self, about: Mapping[str, str]) -> Listener:
        """For events that happen to what these fields name: ``job``, ``image``."""

        def hear(event: JobEvent) -> None:
            said = self._narrator(event)
            if not EVENTS.handlers:
                return
            record = {"event": type(event).__name__, **about, **plain_fields(event)}
            if (stages := record.get("stages")) is not None:
                record["seconds"] = round(sum(stages.values()), 4)
            replica = getattr(event, "replica", None)
            if replica is not None and (node := self._narrator.roster.of(replica).node):
                record["node"] = node
            level = logging.WARNING if said is not None and said.fault else logging.INFO
            EVENTS.log(level, "%s", said.text if said else message(event), extra={"fields": record})

        return hear


@contextmanager
def log_file(path: str | Path | None) -> Iterator[None]:
    """Have events and log messages appended to a file while this is open, one line of JSON each.

    A line has ``time`` (ISO 8601, UTC), ``level``, ``event`` (its kind; ``Message`` for what is none), ``message``,
    and, where they apply, ``job`` (its folder), ``image``, ``tiles`` or ``tile``, ``cell``, ``replica``, ``node``,
    ``stages`` and their sum ``seconds``, ``reason``. Each is written at once.

    Parameters
    ----------
    path
        Of a local file; None: there is none.

    Raises
    ------
    UsageError
        If it can't be written; names ``--log``.
    """
    if path is None:
        yield
        return
    if places.is_url(path):
        raise UsageError(f"--log {places.shown(path)}: logs are appended to; name a local file")
    check_place(path, "--log")
    try:
        handler = _Appending(places.local_path(path), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"--log {path}: can't be written ({error.strerror})") from error
    handler.setFormatter(JsonLines())
    for logger in (_ALL, EVENTS):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in (_ALL, EVENTS):
            logger.removeHandler(handler)
        handler.close()


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; usable on any handler."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            **getattr(record, "fields", {"event": "Message", "logger": record.name}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Appending(logging.FileHandler):
    """A log that can't be written any more (a full disk) is said once; it is not worth the job."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            _ALL.warning("--log %s: can't be written any more; the job goes on", self.baseFilename)
