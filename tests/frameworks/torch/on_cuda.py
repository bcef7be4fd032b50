"""What tests make is put on this rank's GPU: for tests that were written for the CPU, on a machine with a GPU."""

import torch
from standin.made_by import is_of_ringdp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class OnCuda(TorchDispatchMode):
    """While it is on, functions that make tensors of nothing make them there, and random ones as on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        given = any(isinstance(x, torch.Tensor) for x in tree_flatten((args, kwargs))[0])
        is_new = not given or func is torch.ops.aten.lift_fresh.default  # of torch.tensor
        return tree_map(_moved, made) if is_new and not is_of_ringdp() else made


def _moved(made):
    return made.cuda() if type(made) is torch.Tensor and made.is_cpu else made
