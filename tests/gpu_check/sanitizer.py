"""The kernels under compute-sanitizer, where there is one: accesses outside of memory, and races in shared memory."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from driver.limit import run_limited
from driver.phases import ROOT

from gpu_check import said
from gpu_check.parts import ONLY_A_FEW
from gpu_check.results import FAILED, OK, Results, Skip, read

# (tool, options): calls that fail on purpose, as questions about host memory do, are no concern of the kernels.
TOOLS = (("memcheck", ["--report-api-errors", "no"]), ("racecheck", []))
EXIT_CODE = 86
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def run(results: Results) -> None:
    for i, (tool, options) in enumerate(TOOLS):
        with results.check(tool, "a selection of the kernels' checks, with what the tool says") as result:
            limit = results.seconds_left() * (0.5 if i == 0 else 0.9)
            launches = under(find(), tool, options, limit)
            result.figures["launches"] = (launches, "")


def find() -> str:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [Path(home) for home in homes] + sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    places = [str(f / sub) for f in folders for sub in ("bin", "compute-sanitizer")]
    found = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if found is None:
        raise Skip("there is no compute-sanitizer on PATH, in CUDA_HOME or in /usr/local/cuda")
    return found


def under(program: str, tool: str, options: list[str], limit: float) -> float:
    """How many launches there were; AssertionError for what the tool has found, or when it did not work."""
    with tempfile.TemporaryDirectory(prefix="ringdp-gpu-check-") as folder:
        log, file = Path(folder, "log"), Path(folder, "kernels.jsonl")
        words = [program, "--tool", tool, *options, "--error-exitcode", str(EXIT_CODE)]
        words += [sys.executable, "-m", "gpu_check.part", "kernels", str(file), f"{limit:.0f}", "--quick"]
        ended = run_limited(words, {**os.environ, ONLY_A_FEW: "1"}, ROOT, log, limit)
        text = log.read_text(errors="replace")
        print(text[-20_000:], flush=True)  # into the log of this part
        found, _ = read(file)
    assert ended.code is not None, f"no end after {limit:.0f} s, {len(found)} checks done"
    summary = SUMMARY.search(text)
    assert summary is not None, f"it gave no summary; {said.why(text)}"
    assert ended.code == 0 and int(summary[1]) == 0, (
        f"exit code {ended.code}, {summary[0]}: {first_finding(text)}"
    )
    failed = [r.name for r in found if r.state == FAILED]
    assert found and not failed, f"of the checks themselves failed: {', '.join(failed) or 'all'}"
    return sum(r.figures["launches"][0] for r in found if r.state == OK)


def first_finding(text: str) -> str:
    lines = [
        line.removeprefix("=========").strip() for line in text.splitlines() if line.startswith("=========")
    ]
    return " | ".join(line for line in lines[1:8] if line)
