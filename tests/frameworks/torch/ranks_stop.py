"""All ranks stop after the same step when one is asked to, however they train, and the hooks run once on each."""

import threading

import pytest
import torch
from frameworks.torch.helpers import same_on_all_ranks

import ringdp.torch as hvd
from ringdp import preempt, world

pytestmark = pytest.mark.host_only  # nothing of it sees where tensors are


@pytest.fixture(autouse=True)
def _nobody_was_asked(monkeypatch):
    """The tests of one process: none knows of those before, or leaves anything to those after."""
    monkeypatch.setattr(preempt, "_asked", 0)
    monkeypatch.setattr(preempt, "_ends", False)
    monkeypatch.setattr(preempt, "_hooks", [])
    monkeypatch.setattr(world.current(), "stopping", preempt.Stopping())


def last():
    return hvd.rank() == hvd.size() - 1


def make(count=1, **options):
    torch.manual_seed(2)
    nets = [torch.nn.Linear(3, 2) for _ in range(count)]
    optimizers = [
        hvd.DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=0.25), net.named_parameters(), **options
        )
        for net in nets
    ]
    return nets, optimizers


def backward(*nets):
    sum(net(torch.full((2, 3), 1.0 + hvd.rank())).sum() for net in nets).backward()


class Steps:
    """Counts the steps of optimizers, and what the hook has seen of them."""

    def __init__(self, nets, optimizers):
        self.nets, self.optimizers = nets, optimizers
        self.counts = [0] * len(optimizers)
        self.seen = []
        for number, optimizer in enumerate(optimizers):
            optimizer.register_step_post_hook(lambda *_, number=number: self.count(number))
        hvd.on_preempt(self.save)

    def count(self, number):
        self.counts[number] += 1

    def save(self):
        sums = [p.detach().double().sum().item() for net in self.nets for p in net.parameters()]
        self.seen.append((list(self.counts), [round(s, 6) for s in sums]))

    def check(self, loop, before=2, most=4, who=-1):
        """`loop(n)` is one iteration; the rank `who` is asked to stop before that of number `before`."""
        with pytest.raises(SystemExit) as end:
            for n in range(before + most):
                if n == before and hvd.rank() == who % hvd.size():
                    hvd.request_stop()
                loop(n)
        assert end.value.code == 143
        assert len(self.seen) == 1
        seen = hvd.allgather_object(self.seen[0])
        assert all(one == seen[0] for one in seen)
        return seen[0][0]


def test_one_optimizer():
    nets, optimizers = make()

    def loop(_):
        optimizers[0].zero_grad()
        backward(*nets)
        optimizers[0].step()

    assert Steps(nets, optimizers).check(loop) == [3]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_optimizers_of_one_backward(order):
    nets, optimizers = make(2)

    def loop(_):
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(*nets)
        for number in order:
            optimizers[number].step()

    assert Steps(nets, optimizers).check(loop) == [3, 3]


@pytest.mark.parametrize("between", [False, True])
def test_two_optimizers_in_turn(between):
    nets, optimizers = make(2)
    steps = Steps(nets, optimizers)

    def loop(n):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            backward(net)
            optimizer.step()
            if between and n == 1 and last() and optimizer is optimizers[0]:
                hvd.request_stop()

    assert steps.check(loop, 5 if between else 2) == ([2, 2] if between else [3, 3])


def test_one_optimizer_that_steps_more_often():
    nets, optimizers = make(2)

    def loop(_):
        for number in (0, 0, 0, 1):
            optimizers[number].zero_grad()
            backward(nets[number])
            optimizers[number].step()

    first, second = Steps(nets, optimizers).check(loop)
    assert 6 < first <= 12 and second in (2, 3)


def test_accumulation_and_no_sync():
    nets, optimizers = make(backward_passes_per_step=2)

    def loop(_):
        optimizers[0].zero_grad()
        with optimizers[0].no_sync():
            backward(*nets)
        backward(*nets)
        backward(*nets)
        optimizers[0].step()

    assert Steps(nets, optimizers).check(loop) == [3]


def test_a_step_that_a_scaler_skips_is_none():
    nets, optimizers = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def loop(n):
        optimizers[0].zero_grad()
        scaler.scale(nets[0](torch.full((2, 3), 1.0)).sum()).backward()
        if n == 2:
            nets[0].weight.grad.fill_(float("inf"))
        scaler.step(optimizers[0])
        scaler.update()

    assert Steps(nets, optimizers).check(loop) == [3]  # the fourth iteration's


@pytest.mark.parametrize("shard", ["elements", "parameters"])
def test_shards_can_be_collected(shard):
    nets, optimizers = make(shard=shard)
    hvd.on_preempt(lambda: optimizers[0].consolidate_state_dict(0))

    def loop(_):
        optimizers[0].zero_grad()
        backward(*nets)
        optimizers[0].step()

    assert Steps(nets, optimizers).check(loop) == [3]
    if hvd.rank() == 0:
        assert optimizers[0].state_dict()["param_groups"]


def test_adasum():
    if hvd.size() & (hvd.size() - 1):
        with pytest.raises(hvd.UsageError, match="power of two"):
            make(op=hvd.Adasum)
        return
    nets, optimizers = make(op=hvd.Adasum)

    def loop(_):
        optimizers[0].zero_grad()
        backward(*nets)
        optimizers[0].step()

    assert Steps(nets, optimizers).check(loop) == [3]


@pytest.mark.parametrize("joins_first", [0, -1])
@pytest.mark.parametrize("count", [1, 2])
def test_a_rank_that_has_joined_stops_with_the_others(joins_first, count):
    """The one that was asked to stop is the one that goes on longest, or the one that has joined."""
    nets, optimizers = make(count)
    steps = Steps(nets, optimizers)
    joins = joins_first % hvd.size()
    with pytest.raises(SystemExit) as end:
        for n in range(100_000):
            if hvd.rank() == joins and n == 2:
                if last():
                    threading.Timer(0.2, hvd.request_stop).start()
                hvd.join()
            if n == 4 and last():
                hvd.request_stop()
            for net, optimizer in zip(nets, optimizers, strict=True):
                optimizer.zero_grad()
                backward(net)
                optimizer.step()
    assert end.value.code == 143 and len(steps.seen) == 1
    counts = hvd.allgather_object(steps.counts)
    active = [one for rank, one in enumerate(counts) if rank != joins]
    assert counts[joins] == [2] * count and all(one == active[0] for one in active)
    assert active[0][0] >= 2 and len(set(active[0])) == 1


def test_all_that_have_joined_stop_there():
    nets, optimizers = make()
    steps = Steps(nets, optimizers)
    backward(*nets)
    optimizers[0].step()
    if last():
        hvd.request_stop()
    with pytest.raises(SystemExit) as end:
        hvd.join()
    assert end.value.code == 143 and steps.counts == [1] and len(steps.seen) == 1


def test_an_optimizer_of_some_ranks_stops_nothing():
    everybody, some = make(), None
    if hvd.size() > 1:
        half = hvd.add_process_set(range(hvd.size() - 1))
        some = make(process_set=half)
    steps = Steps(*everybody)

    def loop(n):
        if some is not None:
            for optimizer in some[1]:
                optimizer.zero_grad()
            backward(*some[0])
            for optimizer in some[1]:
                optimizer.step()
        if n < 4:
            return
        everybody[1][0].zero_grad()
        backward(*everybody[0])
        everybody[1][0].step()

    assert steps.check(loop, who=0) == [2]
    if hvd.size() > 1:
        hvd.remove_process_set(half)


def test_a_loop_that_asks_is_not_stopped_by_its_optimizer():
    nets, optimizers = make()
    steps = Steps(nets, optimizers)
    n = 0
    while not hvd.should_stop():
        if n == 3 and last():
            hvd.request_stop()
        optimizers[0].zero_grad()
        backward(*nets)
        optimizers[0].step()
        n += 1
        assert n < 10
    assert n == 4 and not steps.seen and hvd.should_stop()
    with pytest.raises(SystemExit) as end:
        hvd.stop()
    assert end.value.code == 143 and len(steps.seen) == 1


def test_hooks_run_once_in_their_order():
    nets, optimizers = make()
    order = []

    @hvd.on_preempt
    def first():
        order.append("first")
        optimizers[0].zero_grad()
        backward(*nets)
        optimizers[0].step()  # a hook may do anything: it stops nothing once more
        assert hvd.should_stop()

    hvd.on_preempt(lambda: order.append("second"))
    if last():
        hvd.request_stop()
    ends = 0
    for _ in range(6):
        try:
            optimizers[0].zero_grad()
            backward(*nets)
            optimizers[0].step()
        except SystemExit:
            ends += 1
    assert order == ["first", "second"] and ends >= 1
    with pytest.raises(TypeError, match="without arguments"):
        hvd.on_preempt(3)


@pytest.mark.parametrize("divide_by", ["all", "active"])
def test_uneven_ends_like_the_last_rank(divide_by):
    torch.manual_seed(2 + hvd.rank())
    net = torch.nn.Linear(3, 2)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.25, momentum=0.5), model=net)
    with hvd.uneven(net, optimizer, divide_by=divide_by):
        for _ in range(1 + 2 * hvd.rank()):
            optimizer.zero_grad()
            backward(net)
            optimizer.step()
        mine = net.weight.detach().clone()
    of_last = hvd.broadcast(mine, hvd.size() - 1)
    assert (net.weight == of_last).all()
    assert same_on_all_ranks([net.weight, net.bias, optimizer.state[net.weight]["momentum_buffer"]])
    with pytest.raises(KeyError), hvd.uneven(net):
        raise KeyError  # is not held up by a join
    with hvd.uneven(net, enable=False):
        pass
    with pytest.raises(TypeError, match="modules and optimizers"), hvd.uneven([net]):
        pass
