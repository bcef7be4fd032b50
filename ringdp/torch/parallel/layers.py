"""Layers whose weights are split over the ranks of a process set, the model axis of a mesh.

      x (alike) ──copy_to──▶ ColumnLinear ──▶ parts of the features ──▶ RowLinear ──reduce_from──▶ y (alike)
                             rows of W each                             columns of W each

`ColumnLinear` gives each rank some of the output features, `RowLinear` takes some of the input features on each and
adds up what comes of them. One after the other, with what treats each feature by itself between them, they exchange
one sum forward and one backward (Shoeybi et al. 2019, section 3).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet
from ringdp.torch.parallel.autograd import copy_to, gather_from, own_part, reduce_from, scatter_to


class Split(nn.Module):
    """A layer that has parts of the parameters of another one. Copies of it share the process set."""

    split: ClassVar[
        dict[str, int]
    ]  # by name, the dimension along which a parameter is split; all others are alike
    process_set: ProcessSet

    def __init__(self, process_set: ProcessSet) -> None:
        super().__init__()
        self.process_set = process_set
        self.whole: dict[str, torch.Size] = {}  # the shapes of the whole parameters

    def take(self, layer: nn.Module) -> None:
        """Have this rank's parts of the layer's parameters, copied."""
        for name, param in layer._parameters.items():
            own = None
            if param is not None:
                self.whole[name] = param.shape
                own = nn.Parameter(self.part(name, param.detach()).clone(), param.requires_grad)
            self.register_parameter(name, own)
        self.train(layer.training)

    def part(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a whole parameter: a view."""
        dim = self.split.get(name)
        return whole if dim is None else whole.narrow(dim, *own_part(whole.shape[dim], self.process_set))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = copy = type(self).__new__(type(self))
        memo[id(self.process_set)] = self.process_set
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy


class _Linear(Split):
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, process_set: ProcessSet) -> None:
        super().__init__(process_set)
        self.in_features, self.out_features = in_features, out_features

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"ranks={self.process_set.ranks}"
        )


class ColumnLinear(_Linear):
    """`torch.nn.Linear`, of whose output features each rank has a part: rows of the weight, and the bias of these.

    The parts are cut out of a whole layer, which is made as torch makes it: with the same seed on all ranks of the set,
    they are those of the layer that one process has. Features that do not divide evenly: the first ranks have one more.

    Args:
        in_features, out_features: of the whole layer; at least one output feature for each rank.
        bias: whether there is one.
        process_set: the ranks that share the layer, such as `mesh.model`. A rank can only make a layer of a set that
            it is in.
        gather_output: put the parts together, so that all ranks have all features.
        device, dtype: as torch's.

    Shapes: (…, in_features), alike on all ranks → (…, this rank's output features); with `gather_output`
    (…, out_features), alike.

    Raises:
        UsageError: fewer features than ranks, or this rank is not in the set.
        NotInitializedError: the set cannot be used.
    """

    split = {"weight": 0, "bias": 0}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        process_set: ProcessSet,
        gather_output: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, process_set)
        self.gather_output = gather_output
        self.take(nn.Linear(in_features, out_features, bias, device, dtype))

    @classmethod
    def from_linear(
        cls, layer: nn.Linear, process_set: ProcessSet, gather_output: bool = False
    ) -> ColumnLinear:
        """This rank's part of a layer that all ranks of the set have alike: a copy of it.

        Raises:
            UsageError, NotInitializedError: as for the class.
        """
        new = cls(
            layer.in_features, layer.out_features, layer.bias is not None,
            process_set=process_set, gather_output=gather_output, device="meta",
        )  # fmt: skip
        new.take(layer)
        return new

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = linear(copy_to(x, self.process_set), self.weight, self.bias)
        return gather_from(y, self.process_set, -1, self.out_features) if self.gather_output else y


class RowLinear(_Linear):
    """`torch.nn.Linear`, of whose input features each rank has a part: columns of the weight. The bias is alike on all
    ranks, and added once, to the sum.

    Made as `ColumnLinear` is, whose output it takes.

    Args:
        in_features, out_features: of the whole layer; at least one input feature for each rank.
        bias: whether there is one.
        process_set: the ranks that share the layer, such as `mesh.model`.
        input_is_split: False: all ranks have all features, and each takes its part of them.
        device, dtype: as torch's.

    Shapes: (…, this rank's input features) → (…, out_features), alike on all ranks, bit for bit.

    Raises:
        UsageError: fewer features than ranks, or this rank is not in the set; in the forward pass, an input of another
            number of features.
        NotInitializedError: the set cannot be used.
    """

    split = {"weight": 1}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        process_set: ProcessSet,
        input_is_split: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, process_set)
        self.input_is_split = input_is_split
        self.take(nn.Linear(in_features, out_features, bias, device, dtype))

    @classmethod
    def from_linear(cls, layer: nn.Linear, process_set: ProcessSet, input_is_split: bool = True) -> RowLinear:
        """This rank's part of a layer that all ranks of the set have alike: a copy of it.

        Raises:
            UsageError, NotInitializedError: as for the class.
        """
        new = cls(
            layer.in_features, layer.out_features, layer.bias is not None,
            process_set=process_set, input_is_split=input_is_split, device="meta",
        )  # fmt: skip
        new.take(layer)
        return new

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expected = self.weight.shape[1] if self.input_is_split else self.in_features
        if x.shape[-1] != expected:
            raise UsageError(
                f"RowLinear: an input of {x.shape[-1]} features, and this rank takes {expected} of {self.in_features} "
                f"(input_is_split={self.input_is_split}): give it what a ColumnLinear of the same ranks returns, or "
                "all features with input_is_split=False"
            )
        if not self.input_is_split:
            x = scatter_to(x, self.process_set)
        y = reduce_from(linear(x, self.weight), self.process_set)
        return y if self.bias is None else y + self.bias


class SplitEmbedding(Split):
    """`torch.nn.Embedding`, of whose rows each rank has a part: a large vocabulary is shared out.

    Each rank looks up what it has, and the sum is what all have. Made as `ColumnLinear` is.

    Args:
        num_embeddings, embedding_dim: of the whole table; at least one row for each rank.
        process_set: the ranks that share the table, such as `mesh.model`.
        device, dtype: as torch's.

    Shapes: (…) of integers, alike on all ranks → (…, embedding_dim), alike on all ranks, bit for bit. An index that
    the table has not gives zeros.

    Raises:
        UsageError: fewer rows than ranks, this rank is not in the set, or, for `from_embedding`, an option that is not
            there.
        NotInitializedError: the set cannot be used.
    """

    split = {"weight": 0}
    weight: nn.Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        process_set: ProcessSet,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(process_set)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.first = own_part(num_embeddings, process_set)[0]
        self.take(nn.Embedding(num_embeddings, embedding_dim, device=device, dtype=dtype))

    @classmethod
    def from_embedding(cls, layer: nn.Embedding, process_set: ProcessSet) -> SplitEmbedding:
        """This rank's part of a table that all ranks of the set have alike: a copy of it.

        Raises:
            UsageError: it has max_norm, scale_grad_by_freq, sparse or padding_idx; and as for the class.
        """
        if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
            raise UsageError("SplitEmbedding knows nothing of max_norm, scale_grad_by_freq and sparse")
        if layer.padding_idx is not None:
            raise UsageError("SplitEmbedding knows nothing of padding_idx")
        new = cls(layer.num_embeddings, layer.embedding_dim, process_set=process_set, device="meta")
        new.take(layer)
        return new

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        mine = indices - self.first
        is_elsewhere = (mine < 0) | (mine >= self.weight.shape[0])
        rows = embedding(mine.masked_fill(is_elsewhere, 0), self.weight)
        return reduce_from(rows.masked_fill(is_elsewhere.unsqueeze(-1), 0), self.process_set)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, ranks={self.process_set.ranks}"
