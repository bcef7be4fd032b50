"""Commits in a folder: several ranks write, and go on from them, as in a new job."""

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from frameworks.torch.helpers import network, same_on_all_ranks

import ringdp.torch as hvd
from ringdp import world
from ringdp.commits import kept
from ringdp.commits.folder import Folder
from ringdp.commits.writer import Writer

SHARDS = ["", "elements", "parameters"]


@pytest.fixture
def folder():
    """The same for all ranks."""
    made = tempfile.mkdtemp(prefix="ringdp-commits-") if hvd.rank() == 0 else None
    path = Path(hvd.broadcast_object(made))
    yield path
    hvd.barrier()
    if hvd.rank() == 0:
        shutil.rmtree(path)


class Scrambled(torch.nn.Module):
    """Gradients come in another order than that of registration: the first plan is not the one that holds later."""

    def __init__(self, seed):
        super().__init__()
        conv, relu, flat, middle, tanh, last = network(seed)
        self.middle, self.conv, self.last = middle, conv, last
        self.body = lambda x: last(tanh(middle(flat(relu(conv(x))))))

    def forward(self, x):
        return self.body(x)


def made(folder, seed=0, shard="", **more):
    """As in a job that has just begun."""
    kept._folders.clear()
    model = Scrambled(seed)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.01 + seed),
        named_parameters=model.named_parameters(),
        bucket_bytes=2000,
        shard=shard or False,
    )
    return hvd.elastic.TorchState(model, optimizer, folder=folder, batch=0, **more)


def train(state, steps):
    for _ in range(steps):
        x = torch.rand(4, 1, 8, 8)  # of the rank's own numbers
        state.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(state.model(x), torch.tensor([0, 1, 2, 0])).backward()
        state.optimizer.step()
        state.batch += 1


def committed(state):
    state.commit()
    state.flush()
    hvd.barrier()


def same(state, other):
    return all(
        torch.equal(p, q) for p, q in zip(state.model.parameters(), other.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_new_job_goes_on_with_the_same_bits(folder, shard, steps, capfd):
    state = made(folder, shard=shard)
    assert state.resume() is None
    torch.manual_seed(50 + hvd.rank())
    train(state, steps)
    committed(state)
    train(state, 3)
    again = made(folder, seed=1 + hvd.rank(), shard=shard)
    assert again.resume() == 1 and again.batch == steps
    train(again, 3)
    assert same(again, state) and same_on_all_ranks(again.model.parameters())
    if hvd.rank() == 0:
        assert f"ringdp: rank 0: going on from commit 1 of {folder}\n" in capfd.readouterr().err


@pytest.mark.parametrize("shard", ["elements", "parameters"])
def test_shards_go_back_and_on(folder, shard):
    """In memory: after a local restore, and after ringdp was initialised again."""
    state, failed = made(folder, shard=shard), []

    @hvd.elastic.run
    def body(state):
        while state.batch < 6:
            torch.manual_seed(10 * state.batch + hvd.rank())
            train(state, 1)
            if state.batch == 3 and not failed:
                failed.append(1)
                raise hvd.HorovodInternalError("a fault")
            if state.batch == 2:
                state.save()

    body(state)
    plain = made("")
    for batch in range(6):
        torch.manual_seed(10 * batch + hvd.rank())
        train(plain, 1)
    # After the reset, buckets come in the order of registration once: three ranks may add otherwise.
    close = 0.0 if hvd.size() < 3 else 1e-6
    assert all(
        torch.allclose(p, q, rtol=close, atol=close)
        for p, q in zip(state.model.parameters(), plain.model.parameters(), strict=True)
    )
    assert failed and same_on_all_ranks(state.model.parameters())
    state.save()
    torch.manual_seed(hvd.rank())
    train(state, 2)
    after = [p.detach().clone() for p in state.model.parameters()]
    state.restore()
    torch.manual_seed(hvd.rank())
    train(state, 2)
    assert all(torch.equal(p, a) for p, a in zip(state.model.parameters(), after, strict=True))


@pytest.mark.host_only
@pytest.mark.parametrize("shard", ["", "elements"])
def test_commits_go_on_after_a_fault_that_all_survive(folder, shard):
    state, failed = made(folder, shard=shard), []

    @hvd.elastic.run
    def body(state):
        while state.batch < 4:
            train(state, 1)
            if state.batch == 3 and not failed:
                failed.append(1)
                raise hvd.HorovodInternalError("a fault")
            committed(state)

    body(state)
    assert failed and [commit.number for commit in Folder(folder).commits()] == [4, 3]
    again = made(folder, seed=1, shard=shard)
    assert again.resume() == 4 and again.batch == 4 and same(again, state)


@pytest.mark.host_only
@pytest.mark.parametrize("shard", SHARDS)
def test_hosts_with_folders_of_their_own(folder, shard, monkeypatch, capfd):
    monkeypatch.setattr(world.current().job, "hosts", list(range(hvd.size())))
    own = folder / f"host-{hvd.rank()}"
    state = made(own, shard=shard)
    torch.manual_seed(50 + hvd.rank())
    train(state, 2)
    committed(state)
    (commit,) = Folder(own).commits()
    names = sorted(path.name for path in (own / commit.name).iterdir())
    assert names == [f"{kind}-{hvd.rank()}" for kind in ("manifest", "part", "state")]
    train(state, 3)
    again = made(own, seed=1, shard=shard)
    assert again.resume() == 1
    train(again, 3)
    assert same(again, state)
    # The last host is lost, and another one has come.
    if hvd.rank() == hvd.size() - 1:
        shutil.rmtree(own)
    hvd.barrier()
    capfd.readouterr()
    if shard:
        assert made(own, shard=shard).resume() is None
        assert hvd.rank() or "the first commit in" in capfd.readouterr().err
        return
    lost = made(own, seed=1)
    assert lost.resume() == 1 and same_on_all_ranks(lost.model.parameters())
    text = ", but not bit for bit: files of some ranks are missing, and with them their random numbers\n"
    assert hvd.rank() or capfd.readouterr().err.endswith(text)


@pytest.mark.host_only
def test_a_commit_that_comes_too_early_is_not_written_by_any_rank(folder, monkeypatch, capfd):
    state = made(folder)
    committed(state)
    with monkeypatch.context() as patch:
        if hvd.rank() == 1:
            patch.setattr(Writer, "is_ready", lambda writer: False)
        for _ in range(2):
            state.batch += 1
            committed(state)
    assert [commit.number for commit in Folder(folder).commits()] == [1]
    said = capfd.readouterr().err
    assert said.count("a commit is not written, as the one before (number 1) still is") == (hvd.rank() == 0)
    committed(state)
    assert [commit.number for commit in Folder(folder).commits()] == [2, 1]
    assert state.batch == 2


@pytest.mark.host_only
def test_a_changed_file_is_refused_by_all_ranks(folder, capfd):
    state = made(folder)
    for _ in range(3):
        state.batch += 1
        committed(state)
    assert [commit.number for commit in Folder(folder).commits()] == [3, 2]
    if hvd.rank() == 0:
        (file,) = folder.glob("commit-00000003-*/part-1")
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)
    hvd.barrier()
    again = made(folder)
    assert again.resume() == 2 and again.batch == 2
    said = capfd.readouterr().err
    assert ("commit 3 is refused: " in said) == (hvd.rank() == 1)  # who would have read it
    committed(again)
    assert [commit.number for commit in Folder(folder).commits()] == [4, 2]


@pytest.mark.host_only
def test_a_state_of_other_names_is_refused_on_every_rank(folder):
    committed(made(folder))
    with pytest.raises(hvd.UsageError, match="another state than this one"):
        made(folder, more=1).resume()


@pytest.mark.host_only
def test_a_folder_that_one_host_cannot_make(folder):
    if hvd.rank() == 0:
        (folder / "file").write_text("")
    hvd.barrier()
    state = made(folder / "file" / "below")
    with pytest.raises(
        hvd.UsageError, match=rf"rank {hvd.rank()}: there can be no commits in this folder: on rank 0, "
    ):
        state.commit()


@pytest.mark.host_only
def test_indices_recorded_one_by_one_are_put_together(folder):
    sampler = hvd.elastic.ElasticSampler(range(3 * hvd.size()), shuffle=False)
    state = made(folder, sampler=sampler)
    sampler.record_indices([2 * hvd.size() + hvd.rank()])
    committed(state)
    again = made(folder, sampler=hvd.elastic.ElasticSampler(range(3 * hvd.size()), shuffle=False))
    assert again.resume() == 1
    assert list(again.sampler) == [hvd.rank(), hvd.size() + hvd.rank()]


@pytest.mark.host_only
def test_a_sharded_optimizer_of_some_ranks_only(folder):
    if hvd.size() < 3:
        pytest.skip("needs three ranks")
    some = hvd.add_process_set([0, 1])
    try:
        model = network()
        optimizer = hvd.DistributedOptimizer(
            torch.optim.Adam(model.parameters()), shard=True, process_set=some
        )
        if some.included():
            with pytest.raises(hvd.UsageError, match="must be of all ranks of the job"):
                hvd.elastic.TorchState(model, optimizer, folder=folder)
            optimizer._exchange.agreed()  # nothing is under way in the set
    finally:
        hvd.remove_process_set(some)
