"""torch.distributed's store over MPI, called from Python and, through PrefixStore, from C++."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

import ringdp.torch as hvd

pytestmark = pytest.mark.usefixtures("c10d")


@pytest.fixture(params=["C++", "Python"])
def store(request):
    outer = dist.distributed_c10d._get_default_store()
    if request.param == "C++":
        return dist.PrefixStore("test", outer)
    while isinstance(outer, dist.PrefixStore):
        outer = outer.underlying_store
    return outer


def key(text, request):
    return f"{request.node.name}/{text}"


def test_values_of_all_ranks(store, request):
    n, rank = dist.get_world_size(), dist.get_rank()
    store.set(key(rank, request), f"of rank {rank}")
    keys = [key(r, request) for r in range(n)]
    store.wait(keys)
    assert store.multi_get(keys) == [f"of rank {r}".encode() for r in range(n)]
    assert store.check(keys) and not store.check([*keys, key("none", request)])
    store.multi_set([key(f"{rank}.{i}", request) for i in range(3)], ["a", "b", "c"])
    assert store.get(key(f"{n - 1}.2", request)) == b"c"


def test_a_counter_of_all_ranks(store, request):
    n = dist.get_world_size()
    seen = [store.add(key("count", request), 2) for _ in range(5)]
    assert sorted(seen) == seen
    dist.barrier()
    assert store.add(key("count", request), 0) == 10 * n
    assert store.get(key("count", request)) == str(10 * n).encode()


def test_keys_that_others_set_later(store, request):
    n, rank = dist.get_world_size(), dist.get_rank()
    if rank == 0:
        assert store.get(key(n - 1, request)) == b"at last"
        store.set(key(0, request), "and on")
    else:
        dist.new_group([0])  # what else is done meanwhile
        if rank == n - 1:
            store.set(key(n - 1, request), "at last")
        assert store.get(key(0, request)) == b"and on"
    if rank == 0:
        dist.new_group([0])


def test_only_one_rank_sets(store, request):
    n, rank = dist.get_world_size(), dist.get_rank()
    winner = store.compare_set(key("one", request), "", str(rank))
    found = [None] * n
    dist.all_gather_object(found, winner)
    assert len(set(found)) == 1
    assert store.compare_set(key("one", request), "nobody", "x") == winner
    dist.barrier()
    if rank == 0:
        assert store.compare_set(key("one", request), winner, "new") == b"new"
    dist.barrier()
    assert store.get(key("one", request)) == b"new"
    assert store.compare_set(key("none", request), "something", "x") == b"something"


def test_what_is_deleted_is_gone(store, request):
    mine = key(dist.get_rank(), request)
    store.set(mine, "x")
    assert store.delete_key(mine) and not store.delete_key(mine) and not store.check([mine])
    store.append(mine, "a")
    store.append(mine, "b")
    assert store.get(mine) == b"ab" and store.num_keys() > 0 and store.has_extended_api()


def test_a_key_that_does_not_come(store, request):
    with pytest.raises(
        hvd.DeadlineError, match=rf"rank {dist.get_rank()}: .* store has not got .*none.* within 0.2"
    ):
        store.wait([key("none", request)], timedelta(seconds=0.2))
    store.set(key(dist.get_rank(), request), "it goes on")
    assert store.get(key(dist.get_rank(), request)) == b"it goes on"


def test_a_request_that_cannot_be(store, request):
    mine = key(dist.get_rank(), request)
    store.set(mine, "no number")
    with pytest.raises((hvd.UsageError, ValueError), match="invalid literal"):
        store.add(mine, 1)
    assert store.get(mine) == b"no number"


def test_several_threads(store, request):
    rank, found = dist.get_rank(), {}

    def work(i):
        store.set(key(f"{rank}.{i}", request), str(i))
        found[i] = int(store.get(key(f"{(rank + 1) % dist.get_world_size()}.{i}", request)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: i for i in range(8)}


def test_large_values(store, request):
    rank, n = dist.get_rank(), dist.get_world_size()
    value = bytes([rank + 1]) * 3_000_000
    store.set(key(rank, request), value)
    assert store.get(key((rank + 1) % n, request)) == bytes([(rank + 1) % n + 1]) * 3_000_000
