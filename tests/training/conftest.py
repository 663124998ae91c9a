"""A thin network on few drawn pictures, and settings that make its runs quick."""

import contextlib

import pytest

from fcn_jax.training import config, loop
from fcn_jax.training.config import Config, Data, Model, Optim
from fcn_jax.training.log import TIMES, read_log


@pytest.fixture(scope="session")
def quick_settings(tmp_path_factory, keeping_programs):
    """Few pictures, and programs compiled once."""

    @contextlib.contextmanager
    def settings():
        compiled = tmp_path_factory.getbasetemp() / "compiled"
        with pytest.MonkeyPatch.context() as patch, keeping_programs(compiled):
            patch.setattr(config, "SHAPES_TRAIN", 5)
            patch.setattr(config, "SHAPES_EVAL", 3)
            yield

    return settings


@pytest.fixture(scope="module")
def quick(quick_settings):
    with quick_settings():
        yield


def make_config(**changes):
    return Config(
        model=Model(variant="fcn32s", width=1 / 64),
        data=Data(name="shapes", num_classes=5, size=(32, 32), crop=(24, 24)),
        # The program of a step holds its schedule: a constant one suits any run.
        optim=Optim(learning_rate=1e-3, schedule="constant"),
        **{"steps": 6, "batch_size": 2, "eval_every": 2, "log_every": 1} | changes,
    )


@pytest.fixture(scope="session")
def thin_config():
    """A function that returns the config of the run, with other fields if given."""
    return make_config


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, quick_settings):
    """The directory and the figures of a run that nothing has interrupted."""
    with quick_settings():
        workdir = tmp_path_factory.mktemp("run") / "whole"
        return workdir, loop.train(make_config(), workdir)


@pytest.fixture(scope="session")
def records():
    """A function that returns the log of a run without what depends on the clock."""

    def read(workdir):
        log = read_log(workdir / "log.jsonl")
        return [{k: v for k, v in r.items() if k not in TIMES} for r in log]

    return read
