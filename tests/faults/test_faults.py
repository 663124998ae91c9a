"""Kills, failing disks, damaged files: nothing may be lost or wrong in silence.

`make faults` tries all of them, `make test` a few of each kind.
"""

import os

import pytest
from faulty_disk import ERRORS, EVENTS

ALL = bool(os.environ.get("FAULTS"))
PARTS = 8 if ALL else 1  # Tests that share the faults of a kind.
FEW = 2  # Faults of a kind in `make test`.
TRAINING = ("train", "resume", "more")
OTHERS = ("convert", "predict", "evaluate") + ALL * ("export",)  # It is slow.
READING = ("again", "more", "predict", "evaluate", "inspect", "verify")
DAMAGED = {"resume": "cut"} | dict.fromkeys(READING, "run")
# Without its newest checkpoint, a run is as one that was interrupted.
UNSEEN = ("verify", "run/checkpoints/6.safetensors", "missing")


def share(faults, part):
    """A part of the faults, or few of them."""
    faults = list(faults)
    return faults[part::PARTS] if ALL else faults[1 :: len(faults) // FEW][:FEW]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("fault", ["kill", *ERRORS])
@pytest.mark.parametrize("command", TRAINING + OTHERS)
def test_struck_command_is_whole_when_run_again(lab, judge, command, fault, part):
    strikes = share(lab.strikes(command, fault), part)
    strikes = strikes[:: 6 if command == "export" else 1]
    judge(lab.strike(command, operation, fault) for operation in strikes)


@pytest.mark.parametrize("fault", EVENTS)
def test_run_ends_or_goes_on_whatever_happens_beside_it(lab, judge, fault):
    strikes = [o for o in lab.strikes("train", "kill") if "tensorboard" not in o]
    strikes = strikes[:: 4 if ALL else 90]
    judge(lab.strike("train", operation, fault) for operation in strikes)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("command", DAMAGED)
def test_damaged_file_is_refused_or_does_not_matter(lab, judge, command, part):
    faults = share(lab.damages(DAMAGED[command], seeds=3 if ALL else 1), part)
    judge(lab.damage(command, *f) for f in faults if (command, *f[:2]) != UNSEEN)


@pytest.mark.parametrize("seed", range(12 if ALL else 1))
def test_killed_process_leaves_no_other_and_resumes(lab, judge, seed):
    judge([lab.kill_process(seed)])


@pytest.mark.skipif(not ALL, reason="make faults")
@pytest.mark.parametrize("seed", range(3))
def test_killed_reading_process_ends_the_run(lab, judge, seed):
    judge([lab.kill_process(seed, reader=True)])


@pytest.mark.skipif(not ALL, reason="make faults")
@pytest.mark.parametrize("seed", range(3))
def test_second_start_is_refused(lab, judge, seed):
    judge([lab.start_twice(seed)])
