"""What nvcc makes of the kernels for GPUs, by the commands that setup.py builds with: no warning, no spill, each kernel
for each GPU, and arithmetic that rounds as the CPU's does. Registers are printed with -s."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from driver.lock import locked
from gpu import on_host
from setup_module import load_setup
from standin.build import ROOT

from ringdp import _build, _core

# Of one thread: they move some words.
OF_REPLAYS = {f"ringdp_{name}" for name in ("begin_replay", "compare_replays", "note_exchange", "stop")}

KERNELS = sorted((ROOT / "csrc" / "kernels").rglob("*"))


class Compiled:
    """Of all kernels: PTX, machine code, and what ptxas said; made once for each state of the sources."""

    def __init__(self) -> None:
        setup = load_setup()
        nvcc = setup.find_nvcc()
        if nvcc is None:
            pytest.skip("there is no nvcc: RINGDP_NVCC names one, or pip install nvidia-cuda-nvcc")
        self.gpus: list[str] = nvcc.gpus
        digest = hashlib.sha256(repr(nvcc).encode() + (ROOT / "setup.py").read_bytes())
        for file in KERNELS:
            digest.update(file.read_bytes() if file.is_file() else b"")
        folder = ROOT / "build" / "nvcc" / digest.hexdigest()[:16]
        ptx, code, log = (folder / f"kernels.{s}" for s in ("ptx", "fatbin", "txt"))
        with locked(folder):
            if not log.exists():
                self.call(nvcc.to_ptx(ptx, folder / "kernels.d"))
                setup.lower_ptx_version(ptx)
                said = self.call(nvcc.to_machine_code(ptx, code))
                log.write_text(said)
        self.ptx, self.said, self.bytes = ptx.read_text(), log.read_text(), code.stat().st_size

    @staticmethod
    def call(command: list[str]) -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return Compiled()


def functions(said: str) -> dict[tuple[str, str], str]:
    """What ptxas said of each (GPU, kernel)."""
    parts = re.split(r"Compiling entry function '(\w+)' for '(\w+)'", said)[1:]
    return {(gpu, name): text for name, gpu, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def test_every_kernel_for_every_gpu(compiled: Compiled) -> None:
    names = {f"ringdp_{name}" for name in on_host.kernels()}
    assert set(functions(compiled.said)) == {(gpu, name) for gpu in compiled.gpus for name in names}


def test_no_warnings_and_no_spills(compiled: Compiled) -> None:
    assert "warning" not in compiled.said.lower()
    registers: dict[str, list[int]] = {}
    for (gpu, name), text in functions(compiled.said).items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in text, (gpu, name, text)
        (used,) = re.findall(r"Used (\d+) registers", text)
        assert int(used) <= 64, (gpu, name)  # four blocks of 256 threads on a multiprocessor
        registers.setdefault(gpu, []).append(int(used))
    for gpu, used in registers.items():
        print(f"{gpu}: {len(used)} kernels, {min(used)} to {max(used)} registers, no spills")
    print(f"machine code for all, compressed: {compiled.bytes} bytes; PTX: {len(compiled.ptx)} bytes")


def test_arithmetic_rounds_as_the_cpu_does(compiled: Compiled) -> None:
    """No fused multiply-add, no flush to zero, no approximation; what is not an operation on its own would be one."""
    instructions = set(re.findall(r"^\s+(?:@!?%\w+ )?([a-z][\w.]+)\s", compiled.ptx, re.MULTILINE))
    floats = {i for i in instructions if re.search(r"\.f(16|32|64)\b", i)}
    assert {"div.rn.f32", "div.rn.f64", "mul.rn.f32", "mul.rn.f64", "add.rn.f32", "add.rn.f64"} <= floats
    assert not [i for i in floats if re.search(r"fma|mad|ftz|approx|div\.full", i)]


def test_memory_is_moved_by_words(compiled: Compiled) -> None:
    """16 bytes at a time; of int8, whose blocks on the wire begin anywhere, that holds for float32's side."""
    bodies = re.split(r"\.entry (\w+)\(", compiled.ptx)[1:]
    for name, body in zip(bodies[::2], bodies[1::2], strict=True):
        if name in OF_REPLAYS:
            continue
        assert "ld.global.ca.v4.u32" in body or name == "ringdp_dequantise", name
        writes = not name.startswith(("ringdp_finite", "ringdp_quantise"))
        assert ("st.global.wb.v4.u32" in body) == writes, name


def test_threads_wait_for_one_another_where_they_must(compiled: Compiled) -> None:
    """What the host cannot show: there, a thread's part is over before the next one's begins."""
    bodies = re.split(r"\.entry (\w+)\(", compiled.ptx)[1:]
    barriers = {name: body.count("bar.sync") for name, body in zip(bodies[::2], bodies[1::2], strict=True)}
    assert {name: n for name, n in barriers.items() if n} == {"ringdp_quantise": 2}


def test_a_gpu_stops_and_what_was_found_is_there_before(compiled: Compiled) -> None:
    bodies = re.split(r"\.entry (\w+)\(", compiled.ptx)[1:]
    stops = {name: "trap;" in body for name, body in zip(bodies[::2], bodies[1::2], strict=True)}
    assert {name for name, stop in stops.items() if stop} == OF_REPLAYS - {"ringdp_note_exchange"}
    compared = bodies[bodies.index("ringdp_compare_replays") + 1]
    assert 0 < compared.index("membar.sys;") < compared.index("trap;")


def test_old_drivers_take_the_ptx(compiled: Compiled) -> None:
    version = re.search(r"^\.version (\d+)\.(\d+)$", compiled.ptx, re.MULTILINE)
    assert version and tuple(map(int, version.groups())) <= (8, 0)  # CUDA 12.0


def test_what_was_built_in_is_recorded() -> None:
    assert bool(_build.CUDA) == _core.gpu.kernels.built()
    inside = Path(_core.__file__).read_bytes()
    fatbin, ptx = b"\x50\xed\x55\xba\x01\x00\x10\x00", b"\n.target sm_"
    assert (fatbin in inside, ptx in inside) == (bool(_build.CUDA), bool(_build.CUDA))
    if _build.CUDA:
        assert re.fullmatch(r"nvcc \d+\.\d+, sm_\d+( sm_\d+)*", _build.CUDA)
        portable = inside[inside.rindex(b"\n.version ", 0, inside.index(ptx)) :].partition(b"\0")[0].decode()
        assert set(re.findall(r"\.entry ringdp_(\w+)\(", portable)) == set(on_host.kernels())
        assert portable.rstrip().endswith("}")  # whole, and the driver sees its end
