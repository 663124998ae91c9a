import contextlib
import csv
import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys

import pytest

from fcn_jax.files import (
    WriteError,
    owning,
    remove_leftovers,
    replacing,
    write_csv,
    write_json,
)


def test_replacing_moves_the_whole_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(WriteError) as caught, replacing(path) as unfinished:
        unfinished.write_text("ha")
        raise full
    assert str(caught.value) == (
        f"cannot write {path}: No space left on device; what was there before is kept"
    )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "a.txt"
    with pytest.raises(WriteError, match=f"cannot write {target}: "):
        with replacing(target):
            pass
    with pytest.raises(WriteError, match=f"cannot write {tmp_path / 'file'}: "):
        with owning(tmp_path / "file"):
            pass


def test_longest_name_of_a_file_is_written(tmp_path):
    path = tmp_path / ("ü" * 120 + ".txt")
    with replacing(path, durable=True) as unfinished:
        unfinished.write_text("whole")
    assert path.read_text() == "whole"


def test_leftovers_of_killed_processes_are_removed_and_no_others(tmp_path):
    code = (
        "import os, pathlib, sys\nfrom fcn_jax.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")])
    [left] = tmp_path.iterdir()
    host = socket.gethostname()
    kept = [f".a.txt.{host}.{os.getppid()}.tmp", ".a.txt.elsewhere.1.tmp", ".a.tmp"]
    for name in kept:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_write_json_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"iu": [0.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"iu": [0.5, None]}


def test_csv_is_read_back_and_holds_no_formula(tmp_path):
    path = tmp_path / "a.csv"
    rows = [("class", "n"), ('a, "b"', -1), ("=1+1", 2), ("@x", None), ("é\udcff", 3)]
    write_csv(path, rows)
    with open(path, encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["class", "n"],
            ['a, "b"', "-1"],
            ["'=1+1", "2"],
            ["'@x", ""],
            ["é\\udcff", "3"],
        ]


# A process that leaves its compiled programs to the next.
PROGRAM = """
from fcn_jax.files import keep_compiled_programs

keep_compiled_programs()
import jax

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(jax.jit(lambda x: x * 3)(14))
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def run(**environment):
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    program = [sys.executable, "-c", PROGRAM]
    env = os.environ | environment
    return subprocess.run(program, env=env, capture_output=True, text=True, check=True)


def test_second_process_compiles_nothing_anew(tmp_path):
    first, second = (run(FCN_JAX_CACHE=str(tmp_path)).stdout for _ in range(2))
    assert first == "42\n0\n"
    answer, hits = second.split()
    assert answer == "42"
    assert int(hits) == len(list((tmp_path / "compiled").glob("*-cache"))) > 0


def test_place_that_jax_was_told_is_kept(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    run(FCN_JAX_CACHE=str(tmp_path), **own)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_cache_can_be_off(tmp_path):
    run(FCN_JAX_CACHE=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false")
    assert not list(tmp_path.rglob("*-cache"))


def test_folder_has_one_owner_until_it_is_let_go(tmp_path):
    folder = tmp_path / "runs" / "a"
    with owning(folder):
        with pytest.raises(
            ValueError, match=rf"in use by process {os.getpid()} on .+:"
        ):
            with owning(folder):
                pass
        with owning(tmp_path / "runs" / "b"):
            pass
    with owning(folder):
        pass


def test_folder_of_a_killed_process_is_free(tmp_path, caplog):
    code = (
        "import os, pathlib, sys\nfrom fcn_jax.files import owning\n"
        "with owning(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -9 and (tmp_path / ".owner").exists()
    with caplog.at_level(logging.INFO), owning(tmp_path):
        pass
    assert f"taking {tmp_path} over from process " in caplog.text


def test_end_of_an_owner_leaves_the_next_owner_of_a_new_folder_alone(
    tmp_path, monkeypatch
):
    with contextlib.ExitStack() as new:
        with owning(tmp_path / "run"):
            shutil.rmtree(tmp_path / "run")
            monkeypatch.setattr(os, "getpid", lambda: 1)  # As in another process.
            check = new.enter_context(owning(tmp_path / "run"))
        check()


def test_owner_learns_that_its_folder_is_gone(tmp_path):
    with owning(tmp_path / "run") as check:
        check()
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(OSError, match="run was deleted or moved while it was in"):
            check()
