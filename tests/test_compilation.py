"""The programs that a process leaves to the next."""

import os
import subprocess
import sys

PROGRAM = """
import jax
from fcn_jax.compilation import keep_compiled

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
keep_compiled()
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
