import collections
import os
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.weights.pickle_reader import (
    Call,
    Name,
    as_dict,
    as_text,
    read_pickle,
)

PROTOCOLS = (2, 3, 4, 5)


def read(content, **changed):
    options = {"advice": "save plain data", "max_opcodes": 100_000}
    return read_pickle(memoryview(content), **options | changed)[0]


def plain(node):
    """Plain data with dicts in place of their notes."""
    entries = as_dict(node)
    if entries is not None:
        return {key: plain(value) for key, value in entries.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(plain, node))
    return node


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_read_pickle_of_plain_data_equals_it(protocol):
    shared = [1, 2]
    data = {
        "numbers": [0, -1, 255, 65_536, -(2**40), 2**100, 0.5, True, False, None],
        "texts": ("", "name", "ä" * 300),
        "nested": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}],
        "shared": [shared, shared],
        "ordered": collections.OrderedDict(a=1, b={"c": 2}),
        "one": {"entry": 1},
    }
    assert plain(read(pickle.dumps(data, protocol))) == data


def test_read_pickle_of_bytes_equals_them():
    data = [b"ab", b"a" * 300, bytearray(b"abc")]
    assert read(pickle.dumps(data, 5)) == data


def test_read_pickle_of_python2_text_gives_bytes():
    assert read(b"\x80\x02U\x02\xffa.") == b"\xffa"
    assert read(b"\x80\x02T\x02\x00\x00\x00\xffa.") == b"\xffa"


def test_read_pickle_notes_calls_with_their_state_and_items():
    ordered = collections.OrderedDict(a=1)
    ordered.extra = 2
    note = read(pickle.dumps(ordered, 2))
    assert isinstance(note, Call)
    assert (note.name, note.args) == ("collections.OrderedDict", ())
    assert note.items == ["a", 1]
    assert as_dict(note.state) == {"extra": 2}
    scalar = read(pickle.dumps(np.float64(0.5), 2))
    assert scalar.name == "numpy.core.multiarray.scalar"  # numpy 2 writes _core
    assert scalar.args[0].name == "numpy.dtype"


def test_read_pickle_notes_names_that_are_not_called():
    note = read(b"\x80\x02cnumpy\nndarray\n.")
    assert isinstance(note, Name)
    assert note.dotted == "numpy.ndarray"


def test_read_pickle_gives_persistent_ids_to_the_callers_function():
    content = b"\x80\x02](U\x01aQU\x01bQe."
    assert read(content, persistent_load=lambda key: key * 2) == [b"aa", b"bb"]
    with pytest.raises(ValueError, match="opcode BINPERSID; nothing was run"):
        read(content)


def test_read_pickle_tells_where_the_pickle_ends():
    content = memoryview(pickle.dumps(1) + pickle.dumps([2]) + b"rest")
    options = {"advice": "", "max_opcodes": 9}
    one, end = read_pickle(content, **options)
    two, end = read_pickle(content, end, **options)
    assert (one, two, content[end:]) == (1, [2], b"rest")


def test_read_pickle_of_long_bytes_gives_a_view_of_them():
    content = pickle.dumps([b"a" * 1001, bytearray(1001)], 5)
    for view in read(content):
        assert isinstance(view, memoryview) and view.obj is content


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("letter", ["\u0100", "\U0001f600"])
def test_read_pickle_of_long_texts_is_never_larger_than_they(protocol, letter):
    short, long = "ä" * 90 + letter, "ä" * 5000 + letter
    texts = read(pickle.dumps([short, long, "ä" * 5000], protocol))
    assert texts == [short, long.encode(), "ä" * 5000]


class Hostile:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "argument"), [(os.mkdir, "{}"), (eval, "__import__('os').mkdir('{}')")]
)
def test_read_pickle_refuses_other_calls_and_runs_nothing(
    tmp_path, protocol, function, argument
):
    sentinel = tmp_path / "ran"
    hostile = Hostile(function, argument.format(sentinel.as_posix()))
    content = pickle.dumps({"conv1_1": hostile}, protocol)
    pickle.loads(content)
    sentinel.rmdir()  # so the pickle is a live one
    problem = f"{function.__name__}'; save plain data; nothing was run"
    with pytest.raises(ValueError, match=problem):
        read(content)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cnumpy\nndarray\nK\x01o.",  # OBJ
        b"cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"cnumpy\nndarray\n)}\x92.",  # NEWOBJ_EX
        b"Pname\n.",  # PERSID
        b"K\x01Q.",  # BINPERSID
        b"\x82\x01.",  # EXT1
        b"\x97.",  # NEXT_BUFFER
    ],
)
def test_read_pickle_refuses_other_opcodes(opcodes):
    with pytest.raises(ValueError, match="opcode .*nothing was run"):
        read(b"\x80\x04" + opcodes)


@pytest.mark.parametrize(
    "name",
    [
        "builtins.getattr",
        "subprocess.Popen",
        "numpy.load",
        "numpy.core.multiarray.fromfile",
        "numpy.ndarray.tofile",
        "_codecs.lookup",
    ],
)
def test_read_pickle_refuses_other_names(name):
    module, attribute = name.rsplit(".", 1)
    as_global = f"c{module}\n{attribute}\n.".encode()
    as_strings = b"".join(
        b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)
    )
    for opcodes in (as_global, as_strings + b"\x93."):
        with pytest.raises(ValueError, match=f"{name}'.*nothing was run"):
            read(b"\x80\x04" + opcodes)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"",
        b".",
        b"]",
        b"K",
        b"K\x01a.",  # APPEND to nothing
        b"K\x01K\x02a.",  # APPEND to a number
        b"K\x01(K\x02e.",  # APPENDS to a number
        b"\x96" + struct.pack("<Q", 1) + b"aK\x01a.",  # APPEND to bytes
        b"}K\x01s.",  # SETITEM without a value
        b"}(K\x01u.",  # SETITEMS without a value
        b"]K\x01K\x02s.",  # SETITEM on a list
        b"]K\x01b.",  # BUILD of a list
        b"K\x01\x86.",  # TUPLE2 of one item
        b"t.",  # TUPLE without a mark
        b"h\x00.",  # BINGET of nothing
        b"\x94.",  # MEMOIZE of nothing
        b"K\x01)R.",  # a call of a number
        b"cnumpy\ndtype\nK\x01R.",  # a call with a number for arguments
        b"cnumpy\ndtype\n)R)R.",  # a call of a result
        b"K\x01K\x02\x93.",  # a name of numbers
        b"))\x86q\x00h\x00\x93.",  # a name of tuples
        b"c\\)os\nsystem\n.",
        b"cos\xff\nsystem\n.",
        b"S'\\q'\n.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x8b\xff\xff\xff\xff.",  # LONG4 of a negative length
        b"B\xff\xff\xff\xff.",
        b"\x8e" + b"\xff" * 8 + b".",
        b"\x8d" + b"\xff" * 7 + b"\x7f.",
        b"X\x01\x00\x00\x00\xff.",
        b"\xff.",
    ],
)
def test_read_pickle_of_damaged_opcodes_raises_value_error(opcodes):
    with pytest.raises(ValueError):
        read(b"\x80\x04" + opcodes)


def test_read_pickle_stops_at_the_limit_of_opcodes():
    content = pickle.dumps(list(range(100)), 2)
    assert read(content, max_opcodes=200) == list(range(100))
    with pytest.raises(ValueError, match="more than 50 opcodes; save plain data"):
        read(content, max_opcodes=50)


def test_as_dict_reads_dicts_of_python_2_and_3():
    pairs = b"](](U\x01aK\x01e](U\x01bK\x02ee"
    python2 = b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R."
    assert as_dict(read(python2)) == {"a": 1, "b": 2}
    assert as_dict(read(pickle.dumps({"a": 1, 3: 4, ("b",): 5}))) == {"a": 1}
    for other in (None, [1], ("a", 1), "a", collections.Counter("a")):
        assert as_dict(read(pickle.dumps(other))) is None


@pytest.mark.parametrize("pairs", [b"](K\x01e", b"](]K\x01ae", b"](U\x01aK\x01e"])
def test_as_dict_of_no_pairs_raises_value_error(pairs):
    note = read(b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R.")
    with pytest.raises(ValueError, match="not made of pairs"):
        as_dict(note)


def test_as_text_takes_names_of_python_2_and_3():
    assert as_text("conv1_1") == as_text(b"conv1_1") == "conv1_1"
    with pytest.raises(ValueError, match="a int stands in place of a name"):
        as_text(3)
    with pytest.raises(ValueError, match="a name has 1,001 characters"):
        as_text(b"a" * 1001)


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


MANY_ENTRIES = b"}q\x00(" + b"".join(text(str(i)) + b"N" for i in range(2000)) + b"u"
LONG_TEXT = text("x" * 40_000) + text("latin1") + b"\x86q\x00"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(
            MANY_ENTRIES + b"ccollections\nOrderedDict\nq\x01"
            + b"h\x01h\x00\x85R" * 1000 + b".",
            id="one-dict-copied-many-times",
        ),
        pytest.param(
            MANY_ENTRIES + b"ccollections\nCounter\nq\x01"
            + b"h\x01h\x00\x85R" * 1000 + b".",
            id="one-dict-counted-many-times",
        ),
        pytest.param(
            LONG_TEXT + b"c_codecs\nencode\nq\x01" + b"h\x01h\x00R" * 1000 + b".",
            id="one-text-encoded-many-times",
        ),
        pytest.param(
            b"c_codecs\nencode\nq\x00" + text("a") + text("latin1") + b"\x86R"
            + 40 * (b"q\x01h\x00h\x01" + text("hex") + b"\x86R") + b".",
            id="text-doubled-at-each-step",
        ),
        pytest.param(
            b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}h\x00K\x01s.",
            id="key-that-takes-forever-to-hash",
        ),
        pytest.param(b"]r\xff\xff\xff\x7f.", id="memo-index"),
        pytest.param(b"(" * 20_000 + b"t" * 20_000 + b".", id="deep-tuples"),
        pytest.param(b"]q\x00h\x00a}q\x01h\x01h\x01s\x86.", id="holds-itself"),
        pytest.param(b"]q\x00(" + b"h\x00" * 90_000 + b"e.", id="list-of-itself"),
    ],
)  # fmt: skip
def test_read_pickle_takes_memory_and_time_for_its_size(content):
    started = time.process_time()
    tracemalloc.start()
    try:
        as_dict(read(b"\x80\x02" + content))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6
    assert time.process_time() - started < 20  # A bomb takes hours.


SNIPPETS = (
    b"( ) ] } N \x88 K\x01 G01234567 U\x01a X\x02\x00\x00\x00ab C\x01b q\x00 q\x01 "
    b"h\x00 h\x01 \x94 a e s u t \x85 \x86 \x87 R b Q . 0 2 \x8c\x01a \x93 "
    b"\x8a\x01\xff c_codecs\nencode\n cnumpy\ndtype\n ccollections\nOrderedDict\n"
).split(b" ")


@given(snippets=st.lists(st.sampled_from(SNIPPETS), max_size=30))
def test_read_pickle_of_any_opcodes_gives_data_or_value_error(snippets):
    try:
        node = read(b"\x80\x04" + b"".join(snippets), persistent_load=lambda key: key)
        as_dict(node)
    except ValueError:
        pass


@given(content=st.binary(max_size=200))
def test_read_pickle_of_random_bytes_gives_data_or_value_error(content):
    try:
        read(content)
    except ValueError:
        pass
