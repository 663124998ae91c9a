"""VocSegmentation on small archives in the layout of the originals."""

import contextlib
import functools
import hashlib
import http.server
import io
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
    files["benchmark_RELEASE/README"] = b"not read"
    for name in ("train", "val"):
        files[f"{SBD}/{name}.txt"] = listing(lists[f"sbd_{name}"])
    return files


def voc2011_files(lists=LISTS):
    folder = "TrainVal/VOCdevkit/VOC2011/ImageSets/Segmentation"
    return {f"{folder}/val.txt": listing(lists["val2011"])}


def listing(stems):
    return "".join(f"{stem}\n" for stem in stems).encode()


def write_tar(path, files, mode="w"):
    """Write {name: content}, or {name: TarInfo} for members of no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_archives(root):
    write_tar(root / VOC_TAR, voc_files())
    write_tar(root / "VOCtrainval_25-May-2011.tar", voc2011_files())
    write_tar(root / "benchmark.tgz", sbd_files(), "w:gz")
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


@pytest.fixture
def folder(tmp_path):
    """The manual directory with what the archives unpack to, to be spoiled."""
    write_folder(tmp_path / "manual", voc_files() | voc2011_files() | sbd_files())
    return tmp_path / "manual"


def test_builder_is_registered_with_tfds():
    assert voc.VocSegmentation.name == "voc_segmentation"
    assert tfds.builder_cls("voc_segmentation") is voc.VocSegmentation


@pytest.mark.parametrize("config", ["voc2012", "voc2012_sbd"])
@pytest.mark.parametrize("manual", ["archives", "folder"])
def test_builder_gives_splits_with_images_and_masks_as_stored(
    request, tmp_path, manual, config
):
    manual = request.getfixturevalue(manual)
    before = sorted(manual.rglob("*"))
    builder = prepare(manual, tmp_path / "data", config)
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    splits = list(SPLITS)[: 3 if config == "voc2012" else 7]
    assert set(builder.info.splits) == set(splits)
    for split in splits:
        masks = sbd_mask if split.startswith("sbd") else trainaug_mask
        assert_split(builder, split, SPLITS[split], masks)
    assert sorted(manual.rglob("*")) == before
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "downloads",
        "voc_segmentation",
    }


def test_long_split_becomes_shards_in_order(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(voc, "SHARD_EXAMPLES", 2)
    builder = prepare(archives, tmp_path)
    assert builder.info.splits["trainval"].shard_lengths == [2, 2, 1]
    assert_split(builder, "trainval", SPLITS["trainval"], voc_mask)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"val": ["c", "a"]}, "1 images are in both train and val, .*: a"),
        ({"trainaug": ["a", "c"]}, "1 images are in both trainaug and val, .*: c"),
        ({"sbd_val": ["f", "d"]}, "2 images are in both sbd_train and sbd_val.*: d, f"),
        ({"seg11valid": ["b"]}, "1 images are in both sbd_train and seg11valid"),
        ({"seg11valid": []}, "split seg11valid is empty"),
    ],
)
def test_check_splits_refuses_seen_images_and_empty_splits(changes, message):
    voc.check_splits(SPLITS)
    with pytest.raises(ValueError, match=message):
        voc.check_splits(SPLITS | changes)


def assert_refused(manual, message, config="voc2012_sbd"):
    """Preparing fails with the message and leaves nothing behind."""
    data = manual.parent / "data"
    with pytest.raises(ValueError, match=message) as error:
        prepare(manual, data, config)
    assert not list(data.rglob("*.array_record*"))
    assert not list(data.glob("unpacked*"))
    assert "unpacked_" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (f"{SETS}/val.txt", None, "1 files are missing: .*/Segmentation/val.txt"),
        (f"{SETS}/val.txt", b"\n", "Segmentation/val.txt lists nothing"),
        (f"{SETS}/val.txt", b"c\na\n", "1 images are in both train and val, .*: a"),
        (f"{SETS}/val.txt", b"x" * 999, "2 files are missing: .*x.jpg, .*x.png"),
        (f"{MASKS}/a.png", None, "1 files are missing: .*Class/a.png"),
        (f"{MASKS}/a.png", b"<html>404</html>", "a.png: cannot be read as an image"),
        (f"{IMAGES}/a.jpg", b"<html>404</html>", "a.jpg: cannot be read as an image"),
        (f"{IMAGES}/a.jpg", JPEGS["a"][:-90], "a.jpg: cannot be read .*truncated"),
        (f"{IMAGES}/a.jpg", JPEGS["b"], r"a.jpg is 15x20 .* mask .*a.png is 13x21"),
        (
            f"{MASKS}/a.png",
            palette_png(np.full(size_of("a"), 21, np.uint8)),
            r"a.png: label values 21 are neither in \[0, 21\) .* nor the void value",
        ),
        (
            f"{MASKS}/a.png",
            JPEGS["a"],
            "a.png: a mask must hold class indices, and JPEG",
        ),
    ],
)
def test_spoiled_voc_file_is_named(folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert_refused(folder, message, "voc2012")


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
        (mat(sbd_mask("f").astype(np.int16) - 1), "label values -1 are neither in"),
    ],
    ids=["noise", "other struct", "other field", "floats", "value"],
)
def test_spoiled_sbd_mask_is_named(folder, content, message):
    (folder / SBD / "cls" / "f.mat").write_bytes(content)
    assert_refused(folder, f"{folder / SBD}/cls/f.mat: {message}")


def test_missing_files_are_counted_and_named_by_archive(tmp_path):
    files = voc_files()
    for name in [f"{IMAGES}/{stem}.jpg" for stem in "abcd"] + [f"{MASKS}/b.png"]:
        del files[name]
    write_tar(tmp_path / "manual" / VOC_TAR, files)
    first = "JPEGImages/b.jpg", "SegmentationClass/b.png", "JPEGImages/a.jpg"
    named = ", ".join(f"{VOC_TAR}/{name}" for name in first)
    assert_refused(tmp_path / "manual", f"^5 files are missing: {named}", "voc2012")


@pytest.mark.parametrize("stem", ["../../secret", "/etc/hostname", "sub/../a", "./a"])
def test_hostile_list_entry_is_refused(folder, stem):
    (folder / SETS / "train.txt").write_text(f"a\n{stem}\n")
    (folder / "VOCdevkit" / "secret.jpg").write_bytes(JPEGS["a"])
    (folder / "VOCdevkit" / "secret.png").write_bytes(palette_png(voc_mask("a")))
    assert_refused(folder, f"train.txt must list names, but lists paths: {stem}$")


@pytest.mark.parametrize("archive", [VOC_TAR, "benchmark.tgz"])
@pytest.mark.parametrize(
    "spoil", [lambda tar: b"404", lambda tar: tar[: len(tar) // 2]]
)
def test_broken_archive_is_named(archives, tmp_path, archive, spoil):
    (tmp_path / "manual").mkdir()
    for path in archives.iterdir():
        (tmp_path / "manual" / path.name).symlink_to(path)
    path = tmp_path / "manual" / archive
    path.unlink()
    path.write_bytes(spoil((archives / archive).read_bytes()))
    assert_refused(tmp_path / "manual", f"^{path} cannot be unpacked: ")


def link(name, kind, target="", **pax_headers):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.pax_headers = kind, target, pax_headers
    return member


def test_unpack_writes_wanted_regular_files_only(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    files = {
        f"{SETS}/val.txt": b"old",
        f"./{SETS}/val.txt": b"new",
        f"{SETS}/sub/val.txt": b"x",
        "VOCdevkit/VOC2012/Annotations/a.xml": b"x",
        "VOCdevkit/VOC2011/JPEGImages/a.jpg": b"x",
        "../../evil": b"x",
        "/evil": b"x",
        f"{IMAGES}/../../../../evil": b"x",
    }
    members = [
        link(f"{IMAGES}/symbolic.jpg", tarfile.SYMTYPE, str(tmp_path / "secret")),
        link(f"{IMAGES}/hard.jpg", tarfile.LNKTYPE, f"{SETS}/val.txt"),
        link(f"{IMAGES}/device.jpg", tarfile.CHRTYPE),
        link(f"{IMAGES}/fifo.jpg", tarfile.FIFOTYPE),
        link(f"{IMAGES}/dir.jpg", tarfile.DIRTYPE),
        link(f"{IMAGES}/s.jpg", tarfile.REGTYPE, **{"GNU.sparse.map": "0,0"}),
    ]
    files |= {member.name: member for member in members}
    path = write_tar(tmp_path / "voc.tar", files)
    voc.unpack(path, voc.VOC2012, tmp_path / "a" / "b")
    found = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    wanted = tmp_path / "a" / "b" / "ImageSets" / "Segmentation" / "val.txt"
    assert sorted(found) == sorted([wanted, path, tmp_path / "secret"])
    assert wanted.read_bytes() == b"new"
    assert not list(tmp_path.parent.rglob("*evil*"))


def test_unpack_refuses_a_name_that_leaves_the_folder(tmp_path):
    path = write_tar(tmp_path / "sbd.tar", {f"{SBD}/cls/..": b"x"})
    with pytest.raises(ValueError, match="sbd.tar cannot be unpacked"):
        voc.unpack(path, voc.SBD, tmp_path / "sbd")


@pytest.mark.parametrize(
    "limit, message",
    [
        ("MAX_BYTES", r"sbd.tar: train.txt has 60 bytes, more than the 50 expected"),
        ("MAX_MAT_BYTES", r"sbd.tar: cls/a.mat has 70 bytes, more than the 50 exp"),
        ("MAX_UNPACKED_BYTES", "sbd.tar unpacks to over 50 bytes"),
    ],
)
def test_unpack_writes_nothing_beyond_its_limits(tmp_path, monkeypatch, limit, message):
    files = {f"{SBD}/train.txt": b"x" * 60, f"{SBD}/cls/a.mat": b"x" * 70}
    path = write_tar(tmp_path / "sbd.tar", files)
    voc.unpack(path, voc.SBD, tmp_path / "before")
    monkeypatch.setattr(voc, limit, 50)
    with pytest.raises(ValueError, match=message):
        voc.unpack(path, voc.SBD, tmp_path / "after")
    refused = "cls/a.mat" if limit == "MAX_MAT_BYTES" else "train.txt"
    assert (tmp_path / "before" / refused).exists()
    assert not (tmp_path / "after" / refused).exists()


def test_oversized_file_of_a_folder_is_refused(folder, monkeypatch):
    monkeypatch.setattr(voc, "MAX_BYTES", 50)
    assert_refused(folder, "JPEGImages/b.jpg has .* bytes, more than the 50 expected")


def test_decompression_bomb_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # The first image has 300.
    assert_refused(folder, "b.jpg: cannot be read .*bomb")


@contextlib.contextmanager
def serving(root):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=root)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("intact", [True, False])
def test_archive_not_at_hand_is_downloaded_and_compared(
    archives, tmp_path, monkeypatch, intact
):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    sha256 = hashlib.sha256((archives / VOC_TAR).read_bytes()).hexdigest()
    with serving(archives) as url:
        _, _, *wanted = voc.VOC2012
        expected = sha256 if intact else "0" * 64
        archive = voc.Archive(f"{url}/{VOC_TAR}", expected, *wanted)
        monkeypatch.setattr(voc, "VOC2012", archive)
        if intact:
            builder = prepare(None, tmp_path)
            assert_split(builder, "train", SPLITS["train"], voc_mask)
        else:
            message = f"SHA-256 of the download is {sha256}.* should be 0000.*delete"
            with pytest.raises(ValueError, match=message):
                prepare(None, tmp_path)


def test_failed_download_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty") as url:
        archive = voc.Archive(f"{url}/{VOC_TAR}", *voc.VOC2012[1:])
        monkeypatch.setattr(voc, "VOC2012", archive)
        message = f"{VOC_TAR} cannot be downloaded: .*404.*VOCdevkit/VOC2012.*manual"
        with pytest.raises(ValueError, match=message):
            prepare(None, tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs VOC 2012 at {REAL}")
def test_real_voc2012_gives_the_folder_as_it_is(tmp_path):
    real, manual = REAL / "VOCdevkit" / "VOC2012", tmp_path / "VOCdevkit" / "VOC2012"
    lists = manual / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass"):
        (manual / name).symlink_to(real / name)
    for name in ("train.txt", "val.txt"):
        lines = (real / lists.relative_to(manual) / name).read_text().splitlines()
        (lists / name).write_text("\n".join(lines[::40]))
    builder = prepare(tmp_path, tmp_path / "data")
    assert builder.info.splits["trainval"].num_examples == 17
    for split, count in (("train", 11), ("val", 6)):
        examples = read(builder, split)
        folder = FolderSource(
            manual,
            images="JPEGImages",
            labels="SegmentationClass",
            list_file="ImageSets/Segmentation/{split}.txt",
            num_classes=21,
            split=split,
        )
        assert len(examples) == len(folder) == count
        for (name, image, label), example in zip(examples, folder, strict=True):
            assert name == f"{example['name']}.jpg"
            assert image == (real / "JPEGImages" / name).read_bytes()
            np.testing.assert_array_equal(
                np.array(Image.open(io.BytesIO(label))), example["label"]
            )
