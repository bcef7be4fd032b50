"""What a `TorchState` writes and reads, on one rank."""

import collections
import io
import pickle
import random

import numpy as np
import pytest
import torch

import ringdp.torch as hvd
from ringdp import world
from ringdp.commits import kept
from ringdp.commits.folder import Folder, newest
from ringdp.torch import elastic
from ringdp.torch.elastic import generators, rows
from ringdp.torch.elastic.payload import pack, unpack


@pytest.fixture(autouse=True)
def _new_process():
    """Folders are given out as in a process that has just begun."""
    kept._folders.clear()
    yield
    kept._folders.clear()


def through(value):
    buffer = io.BytesIO()
    pack(value)(buffer)
    return unpack(buffer.getvalue()), torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


class Own:
    """A class that PyTorch does not load by itself."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    __hash__ = None


def test_tensors_and_plain_data_are_not_pickled():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    value = {
        "model": model.state_dict(),
        "o": optimizer.state_dict(),
        "x": [1, 2.5, None, True, ("a", {1: "b"})],
    }
    found, written = through(value)
    assert list(written) == ["plain"]
    assert found["x"] == value["x"] and found["o"] == value["o"]
    assert isinstance(found["model"], collections.OrderedDict)
    assert found["model"]._metadata == value["model"]._metadata
    assert all(torch.equal(found["model"][k], v) for k, v in value["model"].items())


@pytest.mark.parametrize(
    "value",
    [
        Own(1),
        {"a": [1, (2, Own(3))], "b": Own(4), "c": 5},
        {Own: 1},
        [{1, 2}, np.float64(0.1), torch.float32, collections.Counter("aab")],
        {"lr": np.float32(0.5), "deep": {"deeper": [(Own(1),)]}},
    ],
)
def test_other_objects_are_pickled_each_in_its_place(value):
    found, written = through(value)
    assert found == value and type(found) is type(value)
    assert "objects" in written


def test_nothing_else_is_unpickled():
    buffer = io.BytesIO()
    torch.save({"plain": Own(1)}, buffer)
    with pytest.raises(pickle.UnpicklingError, match="eights"):
        unpack(buffer.getvalue())


def test_random_numbers_go_on():
    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            torch.rand(2).tolist(),
        )

    draw()  # leaves half a pair of gaussian numbers
    saved, _ = through(generators.states())
    expected = draw()
    draw()
    generators.put(saved)
    assert draw() == expected


# --- a state --------------------------------------------------------------------------------------


def made(folder, seed=0, **more):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1 + seed)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    return elastic.TorchState(
        model, optimizer, scheduler=scheduler, folder=folder, batch=0, own=Own(seed), **more
    )


def train(state, steps):
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.model(torch.rand(4, 3) + state.batch).square().sum().backward()
        state.optimizer.step()
        state.scheduler.step()
        state.batch += 1
        state.own.value = state.batch


def values(state):
    parts = (state.model, state.optimizer, state.scheduler)
    return str([part.state_dict() for part in parts]), state.batch, state.own.value


def test_a_new_process_goes_on_with_the_same_bits(tmp_path, capfd):
    state = made(tmp_path)
    assert state.resume() is None
    train(state, 2)
    state.commit()
    assert state.flush()
    train(state, 3)
    expected = values(state)
    _new = made_again(tmp_path, seed=5)
    assert _new.resume() == 1
    assert capfd.readouterr().err == f"ringdp: rank 0: going on from commit 1 of {tmp_path}\n"
    train(_new, 3)
    assert values(_new) == expected
    _new.restore()
    assert _new.batch == 2
    assert _new.resume() is None  # once


def test_the_same_state_has_the_same_checksum(tmp_path):
    """By which the launcher sees that a job makes no progress."""
    state = made(tmp_path)
    train(state, 2)
    state.commit()
    state.flush()
    before = newest(tmp_path)
    again = made_again(tmp_path, seed=3)
    again.resume()
    again.commit()
    again.flush()
    assert newest(tmp_path).commit.number == 2 and newest(tmp_path).state == before.state
    train(again, 1)
    again.commit()
    again.flush()
    assert newest(tmp_path).state != before.state


def made_again(folder, seed=0, **more):
    kept._folders.clear()
    return made(folder, seed, **more)


def test_the_variable_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGDP_COMMIT_DIR", str(tmp_path / "a"))
    first, second = made(None), elastic.ObjectState(hvd.broadcast_object, hvd.rank, epoch=3)
    nowhere = elastic.ObjectState(hvd.broadcast_object, hvd.rank, epoch=3, folder="")
    for state in (first, second, nowhere):
        state.commit()
        assert state.flush()
    assert [path.name.split("-")[0] for path in sorted((tmp_path / "a").iterdir())] == ["commit", "state"]
    assert newest(tmp_path / "a" / "state-1").commit.number == 1
    kept._folders.clear()
    made(None)
    again = elastic.ObjectState(hvd.broadcast_object, hvd.rank, epoch=0)
    assert again.resume() == 1 and again.epoch == 3


def test_elastic_run_goes_on_from_the_folder(tmp_path):
    def train_to(steps):
        @elastic.run
        def body(state):
            begins.append(state.batch)
            while state.batch < steps:
                train(state, 1)
                state.commit()
                state.flush()

        return body

    begins = []
    state = made(tmp_path)
    train_to(2)(state)
    state = made_again(tmp_path)
    train_to(4)(state)
    train_to(6)(state)  # in the same process it goes on with what is there
    assert begins == [0, 2, 4] and state.batch == 6
    assert len(Folder(tmp_path).commits()) == 2


def test_a_state_with_other_names(tmp_path):
    state = made(tmp_path)
    state.commit()
    state.flush()
    state = made_again(tmp_path, more=1)
    with pytest.raises(
        hvd.UsageError, match=r"another state than this one: it has .*model.*, here are .*more.*delete"
    ):
        state.resume()


def test_commits_of_which_none_can_be_used(tmp_path, capfd):
    state = made(tmp_path)
    for _ in range(2):
        state.commit()
        state.flush()
    for file in tmp_path.glob("commit-*/state-0"):
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(
        hvd.UsageError, match=r"there are commits in .*, and none can be used.*delete the folder"
    ):
        made_again(tmp_path).resume()
    said = capfd.readouterr().err
    assert "commit 2 is refused: " in said and "commit 1 is refused: " in said
    for file in tmp_path.glob("commit-*/manifest-0"):
        file.write_bytes(b"")
    with pytest.raises(hvd.UsageError, match="none can be used"):
        made_again(tmp_path).resume()


def test_a_first_commit_that_was_not_finished(tmp_path):
    state = made(tmp_path)
    state.commit()
    state.flush()
    for file in tmp_path.glob("commit-*/manifest-0"):
        file.unlink()
    state = made_again(tmp_path)
    assert state.resume() is None
    state.commit()
    state.flush()
    assert newest(tmp_path).commit.number == 2


def test_what_cannot_be_pickled_is_said(tmp_path, capfd):
    state = elastic.TorchState(folder=tmp_path, function=lambda: 1)
    state.commit()
    assert state.flush() and newest(tmp_path) is None
    assert "commit 1 does not count: " in capfd.readouterr().err


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    state = made(tmp_path / "file")
    with pytest.raises(
        hvd.UsageError, match="there can be no commits in this folder: on rank 0, .*file: File exists"
    ):
        state.commit()


# --- sampler --------------------------------------------------------------------------------------


def place(rank, ranks):
    return world.use(world.World(world.current().engine, world.Place(rank, ranks)))


@pytest.mark.parametrize("samples", [24, 23, 19])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_iteration_goes_on_in_another_process(ranks, samples):
    for rank in range(ranks):
        with place(rank, ranks):
            first = elastic.ElasticSampler(range(samples), seed=1)
            first.set_epoch(2)
            expected = list(first)
            for batch in range(2):
                first.record_batch(batch, 3)
            second = elastic.ElasticSampler(range(samples), seed=1)
            second.deal_again(first.dealt())
            assert second.state_dict() == first.state_dict() and second.dealt() == first.dealt()
            assert list(second) == expected[6:] and len(second) == len(expected) - 6
            assert second.get_indices(0, 3) == expected[6:9]
            for sampler in (first, second):
                sampler.record_batch(2, len(expected) - 6)
                sampler.reset()
            assert list(first) == list(second) == []


# --- rows of a sharded optimizer's state ----------------------------------------------------------


def test_rows_come_to_pieces_that_are_cut_otherwise():
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    whole = {"step": torch.tensor(3.0), "sum": torch.randn(2, 3, 4, 4)}
    (home,) = rows.homes([param], None)
    row = home.row(whole)
    in_memory = whole["sum"].permute(0, 2, 3, 1).reshape(-1)
    assert torch.equal(row["numbers"]["sum"], in_memory)
    cuts = [0, 7, 50, 96]
    pieces = [piece(home, begin, end) for begin, end in zip(cuts, cuts[1:], strict=False)]
    for one in pieces:
        one.take(row)
        assert torch.equal(one.whole()["sum"], in_memory[one.begin : one.end])
    again = home.empty()
    for one in pieces:
        again.take(one.row(one.whole()))
    assert torch.equal(again.whole()["sum"], whole["sum"]) and again.whole()["step"] == 3
    assert again.whole()["sum"].stride() == param.stride()


def piece(home, begin, end):
    return rows.Home(home.parameter, torch.nn.Parameter(torch.zeros(end - begin)), begin, end, home.strides)


def test_elements_that_no_rank_has():
    param = torch.nn.Parameter(torch.zeros(10))
    (home,) = rows.homes([param], None)
    part = piece(home, 0, 4)
    part.take(home.row({"sum": torch.ones(10)}))
    lacking = home.empty()
    lacking.take(part.row(part.whole()))
    with pytest.raises(hvd.UsageError, match="6 elements of parameter 0 are in no shard"):
        lacking.whole()


def test_a_parameter_that_lies_otherwise_in_memory():
    before, after = torch.zeros(2, 3), torch.zeros(3, 2).t()
    row = rows.homes([before], None)[0].row({"sum": torch.ones(2, 3)})
    with pytest.raises(hvd.UsageError, match=r"parameter 0 lies otherwise in memory \(strides \[1, 2\]\)"):
        rows.homes([after], None)[0].take(row)
