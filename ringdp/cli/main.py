"""The `ringdp` command: picks the subcommand and hands the other arguments to it."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

_COMMANDS = {
    "run": "start N ranks of a script: ringdp run -n 4 train.py",
    "info": "print what was detected: MPI, cores, CUDA, frameworks: ringdp info",
    "doctor": "one page about a job that has failed: ringdp doctor ringdp-report-...",
    "bench": "measure collectives beside MPI and gloo: ringdp bench allreduce --ranks 2",
}
_EXAMPLES = """examples:
  ringdp run -n 2 train.py
  ringdp info
  ringdp bench allreduce -b 4 -e 64M -f 4 --peers mpi,gloo

`ringdp COMMAND --help` says more about each."""


def version() -> str:
    """The version of this copy, by the record of its build."""
    try:
        from ringdp import _build

        return str(_build.VERSION)
    except ImportError:
        return "(not built)"


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        print(f"ringdp {version()}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<8} {text}" for name, text in _COMMANDS.items())
    p = argparse.ArgumentParser(
        prog="ringdp",
        usage="ringdp [-h] [--version] COMMAND [arguments]",
        description=f"Data-parallel training over MPI.\n\ncommands:\n{lines}",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    p.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    p.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: that of the subcommand, 2 for arguments that make no sense."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    p = parser()
    # Options before the command are ours, all that follows it is the command's.
    first = next((i for i, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    options = p.parse_args(arguments[: first + 1])
    if options.command is None:
        p.print_help()
        return 0
    if options.command not in _COMMANDS:
        p.error(f"there is no command {options.command!r}: use one of {', '.join(_COMMANDS)}")
    command = importlib.import_module(f"ringdp.cli.{options.command}")
    try:
        code = int(command.main(arguments[first + 1 :]))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `ringdp info | head`: who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
