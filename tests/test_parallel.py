"""Runs of several devices and processes, each process a Python of its own.

This file is also the program that they run: see `main`.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import fcn_jax
import fcn_jax.__main__
from fcn_jax.data.loader import prefetch_to_device, train_batches
from fcn_jax.evaluation.evaluate import evaluate_over_processes
from fcn_jax.inference import predict as predict_module
from fcn_jax.inference import tiles
from fcn_jax.inference.programs import labels_of
from fcn_jax.models.extent import zero_outside
from fcn_jax.models.fcn import FCN
from fcn_jax.network import Network
from fcn_jax.parallel import make_parallel
from fcn_jax.processes import (
    initialize,
    is_main,
    merge_shards,
    preempted,
    process_shard,
    sum_over_processes,
)
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.losses import LOSSES
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step

BATCH, STEPS, ENDLESS = 24, 5, 10**6
LONG = 300  # Seconds; the machine may be slow.
SHARES = (1, 1), (2, 2)  # Devices and processes.
TX = optax.sgd(1e-4, momentum=0.9)


class Tiny(nn.Module):
    """A network that compiles at once."""

    @nn.compact
    def __call__(self, image, size=None, *, train=False):
        x = nn.relu(nn.Conv(8, (3, 3))(image.astype("float32") - 120))
        return nn.Conv(3, (1, 1))(x)


class Layers(nn.Module):
    """Layers that see one pixel each, with their names and widths."""

    layers: tuple

    @nn.compact
    def __call__(self, x, size):
        for name, filters in self.layers:
            x = zero_outside(nn.tanh(nn.Dense(filters, name=name)(x)), size)
        return x


class Parts(nn.Module):
    """A network with a body and a head that compiles at once."""

    @nn.compact
    def __call__(self, image, size=None, *, train=False):
        x = zero_outside(image.astype("float32") / 64 - 2, size)
        x = Layers((("conv1", 4), ("conv2", 6)), name="body")(x, size)
        return Layers((("score_fr", 4),), name="head")(x, size)


MODELS = {"fcn": FCN(num_classes=3, width=1 / 32, dropout=0.0), "tiny": Tiny()}


class Voids:
    """Noise, labelled everywhere, half, hardly or nowhere."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, [16, 16, 3]).astype(np.uint8)
        label = rng.integers(0, 3, [16, 16]).astype(np.int32)
        label.reshape(-1)[: [0, 128, 250, 256][i % 4]] = 255
        return {"image": image, "label": label, "name": str(i)}


class Mixed(Voids):
    """Images of many sizes, few of which are high."""

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        shape = int(rng.choice([9] * 9 + [21])), int(rng.integers(5, 20))
        image = rng.integers(0, 256, [*shape, 3]).astype(np.uint8)
        label = rng.integers(0, 3, shape).astype(np.int32)
        return {"image": image, "label": label, "name": str(i)}


def main(address, processes, process_id, timeout, jobs):
    """The program: does its jobs as one process of some."""
    several = int(processes) > 1
    given = (address, int(processes), int(process_id)) if several else ()
    initialize(*given, timeout=int(timeout))
    assert is_main() == (process_id == "0")
    known = (
        command,
        train,
        mixed,
        score,
        losses,
        traffic,
        refuse_batch,
        refuse_state,
        count,
    )
    for name, *arguments in json.loads(jobs):
        {job.__name__: job for job in known}[name](*arguments)


def train(model, mode, out, workdir=None, save_at=0, steps=STEPS, accumulate=1):
    """A training loop; its first and last state go to ``out``.

    Resumes from ``workdir``, if given, and saves there; stops on SIGTERM.
    """
    parallel, train_step = make_step(model, mode, accumulate)
    state, start = first_state(MODELS[model]), 0
    checkpoints = Checkpoints(Path(workdir), keep=5) if workdir else None
    if saved := checkpoints and checkpoints.newest():
        state, start = saved.state(state), saved.step
    write(f"{out}.first", state)
    state = parallel.put_state(state)
    held = [x.addressable_data(0).nbytes for x in jax.tree.leaves(state.opt_state)]
    print("held", sum(held))
    batches = train_batches(
        Voids(),
        lambda example, rng: example,
        batch_size=BATCH,
        seed=3,
        start_step=start,
        shard=parallel.shard,
    )
    ahead = prefetch_to_device(batches, put=parallel.put_batch)
    for step, batch in enumerate(itertools.islice(ahead, steps - start), start + 1):
        state, metrics = train_step(state, batch, jax.random.key(7))
        print(f"step {step} loss {float(metrics['loss'])}", flush=True)
        stop = preempted(step)
        if stop or step == save_at:
            one = parallel.one_copy(state)
            if is_main():
                checkpoints.save(one, config={}, best=None, progress={}, log="")
        if stop:
            print(f"stopped at {step}")
            break
    write(f"{out}.last", parallel.one_copy(state))


def mixed(mode, out):
    """Steps on images of many sizes; the last state goes to ``out``."""
    parallel = make_parallel(mode, batch_size=BATCH)
    train_step = parallel.step(functools.partial(make_train_step, Parts(), TX))
    state = parallel.put_state(first_state(Parts()))
    batches = train_batches(
        Mixed(),
        lambda example, rng: example,
        batch_size=BATCH,
        seed=3,
        shard=parallel.shard,
        bucket=4,
    )
    own = set()
    for batch in itertools.islice(batches, STEPS):
        own.add(batch["image"].shape[1:3])
        put = parallel.put_batch(batch)
        state, _ = train_step(state, put, jax.random.key(7))
    print(json.dumps(sorted(own)))
    write(out, parallel.one_copy(state))


def score():
    """Prints what an evaluation finds, labels of a tiled image, and devices at work."""
    used = set()

    def spy(net, batch, size):
        labels = labels_of(net, batch, size)
        used.update(device.id for device in labels.sharding.device_set)
        return labels

    predict_module.labels_of = tiles.labels_of = spy
    net = Network(first_state(MODELS["fcn"]).params, MODELS["fcn"])
    found = evaluate_over_processes(net, Mixed(), progress=False)
    print(json.dumps([found.confusion.tolist(), found.scores, len(used)]))
    used.clear()
    image = np.random.default_rng(0).integers(0, 256, [40, 2000, 3]).astype(np.uint8)
    labels = tiles.predict_tiled(net, image, tile=40_000)
    print(json.dumps([zlib.crc32(labels), len(np.unique(labels)), len(used)]))


def command(*words):
    """A command of fcn_jax; prints its status."""
    print("status", fcn_jax.__main__.main(words), flush=True)


def losses(out, ways):
    """Two steps in each way; the states and the metrics go to ``out``.

    A layer is frozen, the rates of body and head differ, and the gradient is clipped.
    """
    batch, freeze = padded_batch(), ("conv1",)
    limits = {"weight_decay": 0.1, "rates": (0.5, 2.0), "clip_norm": 0.05}
    tx = make_optimizer("sgd", lambda step: 1.0, **limits)
    first = first_state(Parts(), tx, freeze)
    for mode, accumulate, loss in ways:
        parallel = make_parallel(mode, batch_size=8, accumulate=accumulate)
        options = {"loss": loss, "freeze": freeze, "accumulate": accumulate}
        options["class_weights"] = (1.0, 2.0, 0.5, 3.0)
        make = functools.partial(make_train_step, Parts(), tx, **options)
        train_step, state = parallel.step(make), parallel.put_state(first)
        for _ in range(2):
            put = parallel.put_batch(batch)
            state, metrics = train_step(state, put, jax.random.key(7))
        name = f"{out}-{loss}-{mode}-{accumulate}"
        write(name, parallel.one_copy(state))
        figures = json.dumps(jax.tree.map(float, metrics))
        Path(f"{name}.json").write_text(figures, "utf-8")


def padded_batch():
    """Images of which a quarter is hardly labelled, and another not at all.

    Class 2 occurs in the last two images alone, and class 3 in none.
    """
    rng = np.random.default_rng(5)
    label = rng.integers(0, 2, [8, 12, 12]).astype(np.int32)
    label[6:] = rng.integers(0, 3, [2, 12, 12])
    label[0], label[1, 1:], label[2:4], label[4, :6] = 255, 255, 255, 255
    image = rng.integers(0, 256, [8, 12, 12, 3]).astype(np.uint8)
    size = rng.integers(3, 13, [8, 2]).astype(np.int32)
    for i, (height, width) in enumerate(size):
        label[i, height:] = label[i, :, width:] = 255
    return {"image": image, "label": label, "size": size}


def make_step(model, mode, accumulate=1):
    parallel = make_parallel(mode, batch_size=BATCH, accumulate=accumulate)
    options = {"class_weights": (1.0, 2.0, 4.0), "accumulate": accumulate}
    make = functools.partial(make_train_step, MODELS[model], TX, **options)
    return parallel, parallel.step(make)


def first_state(model, tx=TX, freeze=()):
    rng = np.random.default_rng(0)

    def draw(leaf):
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    image, key = np.zeros([1, 16, 16, 3]), jax.random.key(0)
    params = jax.tree.map(draw, jax.eval_shape(model.init, key, image)["params"])
    return jax.tree.map(np.asarray, init_state(params, tx, freeze=freeze))


def write(out, state):
    flat = {
        name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(part)])
        for name, part in state._asdict().items()
    }
    np.savez(f"{out}.{jax.process_index()}.npz", **flat)


def traffic(model, mode):
    """Prints what the devices send each other in a step."""
    parallel, train_step = make_step(model, mode)
    state = parallel.put_state(first_state(MODELS[model]))
    examples = [Voids()[i] for i in range(BATCH)]
    batch = {k: np.stack([e[k] for e in examples]) for k in ("image", "label")}
    batch = parallel.put_batch(batch)
    text = train_step.lower(state, batch, jax.random.key(7)).compile().as_text()
    kinds = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
    print("sent:", *set(re.findall(rf" {kinds}(?:-start)?\(", text)))


def refuse_batch(mode, batch_size, *sides):
    """Prints what is said to a batch that cannot be used."""
    try:
        parallel = make_parallel(mode, batch_size=batch_size)
        for side in sides[jax.process_index()]:
            parallel.put_batch({"image": np.zeros([24, side, side, 3], np.uint8)})
    except ValueError as error:
        print(error)


def refuse_state():
    """Prints what is said to processes that bring different states."""
    try:
        parallel = make_parallel("sharded", batch_size=BATCH)
        parallel.put_state({"kernel": np.full(3, jax.process_index())})
    except ValueError as error:
        print(error)


def count():
    """Prints what the processes find together."""
    found = np.array([[2**40, 1], [0, jax.process_index()]])
    print(json.dumps(sum_over_processes(found).tolist()))
    names = [int(example["name"]) for example in process_shard(Voids())]
    print(json.dumps(names))
    merged = merge_shards([np.nan if name == 7 else name / 3 for name in names], 40)
    print(json.dumps(merged.tolist()))


class Processes:
    """Processes that run, and what they print."""

    def __init__(self, commands, env, folder):
        self.logs = [folder / f"{i}.txt" for i in range(len(commands))]
        self.running = []
        for command, log in zip(commands, self.logs, strict=True):
            with log.open("w", encoding="utf-8") as file:
                started = subprocess.Popen(
                    command, env=env, cwd=folder, stdout=file, stderr=file
                )
            self.running.append(started)

    def text(self, index=0):
        return self.logs[index].read_text("utf-8")

    def wait_for(self, found):
        deadline = time.monotonic() + LONG
        while not found():
            assert time.monotonic() < deadline
            for i, process in enumerate(self.running):
                assert process.poll() is None, self.text(i)
            time.sleep(0.02)

    def end(self):
        """Waits until all have ended well."""
        for i, process in enumerate(self.running):
            assert process.wait(timeout=LONG) == 0, self.text(i)
        return self


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the processes of a run, with a number of devices each."""
    cache = tmp_path_factory.mktemp("cache")
    with contextlib.ExitStack() as stack:

        def start(*jobs, devices=1, processes=1, timeout=60):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            env = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_BIND_ADDRESS": address,
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "PYTHONWARNINGS": "error",
                "XLA_FLAGS": os.environ["XLA_FLAGS"]
                + f" --xla_force_host_platform_device_count={devices}",
            }
            commands = [
                [sys.executable, __file__, address]
                + [str(number) for number in (processes, i, timeout)]
                + [json.dumps(jobs)]
                for i in range(processes)
            ]
            started = Processes(commands, env, tmp_path_factory.mktemp("run"))
            for process in started.running:
                stack.callback(process.wait)
                stack.callback(process.kill)
            return started

        yield start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def expected(start, folder):
    """The last state on one device, which all others must reach."""
    start(("train", "tiny", "none", f"{folder}/tiny")).end()
    first, last = read(folder / "tiny.first"), read(folder / "tiny.last")
    assert last["step"] == STEPS
    assert np.abs(last["params"] - first["params"]).max() > 1e-3
    return last


def read(path, process=0):
    with np.load(f"{path}.{process}.npz") as file:
        return dict(file)


def assert_close(state, expected):
    assert state["step"] == expected["step"]
    largest = np.abs(expected["opt_state"]).max()  # Sums of gradients, beyond 1.
    for name, atol in {"params": 1e-6, "opt_state": 1e-6 * largest}.items():
        np.testing.assert_allclose(state[name], expected[name], rtol=0, atol=atol)


def test_devices_reach_the_parameters_of_one(start, folder, expected):
    outs = {mode: f"{folder}/{mode}4" for mode in ("sharded", "pmap")}
    start(*[("train", "tiny", *item) for item in outs.items()], devices=4).end()
    for out in outs.values():
        assert_close(read(f"{out}.last"), expected)


def test_devices_reach_with_each_loss_what_one_reaches(start, folder):
    """With micro-batches, frozen layers, rates, clipping, class weights and sizes."""
    # The last loss is a sum over pixels and a quotient of sums.
    whole, micro = [(1, loss) for loss in LOSSES], [(2, LOSSES[-1])]
    several = list(itertools.product(("sharded", "pmap"), whole + micro))
    ways = [("none", *way) for way in whole] + [(mode, *way) for mode, way in several]
    out = f"{folder}/losses"
    start(("losses", out, ways), devices=4).end()

    def result(mode, accumulate, loss):
        name = f"{out}-{loss}-{mode}-{accumulate}"
        return read(name), json.loads(Path(f"{name}.json").read_text("utf-8"))

    expected = {loss: result("none", 1, loss) for loss in LOSSES}
    assert len({state["params"].tobytes() for state, _ in expected.values()}) == 4
    assert all(figures["grad_norm"] > 0.06 for _, figures in expected.values())
    for mode, (accumulate, loss) in several:
        state, figures = result(mode, accumulate, loss)
        assert_close(state, expected[loss][0])
        assert figures == pytest.approx(expected[loss][1], rel=1e-5)


def test_devices_send_each_other_nothing_but_sums(start):
    said = start(("traffic", "fcn", "sharded"), devices=8).end().text()
    assert "sent: all-reduce\n" in said


def test_batch_that_devices_cannot_share_is_refused_with_both_numbers(start):
    said = start(("refuse_batch", "sharded", 12), devices=8).end().text()
    assert "batch_size = 12 cannot be split evenly over 8 device(s)" in said
    assert "a multiple of 8" in said


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (3, 1)])
def test_processes_reach_the_parameters_of_one(
    start, folder, expected, processes, devices
):
    outs = {mode: f"{folder}/{mode}-{processes}" for mode in ("sharded", "pmap")}
    jobs = [("train", "tiny", *item) for item in outs.items()]
    start(*jobs, devices=devices, processes=processes).end()
    for i, out in itertools.product(range(processes), outs.values()):
        assert_close(read(f"{out}.last", i), expected)


def test_processes_reach_with_images_of_many_sizes_what_one_reaches(start, folder):
    outs = {mode: f"{folder}/mixed-{mode}" for mode in ("none", "sharded", "pmap")}
    start(("mixed", "none", outs["none"])).end()
    jobs = [("mixed", mode, outs[mode]) for mode in ("sharded", "pmap")]
    run = start(*jobs, devices=2, processes=2).end()
    own = [run.text(i).splitlines()[-1] for i in range(2)]
    assert own[0] != own[1]  # The processes had to agree.
    for i, mode in itertools.product(range(2), ("sharded", "pmap")):
        assert_close(read(outs[mode], i), read(outs["none"]))


def test_evaluation_and_tiles_use_all_devices_and_find_what_one_finds(start):
    runs = {(d, p): start(("score",), devices=d, processes=p) for d, p in SHARES}
    found = {}
    for (devices, processes), run in runs.items():
        run.end()
        for i in range(processes):
            whole, tiled = map(json.loads, run.text(i).splitlines()[-2:])
            assert whole.pop() == tiled.pop() == devices
            found[devices, processes, i] = whole, tiled
    first, *others = found.values()
    (confusion, scores), (_, classes) = first
    assert np.sum(confusion) > 40 * 9 * 5 and len(scores) == 40 and classes > 1
    assert all(other == first for other in others)


@pytest.fixture(scope="module")
def mydata(tmp_path_factory):
    """A folder of images, labels and a network."""
    folder = tmp_path_factory.mktemp("mydata")
    for part, key in (("images", "image"), ("labels", "label")):
        (folder / part / "val").mkdir(parents=True)
        for i in range(7):
            image = Image.fromarray(Mixed()[i][key].astype(np.uint8))
            image.save(folder / part / "val" / f"{i}.png")
    net = Network(first_state(MODELS["fcn"]).params, MODELS["fcn"])
    fcn_jax.save(folder / "net.safetensors", net)
    return folder


def tree(folder):
    """The content of each file of a folder, less what tells of time and place."""
    names = (path for path in folder.rglob("*") if path.suffix != ".html")
    return {str(p.relative_to(folder)): p.read_bytes() for p in names if p.is_file()}


@pytest.fixture(scope="module")
def commands(start, mydata, tmp_path_factory):
    """What predict and evaluate print and write, in one process and in two."""
    images = tmp_path_factory.mktemp("photos")
    for i in range(7):
        shutil.copy(mydata / "images" / "val" / f"{i}.png", images)
    (images / "3a.png").write_text("no image")
    weights = ["--weights", str(mydata / "net.safetensors")]
    predict = ["predict", *weights, str(images)]
    evaluate = ["evaluate", *weights, "--config", "folder"]
    evaluate += [f"--config.data.root={mydata}", "--config.data.num_classes=3"]
    evaluate += ["--save-confusion", "--save-predictions"]
    runs = {}
    for count in (1, 2):
        out = tmp_path_factory.mktemp("out")
        jobs = [
            (*predict, "--out", f"{out}/predict", "--csv", f"{out}/predict/shares.csv"),
            (*evaluate, "--out", f"{out}/evaluate"),
        ]
        runs[count] = out, start(*(("command", *j) for j in jobs), processes=count)
    return {
        count: (
            [run.end().text(i).split("status") for i in range(count)],
            tree(out / "predict"),
            tree(out / "evaluate"),
        )
        for count, (out, run) in runs.items()
    }


def test_predict_shares_a_folder_over_processes(commands):
    (_, one, _), (said, two, _) = commands[1], commands[2]
    assert len(one) == 15 and two == one
    (main, status, _), (other, other_status, _) = said
    assert "left out" in main and "7 segmented into" in main
    assert "segmented into" not in other
    for text in (status, other_status):
        assert text.startswith(" 1\n")  # One image is none.


def test_evaluate_shares_a_split_over_processes(commands):
    (_, _, one), (said, _, two) = commands[1], commands[2]
    assert len(one) == 7 + 5 and two == one
    (_, main, status), (_, other, other_status) = said
    assert "mean IU" in main and "mean IU" not in other
    assert status.startswith(" 0\n") and other_status.startswith(" 0\n")


def test_processes_count_together_and_refuse_what_they_cannot_share(start):
    apart, later = [[8], [9], [8]], [[8, 8, 9]] * 3
    run = start(
        ("count",),
        ("refuse_state",),
        ("refuse_batch", "none", BATCH),
        ("refuse_batch", "sharded", BATCH, *apart),
        ("refuse_batch", "pmap", BATCH, *later),
        processes=3,
    ).end()
    names = []
    for i in range(3):
        total, share, merged, *errors = run.text(i).splitlines()[-7:]
        assert json.loads(total) == [[3 * 2**40, 3], [0, 0 + 1 + 2]]
        names += json.loads(share)
        thirds = [np.nan if name == 7 else name / 3 for name in range(40)]
        np.testing.assert_array_equal(json.loads(merged), thirds)
        assert "do not start from the same state" in errors[0]
        assert 'mode = "none" is for one process, but this run has 3' in errors[1]
        for error in errors[2:]:
            assert "without sizes must have the same shape in all processes" in error
    assert sorted(names) == list(range(len(Voids())))


def test_checkpoint_moves_between_devices_modes_and_processes(start, folder, expected):
    legs = [
        (1, "sharded", 8, 1),
        (2, "none", 1, 1),
        (3, "pmap", 2, 2),
        (STEPS, "pmap", 8, 1),
    ]
    before = None
    for step, mode, devices, processes in legs:
        out = f"{folder}/leg{step}"
        job = ("train", "tiny", mode, out, f"{folder}/legs", step, step)
        start(job, devices=devices, processes=processes).end()
        if before:
            saved, restored = read(f"{before}.last"), read(f"{out}.first")
            for name in saved:
                np.testing.assert_array_equal(saved[name], restored[name])
        before = out
    assert_close(read(f"{out}.last"), expected)


def test_zero1_reaches_what_one_device_does_and_each_holds_a_part(start, folder):
    out, legs = f"{folder}/zero1", f"{folder}/zero1.workdir"
    whole = start(("train", "fcn", "none", f"{out}.none")).end().text()
    four = {"devices": 2, "processes": 2}
    modes = ("none", {}), ("zero1", four)
    for step, (mode, layout) in zip((2, STEPS), modes, strict=True):
        job = ("train", "fcn", mode, f"{out}.{step}", legs, step, step)
        part = start(job, **layout).end().text()
    for i in range(2):
        assert read(f"{out}.{STEPS}.first", i)["step"] == 2
    for i in range(2):
        assert_close(read(f"{out}.{STEPS}.last", i), read(f"{out}.none.last"))
    found = [int(re.search(r"held (\d+)", text)[1]) for text in (whole, part)]
    assert found[1] < 0.4 * found[0]  # Each holds all small arrays.


def test_killed_process_ends_the_others_and_a_restart_resumes(start, folder, expected):
    runs, timeout = [], 5
    for victim in range(2):
        out = f"{folder}/kill{victim}"
        job = ("train", "tiny", "sharded", out, f"{out}.workdir", 3)
        layout = {"processes": 2, "devices": 2, "timeout": timeout}
        runs.append(start((*job, ENDLESS), **layout))
    for victim, run in enumerate(runs):
        run.wait_for(Path(f"{folder}/kill{victim}.workdir/3.safetensors").exists)
        run.running[victim].kill()
    killed = time.monotonic()
    for victim, run in enumerate(runs):
        assert run.running[1 - victim].wait(timeout=LONG) != 0
    assert time.monotonic() < killed + 2 * timeout  # Twice: machines may be slow.
    start(job, processes=2, devices=2).end()
    assert read(f"{out}.first")["step"] == 3
    assert_close(read(f"{out}.last"), expected)


def test_sigterm_to_one_process_stops_all_after_the_same_step(start, folder):
    workdir, out = folder / "stop", f"{folder}/stop"
    job = ("train", "tiny", "pmap", out, str(workdir), 0, ENDLESS)
    run = start(job, processes=2, devices=2)
    run.wait_for(lambda: "step 3" in run.text(1))
    run.running[1].terminate()
    run.end()
    stops = [int(re.search(r"stopped at (\d+)", run.text(i))[1]) for i in range(2)]
    assert stops == [read(f"{out}.last", i)["step"] for i in range(2)]
    assert [f"{stops[0]}.safetensors"] == [path.name for path in workdir.iterdir()]


def test_state_put_on_devices_is_a_copy_that_its_step_uses_up():
    parallel, train_step = make_step("tiny", "sharded")
    given = jax.tree.map(jnp.asarray, first_state(MODELS["tiny"]))
    before = jax.tree.map(np.array, given)
    state = parallel.put_state(given)
    batch = {"image": np.ones([BATCH, 8, 8, 3], np.uint8)}
    batch["label"] = np.ones([BATCH, 8, 8], np.int32)
    train_step(state, parallel.put_batch(batch), jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    jax.tree.map(np.testing.assert_array_equal, given, before)


def test_batch_that_micro_batches_cannot_share_is_refused_with_the_numbers():
    said = "batch_size = 24 .* over 1 device.* 5 micro-batch.*: use a multiple of 5"
    with pytest.raises(ValueError, match=said):
        make_parallel("none", batch_size=24, accumulate=5)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode = 'fsdp' is not one of sharded, "):
        make_parallel("fsdp", batch_size=BATCH)


SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "given", "joins"),
    [
        ({}, (), False),
        ({}, (None, 1, None), False),
        ({}, ("127.0.0.1:1", 2, None), True),
        (SLURM, (), True),
        (SLURM, (None, 1, None), False),
        (SLURM | {"SLURM_NTASKS": "1"}, (), False),
        ({"SLURM_NTASKS": "2"}, (), False),  # In a script, of which there is one.
        ({"OMPI_COMM_WORLD_SIZE": "2"}, (), True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, (), False),
        ({"KUBERNETES_SERVICE_HOST": "k"}, (), False),
        ({"KUBERNETES_SERVICE_HOST": "k", "JOB_COMPLETION_INDEX": "0"}, (), True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, (), False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, (), True),
        ({"MEGASCALE_NUM_SLICES": "2"}, (), True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, (), False),
    ],
)
def test_initialize_joins_others_where_there_are_any(
    monkeypatch, environment, given, joins
):
    def join(*arguments, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", join)
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "KUBERNETES", "TPU", "MEGASCALE")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not joins:
        return initialize(*given)
    with pytest.raises(ValueError, match="num_processes = 1 to run this process alone"):
        initialize(*given)


if __name__ == "__main__":
    main(*sys.argv[1:])
