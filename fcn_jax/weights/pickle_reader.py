"""Read a pickle as plain data, without running it.

A pickle is a program, so it is never run here. It is split into opcodes. Those that
build plain data are followed; a call is noted as a `Call` and never made. Nothing that
the file names is imported. Calls are not interpreted while the opcodes are followed, so
each opcode takes constant memory beside the bytes that it carries, and long bytes are
views of the file.

Reference: Python's ``pickletools`` documents the opcodes.
"""

import dataclasses
import pickletools
import struct
from collections.abc import Callable, Set
from typing import Any

import numpy as np

# The names that plain data and numpy arrays need, as numpy 1 writes them.
_NAMES = frozenset(
    "_codecs.encode collections.Counter collections.OrderedDict "
    "numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar "
    "numpy.core.numeric._frombuffer numpy.dtype numpy.ndarray".split()
)

_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
# The arguments of opcodes: numbers, or bytes behind their length.
_NUMBERS = {"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d"}
_NUMBERS |= {"BINPUT": "<B", "LONG_BINPUT": "<I", "BINGET": "<B", "LONG_BINGET": "<I"}
_NUMBERS |= {"PROTO": "<B", "FRAME": "<Q"}
_TEXTS = {"SHORT_BINUNICODE": "<B", "BINUNICODE": "<I", "BINUNICODE8": "<Q"}
_BYTES = {"SHORT_BINBYTES": "<B", "BINBYTES": "<I", "BINBYTES8": "<Q"}
_BYTES |= {"SHORT_BINSTRING": "<B", "BINSTRING": "<i", "BYTEARRAY8": "<Q"}
_LENGTHS = {"LONG1": "<B"} | _TEXTS | _BYTES
_LITERALS = frozenset(_LENGTHS) | {"BININT", "BININT1", "BININT2", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# Opcodes that take items from the stack: how many, or None for all above the mark.
_COUNTS = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_COUNTS |= {"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None}
# A pickle may name one long string many times, and each use may make a copy of it.
_MAX_NAME = 1000
_STRINGS = str | bytes | memoryview
_DAMAGED = "its pickle is cut off or damaged"
_LAST_LATIN1 = 0xC3  # The largest byte of characters up to U+00FF in UTF-8.


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Name:
    """A function or type that a pickle names, which is never imported."""

    dotted: str  # With its module, as numpy 1 writes it.


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Call:
    """A call that a pickle asks for, or an empty dict. The call is never made."""

    name: str  # The dotted name of the function or type, "dict" for an empty dict.
    args: tuple
    state: object = None  # The argument of the result's ``__setstate__``.
    items: list = dataclasses.field(default_factory=list)  # Keys and values, in turns.


def read_pickle(
    content: memoryview,
    start: int = 0,
    *,
    advice: str,
    max_opcodes: int,
    names: Set[str] = frozenset(),
    persistent_load: Callable[[object], object] | None = None,
) -> tuple[object, int]:
    """Return the plain data that a pickle describes, and where the pickle ends.

    There is a `Call` for each call. Dicts are calls as well, which `as_dict` reads.
    Bytes that are longer than a name are views of ``content``. So are texts of more
    than 250 bytes with characters above U+00FF, because Python would store each of
    their characters in up to four bytes.

    Args:
        content: the pickle and what follows it.
        start: where the pickle begins.
        advice: what to do about a pickle that is refused, for the error.
        max_opcodes: the limit. One opcode of a byte can make an object of a hundred.
        names: the dotted names that the pickle may mention, beside those of plain data
            and numpy arrays.
        persistent_load: returns the object that a persistent id stands for; None
            refuses pickles with persistent ids.

    Raises:
        ValueError: if the pickle is damaged, has too many opcodes, mentions another
            name, or does anything but build plain data and call functions.
    """
    machine, at = _Machine(names | _NAMES, advice, persistent_load), start
    try:
        for _ in range(max_opcodes):
            if content[at] not in _OPCODES:
                raise ValueError(f"its pickle has the unknown opcode {content[at]}")
            opcode = _OPCODES[content[at]]
            argument, at = _argument(opcode, content, at + 1)
            if opcode == "STOP":
                return machine.stack.pop(), at
            machine.follow(opcode, argument)
    except ValueError:
        raise
    except Exception as error:  # Garbled opcodes cause errors of many types.
        raise ValueError(f"its pickle is damaged ({error!r:.100})") from error
    raise ValueError(f"it has more than {max_opcodes:,} opcodes; {advice}")


def _argument(opcode: str, content: memoryview, at: int) -> tuple[Any, int]:
    """Return the argument of an opcode, None for many, and where it ends."""
    if opcode in _NUMBERS:
        [number] = struct.unpack_from(_NUMBERS[opcode], content, at)
        return number, at + struct.calcsize(_NUMBERS[opcode])
    if opcode == "GLOBAL":
        lines = bytes(content[at : at + 2 * _MAX_NAME]).split(b"\n", 2)
        if len(lines) < 3:
            raise ValueError(_DAMAGED)
        return str(b".".join(lines[:2]), "latin1"), at + len(lines[0] + lines[1]) + 2
    if opcode not in _LENGTHS:
        return None, at
    [length] = struct.unpack_from(_LENGTHS[opcode], content, at)
    at += struct.calcsize(_LENGTHS[opcode])
    if not 0 <= length <= len(content) - at:
        raise ValueError(_DAMAGED)
    data = content[at : at + length]
    if opcode == "LONG1":
        return int.from_bytes(data, "little", signed=True), at + length
    if opcode in _TEXTS:
        is_short = length <= _MAX_NAME // 4
        if is_short or np.frombuffer(data, np.uint8).max() <= _LAST_LATIN1:
            return str(data, "utf-8", "surrogatepass"), at + length
    return bytes(data) if length <= _MAX_NAME else data, at + length


def as_dict(node: object) -> dict[str, object] | None:
    """Return the entries of a dict or OrderedDict under text keys, None for others.

    Raises:
        ValueError: if the dict is damaged or has a key of more than 1,000 characters.
    """
    match node:
        case Call("dict" | "collections.OrderedDict", ()):
            pairs = []
        case Call("collections.OrderedDict", (list(pairs),)):  # Python 2 writes this.
            if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
                raise ValueError("an OrderedDict is not made of pairs")
        case _:
            return None
    pairs = [*pairs, *zip(node.items[::2], node.items[1::2], strict=True)]
    return {as_text(key): value for key, value in pairs if isinstance(key, _STRINGS)}


def as_text(node: object) -> str:
    """Return a name that Python 2 or 3 wrote.

    Raises:
        ValueError: if it is not a string or has more than 1,000 characters.
    """
    if not isinstance(node, _STRINGS):
        raise ValueError(f"a {type(node).__name__} stands in place of a name")
    if len(node) > _MAX_NAME:
        raise ValueError(f"a name has {len(node):,} characters")
    return node if isinstance(node, str) else node.decode("latin1")


class _Machine:
    """The stack and the memo of a pickle, as in `pickle.Unpickler`."""

    def __init__(self, names: Set[str], advice: str, persistent_load: Any):
        self.names, self.advice = names, advice
        self.persistent_load = persistent_load
        self.stack, self.outer, self.memo = [], [], {}

    def follow(self, opcode: str, argument: Any) -> None:
        """Change the stack as an opcode does."""
        items = self._take(_COUNTS[opcode]) if opcode in _COUNTS else []
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BUILD":
                state = self.stack.pop()
                self._last(Call).state = state
            case "APPEND" | "APPENDS":
                self._last(list).extend(items)
            case "SETITEM" | "SETITEMS":
                if len(items) % 2:
                    raise ValueError("its pickle sets a key without a value")
                self._last(Call).items.extend(items)
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(items))
            case _:
                self.stack.append(self._value(opcode, argument))

    def _take(self, count: int | None) -> list:
        """Remove and return the last items of the stack, or all above the mark."""
        if count is None:
            items, self.stack = self.stack, self.outer.pop()
            return items
        return [self.stack.pop() for _ in range(count)][::-1]

    def _last(self, kind: type) -> Any:
        """Return the top of the stack if it is of a type."""
        if not isinstance(self.stack[-1], kind):
            found = type(self.stack[-1]).__name__
            raise ValueError(f"its pickle has a {found} in place of a {kind.__name__}")
        return self.stack[-1]

    def _value(self, opcode: str, argument: Any) -> object:
        """Return the value that an opcode pushes."""
        match opcode:
            case _ if opcode in _LITERALS:
                return argument
            case _ if opcode in _CONSTANTS:
                return _CONSTANTS[opcode]
            case "EMPTY_LIST":
                return []
            case "EMPTY_DICT":
                return Call("dict", ())
            case "BINGET" | "LONG_BINGET":
                return self.memo[argument]
            case "GLOBAL":
                return self._name(argument)
            case "STACK_GLOBAL":
                name, module = self.stack.pop(), self.stack.pop()
                return self._name(module + "." + name)
            case "REDUCE":
                args, name = self.stack.pop(), self.stack.pop()
                if isinstance(name, Name) and isinstance(args, tuple):
                    return Call(name.dotted, args)
                raise ValueError("its pickle calls what has no name; nothing was run")
            case "BINPERSID" if self.persistent_load:
                return self.persistent_load(self.stack.pop())
        raise ValueError(f"its pickle has the opcode {opcode}; nothing was run")

    def _name(self, dotted: str) -> Name:
        dotted = dotted.replace("numpy._core.", "numpy.core.")
        if dotted not in self.names:
            raise ValueError(
                f"its pickle asks for {dotted[:100]!r}; {self.advice}; nothing was run"
            )
        return Name(dotted)
