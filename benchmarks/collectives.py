"""Find the collectives of a compiled program in its optimised HLO text."""

import re
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_BYTES |= {f"{sign}{8 * n}": n for sign in "su" for n in (1, 2, 4, 8)}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
# Name, shape, operation, and what follows. Layouts in the shape have parentheses too,
# but no word and blank before them.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_CALL = re.compile(
    r"(body|condition|calls|to_apply|branch_computations)=(\{[^}]*\}|%[\w.-]+)"
)
_NAME = re.compile(r"%([\w.-]+)")


class Collective(NamedTuple):
    """Describe one collective operation.

    Attributes:
        kind: one of `KINDS`.
        values: number of values in its operands, on one chip.
        bytes: bytes of its operands, on one chip.
        in_loop: whether it is part of a loop, so that it may run many times.
    """

    kind: str
    values: int
    bytes: int
    in_loop: bool


def find_collectives(hlo: str) -> list[Collective]:
    """Return the collectives of a program.

    A collective of many arrays counts once, as do the two halves of an asynchronous
    one ("all-reduce-start" and "all-reduce-done").

    Args:
        hlo: what ``compiled.as_text()`` returns.
    """
    shapes: dict[str, str] = {}
    calls: dict[str, set[str]] = {}  # By the name of the computation that calls.
    bodies: set[str] = set()  # Computations of a loop.
    found: dict[str, tuple[str, list[str], str]] = {}
    computation = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif instruction := _INSTRUCTION.match(line):
            name, shape, operation, rest = instruction.groups()
            shapes[name] = shape
            for role, names in _CALL.findall(rest):
                called = set(_NAME.findall(names))
                calls.setdefault(computation, set()).update(called)
                if role in ("body", "condition"):
                    bodies |= called
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                operands, _, attributes = rest.partition(")")
                channel = re.search(r"channel_id=(\d+)", attributes)
                # The compiler may copy a computation: the copies share the channel.
                key = channel[1] if channel else name
                found.setdefault(key, (kind, _NAME.findall(operands), computation))
    in_loops = _reachable(bodies, calls)
    collectives = []
    for kind, operands, computation in found.values():
        sizes = [_size(shapes[operand]) for operand in operands]
        values, nbytes = (sum(size) for size in zip(*sizes, strict=True))
        collectives.append(Collective(kind, values, nbytes, computation in in_loops))
    return collectives


def _size(shape: str) -> tuple[int, int]:
    """Return the number of values and of bytes of an array or a tuple of arrays."""
    values = nbytes = 0
    for dtype, sides in _ARRAY.findall(shape):
        count = 1
        for side in filter(None, sides.split(",")):
            count *= int(side)
        values += count
        nbytes += count * _BYTES[dtype]
    return values, nbytes


def _reachable(names: set[str], calls: dict[str, set[str]]) -> set[str]:
    """Return the computations and all that they call."""
    reached, waiting = set(names), list(names)
    while waiting:
        new = calls.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached
