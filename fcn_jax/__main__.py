"""The command line: python -m fcn_jax COMMAND, see --help."""

import argparse
import contextlib
import importlib
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from signal import SIGINT, set_wakeup_fd
from types import ModuleType

from fcn_jax.files import keep_compiled_programs

# The command that runs is a module of fcn_jax.commands, and no other is imported.
_COMMANDS = {
    "train": "train and evaluate a network",
    "evaluate": "score a network on a split",
    "report": "write the report page of a run anew",
    "check-data": "list the faults of a data set",
    "predict": "segment image files",
    "demo": "open a web page that segments photographs",
    "export": "write a file that runs without fcn_jax",
    "inspect": "describe a weight file, or verify all files of a run",
    "convert": "convert a weight file of any kind to safetensors",
}
_INTERRUPTED = 130  # Exit status of a command that Ctrl-C ended, by convention.


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    module, parser = _command(words)
    args, unknown = parser.parse_known_args(words)
    args.line = f"python -m fcn_jax {shlex.join(words)}"
    args.overrides, strange = split_overrides(unknown)
    if args.overrides and not getattr(args, "config", None):
        strange = unknown
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    # Training handles the signal itself.
    training = args.name == "train"
    ending = contextlib.nullcontext() if training else _ending_on_interrupt(args.name)
    try:
        with ending:
            return module.run(args)
    except KeyboardInterrupt as error:
        reason = str(error) or "interrupted"
    except MemoryError as error:
        reason = f"the memory is full: {error}"
    except (ValueError, FloatingPointError, OSError) as error:
        reason = str(error)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # What jax says of a device.
            raise
        reason = f"the memory of the device is full: {error}"
    print(f"fcn_jax {args.name}: {reason}", file=sys.stderr)
    return 1


def _command(words: Sequence[str]) -> tuple[ModuleType | None, argparse.ArgumentParser]:
    """Return the module of the command that the words begin with, and the parser."""
    parser = argparse.ArgumentParser(prog="python -m fcn_jax")
    commands = parser.add_subparsers(dest="name", required=True)
    parsers = {name: commands.add_parser(name, help=h) for name, h in _COMMANDS.items()}
    if not words or words[0] not in parsers:
        return None, parser  # Which says so, or helps.
    module = importlib.import_module(f"fcn_jax.commands.{words[0].replace('-', '_')}")
    module.add_options(parsers[words[0]])
    return module, parser


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides among the words of a command line, and the other words.

    Overrides are returned as ``--config.field=value``; the value may be the next word.
    """
    overrides, rest, words = [], [], list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
        elif "=" in word or not words:
            overrides.append(word)
        else:
            overrides.append(f"{word}={words.pop(0)}")
    return overrides, rest


@contextlib.contextmanager
def _ending_on_interrupt(command: str) -> Iterator[None]:
    """End the process soon after Ctrl-C, whatever it computes.

    Python raises KeyboardInterrupt only after the compiled program at work, which may
    take a minute, and then waits for threads; and it forgets one that is raised in a
    callback of the garbage collector. So a thread ends the process a second after the
    signal. By then an unfinished file is removed: none is written while a compiled
    program is at work.
    """
    end, wake = socket.socketpair()
    wake.setblocking(False)

    def wait() -> None:
        with end:
            while signal := end.recv(1):
                if signal[0] == SIGINT:
                    time.sleep(1)
                    leave()

    def leave() -> None:
        print(f"\nfcn_jax {command}: interrupted", file=sys.stderr, flush=True)
        os._exit(_INTERRUPTED)

    before = set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        leave()
    finally:
        set_wakeup_fd(before)
        wake.close()


def run(argv: list[str] | None = None) -> None:
    """Run the command of this process: the entry point of ``fcn-jax``."""
    keep_compiled_programs()
    sys.exit(main(argv))


if __name__ == "__main__":
    run()
