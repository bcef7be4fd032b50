"""`ringdp bench`: arguments, exact inputs, arithmetic of the columns, and whole runs under `ringdp run`."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ringdp.cli import bench, inputs, measure, mpirun, table

OPS = ("sum", "prod", "min", "max", "avg")
DTYPES = tuple(measure.ITEMSIZE)
FOLD = {"sum": np.add, "avg": np.add, "min": np.minimum, "max": np.maximum, "prod": np.multiply}


def options(*words):
    return bench.parser().parse_args(["allreduce", *words])


# --- arguments ----------------------------------------------------------------------------------------------


def test_sizes_of_arguments():
    assert [bench.size_in_bytes(t) for t in ("4", "1K", "64M", "1g", "1.5K", "8KiB")] == [
        4, 1024, 64 << 20, 1 << 30, 1536, 8192,
    ]  # fmt: skip
    for wrong in ("", "x", "-4", "4T", "4 K"):
        with pytest.raises(Exception, match="is no size: write bytes, or 4K, 64M, 1G"):
            bench.size_in_bytes(wrong)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-b 4 -e 256 -f 4", [4, 16, 64, 256]),
        ("-b 4 -e 255 -f 4", [4, 16, 64]),
        ("-b 1 -e 9 -f 2", [4, 8]),  # whole elements, at least one, none twice
        ("-b 0 -e 8 -f 2 -d float64", [8]),
        ("-b 10 -e 40 -i 10 -d int8", [10, 20, 30, 40]),
        ("-b 1K -e 1K", [1024]),
    ],
)
def test_sizes_of_a_run(words, expected):
    assert list(bench.sizes(options(*words.split()))) == expected


def test_the_default_is_4_bytes_to_64_mebibytes_by_4():
    assert list(bench.sizes(options())) == [4**k for k in range(1, 14)]


def test_names_of_other_tools_are_taken():
    o = options(
        "-d", "half", "--iters", "3", "--warmup_iters", "0", "--check", "2", "--peers", "mpi,gloo,mpi"
    )
    assert (o.datatype, o.iters, o.warmup_iters, o.check, o.peers) == ("float16", 3, 0, 2, ["mpi", "gloo"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("-b 8 -e 4", "-b 8 is more than -e 4: give the smaller one to -b"),
        ("-f 1", "sizes must grow: give -f more than 1, or -i more than 0"),
        ("-i 0", "sizes must grow"),
        ("-f 2 -i 4", "give -f or -i, not both"),
        ("-d complex64", "'complex64' is not one of bool, uint8"),
        ("--peers nccl", "'nccl' is not one of mpi, gloo"),
        ("-n 0", "'0' is no number of 1 or more"),
        ("-o average", "invalid choice: 'average'"),
    ],
)
def test_errors_of_arguments(words, text, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(["allreduce", *words.split()])
    assert end.value.code == 2 and text in capsys.readouterr().err


def test_started_alone_it_restarts_itself_on_ranks(monkeypatch):
    from ringdp.cli import run

    calls = []
    monkeypatch.setattr(run, "main", lambda argv: calls.append(argv) or 0)
    monkeypatch.setattr(bench, "_starts_alone", lambda: True)
    assert bench.main(["allreduce", "-n", "3"]) == 0
    bench.main(["allreduce", "--ranks", "4", "-b", "8"])
    bench.main(["--ranks=3", "allreduce"])
    again = ["--", sys.executable, "-P", "-m", "ringdp", "bench"]
    assert calls[0] == ["-n", "2", *again, "allreduce", "-n", "3"]
    assert calls[1] == ["-n", "4", *again, "allreduce", "-b", "8"]
    assert calls[2] == ["-n", "3", *again, "allreduce"]


def test_under_a_launcher_it_does_not_restart(monkeypatch, capsys):
    for environ, alone in (
        ({}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, True),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, False),
    ):
        monkeypatch.setattr(os, "environ", environ)
        assert bench._starts_alone() is alone
    monkeypatch.setattr(bench, "_starts_alone", lambda: False)
    with pytest.raises(SystemExit):
        bench.main(["allreduce", "--ranks", "2"])
    assert "this already runs under a launcher" in capsys.readouterr().err


# --- exact inputs -------------------------------------------------------------------------------------------


def exact(values, dtype):
    """Whether every value is an integer that the dtype holds exactly (bfloat16: 8 bits of mantissa)."""
    if dtype == "bfloat16":
        return bool(np.all(np.abs(values) <= 256))
    return bool(np.all(values.astype(inputs.storage(dtype)).astype(np.int64) == values))


@pytest.mark.parametrize("ranks", [1, 2, 3, 33])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_partial_result_is_exact(dtype, op, ranks):
    if dtype == "bool" and op == "avg":
        return
    periods = [inputs.period(rank, ranks, op, dtype) for rank in range(ranks)]
    total = periods[0]
    for rank, period in enumerate(periods):
        assert exact(period, dtype)
        total = FOLD[op](total, period) if rank else total
        # Values are not negative and never shrink a sum or product, so what holds for all ranks holds for each subset.
        assert dtype == "bool" or exact(total, dtype)
    if dtype == "bool":
        total = total > 0
    if op == "avg":
        assert np.all(total % ranks == 0)
        total = total // ranks
    count = 2 * inputs.PERIOD + 3
    wanted = inputs.expected(ranks, op, dtype, count)
    assert wanted.shape == (count,) and wanted.dtype == inputs.storage(dtype)
    if dtype != "bool":
        assert np.array_equal(wanted, np.resize(total, count).astype(wanted.dtype))


@pytest.mark.parametrize("op", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_bool_follows_or_and_and(op, ranks):
    values = [inputs.input_of(rank, ranks, op, "bool", inputs.PERIOD) for rank in range(ranks)]
    fold = np.logical_or if op in ("sum", "max") else np.logical_and
    wanted = inputs.expected(ranks, op, "bool", inputs.PERIOD)
    assert np.array_equal(wanted, fold.reduce(values))
    assert 0 < np.count_nonzero(wanted) < inputs.PERIOD


@pytest.mark.parametrize("dtype", ["int8", "float32", "bfloat16"])
@pytest.mark.parametrize("op", ["sum", "prod", "max"])
def test_a_missing_rank_or_a_shift_is_seen(op, dtype):
    ranks, count = 3, 4096
    wanted = inputs.expected(ranks, op, dtype, count)
    values = [inputs.input_of(rank, ranks, op, dtype, count) for rank in range(ranks)]
    for left_out in range(ranks):
        partial = FOLD[op].reduce([v for r, v in enumerate(values) if r != left_out])
        assert np.count_nonzero(partial != wanted) > 0
        twice = FOLD[op](FOLD[op].reduce(values), values[left_out])
        assert op == "max" or np.count_nonzero(twice != wanted) > 0
    for shift in (1, 256, 1024):
        assert np.count_nonzero(np.roll(wanted, shift) != wanted) > 0


def test_too_many_ranks_for_an_average_is_said():
    with pytest.raises(
        ValueError, match="int8 cannot count 128 ranks exactly: check another dtype or give -c 0"
    ):
        inputs.period(0, 128, "avg", "int8")
    for ranks in (127, 128, 1000):
        many = sum(inputs.period(rank, ranks, "sum", "int8") for rank in range(ranks))
        assert 0 < many.max() <= 127


# --- the loop, on one rank that is made up ---------------------------------------------------------------------


class Comm:
    """A communicator of one."""

    rank, size = 0, 1

    def allreduce(self, value, op=None):
        return value

    def allgather(self, value):
        return [value]

    def Ibarrier(self):
        return SimpleNamespace(Test=lambda: True)

    def Barrier(self):
        pass


class Plain:
    """A contestant that does what an all-reduce on one rank does, or leaves out something."""

    def __init__(self, name="plain", spoil=None, spoil_input=False):
        self.name, self.spoil, self.spoil_input = name, spoil, spoil_input

    def refusal(self, dtype, op):
        return "it does not like minima" if op == "min" else None

    def array(self, values, dtype):
        return values.copy()

    def allreduce(self, x, op):
        y = x.copy()
        if self.spoil is not None:
            y[self.spoil] += 1
        if self.spoil_input:
            x[0] += 1
        return y

    def allreduce_(self, x, op):
        return x

    def numbers(self, x):
        return x

    def close(self):
        pass


def test_wrong_elements_are_counted():
    def wrong(one, in_place):
        return measure.wrong_elements(one, Comm(), "sum", "float32", 100, in_place)

    assert wrong(Plain(), False) == wrong(Plain(), True) == 0
    assert wrong(Plain(spoil=[3, 70]), False) == 2
    assert wrong(Plain(spoil_input=True), False) == 1
    assert wrong(Plain(spoil=[3, 70]), True) == 0  # only the out-of-place form is spoilt


def test_columns_and_bandwidths():
    assert measure.bandwidths(4_000_000, 1000.0, 1) == (4.0, 0.0)
    assert measure.bandwidths(4_000_000, 1000.0, 2) == (4.0, 4.0)
    assert measure.bandwidths(4_000_000, 1000.0, 4) == (4.0, 6.0)
    form = {"time_us": 1000.0, "algbw": 4.0, "busbw": 6.0, "wrong": 0, "ratio": 2.0}
    row = {
        "size": 4_000_000,
        "count": 1_000_000,
        "type": "float32",
        "redop": "sum",
        "root": -1,
        "contestant": "mpi",
    }
    words = table.line({**row, "out_of_place": form, "in_place": {**form, "wrong": None}}).split()
    assert words == [
        "4000000", "1000000", "float32", "sum", "-1", "1000.00", "4.00", "6.00", "0",
        "1000.00", "4.00", "6.00", "N/A", "mpi", "2.00", "/", "2.00",
    ]  # fmt: skip
    titles, names, units = table.heading().splitlines()
    assert titles.split() == ["#", "out-of-place", "in-place"]
    columns = ["time", "algbw", "busbw", "#wrong"]
    assert names.split() == [
        "#",
        "size",
        "count",
        "type",
        "redop",
        "root",
        *columns,
        *columns,
        "contestant",
        "ratio",
    ]
    end_of_busbw = table.line({**row, "out_of_place": form}).index("6.00") + len("6.00")
    assert names.index("busbw") + len("busbw") == end_of_busbw


def test_a_run_prints_writes_and_counts(capsys, tmp_path):
    file = tmp_path / "out.json"
    words = ["-b", "4", "-e", "64", "-n", "2", "-w", "1", "--json", str(file)]
    contestants = [("one", Plain("one")), ("two", Plain("two", spoil=[0])), ("three", "it is not installed")]
    assert bench.run(Comm(), contestants, options(*words), "Some MPI 1.0") == 3  # one in each of three sizes
    text = capsys.readouterr().out
    assert "Some MPI 1.0, ranks 1, hosts 1" in text
    assert "# three is left out: it is not installed" in text
    assert "# one      average busbw 0.000 GB/s, 0 wrong elements" in text
    assert "# two      average busbw 0.000 GB/s, 3 wrong elements" in text
    rows = json.loads(file.read_text())["rows"]
    assert [(r["size"], r["contestant"]) for r in rows] == [
        (s, c) for s in (4, 16, 64) for c in ("one", "two")
    ]
    assert rows[0]["out_of_place"]["ratio"] == 1.0 and rows[1]["out_of_place"]["wrong"] == 1


# --- whole runs -----------------------------------------------------------------------------------------------


def whole_run(*words, ranks=2):
    try:
        mpirun.find_mpirun(os.environ)
    except mpirun.LaunchError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "ringdp", "bench", "allreduce", "--ranks", str(ranks), *words]
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("OMPI_COMM", "PMI", "SLURM"))}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)


def rows_of(answer):
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return [line.split() for line in answer.stdout.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("ranks", "dtype", "op"), [(2, "float32", "sum"), (3, "float16", "avg"), (2, "bool", "min")]
)
def test_ringdp_beside_mpi_without_a_wrong_element(ranks, dtype, op):
    words = [
        "-b",
        "4",
        "-e",
        "64K",
        "-f",
        "16",
        "-n",
        "3",
        "-w",
        "1",
        "-d",
        dtype,
        "-o",
        op,
        "--peers",
        "mpi",
    ]
    rows = rows_of(whole_run(*words, ranks=ranks))
    names = ["ringdp"] if dtype == "float16" else ["ringdp", "mpi"]
    assert [row[13] for row in rows] == names * 4
    assert {row[8] for row in rows} == {row[12] for row in rows} == {"0"}


def test_gloo_and_bfloat16_with_torch():
    pytest.importorskip("torch")
    rows = rows_of(
        whole_run("-b", "64", "-e", "4K", "-f", "64", "-n", "3", "-d", "bfloat16", "--peers", "mpi,gloo")
    )
    assert [row[13] for row in rows] == ["ringdp", "gloo"] * 2
    assert {row[8] for row in rows} == {row[12] for row in rows} == {"0"}


def test_what_ringdp_refuses_is_said():
    answer = whole_run("-d", "bool", "-o", "avg")
    assert answer.returncode == 2
    assert "ringdp bench: error: bool has no average" in answer.stderr
