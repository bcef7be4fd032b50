"""Takes one guard out at a time, and sees that the tests notice: `make mutants` (after `make dev`).

A guard that nobody misses is not tested. Each row changes one place of this checkout, compiles what depends on it,
runs the tests that should turn red, and puts the place back. It takes a minute or two a row. Rows of TensorFlow, JAX
and Keras are left out, and named, where they are not installed beside ringdp: `.venv/bin/pip install -e
'.[test-frameworks]' --no-build-isolation`.

    python tests/faults/mutants.py                 all of them
    python tests/faults/mutants.py death stopped   some, by name
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from driver import phases  # noqa: E402
from driver.environ import environment  # noqa: E402

LIMIT = 900  # seconds for the tests of a row, which have limits of their own; a hang is a failure as well


@dataclass(frozen=True)
class Mutant:
    """A guard, and who misses it."""

    name: str
    file: str
    guard: str  # what is there, once
    without: str
    # A phase of tests/run.py, or a file of ranks, which then runs by itself on two of them; and -k.
    tests: tuple[str, str]


MUTANTS = (
    Mutant("death", "csrc/guard/watch.cc", "peer.seen_dead = is_gone(peer);", "peer.seen_dead = false;",
           ("faults", "1-killed-reduce-large-3")),
    Mutant("stopped", "csrc/guard/survey.cc", "process.state == 'T' || process.state == 't'", "process.state == '-'",
           ("faults", "3-stopped-reduce-large-3")),
    Mutant("deadline", "csrc/guard/roll_call.cc", "if (waited < options_.timeout) return false;", "return false;",
           ("unit", "at_the_deadline_the_error_names")),
    Mutant("end of those gone", "csrc/guard/roll_call.cc", "verdict_.is_gone && waited >= options_.timeout_if_gone",
           "false", ("faults --all", "stopped_by_default")),
    Mutant("roll call of other hosts", "csrc/guard/roll_call.cc", "    answer(*one);\n", "",
           ("unit", "who_has_not_come_is_named")),
    Mutant("who has left, and who is gone", "csrc/guard/roll_call.cc",
           "(seen.kind == Seen::left && (some_are_gone || some_are_late))", "false",
           ("native", "who_has_left_is_to_blame_but")),
    Mutant("sides that wait for each other", "csrc/guard/roll_call.cc",
           "  if (asks_for_others(call, culprits)) return;\n", "", ("unit", "left_out_an_operation_is_blamed")),
    Mutant("deaths are told to other hosts", "csrc/guard/alarm.cc",
           "  for (const int rank : listeners) dispatches_.send(rank, Dispatches::alarm, data);\n", "",
           ("cluster", "killed_on_another_host")),
    Mutant("stacks", "csrc/guard/survey.cc", "head.stack_signal <= SIGRTMAX) kill(", "false) kill(",
           ("faults", "4-asleep")),
    Mutant("patience of others", "csrc/guard/survey.cc", "until > now) seen.patience =", "until < 0) seen.patience =",
           ("faults", "4-patience")),
    Mutant("calls without a deadline", "csrc/guard/watch.cc", "if (!overdue.empty()) end_process(overdue);",
           "if (!overdue.empty()) print(overdue);", ("faults", "8-never_starts")),
    Mutant("crash", "csrc/guard/signals.cc", "    head.signal.store(number);\n    save();", "    save();",
           ("faults", "5-crashed")),
    Mutant("exception ends the job", "ringdp/world.py", "        _end_job(kind, value)\n", "        pass\n",
           ("faults", "6-an_exception-3")),
    Mutant("all recorders are brought", "ringdp/watch.py", "all=True)", "all=False)",
           ("faults", "recorders_of_the_living")),
    Mutant("the culprit's line comes last", "ringdp/cli/run.py", "    culprit.tell(name, code, _say)\n", "",
           ("faults", "1-killed")),
    Mutant("leaving is told", "csrc/engine/agree.cc", "  set.meetings().leave(false, steps_);\n", "",
           ("faults", "7-leaves_early")),
    Mutant("headers are compared", "csrc/collectives/run.cc", "    if (!wrong.empty()) fail_with(wrong);\n", "",
           ("unit", "neighbour_of_a_deviating")),
    Mutant("signatures are compared in a host", "csrc/agree/letters.cc",
           "    if (one.note.signature != first->signature) meeting.agreed = false;\n", "",
           ("faults --all", "9-shapes-small-2")),
    Mutant("signatures are compared between hosts", "csrc/agree/doubling.cc",
           "both_speak && heard.signature != note.signature", "false",
           ("unit", "a_difference_is_an_error_on_every_rank")),
    Mutant("the first verdict counts", "csrc/guard/watch.cc", "first = first_that(ends); first != nullptr",
           "first = nullptr; first != nullptr", ("unit", "who_is_killed_after_the_job_has_ended")),
    Mutant("checksums are compared", "csrc/collectives/checksums.cc", "if (added_[i] != told_[i]) return i;",
           "if (false) return i;", ("faults", "18-flipped")),
    Mutant("names in flight", "csrc/engine/calls.cc", "if (!in_flight_.add(s.process_set, s.key))",
           "if (!in_flight_.add(s.process_set, s.key) && false)", ("faults", "14-a_name_twice")),
    Mutant("no turn after the last", "csrc/engine/drive.cc", "  if (stop_) {\n    if (own &&",
           "  if (false) {\n    if (own &&", ("native", "nothing_is_tested_again")),
    Mutant("tensors of what breaks stay", "csrc/engine/ends.cc",
           "    operation.submission().handle->give_up_memory();\n", "", ("native", "tensors_stay_in_its_hands")),
    Mutant("failed requests are emptied", "csrc/transport/mpi/unit.cc",
           "  if (code != MPI_SUCCESS && request == MPI_REQUEST_NULL) *bits = 0;\n", "",
           ("unit", "request_that_has_failed")),
    Mutant("abort ends a process", "csrc/guard/signals.cc", "  if (number == SIGABRT) die_soon();\n", "",
           ("unit", "after_abort")),
    Mutant("gradients are looked at", "ringdp/torch/checks/window.py",
           "found = None if is_joined else finite.find_in_bucket(bucket)", "found = None", ("faults", "16-not_finite")),
    Mutant("drills strike before the look", "ringdp/torch/exchange.py",
           "            self._plans.wire.before_look(bucket)\n", "", ("faults", "16-not_finite")),
    Mutant("nobody goes on beside who is left behind", "ringdp/recovery.py",
           "            fence.confirm(lost)\n", "            pass\n", ("unit", "goes_on_beside_one_that_cannot")),
    Mutant("RINGDP_ELASTIC=0", "csrc/base/elastic.h", " && given != std::string(\"0\")", "",
           ("unit", "call_that_does_not_end")),
    Mutant("steps are compared", "ringdp/torch/vote.py", "cls.steps_differ(words) if", "False if",
           ("faults", "17-skipped")),
    Mutant("buckets are verified", "ringdp/torch/checks/verify.py", "    if len(counts) > 1:\n", "    if False:\n",
           ("faults", "19-flipped")),
    Mutant("replicas are compared", "ringdp/torch/checks/window.py", "self._differs |= vote.replicas_differ", "pass",
           ("faults", "20-replicas")),
    Mutant("gradients that are missing", "ringdp/torch/checks/missing.py", "        if self._raises:\n",
           "        if False:\n", ("faults", "14-no_gradient")),
    Mutant("the vote tells of stopping", "ringdp/torch/vote.py", "int(self.go_on), int(self.complete)",
           "1, int(self.complete)", ("faults", "24-asked_to_end_while")),
    Mutant("children have no job", "ringdp/world.py", "        _refuse_children(\"collective operations\")\n", "",
           ("faults", "25-calls_in_a_child")),
)  # fmt: skip

# Of the packages of frameworks, and of what they stand on.
MUTANTS += (
    Mutant("collectives of a program have an order", "ringdp/jax/order.py",
           "TokenSet({EFFECT: token})", "TokenSet({EFFECT: context.tokens_in.get(EFFECT)})",
           ("frameworks/jax/ranks_order.py", "differ_between_ranks")),
    Mutant("a failed program does not spoil the next", "ringdp/jax/order.py",
           "        del self.current_tokens[effect]\n", "        pass\n",
           ("frameworks/jax/ranks_errors.py", "test_mismatches")),
    Mutant("arrays of JAX are not written", "ringdp/jax/adapter.py",
           "return host_memory(like.shape, like.dtype)", "return like",
           ("frameworks/jax/ranks_operations.py", "test_sums and eager and float32")),
    Mutant("an all-gather's gradient is that of own rows", "ringdp/jax/autograd.py",
           "begin = sum(rows[: params[\"rank\"]])", "begin = 0",
           ("frameworks/jax/ranks_gradients.py", "test_allgather")),
    Mutant("lines of a pytree are compared", "csrc/submit/submission.cc",
           "  if (!layout.empty()) digest.add(layout);\n", "",
           ("frameworks/jax/ranks_errors.py", "test_a_leaf_differs")),
    Mutant("memory that failed under way stays", "csrc/xla/block.cc", "  if (given_up_) {\n", "  if (false) {\n",
           ("native", "fail_under_way")),
    Mutant("an average's gradient is divided", "ringdp/tensorflow/autograd.py",
           "scale[0] * scale[1] / (process_set.size() if op is Average else 1)", "scale[0] * scale[1]",
           ("frameworks/tensorflow/ranks_gradients.py", "test_reducescatter")),
    Mutant("a broadcast's gradient is the root's", "ringdp/torch/autograd.py",
           "mean if is_root else torch.zeros_like(mean)", "mean",
           ("frameworks/torch/ranks_operations.py", "gradients_through_broadcast")),
    Mutant("gradients of split work are summed", "ringdp/torch/parallel/autograd.py",
           "return _sum(grad, *ctx.how), None, None", "return grad, None, None",
           ("frameworks/torch/ranks_parallel.py", "test_copy_and_reduce")),
    Mutant("ranks vote on their gradients", "ringdp/flat.py",
           "if digest ^ complement != ALL_ONES:", "if False:", ("ranks/test_flat.py", "lists_that_differ")),
    Mutant("an overflow of one rank is all ranks'", "ringdp/flat.py",
           "bool(all_finite) if looks_before", "bool(is_finite) if looks_before",
           ("ranks/test_flat.py", "overflow_of_one_rank")),
    Mutant("Keras looks at what was exchanged", "ringdp/keras/loss_scale.py",
           "lambda reduced: keras_apply(self, reduced, variables)", "lambda _: keras_apply(self, grads, variables)",
           ("frameworks/keras/ranks_loss_scale.py", "test_an_overflow_on_one_rank")),
    Mutant("results are combined in their order", "ringdp/mapreduce.py",
           "else combine(a, b)\n", "else combine(b, a)\n", ("ranks/test_map_reduce.py", "each_reduction or blocks")),
)  # fmt: skip


def build() -> str:
    """What went wrong, or nothing."""
    done = subprocess.run(["make", "-s", "build"], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    return done.stderr[-2000:] if done.returncode else ""


def run_phase(phase: str, expression: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "tests/run.py"), *phase.split(), "-k", expression]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)


def run_file(file: str, expression: str) -> subprocess.CompletedProcess[str]:
    """On two ranks."""
    words = phases.under_mpirun(file, 2, [file], phases.Selection(expression), LIMIT).words
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=LIMIT, env=environment()
    )


def lacks(mutant: Mutant) -> str:
    """The framework that its tests need, if that is not installed here; or nothing."""
    parts = Path(mutant.tests[0]).parts
    needed = parts[1] if parts[0] == "frameworks" and len(parts) == 3 else ""
    return needed if needed and importlib.util.find_spec(needed) is None else ""


def notices(mutant: Mutant) -> tuple[bool, str]:
    """Whether some test fails without this guard, and the end of what they say."""
    path = ROOT / mutant.file
    text = path.read_text()
    if text.count(mutant.guard) != 1:
        return False, f"{mutant.file} has this {text.count(mutant.guard)} times, not once: {mutant.guard!r}"
    path.write_text(text.replace(mutant.guard, mutant.without))
    try:
        if mutant.file.startswith("csrc") and (error := build()):
            return False, f"it does not compile: {error}"
        where, expression = mutant.tests
        run = run_file if where.endswith(".py") else run_phase
        done = run(where, expression)
        lines = done.stdout.strip().splitlines()
        last = next(
            (line for line in reversed(lines) if "failed" in line or "passed" in line), done.stderr[-500:]
        )
        ran = " 0 failed" not in last and "failed" in last
        return ran and done.returncode != 0, last
    finally:
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"names: {', '.join(m.name for m in MUTANTS)}"
    )
    parser.add_argument("names", nargs="*")
    wanted = parser.parse_args().names
    if unknown := set(wanted) - {m.name for m in MUTANTS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    missed = []
    for mutant in MUTANTS:
        if wanted and mutant.name not in wanted:
            continue
        if framework := lacks(mutant):
            print(f"left out, as {framework} is not installed: {mutant.name!r}", flush=True)
            continue
        began = time.monotonic()
        noticed, last = notices(mutant)
        print(
            f"{'noticed' if noticed else 'NOT NOTICED'}: without {mutant.name!r} in {mutant.file}: {last} "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        if not noticed:
            missed.append(mutant.name)
    if error := build():
        print(f"the guards are back, but do not compile: {error}")
        return 1
    print(f"{len(missed)} not noticed{': ' + ', '.join(missed) if missed else ''}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
