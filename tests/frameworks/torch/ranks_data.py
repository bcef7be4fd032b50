"""Samplers and metrics whose ranks are those of the job."""

import math

import numpy as np
import pytest
import torch
from counting import counted

import ringdp
import ringdp.torch as hvd
from ringdp.torch.data import BalancedBatchSampler, DistributedSampler, measured_imbalance


def of_all(mine):
    return [i for theirs in hvd.allgather_object(list(mine)) for i in theirs]


def test_samples_are_dealt_out_to_the_ranks():
    sampler = DistributedSampler(range(23), pad=False, seed=5)
    sampler.set_epoch(1)
    assert sorted(of_all(sampler)) == list(range(23))
    assert len(sampler) == len(list(sampler))
    padded = DistributedSampler(range(23))
    assert len(of_all(padded)) == -(-23 // hvd.size()) * hvd.size() == len(padded) * hvd.size()


def test_balanced_batches():
    costs = [(7 * i) % 31 + 1 for i in range(120)]
    sampler = BalancedBatchSampler(None, costs, batch_size=4)
    mine = list(sampler)
    assert sorted(i for batch in of_all(mine) for i in batch) == list(range(120))
    assert len(set(hvd.allgather_object(len(mine)))) == 1
    steps = zip(*hvd.allgather_object([sum(costs[i] for i in batch) for batch in mine]), strict=True)
    waited = sum(max(step) * hvd.size() - sum(step) for step in steps)
    assert sampler.imbalance().idle_fraction == pytest.approx(waited / (waited + sum(costs)))


def test_ranks_with_other_costs():
    with pytest.raises(
        hvd.MismatchError, match=r"BalancedBatchSampler: the ranks differ.*\n  rank 0: 4 costs"
    ):
        BalancedBatchSampler(None, [1, 2, 3, hvd.rank()], batch_size=1)
    with pytest.raises(hvd.MismatchError, match=r"rank 1: .*'seed': 1"):
        BalancedBatchSampler(None, [1, 2, 3, 4], batch_size=1, seed=hvd.rank())


def test_measured_times():
    seconds = [1.0, 2.0] if hvd.rank() == 0 else [0.5, 1.0]
    found = measured_imbalance(seconds)
    mean = (1 + 0.5 * (hvd.size() - 1)) / hvd.size()
    assert found.ranks == hvd.size() and found.steps == 2 and found.unit == "seconds"
    assert found.worst_ratio == found.mean_ratio == 1 / mean
    assert found.idle_fraction == pytest.approx(1 - mean)
    with pytest.raises(hvd.MismatchError, match="the ranks have measured 1, 2"):
        measured_imbalance([1.0] * (hvd.rank() + 1))


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_are_weighted_by_samples():
    r, n = hvd.rank(), hvd.size()
    weights = [2**i for i in range(n)]
    got = hvd.average_metrics(
        {
            "loss": torch.tensor(float(r), requires_grad=True),
            "accuracy": (torch.tensor(3 * r), weights[r]),
            "numpy": np.float32(r),
            "half": torch.tensor([1.5], dtype=torch.bfloat16),
        },
        weight=weights[r],
    )
    total = sum(weights)
    assert got == {
        "loss": sum(i * w for i, w in enumerate(weights)) / total,
        "accuracy": sum(3 * i for i in range(n)) / total,
        "numpy": sum(i * w for i, w in enumerate(weights)) / total,
        "half": 1.5,
    }
    assert list(got) == ["loss", "accuracy", "numpy", "half"] and all(type(v) is float for v in got.values())
    assert hvd.average_metrics({"loss": r}) == {"loss": (n - 1) / 2}
    assert ringdp.average_metrics({}) == {}


def test_metrics_of_ranks_with_other_numbers_of_samples_equal_those_of_the_joined_batch():
    samples = torch.arange(20.0, dtype=torch.float64)
    bounds = [0, 3, 20] if hvd.size() == 2 else [0, 3, 3, 11, 20][: hvd.size()] + [20]
    mine = samples[bounds[hvd.rank()] : bounds[hvd.rank() + 1]]
    got = hvd.average_metrics(
        {"mean": mine.mean(), "even": ((mine % 2 == 0).sum(), len(mine))}, weight=len(mine)
    )
    assert got == {"mean": samples.mean().item(), "even": 0.5}


def test_a_rank_without_samples_counts_for_nothing():
    last = hvd.rank() == hvd.size() - 1
    metrics = {"loss": math.nan if last else 2.0, "accuracy": (math.nan if last else 1, 0 if last else 4)}
    assert hvd.average_metrics(metrics, weight=0 if last else 3) == {"loss": 2.0, "accuracy": 0.25}
    nobody = hvd.average_metrics({"loss": 1.0}, weight=0)
    assert math.isnan(nobody["loss"])


def test_nan_and_infinity_are_seen():
    got = hvd.average_metrics({"a": math.nan if hvd.rank() else 0.0, "b": math.inf, "c": 1.0})
    assert math.isnan(got["a"]) and got["b"] == math.inf and got["c"] == 1.0


def test_the_order_of_names_may_differ():
    names = ["a", "b", "c"] if hvd.rank() else ["c", "a", "b"]
    got = hvd.average_metrics({k: float(ord(k)) for k in names})
    assert got == {k: ord(k) for k in "abc"} and list(got) == names


def test_ranks_with_other_metrics():
    others = {"loss": 1.0, "accuracy" if hvd.rank() else "acc": 1.0}
    lacking = ", ".join(map(str, range(1, hvd.size())))
    text = rf"different metrics:\n  'acc' is missing on ranks? {lacking}\n  'accuracy' is missing on rank 0$"
    for _ in range(2):
        with pytest.raises(hvd.MismatchError, match=text):
            hvd.average_metrics(others)
    with pytest.raises(hvd.MismatchError, match=r"different metrics:\n  'more' is missing on rank 0$"):
        hvd.average_metrics({"loss": 1.0} | ({"more": 1.0} if hvd.rank() else {}))
    assert hvd.average_metrics({"loss": 1.0}) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("value", "weight", "text"),
    [
        (
            torch.zeros(3),
            1,
            r"rank 1: average_metrics: 'loss': needs a number .* not a Tensor of shape \[3\]",
        ),
        ("good", 1, "not a str"),
        ((1, 2, 3), 1, r"a pair \(sum, count\), not 3 values"),
        ((1, -2), 1, "0 or more samples, not -2.0"),
        (1.0, -1, "0 or more samples, not -1.0"),
    ],
)
def test_what_is_no_metric_fails_on_every_rank(value, weight, text):
    if hvd.rank() == 1:
        with pytest.raises(hvd.UsageError, match=text):
            hvd.average_metrics({"loss": value}, weight)
    else:
        with pytest.raises(hvd.PeerError, match="1 of the ranks gave a value that is no number"):
            hvd.average_metrics({"loss": 1.0}, 1)


def test_a_rank_that_has_joined_counts_for_nothing():
    last = hvd.size() - 1
    if hvd.rank() == last:
        hvd.join()
        return
    assert hvd.average_metrics({"rank": hvd.rank(), "pair": (hvd.rank(), 2)}, weight=5) == {
        "rank": (last - 1) / 2,
        "pair": (last - 1) / 4,
    }
    assert hvd.allgather_object(hvd.rank()) == list(range(last))
    if last > 1:
        with pytest.raises(hvd.MismatchError, match=r"'b' is missing on rank 0$"):
            hvd.average_metrics({"a": 1, "b": 2} if hvd.rank() else {"a": 1})
    hvd.join()


def test_metrics_of_a_process_set():
    ranks = [0, hvd.size() - 1]
    chosen = hvd.add_process_set(ranks)
    if chosen.included():
        assert hvd.average_metrics({"rank": hvd.rank()}, process_set=chosen) == {"rank": sum(ranks) / 2}
        text = rf"'b' is missing on rank {ranks[-1]}"
        with pytest.raises(hvd.MismatchError, match=text):
            hvd.average_metrics({"a" if hvd.rank() else "b": 0}, process_set=chosen)
        sampler = DistributedSampler(range(10), process_set=chosen, shuffle=False)
        assert list(sampler) == list(range(ranks.index(hvd.rank()), 10, 2))
    else:
        with pytest.raises(hvd.UsageError, match="none of ProcessSet"):
            len(DistributedSampler(range(10), process_set=chosen))
    assert hvd.remove_process_set(chosen)


def test_one_operation_for_all_metrics():
    assert counted(lambda: hvd.average_metrics({"a": 1.0, "b": (1, 2), "c": 2.0}))["named"] == 1
