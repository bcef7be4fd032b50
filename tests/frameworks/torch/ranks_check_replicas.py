"""`check_replicas_every` and `verify_every`: ranks whose parameters, or reduced buckets, are not the same bits."""

import pytest
import torch
from frameworks.torch.helpers import loss, named, parameters, same_on_all_ranks, wrap

import ringdp.torch as hvd
from ringdp import world
from ringdp.torch.comm_hooks import allreduce_hook
from ringdp.torch.wire import Wire


def last():
    return hvd.size() - 1


def step(params, optimizer):
    optimizer.zero_grad()
    loss(params).backward()
    optimizer.step()


def same_text(error):
    return len(set(hvd.allgather_object(str(error)))) == 1


def flip(tensor, element=0):
    """The lowest bit of one element."""
    with torch.no_grad():
        tensor.view(-1).view(torch.int32)[element] ^= 1


def negate_zero(params):
    params[1].data[2] = -0.0


def swap(params):
    params[0].data, params[1].data = params[1].data.clone(), params[0].data.clone()


def turn(params):
    params[2].data = params[2].data.t().contiguous()


CHANGES = {
    "bit": (lambda params: flip(params[1].data, 4), "p1", 1),
    "sign_of_zero": (negate_zero, "p1", 1),
    "swapped": (swap, "p0", 2),
    "transposed": (turn, "p2", 1),
}


def three():
    """Two of one shape, with zeros in the second, and one that is square."""
    first, second = torch.arange(6.0), torch.arange(6.0) + 9
    second[2] = 0.0
    return [torch.nn.Parameter(p) for p in (first, second, torch.arange(4.0).view(2, 2))]


@pytest.mark.host_only
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "options", [{}, {"shard": True}, {"shard": "parameters"}], ids=["", "elements", "parameters"]
)
def test_the_minority_is_named(change, options):
    params = three()
    optimizer = wrap(params, check_replicas_every=1, **options)
    act, parameter, count = CHANGES[change]
    if hvd.rank() == last():
        act(params)
    before = [p.detach().clone() for p in params]
    with pytest.raises(hvd.ReplicaError) as error:
        loss(params).backward()
    found = error.value
    assert found.parameter == parameter and found.step == 0 and same_text(found)
    assert f"the first that differs is {parameter}: float32[" in str(found)
    assert (f"({count} parameters differ)" in str(found)) == (count > 1)
    others = list(range(last()))
    if hvd.size() == 2:
        assert found.ranks == [] and found.groups == [[0], [1]]
        assert "no group of equal ones is the largest: rank 0; rank 1" in str(found)
    else:
        assert found.ranks == [last()] and found.groups == [others, [last()]]
        assert f"the parameters of rank {last()} differ from those of ranks 0" in str(found)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    hvd.broadcast_parameters(named(params), root_rank=0)
    for _ in range(2):
        step(params, optimizer)
    assert same_on_all_ranks(params)


@pytest.mark.parametrize("way", ["plain", "two_passes", "late"])
def test_every_few_steps(way):
    """At steps 0, 3, 6; with one vote in a step or two."""
    params = parameters()
    passes = 2 if way == "two_passes" else 1
    optimizer = wrap(params, check_replicas_every=3, backward_passes_per_step=passes)

    def one():
        optimizer.zero_grad()
        for _ in range(passes):
            loss(params[1:] if way == "late" and hvd.rank() == 0 else params).backward()
        optimizer.step()

    one()
    if hvd.rank() == last():
        params[2].data[1] += 1
    for _ in range(2):
        one()
    with pytest.raises(hvd.ReplicaError, match="step 3: .*p2: float32") as error:
        one()
    assert error.value.step == 3


@pytest.mark.host_only
def test_it_sends_nothing_but_the_vote():
    params = parameters()
    optimizer = wrap(params, check_replicas_every=1)
    for _ in range(3):
        step(params, optimizer)
    before = world.current().engine.counters()
    for _ in range(3):
        step(params, optimizer)
    after = world.current().engine.counters()
    assert {what: after[what] - before[what] for what in ("votes", "named")} == {"votes": 3, "named": 0}


def test_a_rank_that_has_joined_is_not_asked():
    params = parameters()
    optimizer = wrap(params, check_replicas_every=1)
    for _ in range(1 + (hvd.rank() == last())):
        step(params, optimizer)
    assert hvd.join() == last()
    with pytest.raises(hvd.ReplicaError):  # until it is told
        loss(params).backward()
    hvd.broadcast_parameters(named(params), root_rank=last())
    step(params, optimizer)


# --- verify_every ---

WAYS = {
    "plain": {},
    "three_buckets": {"bucket_bytes": 16},
    "bf16": {"compression": hvd.Compression.bf16},
    "max": {"op": hvd.Max},
    "hook": {"hook": allreduce_hook},
    "elements": {"shard": "elements"},
    "weighed": {"weigh": True},
}


class Training:
    def __init__(self, hook=None, weigh=False, sizes=(70_000, 3, 5, 2), **options):
        self.params = parameters(sizes)
        self.optimizer, self.weigh = wrap(self.params, **options), weigh
        self.random = torch.Generator().manual_seed(hvd.rank())
        if hook:
            self.optimizer.register_comm_hook(None, hook)

    def step(self):
        """With gradients whose sum depends on the order in which they are added."""
        self.optimizer.zero_grad()
        if self.weigh:
            self.optimizer.weigh(3)
        sum((p * torch.randn(p.shape, generator=self.random)).sum() for p in self.params).backward()
        self.optimizer.step()


@pytest.mark.parametrize("way", WAYS)
def test_all_is_well(way, monkeypatch):
    done = []
    again = Wire.submit_again
    monkeypatch.setattr(
        Wire, "submit_again", lambda self, flat, b: done.append(b.index) or again(self, flat, b)
    )
    verified, plain = Training(verify_every=2, **WAYS[way]), Training(**WAYS[way])
    for _ in range(6):
        verified.step()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(verified.params, plain.params, strict=True))
    turns = len(verified.optimizer._exchange._plans.buckets)
    assert (turns > 1) == (way == "three_buckets")
    assert done == ([] if way == "hook" else [n % turns for n in range(3)])


class Flipping:
    """A bucket that comes back with a bit that has flipped."""

    def __init__(self, future, flat):
        self._future, self._flat = future, flat

    def wait(self):
        self._future.wait()
        self._flat.view(torch.uint8)[1] ^= 1


@pytest.mark.host_only
@pytest.mark.parametrize("where", ["one", "all"])
@pytest.mark.parametrize("way", ["plain", "three_buckets", "elements", "hook"])
def test_a_bit_that_flips(way, where, monkeypatch):
    training = Training(verify_every=3, **WAYS[way])
    for _ in range(3):
        training.step()
    before = [p.detach().clone() for p in training.params]
    name = "submit_by" if way == "hook" else "submit"
    submit = getattr(Wire, name)

    def flipped(self, *given):
        future, bucket = submit(self, *given), given[-1]
        if not (where == "all" or hvd.rank() == last()):
            return future
        if way == "hook":
            return Flipping(future, bucket.buffer())
        return Flipping(future, bucket.flat[self.own_part(bucket)])

    monkeypatch.setattr(Wire, name, flipped)
    if way == "hook" and where == "all":
        training.step()  # nobody knows better
        return
    with pytest.raises(hvd.VerificationError) as error:
        training.step()
    found = error.value
    assert same_text(found) and str(found).endswith("No parameter was changed")
    assert f"step 3: bucket {found.bucket} (" in str(found)
    assert found.bucket == (1 if way == "three_buckets" else 0)
    if where == "one":
        known = way != "hook" or hvd.size() > 2
        assert found.ranks == ([last()] if known else [])
    elif way == "elements":
        assert found.ranks == list(range(hvd.size()))
    else:
        assert found.ranks == [] and "alike on all ranks: some rank added wrongly" in str(found)
    monkeypatch.undo()
    assert all(torch.equal(p, b) for p, b in zip(training.params, before, strict=True))
    training.step()
    assert same_on_all_ranks(training.params)


def test_while_others_have_joined():
    for op in (hvd.Average, hvd.Min):
        training = Training(verify_every=1, op=op)
        for _ in range(1 + 2 * hvd.rank()):
            training.step()
        last_one = hvd.join()
        hvd.broadcast_parameters(named(training.params), root_rank=last_one)
        training.step()
        assert same_on_all_ranks(training.params)
