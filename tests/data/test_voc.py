"""VocSegmentation on small archives in the layout of the originals."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.io import savemat

from fcn_jax.data import voc
from fcn_jax.data.sources import FolderSource
from fcn_jax.data.voc_classes import CLASS_NAMES, TFDS

REAL = Path(__file__).parents[3] / "shared" / "data" / "voc"

# d is in VOC's val and in SBD's train; b and d have a mask in both; f and g only SBD's.
LISTS = {
    "train": ["b", "a"],
    "val": ["c", "d", "e"],
    "val2011": ["d", "c"],
    "sbd_train": ["f", "d", "b"],
    "sbd_val": ["g", "c"],
}
STEMS = "abcdefg"
SPLITS = {
    "train": ["b", "a"],
    "val": ["c", "d", "e"],
    "trainval": ["a", "b", "c", "d", "e"],
    "sbd_train": ["f", "d", "b"],
    "sbd_val": ["g", "c"],
    "trainaug": ["a", "b", "f", "g"],
    "seg11valid": ["c"],
}
VOC_TAR = "VOCtrainval_11-May-2012.tar"
IMAGES = "VOCdevkit/VOC2012/JPEGImages"
MASKS = "VOCdevkit/VOC2012/SegmentationClass"
SETS = "VOCdevkit/VOC2012/ImageSets/Segmentation"
SBD = "benchmark_RELEASE/dataset"


def size_of(stem):
    i = STEMS.index(stem)
    return 13 + 2 * i, 21 - i  # Odd and even, tall and wide.


def draw_mask(stem, seed, values=(*range(21), 255)):
    rng = np.random.default_rng([seed, STEMS.index(stem)])
    return rng.choice(values, size_of(stem)).astype(np.uint8)


voc_mask = functools.partial(draw_mask, seed=1)
sbd_mask = functools.partial(draw_mask, seed=2, values=range(21))


def jpeg(stem):
    height, width = size_of(stem)
    file = io.BytesIO()
    Image.effect_noise((width, height), 40 + STEMS.index(stem)).convert("RGB").save(
        file, "jpeg"
    )
    return file.getvalue()


JPEGS = {stem: jpeg(stem) for stem in STEMS}


def palette_png(mask):
    image = Image.fromarray(mask).convert("P")
    image.putdata(mask.ravel().tolist())
    image.putpalette([(37 * i) % 256 for i in range(768)])  # Grey levels would differ.
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def mat(mask):
    file = io.BytesIO()
    struct = {"Boundaries": np.zeros((20, 1), object), "Segmentation": mask}
    savemat(file, {"GTcls": struct | {"CategoriesPresent": [1]}}, do_compression=True)
    return file.getvalue()


def voc_files(lists=LISTS):
    """{name in the archive: content} of VOC 2012."""
    files = {f"{IMAGES}/{stem}.jpg": JPEGS[stem] for stem in STEMS}
    files |= {f"{MASKS}/{stem}.png": palette_png(voc_mask(stem)) for stem in "abcde"}
    sets = {f"{SETS}/{name}.txt": listing(lists[name]) for name in ("train", "val")}
    return files | sets


def sbd_files(lists=LISTS):
    files = {f"{SBD}/cls/{stem}.mat": mat(sbd_mask(stem)) for stem in "bcdfg"}
    files |= {f"{SBD}/img/{stem}.jpg": b"not read" for stem in "bcdfg"}
    for name in ("train", "val"):
        files[f"{SBD}/{name}.txt"] = listing(lists[f"sbd_{name}"])
    return files


def voc2011_files(lists=LISTS):
    folder = "TrainVal/VOCdevkit/VOC2011/ImageSets/Segmentation"
    return {f"{folder}/val.txt": listing(lists["val2011"])}


def listing(stems):
    return "".join(f"{stem}\n" for stem in stems).encode()


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = content
            if not isinstance(content, tarfile.TarInfo):
                member = tarfile.TarInfo(name)
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member is not content else None)


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_archives(root, lists=LISTS):
    root.mkdir(exist_ok=True)
    write_tar(root / VOC_TAR, voc_files(lists))
    write_tar(root / "VOCtrainval_25-May-2011.tar", voc2011_files(lists))
    write_tar(root / "benchmark.tgz", sbd_files(lists), "w:gz")
    return root


def prepare(manual, data_dir, config="voc2012"):
    builder = voc.VocSegmentation(config=config, data_dir=data_dir)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual)
    )
    return builder


def read(builder, split):
    """[(file name, image bytes, label bytes)] in the order of the split."""
    skip = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split, decoders=skip)
    return [(e["file_name"].decode(), e["image"], e["label"]) for e in source]


def assert_split(builder, split, stems, masks):
    examples = read(builder, split)
    assert builder.info.splits[split].num_examples == len(stems)
    assert [name for name, _, _ in examples] == [f"{stem}.jpg" for stem in stems]
    for stem, (_, image, label) in zip(stems, examples, strict=True):
        assert image == JPEGS[stem]
        with Image.open(io.BytesIO(label)) as png:
            assert (png.format, png.mode) == ("PNG", "L")
            np.testing.assert_array_equal(np.array(png), masks(stem))


def trainaug_mask(stem):
    return voc_mask(stem) if stem in "abcde" else sbd_mask(stem)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return write_archives(tmp_path_factory.mktemp("archives"))


def test_class_names_are_the_classes_of_the_builder():
    assert len(CLASS_NAMES) == 21 == TFDS["num_classes"]
    assert voc.VocSegmentation.name == "voc_segmentation"
    assert tfds.builder_cls("voc_segmentation") is voc.VocSegmentation


def test_voc2012_archive_gives_images_and_masks_as_stored(archives, tmp_path):
    builder = prepare(archives, tmp_path)
    assert set(builder.info.splits) == {"train", "val", "trainval"}
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    for split in ("train", "val", "trainval"):
        assert_split(builder, split, SPLITS[split], voc_mask)


def test_voc2012_unpacked_gives_the_same(tmp_path):
    write_folder(tmp_path / "manual", voc_files())
    builder = prepare(tmp_path / "manual", tmp_path)
    for split in ("train", "val", "trainval"):
        assert_split(builder, split, SPLITS[split], voc_mask)


def test_voc2012_sbd_archives_give_splits_and_their_masks(archives, tmp_path):
    builder = prepare(archives, tmp_path, "voc2012_sbd")
    assert set(builder.info.splits) == set(SPLITS)
    for split, stems in SPLITS.items():
        masks = sbd_mask if split.startswith("sbd") else trainaug_mask
        assert_split(builder, split, stems, masks)


def test_voc2012_sbd_unpacked_gives_the_same(tmp_path):
    write_folder(tmp_path / "manual", voc_files() | voc2011_files() | sbd_files())
    builder = prepare(tmp_path / "manual", tmp_path, "voc2012_sbd")
    assert_split(builder, "sbd_train", SPLITS["sbd_train"], sbd_mask)
    assert_split(builder, "trainaug", SPLITS["trainaug"], trainaug_mask)
    assert_split(builder, "seg11valid", SPLITS["seg11valid"], voc_mask)


def test_long_split_becomes_shards_in_order(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(voc, "SHARD_EXAMPLES", 2)
    builder = prepare(archives, tmp_path)
    assert builder.info.splits["trainval"].shard_lengths == [1, 2, 2]
    assert_split(builder, "trainval", SPLITS["trainval"], voc_mask)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"val": ["c", "a"]}, "1 images are in both train and val, .*: a"),
        ({"sbd_val": ["f", "d"]}, "2 images are in both sbd_train and sbd_val.*: d, f"),
        ({"val2011": ["d"]}, "split seg11valid is empty"),
    ],
)
def test_unsound_lists_are_refused(tmp_path, changes, message):
    write_archives(tmp_path / "manual", LISTS | changes)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "manual", tmp_path, "voc2012_sbd")


def test_require_sound_knows_every_pair_of_training_and_validation():
    voc._require_sound({"train": ["a"], "sbd_train": ["b"], "val": ["b"]})
    for train, val in (("trainaug", "val"), ("sbd_train", "seg11valid")):
        with pytest.raises(ValueError, match=f"1 images are in both {train} and {val}"):
            voc._require_sound({train: ["a", "b"], val: ["b"]})


def spoiled(tmp_path, files=None, **changes):
    """Prepares VOC 2012 from an archive with some of its files changed or taken out."""
    files = voc_files() if files is None else files
    for name, content in changes.get("put", {}).items():
        files[name] = content
    for name in changes.get("drop", ()):
        del files[name]
    manual = tmp_path / "manual"
    manual.mkdir()
    write_tar(manual / VOC_TAR, files)
    return prepare(manual, tmp_path / "data")


def test_missing_files_are_counted_and_named(tmp_path):
    drop = [f"{IMAGES}/{stem}.jpg" for stem in "abcd"]
    drop += [f"{MASKS}/{stem}.png" for stem in "be"]
    with pytest.raises(ValueError, match="6 files .* missing: ") as error:
        spoiled(tmp_path, drop=drop)
    first = "JPEGImages/b.jpg,SegmentationClass/b.png,JPEGImages/a.jpg,JPEGImages/c.jpg"
    for name in first.split(","):
        assert f"{VOC_TAR}: {name}" in str(error.value)
    assert str(error.value).endswith("...")
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_missing_sbd_mask_is_named(tmp_path):
    write_archives(tmp_path / "manual")
    files = sbd_files()
    del files[f"{SBD}/cls/g.mat"]
    write_tar(tmp_path / "manual" / "benchmark.tgz", files, "w:gz")
    with pytest.raises(ValueError, match="1 files .*benchmark.tgz: cls/g.mat"):
        prepare(tmp_path / "manual", tmp_path, "voc2012_sbd")


@pytest.mark.parametrize(
    "name, content, message",
    [
        (f"{SETS}/val.txt", b"\n", "Segmentation/val.txt lists nothing"),
        (f"{MASKS}/a.png", b"<html>404</html>", "a.png: cannot be read as an image"),
        (f"{IMAGES}/a.jpg", b"<html>404</html>", "a.jpg cannot be read as an image"),
        (f"{IMAGES}/a.jpg", JPEGS["b"], r"a.jpg is 15x20 .* mask .*a.png is 13x21"),
        (
            f"{MASKS}/a.png",
            palette_png(np.full(size_of("a"), 21, np.uint8)),
            r"a.png: values 21 are no class in \[0, 21\) and not void \(255\)",
        ),
        (f"{MASKS}/a.png", JPEGS["a"], "a.png: a mask must hold class indices.* RGB"),
    ],
)
def test_spoiled_voc_file_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        spoiled(tmp_path, put={name: content})
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def other_mat(**variables):
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"x" * 200, "no mask in the field Segmentation of the struct GTcls"),
        (other_mat(GTinst={"Segmentation": sbd_mask("f")}), "no mask .*GTcls"),
        (other_mat(GTcls={"Boundaries": sbd_mask("f")}), "no mask .*Segmentation"),
        (other_mat(GTcls={"Segmentation": sbd_mask("f") / 2}), "no mask .* float64"),
        (mat(sbd_mask("f").astype(np.int16) - 1), "values -1 are no class"),
        (mat(sbd_mask("b")), r"f.jpg is 23x16 .* mask .*cls/f.mat is 15x20"),
    ],
    ids=["noise", "other struct", "other field", "floats", "value", "size"],
)
def test_spoiled_sbd_mask_is_named(tmp_path, content, message):
    write_archives(tmp_path / "manual")
    files = sbd_files() | {f"{SBD}/cls/f.mat": content}
    write_tar(tmp_path / "manual" / "benchmark.tgz", files, "w:gz")
    with pytest.raises(ValueError, match=message) as error:
        prepare(tmp_path / "manual", tmp_path, "voc2012_sbd")
    assert "benchmark.tgz: cls/f.mat" in str(error.value)


@pytest.mark.parametrize("name", [VOC_TAR, "benchmark.tgz"])
@pytest.mark.parametrize(
    "spoil", [lambda tar: b"404", lambda tar: tar[: len(tar) // 2]]
)
def test_broken_archive_is_named(tmp_path, name, spoil):
    path = write_archives(tmp_path / "manual") / name
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}"):
        prepare(tmp_path / "manual", tmp_path, "voc2012_sbd")


@pytest.mark.parametrize("stem", ["../../secret", "/etc/hostname", "sub/../a"])
def test_hostile_list_entry_is_missing(tmp_path, stem):
    manual = tmp_path / "manual"
    write_folder(manual, voc_files(LISTS | {"train": [stem]}))
    (manual / "VOCdevkit" / "secret.jpg").write_bytes(JPEGS["a"])
    (manual / "VOCdevkit" / "secret.png").write_bytes(palette_png(voc_mask("a")))
    with pytest.raises(ValueError, match="2 files .* missing: "):
        prepare(manual, tmp_path)


def test_hostile_members_are_neither_written_nor_followed(tmp_path):
    link = tarfile.TarInfo(f"{IMAGES}/a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
    (tmp_path / "secret.jpg").write_bytes(JPEGS["a"])
    put = {
        "../../evil": b"x",
        f"{IMAGES}/../../../../evil": b"x",
        "/evil": b"x",
        f"{IMAGES}/a.jpg": link,
    }
    with pytest.raises(ValueError, match="1 files .* missing: .*JPEGImages/a.jpg"):
        spoiled(tmp_path, put=put)
    assert not list(tmp_path.parent.rglob("*evil*"))


@pytest.mark.parametrize("name", [VOC_TAR, "benchmark.tgz"])
def test_oversized_member_is_refused_unread(tmp_path, monkeypatch, name):
    write_archives(tmp_path / "manual")
    monkeypatch.setattr(voc, "MAX_BYTES", 50)
    monkeypatch.setattr(voc, "MAX_MAT_BYTES", 60)
    limit = 60 if name == "benchmark.tgz" else 50
    message = f"{name}: .* bytes, more than the {limit} expected"
    with pytest.raises(ValueError, match=message):
        archive = {VOC_TAR: "voc2012"}.get(name, "voc2012_sbd")
        prepare(tmp_path / "manual", tmp_path, archive)


def test_too_many_masks_are_refused(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(voc, "MAX_TGZ_BYTES", 1000)
    with pytest.raises(ValueError, match="benchmark.tgz: .* exceed 1000 bytes"):
        prepare(archives, tmp_path, "voc2012_sbd")


def test_decompression_bomb_is_refused(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Of 300 in the first mask.
    with pytest.raises(ValueError, match="b.png: cannot be read .*bomb"):
        prepare(archives, tmp_path)


@contextlib.contextmanager
def serving(root):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=root)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("intact", [True, False])
def test_archive_not_at_hand_is_downloaded_and_compared(
    archives, tmp_path, monkeypatch, intact
):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    sha256 = hashlib.sha256((archives / VOC_TAR).read_bytes()).hexdigest()
    with serving(archives) as url:
        archive = dataclasses.replace(
            voc.VOC2012, url=f"{url}/{VOC_TAR}", sha256=sha256 if intact else "0" * 64
        )
        monkeypatch.setattr(voc, "VOC2012", archive)
        if intact:
            builder = prepare(None, tmp_path)
            assert_split(builder, "train", SPLITS["train"], voc_mask)
        else:
            wanted = f"SHA-256 of the download is {sha256}.* should be 0000.*delete"
            with pytest.raises(ValueError, match=wanted):
                prepare(None, tmp_path)


def test_failed_download_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty") as url:
        archive = dataclasses.replace(voc.VOC2012, url=f"{url}/{VOC_TAR}")
        monkeypatch.setattr(voc, "VOC2012", archive)
        wanted = f"{VOC_TAR} cannot be downloaded: .*404.*VOCdevkit/VOC2012.*manual"
        with pytest.raises(ValueError, match=wanted):
            prepare(None, tmp_path)


def test_preparing_and_reading_need_no_tensorflow(archives, tmp_path):
    script = f"""
import sys
from fcn_jax.data.tfds_source import TfdsSource
source = TfdsSource("voc_segmentation/voc2012_sbd", split="trainaug", num_classes=21,
                    manual_dir={str(archives)!r}, data_dir={str(tmp_path)!r})
assert [example["name"] for example in source] == {SPLITS["trainaug"]}
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs VOC 2012 at {REAL}")
def test_real_voc2012_gives_the_folder_as_it_is(tmp_path):
    builder = prepare(REAL, tmp_path)
    assert builder.info.splits["trainval"].num_examples == 654
    for split, count in (("train", 437), ("val", 217)):
        examples = read(builder, split)
        root = REAL / "VOCdevkit" / "VOC2012"
        folder = FolderSource(
            root,
            images="JPEGImages",
            labels="SegmentationClass",
            list_file="ImageSets/Segmentation/{split}.txt",
            num_classes=21,
            split=split,
        )
        assert len(examples) == len(folder) == count
        for i in range(0, count, 40):
            name, image, label = examples[i]
            assert name == f"{folder[i]['name']}.jpg"
            assert image == (root / "JPEGImages" / name).read_bytes()
            np.testing.assert_array_equal(
                np.array(Image.open(io.BytesIO(label))), folder[i]["label"]
            )
