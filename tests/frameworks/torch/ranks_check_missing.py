"""Gradients that some ranks lack, and steps that some ranks do not take: named on all ranks."""

import pytest
import torch
from frameworks.torch.helpers import average, gradient, loss, named, parameters, same_on_all_ranks, wrap

import ringdp.torch as hvd


def last():
    return hvd.size() - 1


def lines_of_all(capfd):
    mine = [line for line in capfd.readouterr().err.splitlines() if "has no gradient for" in line]
    return [(rank, line) for rank, lines in enumerate(hvd.allgather_object(mine)) for line in lines]


def backward(params, lacking):
    """The last rank has no gradient for some."""
    mine = [p for i, p in enumerate(params) if not (hvd.rank() == last() and i in lacking)]
    loss(mine).backward()


def test_each_is_named_once(capfd):
    params = parameters((3, 5, 2, 4))
    optimizer = wrap(params)
    named = []
    for lacking in ((), (1, 3), (1, 3), (3,), (0, 1), (), (0, 1, 3)):
        optimizer.zero_grad()
        backward(params, lacking)
        optimizer.step()
        named.append(lines_of_all(capfd))
        for i, p in enumerate(params):
            missing = gradient(p, last()) / hvd.size() if i in lacking else 0
            assert torch.equal(p.grad, average(p) - missing)
    assert [len(lines) for lines in named] == [0, 1, 0, 0, 1, 0, 0]
    ((rank, line),) = named[1]
    assert rank == 0 and line.startswith("ringdp: optimizer.")
    assert (
        f"step 1: rank {last()} has no gradient for p1, p3, which other ranks have. They count as zeros"
        in line
    )
    assert f"step 4: rank {last()} has no gradient for p0, which other" in named[4][0][1]


def test_what_no_rank_has_is_not_missing(capfd):
    for policy in ("zero", "raise"):
        params = parameters()
        optimizer = wrap(params, missing_gradients=policy)
        for _ in range(3):
            optimizer.zero_grad()
            loss(params[:2]).backward()
            optimizer.step()
            assert params[2].grad is None
    assert lines_of_all(capfd) == []


def test_strictly(capfd):
    params = parameters()
    optimizer = wrap(params, missing_gradients="raise")
    for lacking in ((), (2,), (), (0, 2), (2,)):
        optimizer.zero_grad()
        before = [p.detach().clone() for p in params]
        backward(params, lacking)
        if not lacking:
            optimizer.step()
            continue
        with pytest.raises(hvd.MissingGradientError) as error:
            optimizer.step()
        names = [f"p{i}" for i in lacking]
        assert error.value.missing == {last(): names}
        assert f"rank {last()} has no gradient for {', '.join(names)}, which other ranks have" in str(
            error.value
        )
        assert len(set(hvd.allgather_object(str(error.value)))) == 1
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert lines_of_all(capfd) == [] and same_on_all_ranks(params)


def test_strictly_beside_the_plan():
    params, late = parameters(), torch.nn.Parameter(torch.zeros(3))
    optimizer = wrap(params, missing_gradients="raise")
    loss(params).backward()
    optimizer.step()
    optimizer.add_param_group({"params": [late]})
    optimizer.zero_grad()
    with pytest.raises(hvd.MissingGradientError, match=r"no gradient for parameter\.1\.0, which") as error:
        backward([*params, late], (3,))
        optimizer.step()
    assert error.value.missing == {last(): ["parameter.1.0"]}


def test_who_has_joined_lacks_nothing(capfd):
    params = parameters()
    optimizer = wrap(params, missing_gradients="raise")
    for _ in range(1 + hvd.rank()):
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
    hvd.join()
    assert lines_of_all(capfd) == []


# --- steps that some ranks do not take ---


def differs(params, optimizer, backward_pass):
    """The next vote tells all ranks who has not stepped, before any parameter changes again."""
    before = [p.detach().clone() for p in params]
    with pytest.raises(hvd.MismatchError) as error:
        backward_pass()
        optimizer.step()
    others = "rank 0 at 2" if hvd.size() == 2 else f"ranks {', '.join(map(str, range(last())))} at 2"
    assert f"differ in step (1 to 2): rank {last()} at 1; {others}; they must" in str(error.value)
    assert "No parameter was changed" in str(error.value)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    hvd.broadcast_parameters(named(params), root_rank=0)
    for _ in range(2):
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
    assert not torch.equal(params[0], before[0]) and same_on_all_ranks(params)


@pytest.mark.parametrize("lacking", [(), (1,)], ids=["", "with_a_gradient_missing"])
@pytest.mark.parametrize("options", [{}, {"bucket_bytes": 16}], ids=["", "buckets"])
def test_zero_grad_in_place_of_a_step(options, lacking):
    params = parameters()
    optimizer = wrap(params, **options)

    def one():
        optimizer.zero_grad()
        backward(params, lacking)

    one()
    optimizer.step()
    one()
    if hvd.rank() != last():
        optimizer.step()
    differs(params, optimizer, one)


def test_a_scaler_that_one_rank_alone_obeys():
    """User code that looks at its own loss, and does not call scaler.step()."""
    params = parameters()
    optimizer = wrap(params)
    scale = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)

    def one(skips):
        optimizer.zero_grad()
        scale.scale(loss(params)).backward()
        if not skips:
            scale.step(optimizer)
            scale.update()

    one(False)
    one(hvd.rank() == last())
    differs(params, optimizer, lambda: one(False))


def test_a_scaler_on_all_ranks_skips_alike():
    params = parameters()
    optimizer = wrap(params)
    scale = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    for overflow in (False, True, True, False):
        optimizer.zero_grad()
        value = loss(params)
        if overflow and hvd.rank() == last():
            value = value * float("inf")
        scale.scale(value).backward()
        scale.step(optimizer)
        scale.update()
    assert optimizer._exchange._steps == 2 and same_on_all_ranks(params)
