"""The sharded optimizer (ZeRO-1): bit for bit what the optimizer without shards does, with a part of its state."""

import copy
import io

import pytest
import torch
from frameworks.torch.helpers import batches, network, same_on_all_ranks

import ringdp.torch as hvd
from ringdp.errors import UsageError
from ringdp.torch.sharded.covered import uncovered
from ringdp.torch.sharded.how import ELEMENTWISE

OPTIONS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "Rprop": {"lr": 0.01},
}


def make(kind, params):
    return kind(params, **OPTIONS.get(kind.__name__, {"lr": 0.01}))


def wrap(model, kind=torch.optim.Adam, shard=True, **options):
    names = options.pop("named_parameters", None) or model.named_parameters()
    return hvd.DistributedOptimizer(
        make(kind, model.parameters()), named_parameters=names, shard=shard, **options
    )


def loss_of(model, x, y):
    return torch.nn.functional.cross_entropy(model(x), y)


def train(model, optimizer, steps=5, clip=None, passes=1, joined=False):
    for all_x, all_y, my_x, my_y in batches(steps, rows=6):
        x, y = (all_x, all_y) if joined else (my_x, my_y)
        optimizer.zero_grad()
        for part in range(passes):
            rows = slice(part * len(x) // passes, (part + 1) * len(x) // passes)
            (loss_of(model, x[rows], y[rows]) / passes).backward()
        if clip is not None:
            clip(optimizer, model)
        optimizer.step()
    return model


def same(model, other):
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def near(model, other, atol=2e-5):
    return all(
        torch.allclose(p, q, rtol=1e-4, atol=atol)
        for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


def elements_of_state(optimizer):
    return sum(v.numel() for state in optimizer.state.values() for v in state.values() if v.dim())


@pytest.mark.parametrize("bucket_bytes", [1000, 25 << 20], ids=["small buckets", "one bucket"])
@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_elementwise_optimizers_equal_those_without_shards_bit_for_bit(kind, bucket_bytes):
    whole, sharded = network(), network()
    one = wrap(whole, kind, shard=False, bucket_bytes=bucket_bytes)
    other = wrap(sharded, kind, bucket_bytes=bucket_bytes)
    train(whole, one)
    train(sharded, other)
    assert same(whole, sharded)
    assert same_on_all_ranks(sharded.parameters())
    assert not near(sharded, network())
    # Of the state, a rank has its part, and all have all of it.
    mine = elements_of_state(other)
    assert mine <= elements_of_state(one) / hvd.size() * 1.1 + 8
    total = hvd.allreduce(torch.tensor(mine), op=hvd.Sum)
    assert total == elements_of_state(one)


@pytest.mark.parametrize(
    "options", [{"op": hvd.Sum}, {"backward_passes_per_step": 2}, {"num_groups": 3}], ids=str
)
def test_with_options(options):
    whole, sharded = network(), network()
    passes = options.get("backward_passes_per_step", 1)
    train(whole, wrap(whole, shard=False, **options), passes=passes)
    train(sharded, wrap(sharded, **options), passes=passes)
    assert same(whole, sharded) and same_on_all_ranks(sharded.parameters())


@pytest.mark.shows("sharded optimizer", "torch", "eager")
def test_equal_to_one_process_on_the_joined_batch():
    alone, sharded = network(), network()
    train(alone, make(torch.optim.Adam, alone.parameters()), joined=True)
    train(sharded, wrap(sharded))
    assert near(alone, sharded)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    def run(shard):
        torch.manual_seed(3)
        params = [torch.nn.Parameter(torch.randn(n).to(dtype)) for n in (5, 1, 300)]
        optimizer = hvd.DistributedOptimizer(torch.optim.AdamW(params, lr=0.1), shard=shard)
        for step in range(3):
            optimizer.zero_grad()
            sum((p * (p + step + hvd.rank())).sum() for p in params).backward()
            optimizer.step()
        return params

    assert all(torch.equal(p, q) for p, q in zip(run(False), run(True), strict=True))


def test_parameters_of_both_kinds_in_groups_of_their_own():
    """Each group keeps its options, and schedulers change them."""

    def run(shard):
        model = network()
        groups = [
            {"params": list(model[0].parameters()), "lr": 0.1},
            {"params": [*model[3].parameters(), *model[5].parameters()], "weight_decay": 0.1},
        ]
        optimizer = hvd.DistributedOptimizer(torch.optim.Adam(groups, lr=0.02), shard=shard)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        for _, _, x, y in batches(5):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
            scheduler.step()
        assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4]
        assert optimizer.param_groups[0]["params"][0] is model[0].weight
        return model

    assert same(run(False), run(True))


class Branches(torch.nn.Module):
    """Some steps use one branch alone, in another order than they are registered in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.last = torch.nn.Linear(7, 3)
        self.never = torch.nn.Linear(4, 4)
        self.left, self.right = torch.nn.Linear(5, 7), torch.nn.Linear(5, 7)

    def forward(self, x, both):
        hidden = self.left(x) + self.right(x) if both else self.left(x)
        return self.last(hidden.tanh())


def test_gradients_that_some_ranks_or_all_lack_and_a_plan_in_the_observed_order():
    def run(shard):
        model = Branches()
        optimizer = wrap(model, torch.optim.AdamW, shard=shard, bucket_bytes=100)
        for step in range(6):
            generator = torch.Generator().manual_seed(10 * step + hvd.rank())
            x = torch.randn(4, 5, generator=generator)
            optimizer.zero_grad()
            model(x, both=step < 2 or (step > 3 and hvd.rank() == 0)).square().sum().backward()
            optimizer.step()
        return model, optimizer

    (whole, _), (sharded, optimizer) = run(False), run(True)
    assert same(whole, sharded) and same_on_all_ranks(sharded.parameters())
    assert torch.equal(sharded.never.weight, Branches().never.weight)  # decays nothing: it had no gradient
    optimizer.consolidate_state_dict(-1)
    steps = {i: int(state["step"]) for i, state in optimizer.state_dict()["state"].items()}
    # left, last: each step; right: those in which some rank used it; never: no state.
    assert steps == {0: 6, 1: 6, 4: 6, 5: 6, 6: 4, 7: 4}


def test_parameters_that_are_frozen_and_come_later():
    def run(shard):
        model = network()
        for p in model[0].parameters():
            p.requires_grad_(False)
        optimizer = hvd.DistributedOptimizer(
            torch.optim.Adam([*model[0].parameters(), *model[5].parameters()], lr=0.02), shard=shard
        )
        for step, (_, _, x, y) in enumerate(batches(6)):
            if step == 2:
                for p in model[0].parameters():
                    p.requires_grad_(True)
            if step == 4:
                optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 0.05})
            optimizer.zero_grad()
            model[3].zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
        return model, optimizer

    (whole, _), (sharded, optimizer) = run(False), run(True)
    assert same(whole, sharded)
    mine = torch.tensor(elements_of_state(optimizer))
    assert hvd.allreduce(mine, op=hvd.Sum) == 2 * sum(p.numel() for p in sharded.parameters())


def test_parameters_that_were_given_other_memory():
    """As an average of the weights does that is swapped in and out."""
    whole, sharded = network(), network()
    one, other = wrap(whole, shard=False), wrap(sharded)
    for _ in range(2):
        train(whole, one, steps=2)
        train(sharded, other, steps=2)
        for p in sharded.parameters():
            p.data = p.data.clone()
    assert same(whole, sharded)


def test_gradients_that_are_not_zeroed_add_up():
    def run(shard):
        model = network()
        optimizer = wrap(model, torch.optim.SGD, shard=shard)
        for step, (_, _, x, y) in enumerate(batches(4)):
            if step == 2:
                optimizer.zero_grad(set_to_none=False)
            loss_of(model, x, y).backward()
            optimizer.step()
        return model

    assert same(run(False), run(True))


def test_a_closure_and_its_loss():
    def run(shard):
        model = network()
        optimizer = wrap(model, shard=shard)
        losses = []
        for _, _, x, y in batches(3):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                value = loss_of(model, x, y)
                value.backward()
                return value

            losses.append(optimizer.step(closure).item())
        return model, losses

    (whole, losses), (sharded, others) = run(False), run(True)
    assert same(whole, sharded) and losses == others
    assert len(set(hvd.allgather_object(tuple(others)))) == 1


def test_weighed():
    def run(shard):
        model = network()
        optimizer = wrap(model, shard=shard)
        for all_x, all_y, _, _ in batches(4):
            cut = 2 * hvd.size() - 1  # rank 0 has one row, the others two
            rows = slice(0, 1) if hvd.rank() == 0 else slice(2 * hvd.rank() - 1, 2 * hvd.rank() + 1)
            optimizer.zero_grad()
            optimizer.weigh(rows.stop - rows.start)
            loss_of(model, all_x[:cut][rows], all_y[:cut][rows]).backward()
            optimizer.step()
        return model

    assert near(run(False), run(True))


def test_sparse_gradients_are_made_dense():
    def run(**options):
        torch.manual_seed(4)
        table = torch.nn.Embedding(11, 5, sparse=True)
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(table.parameters(), lr=0.5), **options)
        for step in range(3):
            optimizer.zero_grad()
            table(torch.tensor([step, hvd.rank() + 3])).square().sum().backward()
            optimizer.step()
        return table

    assert same(run(sparse_as_dense=True), run(shard=True))


def test_with_a_model_and_passes_that_are_not_exchanged():
    def run(shard):
        torch.manual_seed(hvd.rank())  # made equal by model=
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
        optimizer = hvd.DistributedOptimizer(
            torch.optim.Adam(model.parameters(), lr=0.1), model=model, shard=shard
        )
        for step in range(3):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * step + hvd.rank()))
            optimizer.zero_grad()
            with optimizer.no_sync():
                model(x).square().sum().backward()
            model(x + 1).square().sum().backward()
            optimizer.step()
        return model

    whole, sharded = run(False), run(True)
    assert same(whole, sharded) and same_on_all_ranks(sharded.parameters())


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2.0, 1.0, float("inf")])
def test_the_norm_is_over_all_shards(order):
    norms = []

    def plain(optimizer, model):
        optimizer.synchronize()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05, order).item())

    def sharded_norm(optimizer, _):
        norms.append(optimizer.clip_grad_norm_(0.05, order).item())

    whole, sharded = network(), network()
    train(whole, wrap(whole, shard=False), clip=plain)
    expected = norms.copy()
    norms.clear()
    train(sharded, wrap(sharded), clip=sharded_norm)
    assert norms == pytest.approx(expected, rel=1e-5) and min(norms) > 0.05
    assert near(whole, sharded)
    assert len(set(hvd.allgather_object(tuple(norms)))) == 1


def test_a_norm_that_is_not_finite_is_an_error_where_wanted():
    model = network()
    optimizer = wrap(model)
    (model[5].bias[0] * float("inf")).backward()
    assert not optimizer.clip_grad_norm_(1.0).isfinite()
    with pytest.raises(RuntimeError, match=r"norm of order 2.0 is (inf|nan), so they cannot be clipped"):
        optimizer.clip_grad_norm_(1.0, error_if_nonfinite=True)


def test_a_gradient_that_is_reduced_in_part_is_not_taken_for_whole():
    model = network()
    optimizer = wrap(model)
    (_, _, x, y), (_, _, x2, y2) = batches(2)
    loss_of(model, x, y).backward()
    for use in (
        lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0),
        lambda: model[0].weight.grad.norm(),
        lambda: model[0].weight.grad + 1,
        lambda: model[0].weight.grad.mul_(2),
        lambda: model[0].weight.grad[0],
        lambda: model[0].weight.grad.tolist(),
        lambda: model[0].weight.grad.numpy(),
        lambda: model[0].weight.grad.data.norm(),
        lambda: model[3].weight.grad.T,
        lambda: model[0].weight.grad.cpu().sum(),
    ):
        with pytest.raises(UsageError, match=r"use optimizer.clip_grad_norm_\(max_norm\)"):
            use()
    assert "Covered(shape=(4, 1, 3, 3)" in repr(model[0].weight.grad)
    assert model[0].weight.grad.shape == (4, 1, 3, 3)
    optimizer.step()
    model.zero_grad(set_to_none=False)
    loss_of(model, x2, y2).backward()
    optimizer.step()
    other = network()
    train(other, wrap(other, shard=False), steps=2)
    assert same(model, other)


def test_a_rank_has_its_own_part_of_the_reduced_gradients_alone():
    whole, sharded = network(), network()
    one, _other = wrap(whole, shard=False), wrap(sharded)
    (_, _, x, y), *_ = batches(1)
    for model in (whole, sharded):
        loss_of(model, x, y).backward()
    one.synchronize()
    alike = torch.cat(
        [
            (uncovered(p.grad) == q.grad).reshape(-1)
            for p, q in zip(sharded.parameters(), whole.parameters(), strict=True)
        ]
    )
    share = alike.double().mean().item()
    assert share == 1 if hvd.size() == 1 else 0.9 / hvd.size() < share < 1.1 / hvd.size() + 0.1


def test_hooks_of_a_step_see_the_parameters():
    def run(shard):
        model = network()
        optimizer = wrap(model, shard=shard)
        seen = []
        optimizer.register_step_pre_hook(
            lambda o, *_: seen.append([p.shape for p in o.param_groups[0]["params"]])
        )

        @torch.no_grad()
        def clamp(o, *_):
            for p in o.param_groups[0]["params"]:
                p.clamp_(-0.1, 0.1).sub_(p.mean())

        optimizer.register_step_post_hook(clamp)
        return train(model, optimizer), seen

    (whole, one), (sharded, other) = run(False), run(True)
    assert same(whole, sharded) and one == other


def test_a_model_is_moved_and_cast_while_gradients_lie_there():
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, steps=1)
    model.cpu().to("cpu").double()
    assert model[0].weight.dtype == torch.float64 and model[0].weight.grad.dtype == torch.float64
    with pytest.raises(UsageError, match="reduced by a sharded optimizer"):
        model[0].weight.grad.norm()
    model.float()
    train(model, optimizer, steps=1)
    assert same_on_all_ranks(model.parameters())


def test_a_gradient_of_the_users_own_is_clipped():
    def run(shard):
        p = torch.nn.Parameter(torch.zeros(6, 4))
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), shard=shard)
        p.grad = torch.full((4, 6), 100.0).t()
        if shard:
            optimizer.clip_grad_norm_(1.0)
        else:
            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_([p], 1.0)
        optimizer.step()
        return p.detach()

    assert torch.allclose(run(True), run(False)) and run(True).norm() < 1.01


def test_norms_that_there_are_not():
    with pytest.raises(UsageError, match="norm_type must be above 0, not -1"):
        wrap(network()).clip_grad_norm_(1.0, -1)


# --- overflows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "fused", "unscale", "parameters"])
def test_an_overflow_in_one_shard_is_skipped_by_all(kind):
    sizes = (3, 50, 2)
    params = [torch.nn.Parameter(torch.arange(n, dtype=torch.float32)) for n in sizes]
    inner = torch.optim.Adam(params, lr=0.5, fused=kind == "fused")
    optimizer = hvd.DistributedOptimizer(inner, shard="parameters" if kind == "parameters" else True)
    scale = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    for bad in (None, 0, 49, None):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        value = sum((p * (hvd.rank() + 1)).sum() for p in params)
        if bad is not None and hvd.rank() == hvd.size() - 1:
            value = value + params[1][bad] * float("inf")
        scale.scale(value).backward()
        if kind == "unscale":
            scale.unscale_(optimizer)
            optimizer.clip_grad_norm_(1.0)
        scale.step(optimizer)
        scale.update()
        moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
        assert all(moved) if bad is None else not any(moved)
    assert set(hvd.allgather_object(scale.get_scale())) == {2.0}
    assert same_on_all_ranks(params)


@pytest.mark.parametrize("shard", [True, "parameters"])
def test_clipping_after_unscaling(shard):
    def run(shard):
        model = network()
        optimizer = wrap(model, torch.optim.SGD, shard=shard)
        scale = torch.amp.GradScaler("cpu", init_scale=1024.0)
        norms = []
        for _, _, x, y in batches(3):
            optimizer.zero_grad()
            scale.scale(loss_of(model, x, y)).backward()
            scale.unscale_(optimizer)
            plain = torch.nn.utils.clip_grad_norm_
            norms.append(float(optimizer.clip_grad_norm_(0.1) if shard else plain(model.parameters(), 0.1)))
            scale.step(optimizer)
            scale.update()
        return model, norms

    (whole, expected), (sharded, norms) = run(False), run(shard)
    assert norms == pytest.approx(expected, rel=1e-5) and near(whole, sharded)


# --- state ----------------------------------------------------------------------------------------------------------


def saved(optimizer):
    """The bytes of the optimizer's whole state, on all ranks."""
    optimizer.consolidate_state_dict()
    file = io.BytesIO()
    if hvd.rank() == 0:
        torch.save(optimizer.state_dict(), file)
    return io.BytesIO(hvd.broadcast_object(file.getvalue()))


def equal_states(one, other):
    assert list(one) == list(other)
    for state, like in zip(one.values(), other.values(), strict=True):
        assert state.keys() == like.keys()
        assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(like[k])) for k in state)
        assert all(getattr(state[k], "shape", 0) == getattr(like[k], "shape", 0) for k in state)


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_the_consolidated_state_is_that_without_shards_and_goes_on_on_any_number_of_ranks(kind):
    whole, sharded, alone, fewer = (network() for _ in range(4))
    one, other = wrap(whole, kind, shard=False, bucket_bytes=500), wrap(sharded, kind, bucket_bytes=500)
    train(whole, one, steps=3)
    train(sharded, other, steps=3)
    state = torch.load(saved(other))
    equal_states(state["state"], one.state_dict()["state"])
    # One rank goes on alone, another number of them together, and the same with another plan.
    for model, ranks in ((alone, 1), (fewer, max(hvd.size() - 1, 1))):
        model.load_state_dict(whole.state_dict())
        process_set = hvd.add_process_set(list(range(ranks)))
        with_fewer = wrap(model, kind, process_set=process_set, bucket_bytes=2000)
        without = network()
        without.load_state_dict(whole.state_dict())
        like = make(kind, without.parameters())
        with_fewer.load_state_dict(copy.deepcopy(state))
        like.load_state_dict(copy.deepcopy(state))
        if process_set.included():
            train(model, with_fewer, steps=2, joined=True)
            train(without, like, steps=2, joined=True)
            assert near(
                model, without, atol=1e-3 if kind in (torch.optim.Rprop, torch.optim.Adadelta) else 2e-5
            )
        hvd.barrier()
        hvd.remove_process_set(process_set)
    again = network()
    again.load_state_dict(whole.state_dict())
    resumed = wrap(again, kind, bucket_bytes=2000)
    resumed.load_state_dict(copy.deepcopy(state))
    train(whole, one, steps=2)
    train(again, resumed, steps=2)
    assert near(whole, again)


def test_state_that_was_there_before_is_divided():
    whole, sharded = network(), network()
    inner, like = (make(torch.optim.Adam, model.parameters()) for model in (sharded, whole))
    train(sharded, inner, steps=1, joined=True)
    train(whole, like, steps=1, joined=True)
    one = hvd.DistributedOptimizer(like)
    other = hvd.DistributedOptimizer(inner, shard=True)
    train(whole, one)
    train(sharded, other)
    assert same(whole, sharded)
    assert elements_of_state(other) < elements_of_state(one) / hvd.size() * 1.1 + 8


def test_loading_while_training_goes_on():
    whole, sharded = network(), network()
    one, other = wrap(whole, shard=False), wrap(sharded)
    train(whole, one, steps=2)
    train(sharded, other, steps=2)
    state = torch.load(saved(other))
    weights = {k: v.clone() for k, v in sharded.state_dict().items()}
    train(sharded, other, steps=1)
    sharded.load_state_dict(weights)
    other.load_state_dict(state)
    train(whole, one, steps=2)
    train(sharded, other, steps=2)
    assert same(whole, sharded)


def test_a_state_that_was_not_consolidated_is_refused():
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, steps=1)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"call consolidate_state_dict\(to=rank\) on all ranks first"):
            optimizer.state_dict()
        optimizer.consolidate_state_dict(hvd.size() - 1)
        if hvd.rank() == hvd.size() - 1:
            assert len(optimizer.state_dict()["state"]) == 6
        train(model, optimizer, steps=1)
    with pytest.raises(UsageError, match="cannot be copied or pickled"):
        copy.deepcopy(optimizer)
    with pytest.raises(UsageError, match="each rank has the state of its own shard"):
        hvd.broadcast_optimizer_state(optimizer)


def test_state_that_was_looked_at_is_saved_all_the_same():
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, steps=2)
    assert optimizer.state[model[0].weight].get("step") is None  # a rank has that of its pieces
    optimizer.consolidate_state_dict(-1)
    assert all(int(state["step"]) == 2 for state in optimizer.state_dict()["state"].values())
    with pytest.raises(UsageError, match="99 is no rank of"):
        optimizer.consolidate_state_dict(99)
    with pytest.raises(UsageError, match=r"TorchState\(optimizer=…\): each rank has a shard"):
        hvd.elastic.TorchState(model=model, optimizer=optimizer)


def test_gradients_of_before_init_are_not_stepped():
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, steps=1)
    (_, _, x, y), *_ = batches(1)
    optimizer.zero_grad()
    loss_of(model, x, y).backward()
    hvd.shutdown()
    hvd.init()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UsageError, match="ringdp was initialised again since these gradients were reduced"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    train(model, optimizer, steps=1)
    assert same_on_all_ranks(model.parameters()) and not same(model, network())


def test_state_is_broadcast_before_the_first_step():
    whole, sharded = network(), network()
    one, other = wrap(whole, shard=False), wrap(sharded)
    for optimizer in (one, other):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + hvd.rank())
        hvd.broadcast_optimizer_state(optimizer)
    train(whole, one)
    train(sharded, other)
    assert same(whole, sharded) and same_on_all_ranks(sharded.parameters())


# --- whole parameters -----------------------------------------------------------------------------------------------


class Matrices(torch.nn.Module):
    """Muon takes no other parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Embedding(9, 6)
        self.second, self.third = torch.nn.Linear(6, 5, bias=False), torch.nn.Linear(5, 3, bias=False)

    def forward(self, rows):
        return self.third(self.second(self.first(rows).tanh()).tanh())


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize(
    "kind", [torch.optim.Muon, torch.optim.Adafactor, torch.optim.AdamW], ids=lambda kind: kind.__name__
)
def test_by_whole_parameters(kind, clip):
    def run(shard):
        model = Matrices()
        optimizer = hvd.DistributedOptimizer(kind(model.parameters(), lr=0.02), shard=shard)
        generator = torch.Generator().manual_seed(5)
        for _ in range(4):
            rows = torch.randint(0, 9, (4 * hvd.size(),), generator=generator)[4 * hvd.rank() :][:4]
            optimizer.zero_grad()
            model(rows).square().sum().backward()
            if clip:
                norm = torch.nn.utils.clip_grad_norm_
                optimizer.clip_grad_norm_(0.1) if shard and hvd.rank() % 2 else norm(model.parameters(), 0.1)
            optimizer.step()
        return model, optimizer

    (whole, one), (sharded, other) = run(False), run("parameters" if kind is torch.optim.AdamW else True)
    assert near(whole, sharded) if clip else same(whole, sharded)
    assert same_on_all_ranks(sharded.parameters())
    assert not near(sharded, Matrices())
    owned = hvd.allgather_object(len(other.state))
    assert sum(owned) == 3 == len(one.state) and max(owned) < 3
    state = torch.load(saved(other))
    if not clip:
        equal_states(state["state"], one.state_dict()["state"])
    other.load_state_dict(state)
    assert hvd.allgather_object(len(other.state)) == owned


def test_by_whole_parameters_with_a_group_that_comes_later():
    def run(shard):
        model = network()
        optimizer = hvd.DistributedOptimizer(torch.optim.Adam(model[5].parameters(), lr=0.02), shard=shard)
        for step, (_, _, x, y) in enumerate(batches(4)):
            if step == 2:
                optimizer.add_param_group({"params": list(model[3].parameters())})
            optimizer.zero_grad()
            model[3].zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
        return model

    assert same(run(False), run("parameters"))


# --- who takes part, and what is refused ----------------------------------------------------------------------------


def test_in_a_process_set():
    """The others step by themselves, with the same calls."""
    ranks = list(range(hvd.size()))[-2:]
    process_set = hvd.add_process_set(ranks)
    whole, sharded = network(), network()
    for model, shard in ((whole, False), (sharded, True)):
        optimizer = wrap(model, shard=shard, process_set=process_set)
        train(model, optimizer, clip=None)
        if shard:
            optimizer.consolidate_state_dict(-1)
            assert len(optimizer.state_dict()["state"]) == 6
    assert same(whole, sharded)
    hvd.remove_process_set(process_set)


class Unknown(torch.optim.SGD):
    """One of another package."""


def test_what_does_not_go_with_shards_says_so():
    def make_of(kind=torch.optim.Adam, **options):
        model = network()
        return hvd.DistributedOptimizer(kind(model.parameters(), lr=0.1), **{"shard": True, **options})

    for options, message in (
        ({"kind": torch.optim.LBFGS}, "LBFGS steps all parameters as one vector"),
        (
            {"kind": Unknown},
            'what Unknown looks at. If it steps each parameter by itself, say shard="parameters"',
        ),
        ({"kind": torch.optim.SparseAdam}, "SparseAdam takes sparse gradients"),
        ({"shard": "columns"}, "shard must be True, False"),
        ({"op": hvd.Max}, "a sharded optimizer needs op=Average or Sum, not Max"),
        ({"op": hvd.Adasum}, "a sharded optimizer needs op=Average or Sum, not Adasum"),
        ({"compression": hvd.Compression.fp16}, "exchanges its gradients as they are"),
    ):
        with pytest.raises(UsageError, match=message):
            make_of(**options)
    optimizer = make_of()
    with pytest.raises(UsageError, match="exchanges its gradients as they are"):
        optimizer.register_comm_hook(None, lambda state, bucket: None)


def test_ranks_that_shard_by_different_things_are_told():
    model = network()
    optimizer = wrap(model, shard="elements" if hvd.rank() else "parameters")
    with pytest.raises(hvd.MismatchError if hasattr(hvd, "MismatchError") else Exception, match="shards of"):
        train(model, optimizer, steps=1)
    hvd.barrier()
