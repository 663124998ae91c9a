"""Reading and describing any file takes memory for its size, measured in a process.

Whole files are of thin networks. The others are small and would take gigabytes in
readers that believe what a file says.
"""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux alone resets a peak"
)
# Prints, for each file, the peak above the memory after the imports, and what was said.
MEASURE = """
import io, json, resource, sys
from contextlib import redirect_stderr, redirect_stdout
import h5py
from fcn_jax.__main__ import main
from fcn_jax.commands import convert, inspect
from fcn_jax.weights import load

resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))

def memory(kind):
    [line] = [line for line in open("/proc/self/status") if line.startswith(kind)]
    return 1024 * int(line.split()[1])

def command(*arguments):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        return main(arguments), said.getvalue()

before = memory("VmRSS")
for path in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    try:
        load.read(path)
        said = None
    except ValueError as error:
        said = str(error)
    target = path + ".safetensors"
    said = said, *command("inspect", path), *command("convert", path, target)
    print(json.dumps([path, memory("VmHWM") - before, *said]))
"""


def measure(folder):
    """{name: (bytes, peak, said, inspect's status and errors, convert's)}."""
    files = sorted(map(str, folder.iterdir()))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *files], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {Path(f).name: (Path(f).stat().st_size, *rest) for f, *rest in lines}


def allowed(size):
    return 3 * size + 50e6


def hwc(kernel):
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))


@pytest.fixture(scope="module")
def body(reference):
    """{name: (kernel OIHW, bias)} of a VGG-16 of 19 MB."""
    rng = np.random.default_rng(0)
    weights = reference.random_weights(rng, width=3 / 16, num_classes=2)
    return {name: weights[name] for name in reference.BODY}


def test_whole_file_takes_three_times_its_size(tmp_path, reference, torch_files, body):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    reference.write_caffemodel(tmp_path / "caffemodel", body, v1=True)
    entries = {name: [hwc(kernel), bias] for name, (kernel, bias) in body.items()}
    np.save(tmp_path / "f4.npy", entries, allow_pickle=True)
    halves = {
        name: [a.astype(np.float16) for a in pair] for name, pair in entries.items()
    }
    (tmp_path / "f2.pickle").write_bytes(pickle.dumps(halves, 2))
    names = {"fc6": "fc1", "fc7": "fc2"}
    with h5py.File(tmp_path / "h5", "w") as file:
        for name, (kernel, bias) in halves.items():
            name = names.get(name, f"block{name[4:5]}_conv{name[6:]}")
            file[f"{name}/kernel:0"], file[f"{name}/bias:0"] = kernel, bias
    state = {}
    for name, (kernel, bias) in body.items():
        state |= {f"{name}.weight": kernel, f"{name}.bias": bias}
    save_file(state, tmp_path / "f4.safetensors")
    torch_files.write_legacy(tmp_path / "legacy.pth", state)
    halves = {name: a.astype(ml_dtypes.bfloat16) for name, a in state.items()}
    save_file(halves, tmp_path / "bf16.safetensors")
    torch_files.write_zip(tmp_path / "bf16.pth", halves)
    measured = measure(tmp_path)
    assert len(measured) == 8
    for name, (size, peak, *said) in measured.items():
        assert said == [None, 0, "", 0, ""], name
        assert 9e6 < size < peak < allowed(size), name


def text(string):
    content = string.encode()
    return b"X" + struct.pack("<I", len(content)) + content


PAIRS = b"](" + b"".join(text(str(i)) + b"N\x86" for i in range(2000)) + b"e"
ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01(M\x10'tcnumpy\ndtype\nU\x02f4\x85R"
    b"(K\x03U\x01<tb\x89B" + struct.pack("<I", 40_000) + bytes(40_000) + b"tb"
)  # fmt: skip


def entries(value):
    """A dict that has a pickled value under many names of layers."""
    names = [f"conv{i}_{j}" for i in range(1, 6) for j in range(1, 4)]
    return b"}(" + b"".join(text(name) + value for name in names) + b"u."


PICKLES = {
    "ordered": b"ccollections\nOrderedDict\nq\x01" + PAIRS + b"q\x00" + entries(
        b"h\x01h\x00\x85R"),
    "counter": PAIRS + b"q\x00ccollections\nCounter\nq\x01" + b"h\x01h\x00\x85R" * 1500
    + b".",
    "build": PAIRS + b"q\x00}" + b"h\x00b" * 6000 + b".",
    "append": b"]q\x00" + b"(h\x00h\x00e" * 2000 + b".",
    "setitems": b"}q\x00" + b"(h\x00h\x00u" * 2000 + b".",
    "tuples": b")q\x00" + b"h\x00h\x00\x86q\x00" * 2000 + b".",
    "arrays": ARRAY + b"q\x00" + entries(b"](h\x00h\x00e"),
    "dicts": b"}" * 1_000_000 + b".",
    "calls": b"ccollections\nCounter\nq\x00" + b"h\x00)R" * 300_000 + b".",
    "length": b"\x8e" + struct.pack("<Q", 2**40) + b".",
}  # fmt: skip


def write_header(path, header):
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content)


def write_safetensors(folder):
    for name, model in {
        "learned": {"num_classes": 1000, "learn_upsampling": True},
        "wide": {"num_classes": 2**31 - 1, "width": 1000, "learn_upsampling": True},
        "channels": {"in_channels": 400_000, "mean": 400_000 * [1]},
    }.items():
        metadata = {"format": "fcn_jax", "version": "1", "class_names": "[]"}
        metadata["model"] = json.dumps(model, separators=(",", ":"))
        write_header(folder / f"{name}.safetensors", {"__metadata__": metadata})
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = {str(i): tensor for i in range(80_000)}
    write_header(folder / "many.safetensors", many)


def write_caffemodels(folder, reference):
    score = [np.zeros((1000, 1, 1, 1)), np.zeros(1000)]
    layers = {"score_fr": score, "upscore": [np.zeros((1, 1, 1, 1))]}
    reference.write_caffemodel(folder / "learned.caffemodel", layers)
    layers["conv1_1"] = [np.zeros((1, 1, 1, 1)), np.zeros(64_000)]
    reference.write_caffemodel(folder / "wide.caffemodel", layers)
    (folder / "fields.caffemodel").write_bytes(b"\xa2\x06\x02\x3a\x00" * 1_000_000)


def write_archives(folder, torch_files):
    whole = {"conv1_1.bias": np.ones(3, np.float32)}
    one = torch_files.write_zip(folder / "one.pth", whole).read_bytes()
    numbers = np.ones(2, np.float32)
    lie = torch_files.Tensor(numbers, 0, (500_000_000,), (0,))
    lies = {f"conv1_{i}.bias": lie for i in range(1, 3)}
    other = torch_files.write_zip(folder / "lie.pth", lies).read_bytes()
    (folder / "two.pth").write_bytes(one + other)
    (folder / "reversed.pth").write_bytes(other + one)
    with zipfile.ZipFile(folder / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}." + bytes(50_000_000))
    with zipfile.ZipFile(folder / "entries.pth", "w") as archive:
        for i in range(20_000):
            archive.writestr(str(i), b"")
    torch_files.write_legacy(folder / "legacy.pth", lies)


def write_h5(folder):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(folder / "name.h5", "w") as file:
        group = file.create_group("x" * 60_000)
        for i in range(1_900):
            group[str(i)] = h5py.SoftLink("x")
    with h5py.File(folder / "datasets.h5", "w") as file:
        for i in range(2_100):
            file[f"{i // 700}/fc1/{i}_kernel:0"] = np.float32(1)
    options = {"maxshape": (None, None), "fillvalue": 1.0}
    with h5py.File(folder / "chunks.h5", "w") as file:
        for i in range(1, 6):
            place = file.create_group(f"block{i}_conv1")
            place.create_dataset(
                "kernel:0", (2, 2), "f4", chunks=(20_000, 20_000), **options
            )
            place.create_dataset("bias:0", (2, 2), "f4", chunks=(400, 400), **options)
    write_shared_name(folder / "shared.h5", h5py)


def write_shared_name(path, h5py):
    """Many links whose names are one long text of the file."""
    long = b"z" * 60_000
    with h5py.File(path, "w", libver="earliest") as file:
        for i in range(1_500):
            file[f"g/a{i}"] = h5py.SoftLink("x")
        file[f"g/{long.decode()}"] = h5py.SoftLink("x")
    content = bytearray(path.read_bytes())
    place = content.index(long)
    # Each node of links: 24 bytes of name, address, and kind, which is 2 for soft ones.
    heap = content.rindex(b"HEAP", 0, place)
    (data,) = struct.unpack_from("<Q", content, heap + 24)
    node, changed = -1, 0
    while (node := content.find(b"SNOD", node + 1)) >= 0:
        (count,) = struct.unpack_from("<H", content, node + 6)
        for link in range(node + 8, node + 8 + 40 * count, 40):
            if content[link + 16] == 2:
                struct.pack_into("<Q", content, link, place - data)
                changed += 1
    assert changed == 1_501
    path.write_bytes(content)


def test_hostile_file_is_refused_in_memory_for_its_size(
    tmp_path, reference, torch_files
):
    for name, opcodes in PICKLES.items():
        (tmp_path / f"{name}.npy").write_bytes(b"\x80\x02" + opcodes)
        with zipfile.ZipFile(tmp_path / f"{name}.pth", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes)
    write_safetensors(tmp_path)
    write_caffemodels(tmp_path, reference)
    write_archives(tmp_path, torch_files)
    write_h5(tmp_path)
    measured = measure(tmp_path)
    assert len(measured) == 2 * len(PICKLES) + 4 + 3 + 7 + 4
    for name, (size, peak, said, *commands) in measured.items():
        assert peak < allowed(size), name
        path = str(tmp_path / name)
        assert said and said.startswith(path) and len(said) < 3000, said
        assert commands == [
            1, f"fcn_jax inspect: {said}\n", 1, f"fcn_jax convert: {said}\n"
        ]  # fmt: skip
