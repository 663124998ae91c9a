import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fcn_jax import FCN, Network, save
from fcn_jax.training.config import save_config
from fcn_jax.training.overrides import read_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TORCH = importlib.util.find_spec("torch") is not None
TORCHVISION = TORCH and importlib.util.find_spec("torchvision") is not None
OPENVINO = importlib.util.find_spec("openvino") is not None
LIBTPU = importlib.util.find_spec("libtpu") is not None
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # Speed does not matter here.

# A program for four chips as XLA prints it, cut down to what matters.
HLO = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%gather (param: f32[8,4]) -> f32[32,4] {
  %param = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.1 = f32[32,4]{1,0:T(8,128)} all-gather(%param), channel_id=2
}

%body (state: (s32[], bf16[6])) -> (s32[], bf16[6]) {
  %state = (s32[]{:T(128)}, bf16[6]{0:T(256)(128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %v = bf16[6]{0:T(256)(128)(2,1)} get-tuple-element(%state), index=1
  %w = bf16[6]{0:T(256)(128)(2,1)} all-reduce(%v), channel_id=3, to_apply=%add
  ROOT %next = (s32[]{:T(128)}, bf16[6]{0:T(256)(128)(2,1)}) tuple(%i, %w)
}

%condition (state.1: (s32[], bf16[6])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[6]{0:T(256)(128)(2,1)}) parameter(0)
  ROOT %less = pred[]{:T(512)} constant(true)
}

ENTRY %main (a: f32[3,5], b: bf16[7], c: f32[8,4], s: (s32[], bf16[6])) -> f32[3,5] {
  %a = f32[3,5]{1,0:T(4,128)} parameter(0)
  %b = bf16[7]{0:T(256)(128)(2,1)} parameter(1)
  %c = f32[8,4]{1,0:T(8,128)} parameter(2)
  %s = (s32[]{:T(128)}, bf16[6]{0:T(256)(128)(2,1)}) parameter(3)
  %loop = (s32[]{:T(128)}, bf16[6]{0:T(256)(128)(2,1)}) while(%s), \
condition=%condition, body=%body
  %start = (f32[3,5]{1,0:T(4,128)}, /*index=1*/bf16[7]{0:T(256)(128)(2,1)}) \
all-reduce-start(%a, /*index=1*/%b), channel_id=1, to_apply=%add, \
metadata={op_name="jit(step)/all-gather(x)"}
  %done = (f32[3,5]{1,0:T(4,128)}, bf16[7]{0:T(256)(128)(2,1)}) all-reduce-done(%start)
  %whole = f32[32,4]{1,0:T(8,128)} fusion(%c), kind=kCustom, calls=%gather
  ROOT %out = f32[3,5]{1,0:T(4,128)} get-tuple-element(%done), index=0
}
"""


def run(tmp_path, script, *arguments, **options):
    """The figures that a benchmark writes, and what it prints."""
    out = tmp_path / "out.json"
    for name, value in options.items():
        arguments += ("--" + name.replace("_", "-"), value)
    printed = subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, arguments), "--out", out],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stdout + printed.stderr
    figures = json.loads(out.read_text())
    assert figures.pop("arguments")["out"] == str(out)
    assert all(figures.pop(key) for key in ("device", "jax", "date"))
    return figures, printed.stdout


def test_collectives_are_found_with_their_operands_and_loops():
    find = runpy.run_path(str(BENCHMARKS / "collectives.py"))["find_collectives"]
    assert [tuple(each) for each in find(HLO)] == [
        ("all-gather", 8 * 4, 8 * 4 * 4, False),
        ("all-reduce", 6, 6 * 2, True),
        ("all-reduce", 3 * 5 + 7, 3 * 5 * 4 + 7 * 2, False),
    ]


def test_deploy_measures_each_way(tmp_path):
    options = {"variant": "fcn32s", "side": 32, "width": 1 / 32}
    figures, printed = run(tmp_path, "deploy.py", **options, repeats=1, sample=0.001)
    names = ["fcn_jax.predict", "file for JAX", "onnxruntime"]
    names += ["OpenVINO", "OpenVINO bfloat16"] * OPENVINO
    assert list(figures["ways"]) == names
    for name, found in figures["ways"].items():
        assert name in printed
        assert all(found[k] > 0 for k in ("images/s", "ratio", "first"))
        assert found["agreement"] > (0.8 if "bfloat16" in name else 0.999)
    assert ("openvino: not installed" in printed) != OPENVINO
    assert list(figures["bytes"]) == [".npz", ".onnx", ".safetensors"]
    assert min(figures["bytes"].values()) > 100_000


def test_devices_divide_the_work(tmp_path):
    options = {"side": 32, "width": 1 / 32, "batch_size": 8}
    figures, printed = run(tmp_path, "devices.py", **options)
    for name in ("prediction", "step"):
        assert [row["devices"] for row in figures[name]] == [1, 2, 4, 8]
        assert name in printed
    whole = figures["prediction"][0]["flops"]
    for row in figures["prediction"]:
        assert row["flops"] == pytest.approx(whole / row["devices"], rel=0.01)
        assert row["collectives"] == 0
    step = figures["step"]
    assert step[0]["collectives"] == 0 < step[1]["collectives"]
    assert step[3]["flops"] < step[2]["flops"] < step[1]["flops"] < step[0]["flops"]


def test_exact_finds_equal_results(tmp_path):
    options = {"width": 1 / 32, "networks": "fcn8s-same", "images": 2}
    figures, printed = run(tmp_path, "exact.py", **options)
    names = [f"fcn8s same {check}" for check in ("batch", "tiles", "confusion")]
    assert [case["case"] for case in figures["cases"]] == names
    for case in figures["cases"]:
        assert case["passed"] is True
        assert case["difference"] < 1e-5
        assert case["differ"] == 0 < case["of"]
        assert case["seconds"] > 0
        assert case["case"] in printed
    assert "all the same" in printed


def test_first_result_times_the_phases_of_each_command(tmp_path):
    options = {"height": 32, "width_px": 33, "train_side": 32, "width": 1 / 32}
    figures, printed = run(tmp_path, "first_result.py", **options, repeats=1)
    phases = {
        "predict": ["imports", "weights", "labels", "write"],
        "train": ["imports", "first step"],
    }
    assert list(figures["commands"]) == list(phases)
    for command, found in figures["commands"].items():
        for state in ("cold", "warm"):
            seconds, peak = found[state]["seconds"], found[state]["peak"]
            assert list(seconds) == [*phases[command], "result", "process", "XLA"]
            parts = sum(seconds[phase] for phase in phases[command])
            assert parts == pytest.approx(seconds["result"])
            assert 0 < seconds["result"] <= seconds["process"]
            assert seconds["XLA"] > 0 and peak > 50e6
            assert f"{command}, {state}: " in printed
    assert figures["bytes"] > 100_000


def test_labels_compares_float32_and_bfloat16(tmp_path):
    config = read_config("quickstart", [])
    config.model.width = 1 / 32
    config.data.size = (32, 32)
    model = FCN("fcn8s", config.data.num_classes, width=1 / 32)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3))),
    )["params"]
    save_config(tmp_path / "config.json", config)
    save(tmp_path / "model.safetensors", Network(params, model))
    figures, printed = run(tmp_path, "labels.py", run=tmp_path)
    for dtype in ("float32", "bfloat16"):
        assert 0 < figures[dtype]["pixel_accuracy"] < 1
        assert f"{dtype} " in printed
    assert 0 < figures["changed"]["of all pixels"] < 0.5
    assert 0 < figures["changed"]["of labelled pixels"] < 0.5


def test_mask_measures_with_and_without_sizes(tmp_path):
    options = {"side": 32, "width": 1 / 32, "repeats": 1, "sample": 0.001}
    figures, printed = run(tmp_path, "mask.py", **options)
    assert list(figures) == ["forward", "train step"]
    for found in figures.values():
        assert list(found) == ["with size", "without", "ratio"]
        assert found["without"] > 0
        ratio = found["with size"] / found["without"]
        assert found["ratio"] == pytest.approx(ratio)
    assert json.loads(printed)["forward"] == figures["forward"]


def test_memory_states_bytes_of_each_way(tmp_path):
    options = {"side": 32, "width": 1 / 32, "batch_sizes": 1, "repeats": 1}
    figures, printed = run(tmp_path, "memory.py", **options)
    frozen = figures["frozen"]
    assert list(frozen) == ["none", "conv1, conv2", "conv"]
    rests, states = ([row[k] for row in frozen.values()] for k in ("rest", "state"))
    assert rests == sorted(rests, reverse=True)
    assert states == sorted(states, reverse=True)
    for row in frozen.values():
        assert row["ratio"] == pytest.approx(row["seconds"] / frozen["none"]["seconds"])
    (row,) = figures["bytes"]
    assert row.pop("batch") == 1
    assert list(row) == ["plain", "remat", "parts"]
    (state,) = {found["state"] for found in row.values()}
    assert state == states[0]
    assert all(found["rest"] > 0 for found in row.values())
    assert "in parts of 1" in printed


@pytest.mark.parametrize("like", ["voc", "cityscapes"])
def test_pipeline_measures_each_way(tmp_path, like):
    options = {"images": 2, "batch_size": 2, "batches": 2, "like": like}
    options |= {"repeats": 1, "cores": 1}
    crop = ("--crop", 64, 96)
    figures, printed = run(tmp_path, "pipeline.py", *crop, **options)
    found = figures["images/s"]
    assert list(found) == ["one core", "threads", "processes"]
    for library in ("fcn_jax", "cached"):
        assert all(row[library] > 0 for row in found.values())
    assert ("torchvision are not both installed" in printed) != TORCHVISION
    for way in ("one core", "processes"):
        assert (found[way].get("torch", 0) > 0) == TORCHVISION
    assert list(figures["seconds"]) == [
        *("read the file", "read and decode it", "the same with its mask"),
        *("read from the cache", "scale and crop", "flip", "jitter"),
    ]
    assert all(stage in printed for stage in figures["seconds"])
    needed = figures["needed images/s"]
    assert needed["TPU v6e"] / needed["TPU v5e"] == pytest.approx(918 / 197)
    # VGG-16 takes 15.35e9 products at 224x224 without its dense layers, which here are
    # computed at 2x3 places. The rest is small.
    products = 15.35e9 * 64 * 96 / 224**2 + (25088 + 4096) * 4096 * 2 * 3
    work = 197e12 / 2 / needed["TPU v5e"]
    assert work == pytest.approx(3 * 2 * products, rel=0.01)


def test_sizes_counts_compilations_and_compares_labels(tmp_path):
    options = {"side": 32, "width": 1 / 32, "images": 4, "sizes": 2}
    figures, printed = run(tmp_path, "sizes.py", **options)
    assert figures["compiles"] == {"jit for each size": 2, "predict": 1}
    assert list(figures["seconds"]) == ["jit for each size", "predict"]
    jit, predict = figures["seconds"].values()
    assert figures["ratio"] == pytest.approx(jit / predict)
    assert figures["agreement"] > 0.999
    assert "labels agree on" in printed


def test_speed_measures_fcn_jax_and_compares_it_with_torch(tmp_path):
    options = {"side": 32, "single_side": 33, "product_side": 64, "batch_size": 2}
    options |= {"width": 1 / 32, "repeats": 1, "sample": 0.001}
    figures, printed = run(tmp_path, "speed.py", "--no-compile", **options)
    cases = figures["cases"]
    assert list(cases) == [
        "inference, batch 1, 33x33",
        "inference, batch 2, 32x32",
        "training, batch 2, 32x32",
    ]
    assert figures["peak"]["jax"] > 0
    for name, found in cases.items():
        assert name in printed
        assert found["seconds"]["fcn_jax"] > 0
        assert len(found["spread"]["fcn_jax"]) == 2
        assert all(found[k]["fcn_jax"] > 0 for k in ("images/s", "FLOP/s", "of peak"))
    if not TORCH:
        assert "torch: not installed" in printed
        pytest.skip("torch is not installed: fcn_jax was measured alone")
    assert figures["difference"] < 1e-5
    assert figures["peak"]["torch"] > 0
    for found in cases.values():
        assert found["best of torch"] == "torch eager"
        seconds = found["seconds"]
        ratio = seconds["torch eager"] / seconds["fcn_jax"]
        assert found["ratio"] == pytest.approx(ratio)
        assert all(found[k]["torch"] > 0 for k in ("images/s", "FLOP/s", "of peak"))


@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed")
def test_topologies_finds_each_gradient_summed_once(tmp_path):
    options = {"side": 32, "width": 1 / 32, "per_chip": 2, "hlo": tmp_path}
    options |= {"topologies": "v5e:2x2", "cases": "plain"}
    figures, printed = run(tmp_path, "topologies.py", **options)
    (row,) = figures["programs"]
    assert (row["topology"], row["case"], row["chips"]) == ("v5e:2x2", "plain", 4)
    # Of FCN-8s with 21 classes: a kernel and a bias of each layer, nothing else.
    body = [(9, 3, 2), (9, 2, 2), (9, 2, 4), (9, 4, 4), (9, 4, 8), (9, 8, 8)]
    body += [(9, 8, 8), (9, 8, 16), *[(9, 16, 16)] * 5, (49, 16, 128), (1, 128, 128)]
    scores = [(1, channels, 21) for channels in (128, 16, 8)]
    kernels = sum(k * i * o for k, i, o in body + scores)
    parameters = kernels + sum(o for _, _, o in body + scores)
    sums = [x["values"] for x in row["collectives"] if x["kind"] == "all-reduce"]
    # In bfloat16; the biases, in float32, are summed beside the loss.
    assert max(sums) == kernels
    assert parameters <= sum(sums) < parameters + 10  # The loss and the counts.
    assert len(sums) == len(row["collectives"])
    assert row["failures"] == []
    assert 12 * parameters < row["memory"] < 2**30  # Parameters and AdamW's moments.
    assert row["flops"] > 0
    assert row["model seconds"]["step"] > 0
    assert row["most images"] is None
    assert "All checks passed." in printed
    assert "all-reduce" in (tmp_path / "v5e_2x2_plain.txt").read_text("utf-8")


def test_upsample_compares_every_form(tmp_path):
    options = {"side": 32, "classes": 2, "repeats": 1, "sample": 0.001}
    figures, printed = run(tmp_path, "upsample.py", **options)
    for use in ("FCN-32s", "FCN-16s", "FCN-8s"):
        forms = figures["uses"][use]
        assert len(forms) == 6
        for name, found in forms.items():
            assert name in printed
            assert found["difference"] < 1e-5
            for what in ("forward", "with gradient"):
                assert found[what]["seconds"] > 0
                assert found[what]["ratio"] > 0
                assert found["temp bytes"][what] >= 0
