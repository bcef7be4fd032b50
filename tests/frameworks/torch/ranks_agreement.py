"""Ranks that do not mean the same: every rank hears of it, no parameter changes, and the job can go on."""

import pytest
import torch
from frameworks.torch.helpers import loss, named, parameters, reduced, wrap

import ringdp.torch as hvd
from ringdp.torch.vote import Vote


def last():
    return hvd.rank() == hvd.size() - 1


def refused(make, text):
    """`make()` gives (parameters, optimizer); their first exchange is refused with `text` on every rank."""
    params, optimizer = make()
    before = [p.detach().clone() for p in params]
    with pytest.raises(hvd.MismatchError) as error:
        loss(params).backward()
        optimizer.step()
    assert all(line in str(error.value) for line in text), str(error.value)
    assert f"rank {hvd.rank()}: " in str(error.value)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    assert reduced(params)
    optimizer.step()


def others():
    ranks = [str(rank) for rank in range(hvd.size() - 1)]
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}: "


def test_shapes_that_differ():
    def make():
        params = parameters((3, 6, 2) if last() else (3, 5, 2))
        return params, wrap(params)

    refused(make, [f"{others()}p1: float32[5]", f"rank {hvd.size() - 1}: p1: float32[6]"])


def test_dtypes_that_differ():
    def make():
        params = parameters((3,)) + parameters((5,), torch.float64 if last() else torch.float32)
        return params, wrap(params)

    refused(make, [f"{others()}p1: float32[5]", f"rank {hvd.size() - 1}: p1: float64[5]"])


def test_names_that_differ():
    def make():
        params = parameters()
        names = [("other" if last() and name == "p2" else name, p) for name, p in named(params)]
        return params, hvd.DistributedOptimizer(torch.optim.SGD(params, lr=1.0), named_parameters=names)

    refused(make, [f"{others()}p2: float32[2]", f"rank {hvd.size() - 1}: other: float32[2]"])


def test_a_parameter_more():
    def make():
        params = parameters((3, 5, 2, 1) if last() else (3, 5, 2))
        return params, wrap(params)

    refused(make, [f"rank {hvd.size() - 1}: p3: float32[1]"])


def test_layouts_that_differ():
    def make():
        p = torch.zeros(2, 3)
        params = [torch.nn.Parameter(p.t().contiguous().t() if last() else p)]
        return params, wrap(params)

    refused(make, ["p0: float32[2, 3], strides [1, 2]"])


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("op", hvd.Sum, "op Sum"),
        ("backward_passes_per_step", 2, "backward_passes_per_step 2"),
        ("gradient_predivide_factor", 2.0, "gradient_predivide_factor 2.0"),
        ("compression", hvd.Compression.bf16, "compression bf16"),
        ("bucket_bytes", 4096, "buckets of 4096 bytes"),
    ],
)
def test_options_that_differ(option, value, text):
    def make():
        params = parameters()
        return params, wrap(params, **({option: value} if last() else {}))

    refused(make, [text])


def test_bucket_bytes_of_the_environment(monkeypatch):
    """It takes effect, an argument wins, and ranks that have different ones hear of it."""

    def sizes(**options):
        params = parameters((16, 16, 16, 16))
        optimizer = wrap(params, **options)
        loss(params).backward()
        assert reduced(params)
        return [len(bucket.slots) for bucket in optimizer._exchange._plans.buckets]

    assert sizes() == [4]
    monkeypatch.setenv("RINGDP_BUCKET_BYTES", "128")
    assert sizes() == [2, 2] and sizes(bucket_bytes=64) == [1, 1, 1, 1]

    def make():
        monkeypatch.setenv("RINGDP_BUCKET_BYTES", "64" if last() else "128")
        params = parameters()
        optimizer = wrap(params)
        monkeypatch.delenv("RINGDP_BUCKET_BYTES")
        return params, optimizer

    refused(make, [f"{others()}options:", "buckets of 128 bytes", "buckets of 64 bytes"])


def test_the_same_optimizer_can_go_on_once_the_ranks_agree():
    params = parameters()
    params[0].requires_grad_(not last())
    optimizer = wrap(params)
    with pytest.raises(hvd.MismatchError, match="p0"):
        loss(params[1:]).backward()
        optimizer.step()
    params[0].requires_grad_(True)
    for _ in range(2):
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
        assert reduced(params)


def test_ranks_that_are_at_different_steps():
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    optimizer.step()
    if last():
        optimizer._exchange._steps += 1
    optimizer.zero_grad()
    before = [p.detach().clone() for p in params]
    with pytest.raises(
        hvd.MismatchError, match=r"the ranks differ in step \(1 to 2\).*No parameter was changed"
    ):
        loss(params).backward()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_what_the_vote_merges():
    """Over the wire: MIN, word by word."""
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    wire = optimizer._exchange._plans.wire
    mine = Vote(
        plan=7,
        generation=1,
        step=2,
        submitted=5 + hvd.rank(),
        in_plan=not last(),
        complete=True,
        go_on=hvd.rank() != 0,
    )
    handle = wire.world.engine.vote(0, wire.agreed(), mine.encode())
    assert wire.world.engine.wait(handle, 30)
    merged = Vote.decode(handle.words(), "this")
    assert (merged.submitted, merged.in_plan, merged.complete, merged.go_on) == (5, False, True, False)
    assert merged.commit and merged.finite and merged.replica is None
    optimizer.step()


def test_shutdown_and_init_between_steps():
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    optimizer.step()
    hvd.shutdown()
    assert not hvd.is_initialized()
    hvd.init()
    for _ in range(2):
        optimizer.zero_grad()
        loss(params).backward()
        assert reduced(params)
        optimizer.step()
