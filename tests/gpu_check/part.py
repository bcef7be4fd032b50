"""One part, in this process: `python -m gpu_check.part NAME FILE LIMIT [--quick]`."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

from gpu_check.parts import PARTS
from gpu_check.results import Results


def main() -> int:
    name, file, limit, *options = sys.argv[1:]
    # Where it hangs is in the log before the supervisor ends it.
    faulthandler.dump_traceback_later(max(1.0, 0.9 * float(limit)), exit=False)
    PARTS[name].function()(Results(Path(file), "--quick" in options, float(limit)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
