"""The C++ tests, the scenarios and the targets of tests/fuzz, compiled with sanitizers: `make sanitize`.

AddressSanitizer with its leak detector and UndefinedBehaviorSanitizer go into one build, ThreadSanitizer into another.
Ranks are threads here, so ThreadSanitizer sees all that they do to each other, but for what they do in shared memory:
each has a mapping of its own, as another process has.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native.building import NAMES, QUICKLY, TARGETS, cxx, make, run

pytestmark = pytest.mark.slow

FLAGS = {
    "address": "-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all",
    # It does not know fences, and g++ warns of each. Ours order looks at atomics (shared/bell.h), but for
    # that of Engine::new_handle, which does without one here.
    "thread": "-g -fsanitize=thread -Wno-tsan",
}
# A report is a failure, whatever the program goes on to do.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "second_deadlock_stack=1:allocator_may_return_null=1",
}
LIMIT = 400.0  # seconds for one test; sanitizers make it slower by a factor of ten or so


@pytest.fixture(scope="module", params=FLAGS)
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the executables."""
    flags = FLAGS[request.param]
    probe = tmp_path_factory.mktemp("sanitizer") / "probe"
    source = probe.with_suffix(".cc")
    source.write_text("int main() { return 0; }\n")
    words = [*cxx(), *flags.split(), str(source), "-o", str(probe)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip(
            f"this compiler comes without the {request.param} sanitizer: Debian's g++ and clang have it"
        )
    if subprocess.run([probe], capture_output=True).returncode:
        pytest.skip(f"the {request.param} sanitizer does not run on this kernel")
    return make(request.param, cxx(), f"{QUICKLY} {flags}")


@pytest.mark.parametrize("name", NAMES)
def test_sanitized(sanitized: Path, name: str) -> None:
    run(str(sanitized / "run"), name, env=OPTIONS, limit=LIMIT)


@pytest.mark.parametrize(("way", "seeds"), [("turns", 200), ("threads", 100)])
def test_scenarios_sanitized(sanitized: Path, way: str, seeds: int) -> None:
    run(str(sanitized / "run"), "--play", way, "1", str(seeds), env=OPTIONS, limit=LIMIT)


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_sanitized(sanitized: Path, target: str) -> None:
    run(str(sanitized / "fuzz"), "--seconds", "5", target, env=OPTIONS, limit=LIMIT)
