"""State in memory, the sampler, and what `elastic.run` does, on one rank: with stand-ins for a reset."""

import random

import pytest
import torch
from frameworks.torch.helpers import parameters

import ringdp.elastic
import ringdp.torch as hvd
from ringdp import world
from ringdp.torch import elastic


def objects(**kwargs):
    return elastic.ObjectState(lambda obj: obj, hvd.rank, **kwargs)


def test_commit_and_restore():
    state = objects(epoch=0, losses=[1.0])
    state.epoch = 3
    state.losses.append(2.0)
    state.commit()
    state.epoch = 4
    state.losses.append(3.0)
    state.restore()
    assert state.epoch == 3 and state.losses == [1.0, 2.0]
    state.losses.append(4.0)
    state.restore()
    assert state.losses == [1.0, 2.0]


def test_sync_sends_what_is_there_and_commits_it():
    state = objects(epoch=0)
    state.epoch = 5  # a checkpoint was loaded
    state.sync()
    assert state.epoch == 5
    state.epoch = 6
    state.restore()
    assert state.epoch == 5


def test_what_is_no_state():
    state = elastic.State(lambda obj: obj, hvd.rank)
    for method in (state.save, state.restore, state.sync, state.commit):
        with pytest.raises(NotImplementedError):
            method()


def test_host_updates():
    state = objects(epoch=0)
    state.check_host_updates()
    state.on_hosts_updated(10, elastic.HostUpdateResult.added)
    state.on_hosts_updated(11, elastic.HostUpdateResult.removed)
    state.epoch = 1
    with pytest.raises(hvd.HostsUpdatedInterrupt) as caught:
        state.commit()
    assert not caught.value.skip_sync
    state.restore()
    assert state.epoch == 1  # committed before
    state.on_hosts_updated(11, elastic.HostUpdateResult.removed)
    state.check_host_updates()  # no news
    state.on_hosts_updated(12, elastic.HostUpdateResult.removed)
    with pytest.raises(hvd.HostsUpdatedInterrupt) as caught:
        state.check_host_updates()
    assert caught.value.skip_sync


def everything():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    sampler = elastic.ElasticSampler(range(10))
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
        "sampler": sampler,
    }


def train(state):
    state.optimizer.zero_grad()
    loss = state.model(torch.arange(12.0).reshape(4, 3) + state.batch).square().sum()
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.scheduler.step()
    state.sampler.record_batch(0, 1)
    state.batch += 1


def values(state):
    handled = {name: value.state_dict() for name, value in everything_of(state).items()}
    return str(handled), state.batch, list(state.sampler)


def everything_of(state):
    return {name: getattr(state, name) for name in ("model", "optimizer", "scheduler", "scaler", "sampler")}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_training_that_goes_back(wrapped):
    parts = everything()
    if wrapped:
        parts["optimizer"] = hvd.DistributedOptimizer(parts["optimizer"])
    state = elastic.TorchState(batch=0, **parts)
    assert state.model is parts["model"] and state.optimizer is parts["optimizer"]
    for _ in range(2):
        train(state)
    state.sync()
    state.commit()
    committed = values(state)
    runs = []
    for _ in range(2):
        for _ in range(2):
            train(state)
        runs.append(values(state))
        state.restore()
        state.reset()
        assert values(state)[:2] == committed[:2]
    assert runs[0] == runs[1] and runs[0] != committed
    assert state.model is parts["model"] and state.scheduler is parts["scheduler"]


def test_a_state_of_the_optimizer_keeps_its_dtype():
    params = parameters(dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(params, lr=0.1)
    optimizer.state[params[0]]["master"] = torch.full((3,), 1.001)
    state = elastic.TorchState(optimizer=optimizer)
    optimizer.state[params[0]]["master"] += 1
    state.restore()
    assert torch.equal(optimizer.state[params[0]]["master"], torch.full((3,), 1.001))


def test_another_model_in_place_of_the_first():
    state = elastic.TorchState(model=torch.nn.Linear(1, 1))
    other = torch.nn.Linear(2, 2)
    state.model = other
    weight = other.weight.detach().clone()
    torch.nn.init.zeros_(other.weight)
    state.restore()
    assert state.model is other and torch.equal(other.weight, weight)


def test_handlers_of_ones_own():
    from ringdp.torch.elastic.state import StateHandler, get_handler_registry, set_handler_registry

    class Counter:
        count = 0

    class Handler(StateHandler):
        def save(self):
            self._saved = self.value.count

        def restore(self):
            self.value.count = self._saved

        def sync(self):
            self.value.count = hvd.broadcast_object(self.value.count)

    before = get_handler_registry()
    set_handler_registry([*before, (Counter, Handler)])
    try:
        counter = Counter()
        state = elastic.TorchState(counter=counter)
        counter.count = 3
        state.restore()
        assert state.counter is counter and counter.count == 0
    finally:
        set_handler_registry(before)


# --- run ------------------------------------------------------------------------------------------


def run(func, state, limit=3):
    resets = []
    wrapped = ringdp.elastic.run_fn(func, resets.append, limit)
    return wrapped(state), resets


def test_run_goes_back_to_the_commit_and_on():
    state, calls = objects(batch=0, seen=[]), []
    state.register_reset_callbacks([lambda: calls.append("reset")])

    def train(state):
        calls.append(f"from {state.batch}")
        while state.batch < 6:
            state.batch += 1
            state.seen.append(state.batch)
            if state.batch == 2:
                state.commit()
            if state.batch == 4 and len(calls) < 4:
                raise hvd.PeerError("a rank has left")
        return "done"

    result, resets = run(train, state)
    assert result == "done" and state.seen == [1, 2, 3, 4, 5, 6]
    assert calls == ["from 0", "reset", "from 2", "reset", "from 2"][: len(calls)] and len(calls) == 5
    assert [str(r) for r in resets] == ["a rank has left"] * 2


def test_an_interrupt_goes_on_with_what_is_there():
    state, synced = objects(batch=0), []
    state.sync = lambda: synced.append(state.batch)

    def train(state):
        if state.batch < 2:
            state.batch += 1
            raise hvd.HostsUpdatedInterrupt(skip_sync=state.batch == 2)

    _, resets = run(train, state)
    assert state.batch == 2 and synced == [0, 1] and len(resets) == 2


@pytest.mark.parametrize(
    "error",
    [hvd.PeerError, hvd.DeadlineError, hvd.TransportError, hvd.MismatchError, hvd.DuplicateNameError],
)
def test_it_gives_up_after_so_many_resets_without_a_commit(error, capfd):
    state, calls = objects(batch=0), []

    def train(state):
        calls.append(state.batch)
        raise error("no way")

    text = rf"rank 0: elastic.run gives up after 2 resets .*{error.__name__}: no way"
    with pytest.raises(hvd.HorovodInternalError, match=text):
        run(train, state, limit=2)
    assert calls == [0, 0, 0]
    told = f"ringdp: rank 0: elastic.run goes on from the last commit after {error.__name__}: no way"
    assert told in capfd.readouterr().err


def test_commits_count_as_progress():
    state = objects(batch=0)

    def train(state):
        while state.batch < 9:
            state.batch += 1
            state.commit()
            raise hvd.PeerError("again")

    _, resets = run(train, state, limit=1)
    assert len(resets) == 9


@pytest.mark.parametrize("error", [hvd.UsageError, hvd.NotInitializedError, ValueError, KeyboardInterrupt])
def test_other_errors_are_the_users(error):
    def train(state):
        raise error("mine")

    with pytest.raises(error, match="mine"):
        run(train, objects())


def test_both_forms_of_the_decorator():
    @elastic.run
    def plain(state, x, y=1):
        """What it says."""
        return x + y

    @elastic.run(reset_limit=0)
    def limited(state):
        raise hvd.HorovodInternalError("enough")

    assert plain(objects(), 2, y=3) == 5 and plain.__doc__ == "What it says."
    assert hvd.elastic is elastic and issubclass(hvd.HorovodInternalError, RuntimeError)


# --- sampler --------------------------------------------------------------------------------------


def samplers(ranks, *arguments, **options):
    """One for each rank of a job of so many."""
    made = []
    for rank in range(ranks):
        with place(rank, ranks):
            made.append(elastic.ElasticSampler(*arguments, **options))
    return made


def place(rank, ranks):
    return world.use(world.World(world.current().engine, world.Place(rank, ranks)))


def horovods_order(samples, seed):
    order = list(range(samples))
    random.Random(seed).shuffle(order)
    return order


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [12, 13, 100])
def test_the_order_is_that_of_horovod(ranks, samples):
    for rank, sampler in enumerate(samplers(ranks, range(samples), seed=3)):
        for epoch in range(2):
            with place(rank, ranks):
                sampler.set_epoch(epoch)
            order = horovods_order(samples, 3 + epoch)
            order += order[: -samples % ranks]
            assert list(sampler) == order[rank::ranks] and len(sampler) == len(order) // ranks


def test_without_shuffling():
    assert [list(s) for s in samplers(2, range(5), shuffle=False)] == [[0, 2, 4], [1, 3, 0]]


def test_what_was_processed_is_not_dealt_out_again_to_other_ranks():
    before = samplers(3, range(20), seed=1)
    done = []
    for batch in range(2):
        for sampler in before:
            list(sampler)
            done += sampler.get_indices(batch, 2)
            sampler.record_batch(batch, 2)
    assert before[0].processed_num == 12 and before[0].processed_indices == set(done)
    assert len(before[0]) == 7  # until it is reset
    saved = before[0].state_dict()
    assert saved == {"epoch": 0, "processed_num": 12}
    after = samplers(2, range(20), seed=1)
    for rank, sampler in enumerate(after):
        with place(rank, 2):
            sampler.load_state_dict(saved)
    rest = [i for sampler in after for i in sampler]
    assert sorted(rest + done) == list(range(20)) and len(after[0]) == 4


def test_indices_recorded_one_by_one():
    (sampler,) = samplers(1, range(8), shuffle=False)
    sampler.record_indices([1, 2, 6])
    assert list(sampler) == list(range(8))
    sampler.reset()
    assert list(sampler) == [0, 3, 4, 5, 7]
    sampler.record_batch(0, 2)
    assert sampler.processed_indices == {0, 1, 2, 3, 6}
    state = sampler.state_dict()
    assert state == {"epoch": 0, "processed_num": 4, "processed_indices": {1, 2, 6}}
    sampler.load_state_dict(state)
    assert list(sampler) == [4, 5, 7]
    sampler.load_state_dict({"epoch": 1, "processed_indices": {0, 7}})  # of an older Horovod
    assert list(sampler) == [1, 2, 3, 4, 5, 6] and sampler.epoch == 1
    sampler.set_epoch(2)
    assert sampler.processed_indices == set() and len(sampler) == 8


def test_the_end_of_an_epoch():
    for sampler in samplers(4, range(6), shuffle=False):
        for batch in range(2):
            sampler.record_batch(batch, 1)
        assert sampler.processed_num == 8 and sampler.processed_indices == set(range(6))
        sampler.reset()
        assert list(sampler) == [] and len(sampler) == 0
    fewer = samplers(4, range(1))  # Horovod's fails
    assert [list(s) for s in fewer] == [[0]] * 4
