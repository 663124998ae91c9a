"""TensorBoard events, without which a run goes on if they cannot be written."""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image as image_summary
from tensorboardX.summary import scalar as scalar_summary
from tensorboardX.summary import text as text_summary

_log = logging.getLogger("fcn_jax")


class Events:
    """Write TensorBoard events at once, in this thread; warn if that fails.

    tensorboardX's own SummaryWriter writes in a thread. If that fails, the run would
    wait for it without end.

    Args:
        folder: folder of the event files, made if it is missing.
        start_step: the step that the run begins or resumes at. TensorBoard hides
            earlier events of later steps.
    """

    def __init__(self, folder: Path, *, start_step: int):
        self._folder = folder
        self._writer: EventsWriter | None = None
        with self._warning():
            folder.mkdir(parents=True, exist_ok=True)
            # Two starts within a second differ in the number of the process.
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
            purge = SessionLog(status=SessionLog.START)
            self._write(Event(step=start_step + 1, session_log=purge))

    def scalars(self, step: int, values: Mapping[str, Any], *, prefix: str) -> None:
        """Write the finite numbers among the values of a step, and those in dicts."""
        with self._warning():
            for name, value in values.items():
                if isinstance(value, Mapping):
                    self.scalars(step, value, prefix=f"{prefix}/{name}")
                elif isinstance(value, int | float) and math.isfinite(value):
                    summary = scalar_summary(f"{prefix}/{name}", value)
                    self._write(Event(step=step, summary=summary))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture, [H, W, 3] uint8 RGB."""
        with self._warning():
            summary = image_summary(name, image, dataformats="HWC")
            self._write(Event(step=step, summary=summary))

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text in Markdown."""
        with self._warning():
            self._write(Event(step=step, summary=text_summary(name, text)))

    def close(self) -> None:
        """Close the file."""
        with self._warning():
            if self._writer:
                self._writer.close()

    def _write(self, event: Event) -> None:
        if self._writer:
            # TensorBoard shows the time beside each step.
            event.wall_time = time.time()
            self._writer.write_event(event)
            self._writer.flush()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Python has closed what could not be closed; again is a ValueError.
            with suppress(OSError, ValueError):
                if self._writer:
                    self._writer.close()
            self._writer = None
            reason = error.strerror or error
            _log.warning(
                "cannot write to %s: %s; the run goes on without TensorBoard events",
                self._folder,
                reason,
            )
