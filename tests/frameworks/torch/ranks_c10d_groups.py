"""Groups of some of the ranks, several of the same ranks, deadlines, and groups of another backend beside ringdp's."""

import re
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

import ringdp.torch as hvd

pytestmark = pytest.mark.usefixtures("c10d")

SOON = timedelta(seconds=1)


def test_a_group_without_rank_0_numbers_its_own_ranks():
    n, rank = dist.get_world_size(), dist.get_rank()
    ranks = list(range(1, n))
    group = dist.new_group(ranks)
    tensor = torch.tensor([10.0**rank])
    if rank == 0:
        assert group is dist.GroupMember.NON_GROUP_MEMBER
        return
    assert dist.get_rank(group) == rank - 1 and dist.get_world_size(group) == n - 1
    assert dist.get_backend(group) == "ringdp" and dist.get_process_group_ranks(group) == ranks
    dist.all_reduce(tensor, group=group)
    assert tensor.item() == sum(10.0**r for r in ranks)
    tensor = torch.tensor([float(rank)])
    dist.broadcast(tensor, n - 1, group=group)
    assert tensor.item() == n - 1
    part = torch.empty(1)
    dist.reduce_scatter(part, [torch.tensor([float(rank + 10 * r)]) for r in ranks], group=group)
    assert part.item() == sum(r + 10 * rank for r in ranks)
    gathered = [torch.empty(1) for _ in ranks] if rank == n - 1 else None
    dist.gather(torch.tensor([float(rank)]), gathered, dst=n - 1, group=group)
    assert gathered is None or [t.item() for t in gathered] == ranks
    received = torch.empty(1)
    following, before = ranks[rank % (n - 1)], ranks[(rank - 2) % (n - 1)]
    sending = dist.isend(torch.tensor([float(rank)]), following, group=group)
    assert dist.recv(received, before, group=group) == before and received.item() == before
    sending.wait()


def test_groups_of_the_same_ranks_do_not_meet():
    """The ranks use them in different orders."""
    n, rank = dist.get_world_size(), dist.get_rank()
    groups = [dist.new_group() for _ in range(3)]
    order = [(i + rank) % 3 for i in range(3)]
    for _ in range(5):
        tensors = [torch.tensor([float(10**i)]) for i in range(3)]
        works = [dist.all_reduce(tensors[i], group=groups[i], async_op=True) for i in order]
        for work in works:
            work.wait()
        assert [t.item() for t in tensors] == [n * 1.0, n * 10.0, n * 100.0]


def test_threads_with_a_group_each():
    n, rank = dist.get_world_size(), dist.get_rank()
    groups = [dist.new_group() for _ in range(4)]
    wrong = []

    def work(i):
        for step in range(100):
            tensor = torch.full((step % 7 + 1,), float(rank + i + step))
            work = dist.all_reduce(tensor, group=groups[i], async_op=True)
            (result,) = work.get_future().wait() if step % 2 else (work.wait() and tensor,)
            if (result != sum(r + i + step for r in range(n))).any():
                wrong.append((i, step))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads if rank % 2 else reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_messages_of_groups_of_the_same_ranks_do_not_meet():
    n, rank = dist.get_world_size(), dist.get_rank()
    first, second = dist.new_group(), dist.new_group()
    sent = [
        dist.isend(torch.tensor([float(i)]), (rank + 1) % n, group=group)
        for i, group in enumerate([first, second])
    ]
    for i, group in reversed([*enumerate([first, second])]):
        received = torch.empty(1)
        dist.recv(received, (rank - 1) % n, group=group)
        assert received.item() == i
    for work in sent:
        work.wait()


def test_groups_that_only_their_members_make():
    n, rank = dist.get_world_size(), dist.get_rank()
    neighbours = [r for r in range(rank // 2 * 2, rank // 2 * 2 + 2) if r < n]
    group = dist.new_group(neighbours, use_local_synchronization=True)
    tensor = torch.tensor([10.0**rank])
    dist.all_reduce(tensor, group=group)
    assert tensor.item() == sum(10.0**r for r in neighbours)


def test_subgroups_and_groups_that_are_made_again():
    for _ in range(3):
        mine, groups = dist.new_subgroups(1)
        assert len(groups) == dist.get_world_size() and dist.get_world_size(mine) == 1
        tensor = torch.tensor([3.0])
        dist.all_reduce(tensor, group=mine)
        dist.barrier(mine)
        assert tensor.item() == 3
        group = dist.new_group([0, dist.get_world_size() - 1])
        if group is not dist.GroupMember.NON_GROUP_MEMBER:
            tensor = torch.tensor([3.0])
            dist.all_reduce(tensor, group=group)
            assert tensor.item() == 6
            dist.destroy_process_group(group)


def test_a_group_of_gloo_beside():
    group = dist.new_group(backend="gloo")
    tensor = torch.ones(2)
    dist.all_reduce(tensor, group=group)
    assert dist.get_backend(group) == "gloo" and (tensor == dist.get_world_size()).all()
    dist.monitored_barrier(group)


def test_ranks_in_another_order_are_refused():
    with pytest.raises(hvd.UsageError, match=r"has its ranks in order \(sort_ranks=True\)"):
        dist.new_group(list(range(dist.get_world_size()))[::-1], sort_ranks=False)


# --- errors ---


def test_messages_that_nobody_sends_end_with_ringdp():
    n, rank = dist.get_world_size(), dist.get_rank()
    tensor = torch.full((3,), 7.0)
    never = dist.irecv(tensor, (rank + 1) % n)
    future = never.get_future()
    dist.barrier()
    hvd.shutdown()
    with pytest.raises(hvd.NotInitializedError, match="shut down before this operation had ended"):
        never.wait()
    with pytest.raises(hvd.NotInitializedError):
        future.wait()
    assert (tensor == 7).all()
    hvd.init()


def test_different_calls_are_shown_on_all_ranks():
    tensor = torch.ones(3)
    with pytest.raises(hvd.MismatchError, match="call 1' differs between ranks") as caught:
        if dist.get_rank() == 0:
            dist.all_reduce(tensor)
        else:
            dist.broadcast(tensor, 0)
    assert "rank 0: allreduce of float32[3]" in str(caught.value)
    assert re.search(r"broadcast of float32\[3\]( on a GPU)?, root_rank 0", str(caught.value))
    dist.all_reduce(tensor)
    assert (tensor == dist.get_world_size()).all()


def test_a_wait_ends_at_its_timeout_and_the_call_goes_on():
    tensor = torch.ones(1)
    late = dist.get_world_size() - 1
    if dist.get_rank() != late:
        work = dist.all_reduce(tensor, async_op=True)
        text = rf"rank {dist.get_rank()}: all_reduce in torch.distributed group 0 .* of the ranks \[0, .* of 0.05 s"
        with pytest.raises(hvd.DeadlineError, match=text):
            work.wait(timedelta(seconds=0.05))
        hvd.barrier()
        work.wait()
    else:
        hvd.barrier()
        dist.all_reduce(tensor)
    assert tensor.item() == dist.get_world_size()


def test_the_timeout_of_a_group():
    group = dist.new_group(timeout=SOON)
    late = dist.get_world_size() - 1
    if dist.get_rank() != late:
        work = dist.all_reduce(torch.ones(1), group=group, async_op=True)
        future = work.get_future()
        with pytest.raises(
            hvd.DeadlineError, match="all_reduce in .* has not ended within its timeout of 1 s"
        ):
            future.wait()
        with pytest.raises(hvd.DeadlineError, match="timeout of 1 s"):
            work.wait()
        assert isinstance(work.exception(), hvd.DeadlineError) and not work.is_success()
    hvd.barrier()
    if dist.get_rank() == late:  # so that nothing is left over
        dist.all_reduce(torch.ones(1), group=group)
    with pytest.raises(hvd.DeadlineError, match=rf"recv from rank {late} in .* has not ended"):
        dist.recv(torch.empty(1), late, group=group, tag=1)


def test_a_group_whose_members_do_not_come():
    last = dist.get_world_size() - 1
    if last == 1:
        pytest.skip("needs three ranks: two make no group but that of all")
    dist.destroy_process_group()
    hvd.shutdown()  # groups of the same ranks that were made before would do
    dist.init_process_group("ringdp")
    if dist.get_rank() == 0:
        text = (
            rf"rank 0: .* group .* needs the ranks \[0, {last}\], and \[{last}\] have not come .* within 1 s"
        )
        with pytest.raises(hvd.DeadlineError, match=text):
            dist.new_group([0, last], timeout=SOON, use_local_synchronization=True)
    dist.barrier()


def test_what_cannot_be_is_refused_on_the_rank():
    n = dist.get_world_size()
    for call, text in [
        (lambda: dist.all_reduce(torch.ones(1), dist.ReduceOp.BAND), "BAND of torch.float32 tensors is not defined"),
        (lambda: dist.reduce_scatter_tensor(torch.ones(2), torch.ones(3 * n)), "cannot be cut into a part of 2"),
        (lambda: dist.all_to_all_single(torch.ones(n), torch.ones(n + 1)), "do not divide evenly"),
        (lambda: dist.all_to_all_single(torch.ones(n), torch.ones(n), [2] * n, [1] * n), "are not the"),
        (lambda: dist.send(torch.ones(1), (dist.get_rank() + 1) % n, tag=2**31 - 1), "has room for tags"),
    ]:  # fmt: skip
        with pytest.raises(hvd.UsageError, match=text):
            call()
    with pytest.raises(TypeError, match="meta"):
        dist.all_reduce(torch.ones(1, device="meta"))


def test_an_output_that_is_too_small_is_an_error_on_every_rank():
    n = dist.get_world_size()
    with pytest.raises(hvd.UsageError, match=r"all_gather: \[2.* elements came, and the output has room for"):
        dist.all_gather([torch.empty(1) for _ in range(n)], torch.ones(2))


def test_calls_in_done_callbacks_have_numbers_of_their_own(c10d):
    """However late a rank comes to its callback, between its other calls."""
    results = []
    future = c10d.all_reduce(torch.ones(2), async_op=True).get_future()

    def after(_):
        time.sleep(0.2 * c10d.get_rank())
        x = torch.ones(3)
        c10d.all_reduce(x)
        results.append(x.tolist())  # here, as on a GPU no other thread's stream waits for it

    future.add_done_callback(after)
    time.sleep(0.2 * (c10d.get_rank() == 0))
    y = torch.ones(5)
    c10d.all_reduce(y)
    future.wait()
    deadline = time.monotonic() + 20
    while not results and time.monotonic() < deadline:
        time.sleep(0.01)
    size = c10d.get_world_size()
    assert y.tolist() == [size] * 5 and results[0] == [size] * 3
