"""No wait without an end: whatever can block stands in a table here, with what ends it. A call that is not in it is a
failure, and so is a row for a call that is gone."""

import ast
import re
from pathlib import Path

import pytest

import ringdp

ROOT = Path(__file__).parents[2]
CORE = ROOT / "csrc"
LAYER = Path(ringdp.__file__).parent

# Of C and C++: what may wait for somebody or something else.
BLOCKS = re.compile(
    r"\b(?:dlopen|sleep_for|sleep_until|nanosleep|usleep|FUTEX_WAIT|flock|fsync|waitpid|system|popen|accept|recv)"
    r"\b\s*[(,]|\bpause\(\)|\.(?:join|wait|wait_for|wait_until)\(|\bpoll\(\w+[.,]"
    r"|\b(?:MPI_\w+|cu\w+Synchronize)\("
)
# MPI calls that return at once, whatever others do.
RETURNS = {
    "MPI_Error_string", "MPI_Error_class", "MPI_Comm_set_errhandler", "MPI_Comm_rank", "MPI_Comm_size",
    "MPI_Comm_get_attr", "MPI_Isend", "MPI_Irecv", "MPI_Test", "MPI_Iprobe", "MPI_Get_count", "MPI_Cancel",
    "MPI_Request_free", "MPI_Get_library_version",
    "MPI_Comm_group", "MPI_Group_size", "MPI_Group_translate_ranks", "MPI_Group_free",
}  # fmt: skip
# (file, call): what ends it.
ENDED_BY = {
    ("bindings/module.cc", ".wait"): "the deadline that is given with it",
    ("bindings/module.cc", "sleep_until"): "its time",
    ("device/libraries.cc", "dlopen"): "the watch over a turn of the engine, or over init()",
    ("engine/calls.cc", ".wait_for"): "its ten milliseconds",
    ("engine/calls.cc", "sleep_for"): "a deadline around it",
    ("engine/calls.cc", ".join"): "the engine's thread ends its turn, over which there is a watch",
    ("engine/drive.cc", "sleep_until"): "its time, a millisecond at most",
    ("engine/ends.cc", "sleep_for"): "a deadline around it",
    ("engine/engine.cc", ".join"): "nothing waits: meetings of ranks that join",
    ("engine/in_graphs.cc", "sleep_for"): "a deadline around it",
    ("engine/launches.cc", "sleep_for"): "a deadline around it",
    ("guard/alarm.cc", "sleep_for"): "a deadline around it",
    ("guard/inject.cc", "sleep_for"): "its time: a fault on purpose",
    ("guard/inject.cc", "pause"): "the SIGKILL before it",
    ("guard/watch.cc", ".join"): "the watch's thread looks at its end at least once a second",
    ("guard/watch.cc", "poll"): "its second, or 0",
    ("shared/bell.h", "FUTEX_WAIT"): "the time that is given with it",
    ("submit/handle.cc", "sleep_until"): "its time",
    ("submit/handle.h", "sleep_until"): "its time",
    ("transport/mpi.cc", "sleep_for"): "its ten seconds, if the launcher does not end the process before",
    ("transport/mpi.cc", "dlopen"): "the watch over MPI_Init_thread, in which it is called",
    ("transport/mpi/unit.cc", "dlopen"): "RTLD_NOLOAD: nothing is loaded",
    ("transport/mpi/unit.cc", "MPI_Abort"): "the launcher, which it tells to end the job",
}


def code_of(path: Path) -> str:
    """Without comments and texts."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', text)


def blocking_calls(path: Path) -> set[str]:
    found = {re.sub(r"\W+$", "", hit.group(0)).split("(")[0] for hit in BLOCKS.finditer(code_of(path))}
    return {call for call in found if call not in RETURNS}


def test_whatever_can_block_in_the_core_is_in_the_table():
    files = [p for p in CORE.rglob("*") if p.suffix in (".h", ".cc", ".cu")]
    assert len(files) > 100
    found = {(str(p.relative_to(CORE)), call) for p in files for call in blocking_calls(p)}
    assert found == set(ENDED_BY)


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("MPI_Wait(&request, &status);", "MPI_Wait"),
        ("cuStreamSynchronize(stream)", "cuStreamSynchronize"),
        ("condition_.wait(lock);", ".wait"),
        ("thread.join();", ".join"),
        ('dlopen("x", 0)', "dlopen"),
        ("poll(all.data(), 1, -1)", "poll"),
    ],
)
def test_a_call_that_blocks_is_seen(tmp_path, line, call):
    (tmp_path / "new.cc").write_text(f"// MPI_Barrier(comm)\nvoid f() {{ {line} }}\n")
    assert blocking_calls(tmp_path / "new.cc") == {call}


# --- MPI as the Python layer calls it ------------------------------------------------------------------------------

COLLECTIVE = {
    "Dup", "Split", "Split_type", "Create_group", "Create", "Free", "Barrier", "bcast", "gather", "allgather",
    "scatter",
    "alltoall", "sendrecv", "send", "recv", "Send", "Recv", "Init_thread", "Finalize", "Allreduce", "Bcast", "Wait",
    "Waitall", "Probe", "Mprobe", "Spawn", "Disconnect", "Shrink", "Agree", "Revoke",
}  # fmt: skip
COMMUNICATORS = {
    "comm",
    "base",
    "local",
    "cross",
    "part",
    "data",
    "control",
    "communicator",
    "alive",
    "MPI",
    "COMM_WORLD",
    "_comm",
}
# Functions that others call inside of a guard.
CALLED_INSIDE = {
    ("alike.py", "compare"): "world.init",
    ("job.py", "MpiJob.__init__"): "world.init",
    ("job.py", "MpiJob.engine"): "world.init",
    ("job.py", "MpiJob._membership"): "MpiJob.engine, MpiJob.add_set_over",
    ("job.py", "MpiJob._add_levels"): "MpiJob._membership",
    ("job.py", "MpiJob._neighbours_in"): "MpiJob.add_set_over",
    ("link.py", "ping_pong"): "world.init; ringdp bench",
    ("link.py", "hosts_of"): "world.init; ringdp bench",
    ("mpi.py", "load"): "world.init; ringdp info",
    ("place.py", "find"): "world.init",
    ("place.py", "warn_oversubscription"): "world.init",
    ("recovery.py", "prepare"): "world.init",
    ("sharing.py", "find_neighbours"): "MpiJob.__init__",
    ("sharing.py", "_try_kind"): "find_neighbours",
    ("watch.py", "meet"): "world.init",
    ("world.py", "_base"): "world.init",
}


class Calls(ast.NodeVisitor):
    """Functions with calls of MPI that block, outside of `with guarded(…)` and of functions that it decorates."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._names: list[str] = []
        self._guards = 0

    def _is_guard(self, node: ast.expr) -> bool:
        name = node.func if isinstance(node, ast.Call) else node
        return getattr(name, "attr", getattr(name, "id", "")) == "guarded"

    def _scope(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self._names.append(node.name)
        guards = sum(self._is_guard(d) for d in node.decorator_list)
        self._guards += guards
        self.generic_visit(node)
        self._guards -= guards
        self._names.pop()

    visit_ClassDef = visit_FunctionDef = _scope  # type: ignore[assignment]

    def visit_With(self, node: ast.With) -> None:
        guards = sum(self._is_guard(item.context_expr) for item in node.items)
        self._guards += guards
        self.generic_visit(node)
        self._guards -= guards

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in COLLECTIVE and not self._guards:
            on = node.func.value
            if getattr(on, "attr", getattr(on, "id", "")) in COMMUNICATORS:
                self.found.add(".".join(self._names))
        self.generic_visit(node)


def unguarded(text: str) -> set[str]:
    calls = Calls()
    calls.visit(ast.parse(text))
    return calls.found


def test_each_call_of_mpi_that_takes_no_deadline_is_guarded():
    """Commands (ringdp/cli) are people's own jobs, and what the store of torch.distributed asks has a deadline."""
    files = [p for p in LAYER.rglob("*.py") if "cli" not in p.parts]
    found = {(str(p.relative_to(LAYER)), name) for p in files for name in unguarded(p.read_text())}
    assert found == set(CALLED_INSIDE)


def test_a_call_outside_of_a_guard_is_seen():
    assert unguarded("@watch.guarded('x')\ndef f(comm):\n    comm.Dup()\n") == set()
    assert unguarded("def g(comm):\n    with watch.guarded('x'):\n        comm.Dup()\n") == set()
    assert unguarded("class A:\n    def f(self):\n        self.comm.Dup()\n") == {"A.f"}
