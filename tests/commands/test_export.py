import numpy as np

import fcn_jax
from fcn_jax.__main__ import main
from fcn_jax.commands import export


def test_export_writes_what_gives_the_labels_of_the_network(
    picture, net, weights, tmp_path, capsys
):
    path = tmp_path / "net.npz"
    assert main(["export", "--weights", weights, "--out", str(path)]) == 0
    assert "checked against the network at 3 sizes of image" in capsys.readouterr().out
    image = picture(1, (20, 33))
    expected = fcn_jax.predict(net, image)
    np.testing.assert_array_equal(fcn_jax.load_exported(path)(image), expected)


def test_export_takes_a_dtype(weights, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(export, "export", lambda *_, **options: given.update(options))
    path = str(tmp_path / "net.npz")
    main(["export", "--weights", weights, "--out", path, "--dtype", "bfloat16"])
    assert given["dtype"] == "bfloat16"


def test_export_tells_that_a_file_was_not_checked(
    weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(export, "export", lambda *_, **__: 0)
    path = str(tmp_path / "net.onnx")
    assert main(["export", "--weights", weights, "--out", path]) == 0
    assert capsys.readouterr().out == f"Written: {path}, not checked\n"
