"""tests/perf without measuring: how numbers become ratios, verdicts, moves beyond noise, and the page."""

import copy
import json

import pytest
from perf import baseline, document, jobs, notes, targets
from perf.results import Missing, Number, Results, size_text

MIB = 1 << 20
C64 = 64 * MIB // 4


def point(entry, count, *us):
    return {"entry": entry, "count": count, "us": list(us), "wrong": 0}


def some_results():
    """Two jobs, two rounds each."""
    large = [
        point("ringdp", C64, 10_000.0, 12_000.0),
        point("mpi", C64, 33_000.0, 36_000.0),
        point("mpi-out", C64, 30_000.0, 36_000.0),
        point("floor-in-place", C64, 7_000.0, 7_200.0),
        point("ringdp", 1 * MIB, 800.0, 800.0),
        point("mpi", 1 * MIB, 400.0, 400.0),
    ]
    link = [
        point("raw-link", C64, 565_000.0, 565_000.0),
        point("ringdp", C64, 570_000.0, 580_000.0),
        point("mpi", C64, 1_150_000.0, 1_150_000.0),
    ]
    left_out = {"ringdp-shared": "this ringdp has no empty"}
    step = [
        {"entry": "plain", "us": [35_000.0, 36_000.0], "wrong": 0},
        {"entry": "ringdp", "us": [55_000.0, 52_000.0], "wrong": 0},
    ]
    return {
        "about": {"MPI": "Open MPI v5", "date": "2026-01-01", "processor": "two cores"},
        "jobs": {
            "large": {"ranks": 2, "points": large, "left_out": left_out},
            "link 2x1": {"ranks": 2, "points": link, "left_out": {}},
            "link 4x1": {"skipped": "making hosts by network namespaces needs root"},
            "four": {"failed": "exit code 1; see build/perf/four.log"},
            "step": {"ranks": 2, "points": step, "left_out": {}, "counters": STEADY},
            "memory plain": {"peak": [600 * MIB, 601 * MIB]},
            "memory ringdp": {"peak": [640 * MIB, 620 * MIB]},
            "idle": {"ranks": 2, "engine": [0.001, 0.004], "others": [0.0, 0.0]},
        },
    }


STEADY = {"named": 0.0, "buckets": 5.0, "votes": 1.0}


@pytest.fixture
def results():
    return Results(some_results())


def target(beginning):
    (found,) = [t for t in targets.TARGETS if t.what.startswith(beginning)]
    return found


# --- numbers ---


def test_a_ratio_is_taken_round_by_round(results):
    number = results.ratio("large", "mpi", "ringdp", C64)
    assert number.rounds == (3.3, 3.0)
    assert number.value == pytest.approx(3.15)
    assert number.spread == pytest.approx(0.15 / 3.15)


def test_the_faster_form_of_mpi_counts(results):
    assert results.time("large", "best mpi", C64).rounds == (30_000.0, 36_000.0)
    assert results.time("large", "best mpi", 1 * MIB).rounds == (400.0, 400.0)


@pytest.mark.parametrize(
    ("job", "entry", "reason"),
    [
        ("large", "ringdp-shared", "ringdp-shared: this ringdp has no empty"),
        ("large", "gloo", "gloo: not measured"),
        ("link 4x1", "ringdp", "skipped: making hosts by network namespaces needs root"),
        ("four", "best mpi", "failed: exit code 1; see build/perf/four.log"),
        ("small", "ringdp", "not run"),
    ],
)
def test_what_is_missing_says_why(results, job, entry, reason):
    with pytest.raises(Missing) as error:
        results.time(job, entry, C64)
    assert str(error.value) == reason


def test_sizes_are_written_as_people_do():
    assert [size_text(n) for n in (1, 256, 1024, 16384, 393216, C64)] == [
        "4 B", "1 KiB", "4 KiB", "64 KiB", "1.5 MiB", "64 MiB",
    ]  # fmt: skip


# --- targets ---


@pytest.mark.parametrize(
    ("beginning", "verdict"),
    [
        ("one host, ordinary tensor, 64 MiB", "3 ×, met"),
        ("the same, 64 KiB to 16 MiB", "0.50 ×, **missed**"),
        ("one host, tensor in shared memory, 64 MiB", "ringdp-shared: this ringdp has no empty"),
        ("limited link, 2 hosts", "0.98 ×, met"),
        ("limited link, 4 hosts", "skipped: making hosts by network namespaces needs root"),
        ("training step: more than plain", "18 ms, met"),
        ("its peak memory", "39 MiB, **missed**"),
        ("idle engine", "0.40 %, met"),
        ("control messages", "1, met"),
        ("four ranks", "not run"),
    ],
)
def test_verdicts(results, beginning, verdict):
    assert document.verdict(target(beginning), results) == verdict


def test_a_bound_is_not_met_by_rounding():
    one = target("one host, ordinary tensor, 64 MiB")
    assert not one.met(Number((2.999,)))
    assert one.met(Number((3.0,)))
    assert not target("idle engine").met(Number((0.501,)))


def test_the_worst_size_is_the_slowest_or_the_longest():
    numbers = {"a": Number((1.0,)), "b": Number((3.0,)), "c": Number((2.0,))}
    assert targets.worst(numbers, highest=False) == Number((1.0,), "a")
    assert targets.worst(numbers, highest=True) == Number((3.0,), "b")
    with pytest.raises(Missing):
        targets.worst({}, highest=True)


def test_every_target_names_a_scenario_that_runs_its_jobs():
    assert {t.scenario for t in targets.TARGETS} == set(jobs.SCENARIOS)
    names = [job.name for scenario in jobs.SCENARIOS.values() for job in scenario]
    assert len(names) == len(set(names))


# --- noise ---


def test_noise_grows_with_the_spread_of_both_runs():
    assert baseline.noise(0.0, 0.0) == baseline.LEAST
    assert baseline.noise(0.1, 0.05) == pytest.approx(0.3)


def kept(ratio, spread=0.0):
    return {"ratio": ratio, "spread": spread}


@pytest.mark.parametrize(
    ("before", "now", "moved"),
    [
        (kept(2.0), kept(1.7), "worse"),
        (kept(2.0), kept(2.3), "better"),
        (kept(2.0), kept(1.9), None),
        (kept(2.0, 0.1), kept(1.7, 0.05), None),  # spreads of 10 and 5 %: 30 % is noise
        (kept(2.0, 0.1), kept(1.4, 0.05), "worse"),
        (kept(0.5), kept(0.5), None),
    ],
)
def test_what_moved_beyond_noise(before, now, moved):
    found = baseline.moves({"x": before, "gone": kept(1.0)}, {"x": now, "new": kept(1.0)})
    assert [str(move).split()[0] for move in found] == ([moved] if moved else [])


def test_the_worst_move_comes_first():
    before = {name: kept(1.0) for name in "abc"}
    found = baseline.moves(before, {"a": kept(0.8), "b": kept(2.0), "c": kept(0.5)})
    assert [move.name for move in found] == ["c", "a", "b"]
    assert str(found[0]) == "worse  c: 1 -> 0.5 (-50 %, noise 10 %)"


def test_ratios_are_reference_to_ours(results):
    found = baseline.ratios(results)
    assert found["large 64 MiB: best mpi / ringdp"].rounds == (3.0, 3.0)
    assert found["link 2x1 64 MiB: raw-link / ringdp"].value == pytest.approx(0.98268, abs=1e-4)
    assert found["step: plain / ringdp"].value == pytest.approx((35 / 55 + 36 / 52) / 2)
    assert found["memory: plain / ringdp"].value == pytest.approx(601 / 640)
    assert not [name for name in found if "gloo" in name or name.endswith("/ mpi")]


def test_16_bit_tensors_are_compared_with_float32_of_the_same_form():
    assert "ringdp-shared:float32" in baseline.references("types", "ringdp-shared:bfloat16")
    assert "ringdp:float32" not in baseline.references("types", "ringdp-shared:bfloat16")
    assert "ringdp:float32" not in baseline.references("types", "ringdp:float32")


def test_the_baseline_of_one_mpi_leaves_the_other_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "FILE", tmp_path / "baseline.json")
    baseline.save("openmpi", {"a": kept(1.0)})
    baseline.save("mpich", {"b": kept(2.0)})
    baseline.save("openmpi", {"c": kept(3.0)})
    assert json.loads(baseline.FILE.read_text()) == {"mpich": {"b": kept(2.0)}, "openmpi": {"c": kept(3.0)}}
    assert baseline.load("mpich") == {"b": kept(2.0)}
    assert baseline.load("none") == {}


# --- results and page ---


def test_results_are_kept_as_they_were_measured(tmp_path, monkeypatch, results):
    from perf import results as module

    monkeypatch.setattr(module, "FOLDER", tmp_path)
    results.jobs["idle"]["engine"] = [0.00123456789]
    results.save("openmpi")
    again = Results.load("openmpi")
    assert again.jobs["idle"]["engine"] == [0.0012346]
    assert again.jobs["large"] == some_results()["jobs"]["large"]
    assert Results.load("mpich") is None


def test_the_page_has_all_rows_tables_notes_and_reasons(results):
    other = some_results()
    other["about"] = {"MPI": "MPICH 5", "date": "2026-01-02"}
    del other["jobs"]["large"]
    text = document.document(
        {"openmpi": results, "mpich": Results(other)},
        {"targets": "Missed because of the moon.", "large": "Beside the table."},
        ["step-time.svg"],
    )
    rows = [line for line in text.splitlines() if line.startswith("|") and "make bench ARGS" in line]
    for one in targets.TARGETS:
        (row,) = [line for line in rows if line.startswith(f"| {one.what} |")]
        assert row.count("|") == 6  # what, target, two columns, command
        assert f'`make bench ARGS="{one.scenario}"`' in row
    assert "| what | target | Open MPI | MPICH | repeat with |" in text
    assert "| 64 MiB | 11,000 | 33,000 | 7,100 |" in text  # ringdp, the better MPI, the floor
    assert "| 64 MiB | 0.95 | 0.93 | 0.47 |" in text  # Gbit/s
    assert "| ringdp | 53.5 | – | 640 |" in text
    assert "Left out: ringdp, shared memory (this ringdp has no empty)." in text
    assert "Missed because of the moon." in text and text.index("the moon") > text.index("## Targets")
    assert "pictures/step-time.svg" in text and "line-rate.svg" not in text
    assert "MPICH: not run." in text
    assert "None" not in text


def test_the_page_depends_on_nothing_else(results):
    once = document.document({"openmpi": results}, {})
    assert document.document({"openmpi": Results(copy.deepcopy(some_results()))}, {}) == once


def test_notes_go_to_their_places_and_none_is_lost():
    parts = notes.parse("for readers\n\n## how\n\na\n\n### b\n\n## link\nc\n")
    assert parts == {"how": "a\n\n### b", "link": "c"}
    with pytest.raises(ValueError, match="'elsewhere' is not one of how, targets"):
        notes.parse("## elsewhere\n")
    with pytest.raises(ValueError, match="comes twice"):
        notes.parse("## how\n## how\n")
    assert "how" in notes.parse(notes.FILE.read_text())


# --- jobs ---


def test_a_quick_job_is_a_shorter_one(tmp_path):
    (job,) = jobs.SCENARIOS["large"]
    words, quick = (job.words(q, tmp_path / "floors.so", tmp_path / "out") for q in (False, True))

    def option(words, name):
        return words[words.index(name) + 1]

    assert set(option(quick, "--counts").split(",")) < set(option(words, "--counts").split(","))
    assert int(option(quick, "--rounds")) < int(option(words, "--rounds"))
    assert float(option(quick, "--seconds")) < float(option(words, "--seconds"))
    assert option(quick, "--entries") == option(words, "--entries")


def test_the_floors_compute_exact_sums(tmp_path):
    """Threads stand for ranks: the floors know only addresses."""
    import ctypes
    import threading

    import numpy as np
    from perf import floor

    library = ctypes.CDLL(str(floor.build(tmp_path)))
    size = ctypes.c_size_t
    for ranks in (2, 3, 4):
        for count in (1, 17, 5000):
            inputs = [np.arange(count, dtype=np.float32) * (rank + 1) for rank in range(ranks)]
            stride = (4 * count + 4095) // 4096 * 4096
            shared = np.zeros(floor.TEAM + stride * ranks + 64, np.uint8)
            start = -shared.ctypes.data % 64  # cache lines, as in mapped memory
            base = shared.ctypes.data + start
            placed = [
                shared[start + floor.TEAM + stride * r :][: 4 * count].view(np.float32) for r in range(ranks)
            ]
            for to, given in zip(placed, inputs, strict=True):
                to[:] = given
            area = np.zeros(floor.TEAM + 3 * 4096 * ranks + 64, np.uint8)
            area_base = area.ctypes.data + -area.ctypes.data % 64
            ordinary = [given.copy() for given in inputs]

            def work(rank, base=base, stride=stride, ranks=ranks, count=count, area=area_base, own=ordinary):
                library.in_place(ctypes.c_void_p(base), size(stride), rank, ranks, size(count))
                tensor = ctypes.c_void_p(own[rank].ctypes.data)
                library.staged(ctypes.c_void_p(area), size(1024), rank, ranks, tensor, size(count))

            threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wanted = np.arange(count, dtype=np.float32) * (ranks * (ranks + 1) // 2)
            for rank in range(ranks):
                assert np.array_equal(placed[rank], wanted), (ranks, count, rank)
                assert np.array_equal(ordinary[rank], wanted), (ranks, count, rank)


# --- frameworks ---


def test_the_figures_of_frameworks_stand_beside_numpys():
    from perf import frameworks

    def point(entry, size, *us):
        return {"entry": entry, "bytes": size, "us": us, "wrong": 0}

    points = [point("NumPy", 4, 2.0, 4.0, 3.0), point("JAX", 4, 6.0), point("JAX", 64 * MIB, 30_000.0)]
    measured = {"points": points, "left_out": {"PyTorch": "No module named 'torch'"}}
    about = {"date": "2026-01-02", "processor": "a", "MPI": "b", "busy with others": "0.1 processes"}
    text = frameworks.section(measured, {"import a": 0.01, "import b": 0.25}, about)
    assert "| NumPy | 3 | 1 × | – | – |" in text and "| JAX | 6 | 2 × | 30 | – |" in text
    assert "Left out: PyTorch (No module named 'torch')." in text and "at most 0.3 s: met" in text
    assert "`import a` 0.01 s, `import b` 0.25 s" in text
    assert "missed" in frameworks.section(measured, {"import a": 0.01, "import b": 0.31}, about)
    page = frameworks.PAGE.read_text(encoding="utf-8")
    assert page.count(frameworks.BEGIN) == page.count(frameworks.END) == 1
