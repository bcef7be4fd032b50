"""`DistributedGradientTape`: a tf.GradientTape whose `gradient` gives the gradients of all ranks together."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ringdp.constants import Average, ReduceOp
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op
from ringdp.tensorflow.compression import Compression
from ringdp.tensorflow.exchange import Options, exchanged


@tf.autograph.experimental.do_not_convert
def DistributedGradientTape(
    gradtape: tf.GradientTape,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: ProcessSet = global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """A tape like `gradtape`, which `gradient()` exchanges with all ranks before it returns: in one call for all.

        with tf.GradientTape() as tape:
            loss = ...
        tape = hvd.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, model.trainable_variables)

    Eagerly and in tf.function. All ranks ask for gradients of the same shapes and dtypes in the same order; a source
    that gets None on one rank gets None on all. `jacobian` and `batch_jacobian` exchange nothing.

    Args:
        gradtape: which has recorded, or is yet to record:
            `with hvd.DistributedGradientTape(tf.GradientTape()) as tape`.
        device_dense, device_sparse: not used.
        compression: see `allreduce`.
        sparse_as_dense: tf.IndexedSlices, as embeddings give them, are made dense first; else the ranks gather all
            slices.
        op: Average, Sum, Min, Max, Product or Adasum. Slices can be averaged and summed.
        gradient_predivide_factor: with Average: so much of the division comes before the sum.
        num_groups, groups: not needed: all gradients go in one exchange.
        process_set: the ranks that take part.
        scale_local_gradients: gradients of local sources (`tape.register_local_source(variable)`), which are not
            exchanged, are divided by the number of ranks.

    Returns:
        A tape of a class derived from that of `gradtape`, with the further method `register_local_source`.

    Raises:
        TypeError: no tf.GradientTape.
        UsageError: options that cannot be.
    """
    if not isinstance(gradtape, tf.GradientTape):
        raise TypeError(f"gradtape must be a tf.GradientTape, not a {type(gradtape).__name__}")
    check_groups(num_groups, groups)
    options = Options(
        reduce_op(op, None), compression, sparse_as_dense, gradient_predivide_factor, process_set
    )
    options.flat(None)  # to refuse what cannot be where it is written
    base = type(gradtape)
    tape: Any = object.__new__(type(base.__name__, (_Distributed, base), {}))
    tape.__dict__.update(gradtape.__dict__)
    tape._options, tape._scales_local = options, scale_local_gradients
    tape._local_sources = set()
    return tape


@tf.autograph.experimental.do_not_convert
def PartialDistributedGradientTape(
    gradtape: tf.GradientTape,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: ProcessSet = global_process_set,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
) -> Any:
    """A `DistributedGradientTape` with the weights of `local_layers`, a layer or several, as local sources."""
    tape = DistributedGradientTape(
        gradtape,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        op,
        gradient_predivide_factor,
        num_groups,
        groups,
        process_set,
        scale_local_gradients,
    )
    layers = [] if local_layers is None else local_layers
    for layer in layers if isinstance(layers, (list, tuple, set)) else [layers]:
        for weight in layer.trainable_weights:
            tape.register_local_source(weight)
    return tape


def check_groups(num_groups: int, groups: Any) -> None:
    """Raise UsageError for what Horovod refuses."""
    if not isinstance(num_groups, int) or num_groups < 0:
        raise UsageError(f"num_groups must be an integer from 0, not {num_groups!r}")
    is_number = isinstance(groups, int) and groups >= 0
    is_lists = isinstance(groups, (list, tuple)) and all(isinstance(group, (list, tuple)) for group in groups)
    if groups is not None and not is_number and not is_lists:
        raise UsageError(f"groups must be a number from 0 or a list of lists of variables, not {groups!r}")


class _Distributed:
    """Before the class of a tape among its bases."""

    _options: Options
    _scales_local: bool
    _local_sources: set[Any]

    @tf.autograph.experimental.do_not_convert
    def register_local_source(self, source: Any) -> None:
        """This source's gradient stays this rank's: it is not exchanged."""
        self._local_sources.add(_reference(source))

    @tf.autograph.experimental.do_not_convert
    def gradient(
        self, target: Any, sources: Any, output_gradients: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As `tf.GradientTape.gradient`, combined with those of the other ranks."""
        gradients = super().gradient(target, sources, output_gradients, *args, **kwargs)  # type: ignore[misc]
        flat_sources = tf.nest.flatten(sources)
        flat = tf.nest.flatten(gradients)  # slices and None are one each
        is_local = [_reference(source) in self._local_sources for source in flat_sources]
        shared = [g for g, local in zip(flat, is_local, strict=True) if not local]
        reduced = iter(exchanged(shared, self._options, "DistributedGradientTape"))
        result = [self._local(g) if local else next(reduced) for g, local in zip(flat, is_local, strict=True)]
        return tf.nest.pack_sequence_as(sources, result)

    def _local(self, gradient: Any) -> Any:
        if gradient is None or not self._scales_local:
            return gradient
        size = self._options.process_set.size()
        if isinstance(gradient, tf.IndexedSlices):
            return tf.IndexedSlices(gradient.values / size, gradient.indices, gradient.dense_shape)
        return gradient / size


def _reference(source: Any) -> Any:
    """What can be in a set, and is the same for the same source: Keras's variables hold one of TensorFlow's."""
    inner = getattr(source, "value", None)
    variable = inner if isinstance(inner, (tf.Variable, tf.Tensor)) else source
    return variable.ref()
