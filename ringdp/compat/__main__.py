"""`python -m ringdp.compat script.py …` and `python -m ringdp.compat -m module …`: see `ringdp.compat`."""

from __future__ import annotations

import os
import runpy
import sys

from ringdp.compat import install

USAGE = "usage: python -m ringdp.compat SCRIPT [ARGUMENT ...]\n       python -m ringdp.compat -m MODULE [ARGUMENT ...]"


def main() -> None:
    """Run what the command line names as `python` itself does, where `horovod` is ringdp."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return
    as_module = arguments[:1] == ["-m"]
    if as_module:
        arguments = arguments[1:]
    if not arguments or arguments[0].startswith("-"):
        sys.exit(USAGE)
    install()
    sys.argv[:] = arguments
    if as_module:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return
    script = arguments[0]
    if not os.path.exists(script):
        sys.exit(f"python -m ringdp.compat: there is no file {script}")
    # python -m put the current folder there; a script finds the modules beside itself. With PYTHONSAFEPATH neither is
    # so.
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
