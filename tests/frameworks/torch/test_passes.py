"""Which backward passes run inside others, as hooks see it."""

import ctypes
import threading

import pytest
import torch

from ringdp.torch.passes import backward_depth


@pytest.mark.parametrize(("name", "inside"), [("pt_autograd_0", 1), ("trainer", 0)])
def test_the_outermost_backward_is_not_on_the_stack_of_a_thread_of_autograd(name, inside):
    """What a backward pass on a GPU calls in turn runs in the thread that PyTorch's engine has for the GPU."""
    depths = []

    def run():
        assert ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0) == 0  # PR_SET_NAME, as the engine does
        depths.append(backward_depth())
        x = torch.ones(2, requires_grad=True)
        x.register_post_accumulate_grad_hook(lambda _: depths.append(backward_depth()))
        x.sum().backward()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert depths == [inside, 1 + inside]
