import errno
import os
import re
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.images import read_image, read_label
from fcn_jax.inference import image_files
from fcn_jax.inference.image_files import find_images, predict_files
from fcn_jax.inference.predict import apply, predict
from fcn_jax.inference.probabilities import probabilities
from fcn_jax.network import Network
from fcn_jax.visualize import colormap, overlay

SIZE = (20, 33)


def picture(height=SIZE[0], width=SIZE[1], seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def test_predict_files_writes_labels_and_overlays(net, tmp_path):
    paths = [save(tmp_path / "a.png", picture()), save(tmp_path / "b.bmp", picture())]
    out = tmp_path / "new" / "out"
    found, left_out = predict_files(net, [*paths, paths[0]], out)
    assert list(found) == paths and not left_out
    names = ["a.png", "a_overlay.png", "b.png", "b_overlay.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    labels = np.asarray(predict(net, picture()))
    np.testing.assert_array_equal(read_label(out / "a.png"), labels)
    np.testing.assert_array_equal(read_image(out / "a.png"), colormap()[labels])
    np.testing.assert_array_equal(
        read_image(out / "b_overlay.png"), overlay(picture(), labels)
    )


def test_palette_of_the_network_colours_the_results(net, tmp_path):
    path = save(tmp_path / "a.png", picture())
    palette = [(10 * i, 200 - i, 40) for i in range(5)]
    predict_files(net.replace(palette=palette), [path], tmp_path / "out")
    labels = predict(net, picture())
    np.testing.assert_array_equal(
        read_image(tmp_path / "out" / "a.png"), np.uint8(palette)[labels]
    )


def test_network_with_a_class_for_the_background_leaves_it_clear(net, tmp_path):
    path = save(tmp_path / "a.png", picture())
    labels = predict(net, picture())
    for names, background in ((("Sky", *"abcd"), None), (("Background", *"abcd"), 0)):
        predict_files(net.replace(class_names=names), [path], tmp_path / "out")
        expected = overlay(picture(), labels, background=background)
        found = read_image(tmp_path / "out" / "a_overlay.png")
        np.testing.assert_array_equal(found, expected)


def test_legend_of_the_overlay_is_that_of_its_classes(net, tmp_path, monkeypatch):
    path, names = save(tmp_path / "a.png", picture()), ("sky", *"abcd")
    named = net.replace(class_names=names)
    labels = predict(net, picture())
    expected = overlay(picture(), labels, background=None, legend=names)
    for folder in ("small", "large"):
        predict_files(named, [path], tmp_path / folder, legend=True)
        found = read_image(tmp_path / folder / "a_overlay.png")
        np.testing.assert_array_equal(found, expected)
        assert found.shape[0] > SIZE[0]
        monkeypatch.setattr(image_files, "needs_tiles", lambda shape: True)


def test_shares_are_those_of_the_labels_and_probabilities(net, tmp_path):
    paths = [save(tmp_path / f"{i}.png", picture(seed=i)) for i in range(3)]
    found, _ = predict_files(net, paths, tmp_path / "out")
    twice = {"scales": (1.0, 0.5), "flip": True}
    averaged, _ = predict_files(net, paths, tmp_path / "averaged", **twice)
    assert list(found) == list(averaged) == paths
    for i, path in enumerate(paths):
        options = (found[path], {}), (averaged[path], twice)
        for shares, views in options:
            each = np.asarray(probabilities(net, picture(seed=i), **views))
            labels, best = each.argmax(-1), each.max(-1)
            pixels = np.bincount(labels.ravel(), minlength=5)
            np.testing.assert_array_equal(shares.pixels, pixels)
            np.testing.assert_allclose(shares.shares, pixels / labels.size)
            for c in range(5):
                mean = best[labels == c].mean() if pixels[c] else np.nan
                np.testing.assert_allclose(shares.mean_confidence[c], mean, rtol=1e-4)


def test_more_classes_than_a_png_holds_are_refused_at_once(net, tmp_path):
    model = net.model.clone(num_classes=257)
    with pytest.raises(ValueError, match="257 classes do not fit"):
        predict_files(Network(net.params, model), ["a.png"], tmp_path / "out")


def test_folder_keeps_its_structure(net, tmp_path):
    save(tmp_path / "in" / "a.png", picture())
    save(tmp_path / "in" / "deep" / "er" / "a.jpg", picture(40, 17))
    save(tmp_path / "in" / ".hidden.png", picture())
    (tmp_path / "in" / "notes.txt").write_text("no image")
    found, left_out = predict_files(net, [tmp_path / "in"], tmp_path / "out")
    assert len(found) == 2 and not left_out
    written = {
        p.relative_to(tmp_path / "out").as_posix()
        for p in tmp_path.glob("out/**/*.png")
    }
    assert written == {
        "a.png",
        "a_overlay.png",
        "deep/er/a.png",
        "deep/er/a_overlay.png",
    }
    image = read_image(tmp_path / "in" / "deep" / "er" / "a.jpg")
    np.testing.assert_array_equal(
        read_label(tmp_path / "out" / "deep" / "er" / "a.png"), predict(net, image)
    )


def test_pattern_stands_for_the_images_that_match(tmp_path):
    paths = [
        save(tmp_path / name, picture()) for name in ("a1.png", "b/a2.png", "c.png")
    ]
    found = find_images([str(tmp_path / "**" / "a*.png")])
    assert sorted(found) == sorted(paths[:2])
    with pytest.raises(ValueError, match="no image matches"):
        find_images([str(tmp_path / "z*.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image"):
        find_images([tmp_path / "empty"])


def test_name_with_brackets_that_exists_is_a_file(tmp_path):
    path = save(tmp_path / "a[1].png", picture())
    assert list(find_images([str(path)])) == [path]


def test_probabilities_are_the_softmax_of_the_scores(net, tmp_path):
    path = save(tmp_path / "a.png", picture())
    predict_files(net, [path], tmp_path / "out", probabilities=True)
    with np.load(tmp_path / "out" / "a.npz") as file:
        found = file["probabilities"]
    assert found.dtype == np.float16
    expected = jax.nn.softmax(apply(net, picture()))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    labels = read_label(tmp_path / "out" / "a.png")
    np.testing.assert_array_equal(labels, predict(net, picture()))


def test_unreadable_files_are_left_out_and_listed(net, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("<html>not found</html>")
    good = save(tmp_path / "good.bmp", picture())
    written, [(path, error)] = predict_files(
        net.replace(size=SIZE), [bad, good], tmp_path / "out"
    )
    assert (
        list(written) == [good]
        and path == bad
        and "bad.jpg: cannot be read as an image" in error
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "good.png",
        "good_overlay.png",
    ]


def test_folder_of_odd_files_is_segmented_as_far_as_it_can_be_read(
    net, odd_images, tmp_path
):
    folder, expected = odd_images
    written, left_out = predict_files(net, [folder], tmp_path / "out")
    sizes = {name: size for name, size in expected.items() if isinstance(size, tuple)}
    assert len(written) == len(sizes)
    faults = {path.name: error for path, error in left_out}
    assert faults.keys() == expected.keys() - sizes.keys()
    for name, error in faults.items():
        assert str(folder / name) in error and re.search(expected[name], error)
    shared = {Path(name).stem for name in sizes if "animated" not in name}
    for name, size in sizes.items():
        result = Path(name).stem if Path(name).stem in shared else name
        assert read_label(tmp_path / "out" / f"{result}.png").shape == size


def test_results_are_refused_by_name_or_end_the_work(net, tmp_path, monkeypatch):
    long, good = (save(tmp_path / f"{n}.png", picture()) for n in ("n" * 248, "good"))
    out = tmp_path / "out"
    written, [(path, error)] = predict_files(net, [long, good], out)
    assert list(written) == [good] and path == long
    assert f"cannot write {out / 'n'}" in error and ": File name too long" in error

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    reason = "cannot write .*out/good.png: No space left on device"
    with pytest.raises(OSError, match=reason):
        predict_files(net, [good, long], out)


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "no right")])
def test_any_error_of_reading_leaves_the_image_out(net, tmp_path, monkeypatch, error):
    paths = [save(tmp_path / name, picture()) for name in ("a.png", "b.png")]

    def read(files, channels):
        if files[0] == paths[0]:
            raise error
        return picture()

    monkeypatch.setattr(image_files, "read_channels", read)
    written, [(path, reason)] = predict_files(net, paths, tmp_path / "out")
    assert list(written) == paths[1:] and path == paths[0]
    assert reason.startswith(f"{path}: ") and len(reason) > len(f"{path}: ")


@pytest.mark.parametrize("size", [(), (32, 64)])
def test_large_image_gives_the_results_of_a_small_one(net, tmp_path, monkeypatch, size):
    net = net.replace(size=size)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(70, 90)).save(tmp_path / "a.png", exif=exif)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:999])
    paths = [tmp_path / "a.png", tmp_path / "cut.png"]
    small, [(_, error)] = predict_files(net, paths, tmp_path / "small")
    monkeypatch.setattr(image_files, "needs_tiles", lambda shape: True)
    large, left_out = predict_files(net, paths, tmp_path / "large")
    assert list(large) == paths[:1] and left_out == [(paths[1], error)]
    for field in ("pixels", "mean_confidence"):
        values = (getattr(found[paths[0]], field) for found in (large, small))
        np.testing.assert_allclose(*values, rtol=1e-4)
    for name in ("a.png", "a_overlay.png"):
        large, small = (tmp_path / folder / name for folder in ("large", "small"))
        np.testing.assert_array_equal(read_image(large), read_image(small))
    assert len(list((tmp_path / "large").iterdir())) == 2


def test_large_image_takes_little_memory(net, tmp_path, monkeypatch):
    Image.new("RGB", (2400, 2000), (90, 80, 70)).save(tmp_path / "a.png")

    def predict(net, image, shares, progress):
        return np.zeros(image.shape[:2], np.uint8)

    monkeypatch.setattr(image_files, "predict_tiled", predict)
    tracemalloc.start()
    predict_files(net, [tmp_path / "a.png"], tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Its labels take one byte a pixel, strips of it 4 MB, and its overlay's floats 25.
    assert peak < 2400 * 2000 + 40e6


def test_pattern_finds_each_image_once_beside_a_link_that_leads_up(tmp_path):
    path = save(tmp_path / "in" / "deep" / "a.png", picture())
    (tmp_path / "in" / "deep" / "again").symlink_to(tmp_path / "in")
    assert list(find_images([str(tmp_path / "in" / "**" / "*.png")])) == [path]
    assert list(find_images([tmp_path / "in"])) == [path]


def test_large_image_shows_the_progress_of_its_tiles(
    net, tmp_path, monkeypatch, terminal
):
    path = save(tmp_path / "a.png", picture())
    predict_files(net, [path], tmp_path / "small")
    assert "tiles:" not in terminal.readouterr().err
    monkeypatch.setattr(image_files, "needs_tiles", lambda shape: True)
    predict_files(net, [path], tmp_path / "large")
    assert "tiles:" in terminal.readouterr().err
    labels = read_label(tmp_path / "large" / "a.png")
    np.testing.assert_array_equal(labels, predict(net, picture()))


@pytest.mark.parametrize(
    "names", [("a.bmp", "a.png"), ("a.bmp", "a_overlay.bmp"), ("deep/a.bmp", "b/a.tif")]
)
def test_images_that_would_share_a_result_keep_their_suffix(net, tmp_path, names):
    paths = [save(tmp_path / name, picture()) for name in names]
    alone = save(tmp_path / "c.png", picture())
    written, left_out = predict_files(net, [*paths, alone], tmp_path / "out")
    assert list(written) == [*paths, alone] and not left_out
    stems = [path.name for path in paths] + ["c"]
    expected = [f"{stem}{end}" for stem in stems for end in (".png", "_overlay.png")]
    found = [path.name for path in (tmp_path / "out").iterdir()]
    assert sorted(found) == sorted(expected)


def test_images_of_one_name_are_refused(net, tmp_path):
    paths = [tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg"]
    with pytest.raises(ValueError, match="y/a.jpg, would replace .*x/a.jpg"):
        predict_files(net, paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_never_replace_an_image(net, tmp_path):
    path = save(tmp_path / "a.png", picture())
    with pytest.raises(ValueError, match="a.png, would replace .*another folder"):
        predict_files(net, [path], tmp_path)
    np.testing.assert_array_equal(read_image(path), picture())


@pytest.fixture
def wide_net(net):
    """The network with a fourth channel."""
    model = net.model.clone(in_channels=4, mean=(*net.model.mean, 100.0))
    return Network({}, model)


def test_extra_folder_must_hold_one_image_for_each(wide_net, tmp_path):
    for name in ("rgb/deep/a.png", "rgb/b.png", "depth/deep/a.png"):
        save(tmp_path / name, picture())
    folders = [tmp_path / "rgb"], tmp_path / "out"
    extra = [tmp_path / "depth"]
    with pytest.raises(
        ValueError, match=r"depth must hold one image b\.\*.*found none"
    ):
        predict_files(wide_net, *folders, extra=extra)
    save(tmp_path / "depth" / "b.bmp", picture())
    save(tmp_path / "depth" / "b.png", picture())
    with pytest.raises(ValueError, match=r"found .*b\.bmp, .*b\.png"):
        predict_files(wide_net, *folders, extra=extra)
    assert not (tmp_path / "out").exists()


def test_results_never_replace_a_further_channel(wide_net, tmp_path):
    save(tmp_path / "rgb" / "a.bmp", picture())
    save(tmp_path / "depth" / "a.png", picture())
    with pytest.raises(ValueError, match="a.png, a result of .*would replace"):
        predict_files(
            wide_net,
            [tmp_path / "rgb"],
            tmp_path / "depth",
            extra=[tmp_path / "depth"],
        )


def test_extra_folder_beside_a_network_for_rgb_is_refused(net, tmp_path):
    path = save(tmp_path / "a.png", picture())
    with pytest.raises(ValueError, match="extra = .* takes RGB alone"):
        predict_files(net, [path], tmp_path / "out", extra=[tmp_path])


def test_arrays_are_images_of_networks_with_further_channels(tmp_path):
    save(tmp_path / "a.png", picture())
    np.save(tmp_path / "b.npy", picture())
    assert list(find_images([tmp_path])) == [tmp_path / "a.png"]
    found = find_images([tmp_path, str(tmp_path / "*.npy")], arrays=True)
    assert list(found) == [tmp_path / "a.png", tmp_path / "b.npy"]


def test_compile_for_files_knows_the_upright_size_of_the_first(
    net, tmp_path, monkeypatch
):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    calls = []

    def note(net, size, *, batch_size):
        calls.append((size, batch_size))

    monkeypatch.setattr(image_files, "compile_ahead", note)
    image_files.compile_for_files(net, [tmp_path], batch_size=8)
    assert calls == [((30, 20), 2)]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match="b.jpg: cannot be read as an image"):
        image_files.compile_for_files(net, [tmp_path])
