import logging
import math

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from fcn_jax.training.events import Events


def read(folder):
    """The events of a folder: records of a length, its checksum, data, a checksum."""
    [path] = folder.iterdir()
    content, at, events = path.read_bytes(), 0, []
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        events.append(Event.FromString(content[at + 12 : at + 12 + size]))
        at += 16 + size
    return events


def test_events_are_on_the_disk_at_once(tmp_path):
    events = Events(tmp_path / "board", start_step=3)
    values = {"loss": 0.5, "iu": {"sky": 1.0}, "nan": math.nan, "none": None}
    events.scalars(4, values, prefix="train")
    events.image(4, "eval/a", np.zeros((2, 3, 3), np.uint8))
    events.text(4, "config", "steps: 9")
    _, purge, loss, iu, image, text = read(tmp_path / "board")
    assert purge.step == 4 and purge.session_log.status == 1  # A start.
    [value] = loss.summary.value
    assert (loss.step, value.tag, value.simple_value) == (4, "train/loss", 0.5)
    [value] = iu.summary.value
    assert (iu.step, value.tag, value.simple_value) == (4, "train/iu/sky", 1.0)
    [value] = text.summary.value
    assert value.tensor.string_val == [b"steps: 9"]
    assert image.summary.value[0].image.height == 2 and image.wall_time > 0
    events.close()


def test_events_that_cannot_be_written_are_a_warning_once(
    tmp_path, monkeypatch, caplog
):
    events = Events(tmp_path / "board", start_step=0)

    def fail(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(RecordWriter, "write", fail)
        for step in range(50):  # More than any queue holds.
            events.scalars(step, {"loss": 0.5}, prefix="train")
    events.close()
    [record] = caplog.records
    assert "the run goes on without TensorBoard events" in record.getMessage()
    assert f"cannot write to {tmp_path / 'board'}: No space left" in record.getMessage()


def test_events_that_cannot_be_closed_are_a_warning(tmp_path, monkeypatch, caplog):
    events, close = Events(tmp_path / "board", start_step=0), RecordWriter.close

    def fail(self):
        close(self)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RecordWriter, "close", fail)
    events.close()
    assert caplog.text.count("goes on without TensorBoard events") == 1


def test_folder_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    (tmp_path / "board").touch()
    events = Events(tmp_path / "board", start_step=0)
    events.scalars(1, {"loss": 0.5}, prefix="train")
    events.close()
    assert caplog.text.count("goes on without TensorBoard events") == 1
