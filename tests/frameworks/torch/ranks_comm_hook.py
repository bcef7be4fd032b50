"""The seam of communication hooks: what they get, what they may return, and that ranks stay together."""

import pytest
import torch
from frameworks.torch.helpers import (
    average,
    batches,
    loss,
    network,
    parameters,
    reduced,
    same_on_all_ranks,
    wrap,
)

import ringdp.torch as hvd
from ringdp.torch.ops import operations


def averaging(state, bucket):
    if state is not None:
        state.append(bucket)
    return operations.allreduce_async(bucket.buffer(), name=bucket.name(), process_set=bucket.process_set())


averaging.passes_not_finite = True


def in_place(_, bucket):
    return operations.allreduce_async_(bucket.buffer(), name=bucket.name())


def by_future(_, bucket):
    future = torch.futures.Future()
    future.set_result([operations.allreduce(bucket.buffer(), name=bucket.name())])
    return future.then(lambda done: done.value())


class Chained:
    """Two stages, the second one in wait()."""

    def __call__(self, _, bucket):
        first = operations.reducescatter_async(bucket.buffer(), name=f"{bucket.name()}.scatter")

        class Rest:
            def wait(self):
                return operations.allgather(first.wait(), name=f"{bucket.name()}.gather")

        return Rest()


@pytest.mark.parametrize(
    "hook", [averaging, in_place, by_future, Chained()], ids=["handle", "in_place", "future", "chained"]
)
def test_what_a_hook_may_return(hook):
    params = parameters((100, 300, 7, 50))
    optimizer = wrap(params, bucket_bytes=256)
    optimizer.register_comm_hook(None, hook)
    for _ in range(3):
        optimizer.zero_grad()
        loss(params).backward()
        assert optimizer._exchange.finished and reduced(params)
        optimizer.step()
    assert same_on_all_ranks(params)


def test_what_a_bucket_shows():
    params = parameters((100, 300, 7, 50))
    seen = []
    optimizer = wrap(params, bucket_bytes=1024)
    optimizer.register_comm_hook(seen, averaging)
    for _ in range(3):
        seen.clear()
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
    count = len(optimizer._exchange._plans.buckets)
    assert [b.index() for b in seen] == list(range(count)) and count > 1
    assert [b.is_last() for b in seen] == [False] * (count - 1) + [True]
    assert {id(p) for b in seen for p in b.parameters()} == {id(p) for p in params}
    names = hvd.allgather_object([(b.name(), b.plan()) for b in seen])
    assert all(theirs == names[0] for theirs in names) and len({b.name() for b in seen}) == count
    for b in seen:
        assert [g.shape for g in b.gradients()] == [p.shape for p in b.parameters()]
        for g, p in zip(b.gradients(), b.parameters(), strict=True):
            assert (
                torch.equal(g, average(p))
                and g.untyped_storage().data_ptr() == b.buffer().untyped_storage().data_ptr()
            )
        b.set_buffer(torch.ones(b.buffer().shape))
        assert all((g == 1).all() for g in b.gradients())


def test_training_with_a_hook_is_that_without_it():
    results = []
    for hook in (None, averaging):
        model = network()
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=2048)
        if hook:
            optimizer.register_comm_hook(None, hook)
        for _, _, x, y in batches(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert same_on_all_ranks(model.parameters())
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_a_parameter_without_gradient_counts_as_zeros():
    params = parameters()
    optimizer = wrap(params)
    optimizer.register_comm_hook(None, averaging)
    for _ in range(2):
        optimizer.zero_grad()
        mine = params if hvd.rank() == 0 else params[:2]
        loss(mine).backward()
        optimizer.step()
        assert reduced(params[:2])
        from frameworks.torch.helpers import gradient

        assert torch.equal(params[2].grad, gradient(params[2], 0) / hvd.size())


def test_hooks_that_are_refused():
    params = parameters()
    optimizer = wrap(params)
    with pytest.raises(hvd.UsageError, match="a communication hook is a function"):
        optimizer.register_comm_hook(None, 3)
    with optimizer.no_sync():
        loss(params).backward()
        with pytest.raises(hvd.UsageError, match="between steps"):
            optimizer.register_comm_hook(None, averaging)
    optimizer.step()
    optimizer.register_comm_hook(None, averaging)
    with pytest.raises(hvd.UsageError, match="already"):
        optimizer.register_comm_hook(None, averaging)
    for options, text in [
        ({"op": hvd.Sum}, "needs op=Average"),
        ({"compression": hvd.Compression.fp16}, "already"),
        ({"gradient_predivide_factor": 2.0}, "needs op=Average"),
    ]:
        with pytest.raises(hvd.UsageError, match=text):
            wrap(params, **options).register_comm_hook(None, averaging)


@pytest.mark.parametrize(
    ("hook", "text"),
    [
        (lambda _, bucket: None, "must return something with wait"),
        (
            lambda _, bucket: operations.allreduce_async(bucket.buffer()[:1], name=bucket.name()),
            "elements; it gave",
        ),
    ],
)
def test_hooks_that_return_what_they_may_not(hook, text):
    params = parameters()
    optimizer = wrap(params)
    optimizer.register_comm_hook(None, hook)
    with pytest.raises(hvd.UsageError, match=text):
        loss(params).backward()


def test_ranks_with_different_hooks_are_told():
    params = parameters()
    optimizer = wrap(params)
    optimizer.register_comm_hook(None, averaging if hvd.rank() == 0 else in_place)
    with pytest.raises(hvd.MismatchError, match="communication hook"):
        loss(params).backward()
