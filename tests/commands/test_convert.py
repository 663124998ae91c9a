from fcn_jax.__main__ import main


def test_nothing_is_written_over_what_it_is_made_from(make_run, capsys):
    run = make_run()
    network = run / "model.safetensors"
    before = network.read_bytes()
    for arguments, problem in (
        (["export", "--run", run, "--out", network], "name what is written .npz or"),
        (["convert", network, network], "is the source: name another file"),
    ):
        assert main([str(argument) for argument in arguments]) == 1
        assert problem in capsys.readouterr().err
    assert network.read_bytes() == before
