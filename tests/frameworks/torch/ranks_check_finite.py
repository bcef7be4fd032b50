"""`check_finite`: an inf or NaN of one rank is named on all, before the exchange spreads it; then no rank steps, or all
do with zeros in its place. All inputs are exact.
"""

import math

import pytest
import torch
from frameworks.torch.helpers import gradient, loss, named, parameters, same_on_all_ranks, wrap

import ringdp.torch as hvd
from ringdp.torch import device
from ringdp.torch.comm_hooks import allreduce_hook

INF, NAN = math.inf, math.nan
AT = 1, 3  # parameter, element


def culprit():
    return hvd.size() - 1


class Halved:
    """A compression of the user's own."""

    @staticmethod
    def compress(tensor):
        return tensor * 0.5, None

    @staticmethod
    def decompress(tensor, context):
        return tensor * 2


WAYS = {
    "plain": {},
    "three_buckets": {"bucket_bytes": 16},
    "sum_bf16": {"op": hvd.Sum, "compression": hvd.Compression.bf16},
    "min": {"op": hvd.Min},
    "own_compression": {"compression": Halved},
    "hook": {"hook": allreduce_hook},
    "elements": {"shard": "elements"},
    "parameters": {"shard": "parameters"},
    "two_passes": {"backward_passes_per_step": 2},
    "weighed": {"weigh": True},
}


def momentum(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.5)


class Training:
    """Steps of one optimizer, some of which have a gradient that is not finite on the last rank."""

    def __init__(self, optimizer=momentum, hook=None, weigh=False, **options):
        self.params = parameters()
        self.passes = options.get("backward_passes_per_step", 1)
        self.optimizer = wrap(self.params, optimizer=optimizer, **options)
        self.weigh = weigh
        if hook:
            self.optimizer.register_comm_hook(None, hook)

    def backward(self, bad=None, zeroed=False):
        self.optimizer.zero_grad()
        for number in range(self.passes):
            value = loss(self.params)
            if hvd.rank() == culprit():
                element = self.params[AT[0]][AT[1]]
                if zeroed:
                    value = value - element * gradient(self.params[AT[0]])[AT[1]]
                elif bad is not None and number == 0:
                    value = value + element * bad
            if self.weigh:
                self.optimizer.weigh(2)
            value.backward()

    def step(self, bad=None, zeroed=False):
        self.backward(bad, zeroed)
        self.optimizer.step()

    def state(self):
        """Parameters, and what the optimizer keeps of those that it steps on this rank."""
        kept = [state["momentum_buffer"] for state in self.optimizer.state.values() if state]
        return [tensor.detach().clone() for tensor in [*self.params, *kept]]


def equal(some, others):
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def lines_of_all(capfd):
    """What the ranks have written of it on stderr."""
    mine = [line for line in capfd.readouterr().err.splitlines() if "in the gradient of" in line]
    return [(rank, line) for rank, lines in enumerate(hvd.allgather_object(mine)) for line in lines]


@pytest.mark.host_only
@pytest.mark.parametrize(("way", "bad"), [*((way, INF) for way in WAYS), ("plain", NAN)])
def test_raise(way, bad):
    training, plain = Training(check_finite="raise", **WAYS[way]), Training(**WAYS[way])
    for one in (training, plain):
        one.step()
    before = training.state()
    for _ in range(2):  # the job goes on, also when nobody has looked at the first error
        training.backward(bad)
        with pytest.raises(hvd.NonFiniteError) as error:
            training.optimizer.step()
        assert equal(training.state(), before)
    found = error.value
    shown = str(bad)
    assert (found.rank, found.parameter, found.index) == (culprit(), "p1", 3) and str(found.value) == shown
    assert found.found == [(culprit(), "p1", 3, found.value)]
    text = f"rank {culprit()} has {shown} in the gradient of p1, at flat index 3"
    assert f"step 1: {text}" in str(found) and str(found).endswith("no parameter was changed")
    assert len(set(hvd.allgather_object(str(found)))) == 1
    for one in (training, plain):
        one.step()
    assert equal(training.state(), plain.state())


@pytest.mark.host_only
@pytest.mark.parametrize("way", WAYS)
def test_skip(way, capfd):
    training, plain = Training(check_finite="skip", **WAYS[way]), Training(**WAYS[way])
    for one in (training, plain):
        one.step()
    before = training.state()
    training.step(-INF)
    assert equal(training.state(), before) and training.optimizer.skipped_steps == 1
    for one in (training, plain):
        one.step()
    assert equal(training.state(), plain.state()) and training.optimizer.skipped_steps == 1
    ((rank, line),) = lines_of_all(capfd)
    assert rank == culprit() and "-inf in the gradient of p1, at flat index 3" in line
    assert line.startswith("ringdp: optimizer.") and line.endswith("no rank takes this step")


@pytest.mark.parametrize(("way", "bad"), [*((way, NAN) for way in WAYS), ("plain", -INF)])
def test_zero(way, bad, capfd):
    options = WAYS[way]
    training, plain = Training(check_finite="zero", **options), Training(**options)
    for spoilt in (False, True, True, False):
        training.step(bad if spoilt else None)
        plain.step(zeroed=spoilt)  # of several passes, as what accumulates is zeroed
        assert equal(training.state(), plain.state())
    assert same_on_all_ranks(training.params) and training.optimizer.skipped_steps == 0
    if not device.is_on_gpu(training.params[0]):
        assert [rank for rank, _ in lines_of_all(capfd)] == [culprit()] * 2


def test_gpus_are_not_waited_for():
    for policy in ("raise", "skip"):
        params = parameters()
        if device.is_on_gpu(params[0]):
            with pytest.raises(hvd.UsageError, match=rf'check_finite="{policy}" looks at gradients in host'):
                wrap(params, check_finite=policy)
        else:
            wrap(params, check_finite=policy)


@pytest.mark.host_only
@pytest.mark.parametrize("policy", ["raise", "skip", "zero"])
@pytest.mark.parametrize("way", ["average", "min", "shard", "fused"])
def test_a_scaler_decides_for_itself(policy, way, capfd):
    options = {"min": {"op": hvd.Min}, "shard": {"shard": True}}.get(way, {})

    def make(params, lr):
        return torch.optim.SGD(params, lr=lr, fused=way == "fused")

    training = Training(optimizer=make, check_finite=policy, **options)
    scale = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    for number, overflow in enumerate((False, True, False, True, False)):
        before = training.state()
        training.optimizer.zero_grad()
        value = loss(training.params)
        if overflow and hvd.rank() == culprit():
            value = value + training.params[AT[0]][AT[1]] * INF
        scale.scale(value).backward()
        if number < 3:
            scale.unscale_(training.optimizer)
        scale.step(training.optimizer)
        scale.update()
        assert equal(training.state(), before) == overflow
    assert set(hvd.allgather_object(scale.get_scale())) == {2.0}
    assert same_on_all_ranks(training.params) and training.optimizer.skipped_steps == 0
    assert len(lines_of_all(capfd)) == (0 if policy == "raise" else 2)


@pytest.mark.host_only
def test_several_ranks_and_elements_are_named():
    params = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2, 2, 2, 2))]
    params[1].data = params[1].data.to(memory_format=torch.channels_last)
    optimizer = wrap(params, check_finite="raise")
    spoilt = torch.zeros(2, 2, 2, 2)
    spoilt[0, 1, 0, 0], spoilt[0, 0, 1, 1] = INF, NAN  # in channels_last the other one comes first
    value = (params[0] * 1).sum() + (params[1] * (spoilt if hvd.rank() == 0 else 1)).sum()
    if hvd.rank() == culprit() != 0:
        value = value + params[0][1, 2] * -INF
    value.backward()
    with pytest.raises(hvd.NonFiniteError) as error:
        optimizer.step()
    assert [one[:3] for one in error.value.found] == [(0, "p1", 3), (culprit(), "p0", 5)]
    assert math.isnan(error.value.value) and error.value.found[1][3] == -INF


@pytest.mark.host_only
@pytest.mark.parametrize("policy", ["raise", "skip", "zero"])
def test_what_goes_beside_the_buckets(policy):
    """A new group's first gradients, and sparse ones."""
    params = parameters((3,))
    table = torch.nn.Embedding(6, 2, sparse=True)
    torch.nn.init.zeros_(table.weight)
    params.append(table.weight)
    optimizer = torch.optim.SGD(params, lr=0.5)
    optimizer = hvd.DistributedOptimizer(
        optimizer, [("a", params[0]), ("table", table.weight)], check_finite=policy
    )
    late = torch.nn.Parameter(torch.zeros(4))
    for step, spoilt in enumerate(["", "table", "late", ""]):
        if step == 2:
            optimizer.add_param_group({"params": [late]})
        optimizer.zero_grad()
        scale = torch.ones(2, 2)
        value = loss(params[:1])
        if hvd.rank() == culprit():
            scale[1, 0] = INF if spoilt == "table" else 1
        value = value + (table(torch.tensor([4, 2])) * scale).sum()
        if step >= 2:
            value = (
                value + late.sum() + (late[1] * NAN if spoilt == "late" and hvd.rank() == culprit() else 0)
            )
        value.backward()
        before = [p.detach().clone() for p in [*params, late]]
        if policy == "raise" and spoilt:
            with pytest.raises(hvd.NonFiniteError) as error:
                optimizer.step()
            where = (culprit(), "table", 4) if spoilt == "table" else (culprit(), "parameter.1.0", 1)
            assert (error.value.rank, error.value.parameter, error.value.index) == where
        else:
            optimizer.step()
        after = [*params, late]
        assert equal(after, before) == (policy != "zero" and spoilt != "")
        assert all(torch.isfinite(p).all() for p in after)
    expected = torch.full((4,), -1.0 if policy == "zero" else -0.5)
    if policy == "zero":
        expected[1] = torch.tensor(hvd.size() - 1.0) / hvd.size() * -0.5 - 0.5
    assert torch.equal(late, expected)
    assert same_on_all_ranks([*params, late])


@pytest.mark.host_only
def test_what_is_too_large_for_the_wire():
    """A gradient is finite, and not as it is sent: in a bucket, and beside."""
    params, late = parameters(), torch.nn.Parameter(torch.zeros(3))
    optimizer = wrap(params, check_finite="raise", compression=hvd.Compression.fp16)
    for name in ("p1", "parameter.1.0"):
        optimizer.zero_grad()
        value = loss(params) + late.sum()
        if hvd.rank() == culprit():
            value = value + (params[1] if name == "p1" else late)[2] * 7e4
        value.backward()
        text = f"rank {culprit()} has inf in the gradient of {name}, at flat index 2, sent as float16"
        with pytest.raises(hvd.NonFiniteError, match=text):
            optimizer.step()
        if name == "p1":
            optimizer.add_param_group({"params": [late]})


@pytest.mark.host_only
@pytest.mark.parametrize("drop", ["optimizer", "module", "module_to_zero"])
def test_a_verdict_holds_until_the_gradients_are_dropped(drop):
    params = parameters()
    optimizer = wrap(params, check_finite="skip")
    start = [p.detach().clone() for p in params]
    value = loss(params) + (params[1][0] * NAN if hvd.rank() == culprit() else 0)
    value.backward()
    for _ in range(2):
        optimizer.step()
    loss(params).backward()  # accumulates
    optimizer.step()
    assert equal(params, start) and optimizer.skipped_steps == 3
    if drop == "optimizer":
        optimizer.zero_grad()
    for p in params if drop != "optimizer" else ():
        p.grad = None if drop == "module" else p.grad.zero_()
    loss(params).backward()
    optimizer.step()
    assert not equal(params, start) and optimizer.skipped_steps == 3
    assert same_on_all_ranks(params)


@pytest.mark.host_only
def test_accumulation_on_one_rank():
    params = parameters()
    optimizer = wrap(params, check_finite="raise")
    with optimizer.no_sync():
        loss(params).backward()
        (params[2].sum() * (NAN if hvd.rank() == culprit() else 1)).backward()
    loss(params).backward()
    optimizer.synchronize()  # looks at nothing
    with optimizer.skip_synchronize(), pytest.raises(hvd.NonFiniteError, match="p2, at flat index 0"):
        optimizer.step()


@pytest.mark.host_only
def test_closures(capfd):
    def closure(params, optimizer, bad):
        optimizer.zero_grad()
        value = sum(((p - 1) ** 2).sum() for p in params)
        if bad and hvd.rank() == culprit():
            value = value + params[0][0] * INF
        value.backward()
        return value

    for make in (momentum, torch.optim.LBFGS):
        params = parameters()
        optimizer = wrap(params, optimizer=make, check_finite="skip")
        start = [p.detach().clone() for p in params]
        assert optimizer.step(lambda: closure(params, optimizer, True)) is None  # noqa: B023
        assert equal(params, start) and optimizer.skipped_steps == 1
        optimizer.step(lambda: closure(params, optimizer, False))  # noqa: B023
        assert not equal(params, start) and same_on_all_ranks(params)
    params = parameters()
    optimizer = wrap(params, optimizer=torch.optim.LBFGS, check_finite="skip")
    later = iter([False, True])
    with pytest.raises(hvd.NonFiniteError, match="p0, at flat index 0"):
        optimizer.step(lambda: closure(params, optimizer, next(later)))
    assert len(lines_of_all(capfd)) == 2


@pytest.mark.host_only
@pytest.mark.parametrize("policy", ["raise", "skip", "zero"])
def test_while_others_have_joined(policy):
    """The last rank goes on alone, and meets the NaN there."""
    params = parameters()
    optimizer = wrap(params, check_finite=policy)
    for step in range(1 + (hvd.rank() == culprit())):
        optimizer.zero_grad()
        value = loss(params) + (params[0][1] * NAN if step else 0)
        value.backward()
        before = [p.detach().clone() for p in params]
        if step and policy == "raise":
            with pytest.raises(hvd.NonFiniteError, match=f"rank {culprit()} has nan in the gradient of p0"):
                optimizer.step()
        else:
            optimizer.step()
        assert equal(params, before) == (step == 1 and policy != "zero")
    last = hvd.join()
    hvd.broadcast_parameters(named(params), root_rank=last)
    optimizer.zero_grad()
    loss(params).backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in params) and same_on_all_ranks(params)


@pytest.mark.host_only
def test_off_costs_no_look(monkeypatch):
    from ringdp.torch.checks import finite

    monkeypatch.setattr(finite, "find", lambda _: pytest.fail("looked"))
    Training().step()


def test_values_that_mean_nothing():
    for options, text in (
        ({"check_finite": "warn"}, 'None, "raise", "skip" or "zero"'),
        ({"check_replicas_every": 0}, "check_replicas_every must be None or a number of steps"),
        ({"verify_every": True}, "verify_every must be None or a number of steps"),
        ({"missing_gradients": "skip"}, 'missing_gradients must be "zero" or "raise"'),
    ):
        with pytest.raises(hvd.UsageError, match=text):
            wrap(parameters(), **options)


def test_ranks_that_check_otherwise():
    params = parameters()
    optimizer = wrap(params, check_replicas_every=2 if hvd.rank() == culprit() else 3)
    with pytest.raises(hvd.MismatchError, match="check_replicas_every 3"):
        loss(params).backward()
    optimizer.zero_grad()
