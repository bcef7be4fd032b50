"""`DistributedOptimizer`: an optimizer whose gradients are reduced over all ranks before it steps.

The optimizer that is given stays the same object; its class becomes one derived from its own, which adds the
exchange. So LR schedulers, GradScaler, hooks and `isinstance` see what they saw before, and `state_dict()` is
unchanged. Pickling and `copy.deepcopy` give an optimizer of the original class with the same state, to be
wrapped again.

With one rank nothing is added: no bucket, no view, no copy, no hook.

What the user must do alike on all ranks: make the optimizers in the same order, and call `backward()`, `zero_grad()`,
`synchronize()` and `step()` in the same order. (Which parameters get a gradient may differ.) Where ranks
differ in that, a rank that has gradients for all parameters waits in `backward()` for the vote of the others,
not for their `step()`.

`backward(create_graph=True)` leaves gradients that can be differentiated again: they are the reduced ones, and
derivatives flow to this rank's part of them; the next exchange adds the other ranks' parts.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ringdp import preempt, world
from ringdp.buckets import default_bucket_bytes
from ringdp.constants import Adasum, Average, ReduceOp, Sum
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.torch.arguments import check_arguments, check_names, named, named_from
from ringdp.torch.checks.alone import Alone
from ringdp.torch.checks.options import Checks, Skipped, checks_for
from ringdp.torch.checks.window import Checking
from ringdp.torch.comm_hook import CommHook, Hook
from ringdp.torch.compression import Compression, known
from ringdp.torch.exchange import Exchange
from ringdp.torch.finite import Partial
from ringdp.torch.model import Buffers, make_equal
from ringdp.torch.ops import operations
from ringdp.torch.parameter_groups import group_numbers
from ringdp.torch.sharded.how import check_sharded, sharded_by
from ringdp.torch.tracing import is_compiling
from ringdp.torch.user_compression import UserCompression
from ringdp.torch.weights import whole
from ringdp.torch.wire import Options

Closure = Callable[[], Any]


class Distributed(torch.optim.Optimizer):
    """What is put between an optimizer and its class. Never instantiated by itself."""

    _exchange: Exchange | None  # None with one rank
    _names: dict[torch.Tensor, str]
    _settle_in_step: bool
    _buffers: Buffers | None  # of the model that was given
    _alone: Alone | None  # checks gradients where there is no exchange

    # --- Horovod's methods ---

    def synchronize(self) -> None:
        """Finish the exchange of this window: all gradients are reduced when this returns. `step()` does it by
        itself.

        Parameters without gradient count as zeros; one that has none on any rank keeps `grad` None.
        """
        if self._exchange is not None:
            self._exchange.settle()
            self._buffers_are_due()

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """`step()` inside does not exchange: for use after `synchronize()` and, say, clipping.

        (Without it nothing is exchanged twice either.)
        """
        self._settle_in_step = False
        try:
            yield
        finally:
            self._settle_in_step = True

    # --- what DistributedDataParallel's users know, and our own ---

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """`backward()` inside accumulates on this rank alone; the next one outside exchanges the sum.

        May be nested. Passes inside do not count among `backward_passes_per_step`. `step()` and `synchronize()`
        exchange what is there, also inside.
        """
        exchange, buffers = self._exchange, self._buffers
        if exchange is None:
            yield
            return
        exchange.local += 1
        if buffers is not None:
            buffers.is_local = True
        try:
            yield
        finally:
            exchange.local -= 1
            if buffers is not None:
                buffers.is_local = exchange.local > 0

    def weigh(self, n: int) -> None:
        """Say how many samples or tokens the next `backward()` is about, so that ranks count by what they hold.

        To be called before every `backward()`, on all ranks (from the same step on), for a loss that is the mean over
        its samples or tokens. The exchanged gradient is then the sum of n·gradient over ranks, divided by the sum of n,
        instead of the average over ranks: that of the joined batch. With several passes in a window (of
        `backward_passes_per_step`, or inside `no_sync()`) the sums go over ranks and passes. The numbers travel in the
        buckets. Until they are exchanged, gradients are n times as large (a number of 0 makes them 0, were they NaN):
        mind float16, whose largest value is 65504.

        Args:
            n: 0 to 2**40. Called again before `backward()`, the later number counts.

        Raises:
            UsageError: not such a number; `op` is not Average, or there is a gradient_predivide_factor; or the first
                call is not at the beginning of a window. A `backward()` without `weigh` raises it too, once it is used.
        """
        count = whole(n)
        if self._exchange is None:
            return
        options = self._exchange.options
        if options.op is not Average or options.predivide != 1:
            raise UsageError("weigh() needs op=Average and no gradient_predivide_factor")
        self._exchange.weigh(count)

    def register_comm_hook(self, state: Any, hook: Hook) -> None:
        """Exchange buckets by `hook(state, bucket)`, as torch's DistributedDataParallel does: see
        `ringdp.torch.comm_hook` for what a hook gets and returns, and how it names its operations.

        To be called once, on all ranks, between steps. What comes beside the buckets (see `docs/optimizer.md`) is
        averaged without it. With one rank it is not called.

        Raises:
            UsageError: there is a hook or a compression of the user's own already; `compression`, `op` other than
                Average or gradient_predivide_factor was given; or not between steps.
            MismatchError: in the next `backward()` or `step()`, where the ranks have different hooks.
        """
        if not callable(hook):
            raise UsageError(
                f"a communication hook is a function of (state, bucket), not a {type(hook).__name__}"
            )
        if self._exchange is None:
            return
        options = self._exchange.options
        if self._exchange.has_hook() or options.compression is not Compression.none:
            raise UsageError(
                "register_comm_hook: this optimizer has a compression or a communication hook already"
            )
        if options.shard:
            raise UsageError("register_comm_hook: a sharded optimizer exchanges its gradients as they are")
        if options.op is not Average or options.predivide != 1:
            raise UsageError("register_comm_hook needs op=Average and no gradient_predivide_factor")
        self._exchange.use_hook(CommHook(state, hook))

    @property
    def skipped_steps(self) -> int:
        """Steps that `check_finite="skip"` has not taken; the same on all ranks. (GradScaler's own are not counted.)"""
        checking = self._checking()
        return 0 if checking is None else checking.skipped_steps

    # --- torch's methods ---

    def step(self, closure: Closure | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Reduce what is not reduced yet, then step.

        With a closure, the gradients of each of its evaluations are reduced, and so is the loss that it
        returns: all ranks decide by the same numbers (LBFGS compares losses).

        Raises:
            NonFiniteError: on all ranks, as `check_finite` says; no parameter was changed. (Of a closure that the
                optimizer calls several times: with "skip" too, if it is not its first gradient.)
            MissingGradientError, ReplicaError, VerificationError: on all ranks, where that is asked for; in
                `backward()` or `synchronize()`, if the exchange ends there.
            SystemExit: with code 143, on all ranks after the same step, where one was asked to stop: see `on_preempt`.
        """
        self._opt_called = True  # what LR schedulers look at
        exchange, result = self._exchange, None
        if closure is not None:
            closure = self._judged(closure if exchange is None else self._exchanged(closure, exchange))
        elif exchange is not None and self._settle_in_step:
            exchange.settle()
        if closure is not None or self._may_step():
            with contextlib.suppress(Skipped):
                result = self._plain_step(closure, **kwargs)
        if exchange is not None:
            exchange.stepped()
            self._buffers_are_due()
        if not is_compiling():
            self._stop_if_asked()
        return result

    def _checking(self) -> Checking | Alone | None:
        return self._alone if self._exchange is None else self._exchange.checking

    def _may_step(self) -> bool:
        """False if this step is to be skipped, on all ranks. Where the optimizer's own step skips for a scaler, which
        tells it of an overflow by an attribute, the scaler decides."""
        checking = self._checking()
        return checking is None or getattr(self, "found_inf", None) is not None or checking.may_step()

    def _judged(self, closure: Closure) -> Closure:
        """What the optimizer calls within its step, which cannot be skipped once it has gone on from a gradient."""
        if self._checking() is None:
            return closure
        evaluations = 0

        def evaluate() -> Any:
            nonlocal evaluations
            loss = closure()
            evaluations += 1
            checking = self._checking()
            if checking is not None and not (checking.may_go_on() if evaluations > 1 else self._may_step()):
                raise Skipped
            return loss

        return evaluate

    def _stop_if_asked(self) -> None:
        """All parameters are updated. Where all ranks stop after this step, this does not return."""
        exchange = self._exchange
        here = world.current() if world.is_initialized() else None
        if exchange is not None and exchange.wire.world is here:
            wire = exchange.wire
            preempt.stepped(wire.world, (wire.set, wire.name), wire.ranks == wire.world.place.size)
        elif exchange is None and here is not None and here.place.size == 1:
            preempt.stepped(here, id(self), True)

    def _buffers_are_due(self) -> None:
        if self._buffers is not None:
            self._buffers.is_due = True

    def _parameters(self) -> Iterable[torch.Tensor]:
        return (p for group in self.__dict__["param_groups"] for p in group["params"])

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        return named(self.__dict__["param_groups"], self._names)

    # LR schedulers need not patch it, and torch need not add step hooks: those of the original step run.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    step.hooked = True  # type: ignore[attr-defined]

    def _plain_step(self, closure: Closure | None, **kwargs: Any) -> Any:
        return super().step(**kwargs) if closure is None else super().step(closure, **kwargs)

    @staticmethod
    def _exchanged(closure: Closure, exchange: Exchange) -> Closure:
        def evaluate() -> Any:
            loss = closure()
            exchange.settle()
            if loss is None:
                return None
            return reduced_loss(loss, exchange)

        return evaluate

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """As torch's, default included. What is being exchanged is finished first: other ranks count on it."""
        if self._exchange is not None:
            self._exchange.before_zero_grad()
        super().zero_grad(*args, **kwargs)
        if self._exchange is not None:
            self._exchange.gradients_dropped()
            self._buffers_are_due()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. The new parameters' gradients are exchanged from the next step on, by a new plan."""
        super().add_param_group(param_group)
        if self._exchange is not None:
            self._exchange.extend(named(self.param_groups, self._names, since=len(self.param_groups) - 1))

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """As torch's.

        GradScaler reads them first of all when it unscales, and never calls `step()` where it finds an
        overflow on this
        rank: so here, at the latest, the gradients of all ranks must be the same.
        """
        exchange = self.__dict__.get("_exchange")
        reader = sys._getframe(1).f_code.co_name
        if reader == "_unscale_grads_" and exchange is not None:
            exchange.settle()
            exchange.checking.scaler_looks()
        return self.__dict__["param_groups"]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["param_groups"] = groups

    def __reduce__(self) -> Any:
        state: dict[str, Any] = self.__getstate__()  # type: ignore[assignment]
        # torch leaves these out, and a copy of an LBFGS could not step.
        state |= {name: self.__dict__[name] for name in ("_params", "_numel_cache") if name in self.__dict__}
        return _plain, (type(self).__bases__[1], state)


def reduced_loss(loss: Any, exchange: Exchange) -> Any:
    """The loss as the gradients are reduced: a sum with op=Sum, else an average, weighed where they are."""
    options, weight = exchange.options, exchange.weight()
    value = (
        loss.detach() if isinstance(loss, torch.Tensor) else torch.tensor(float(loss), dtype=torch.float64)
    )
    op, given = (Sum if options.op is Sum else Average), value
    if weight is not None:
        wide = value.double().reshape(1)
        wide = wide * weight if weight else torch.zeros_like(wide)
        op, given = Sum, torch.cat([wide, torch.full_like(wide, weight)])
    reduced = operations.allreduce(
        given, name=f"{exchange.name()}.loss", op=op, process_set=options.process_set
    )
    if weight is not None:
        reduced = (reduced[0] / reduced[1].clamp(min=1)).to(value.dtype).reshape(value.shape)
    return reduced if isinstance(loss, torch.Tensor) else reduced.item()


def _plain(kind: Any, state: dict[str, Any]) -> Any:
    optimizer = kind.__new__(kind)
    optimizer.__setstate__(state)
    return optimizer


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: Any = Compression.none,
    backward_passes_per_step: int = 1,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    sparse_as_dense: bool = False,
    process_set: ProcessSet = global_process_set,
    *,
    bucket_bytes: int | None = None,
    model: torch.nn.Module | None = None,
    broadcast_buffers: bool = True,
    shard: bool | str = False,
    check_finite: str | None = None,
    check_replicas_every: int | None = None,
    verify_every: int | None = None,
    missing_gradients: str = "zero",
) -> Any:
    """Let `optimizer` reduce its gradients over all ranks.

    When the last `backward()` of a window returns, every complete bucket of gradients is reduced; the rest at
    the first of `synchronize()`, `step()` and GradScaler's `unscale_`. Each gradient is then a view of its bucket
    (with compression: the tensor that autograd made, now with the reduced values).

    Args:
        optimizer: any torch.optim.Optimizer over parameters on the CPU, on this rank's GPU, or on both. The same object
            is returned.
        named_parameters: `model.named_parameters()`: names for errors and for the agreement between ranks. All
            parameters of the optimizer must be among them. Default: names by number.
        compression: `Compression.none`, or `.fp16`, `.bf16`: float32 and float64 gradients are cast to 16 bits as
            they are put into the bucket, and back after the exchange. They are accumulated in their own dtype. Or an
            object of one's own with Horovod's `compress` and `decompress`, called for each gradient by itself.
        backward_passes_per_step: so many backward passes accumulate (summed, not averaged) before one exchange.
            `step()` after fewer exchanges what is there; passes beyond it accumulate on this rank until `step()`.
        op: Average, Sum, Min, Max or Product. A gradient that a rank lacks counts as zeros, whatever the operation.
            Or Adasum: then each rank steps by itself, and `step()` combines what the ranks' steps have changed, a
            parameter at a time (see `ringdp.torch.adasum`; only a power of two of ranks).
        gradient_predivide_factor: gradients are divided by it before the sum and multiplied by it afterwards.
        num_groups: so many buckets of consecutive parameters in place of those by size (and one more for each further
            dtype in a group).
        groups: a number, as `num_groups`; or lists of parameters: each list is exchanged as one bucket, the other
            parameters in buckets by size.
        sparse_as_dense: sparse gradients (of torch.nn.Embedding(sparse=True)) are made dense. Otherwise the ranks
            gather indices and values (`sparse_allreduce_async`; only with Average and Sum), in `step()`, and `grad`
            is sparse.
        process_set: the ranks that exchange. The others may make the optimizer too: there it steps by itself.
        bucket_bytes: gradients are exchanged in buckets of about this size. Default: what RINGDP_BUCKET_BYTES says,
            else 25 MiB.
        model: the ranks' models are compared here, parameters and buffers, and then made equal: every rank gets the
            first rank's, as with DistributedDataParallel, whose users do not call `broadcast_parameters`. Gives the
            names where `named_parameters` is None.
        broadcast_buffers: with `model`, its buffers (BatchNorm's statistics) are broadcast from the first rank
            at the first forward in training mode of each step.
        shard: each rank keeps the optimizer's state of its part of the parameters alone, and steps that (ZeRO-1).
            "elements": the part cuts through parameters, and the exchange sends as much as without shards, a
            reduce-scatter of the gradients and an all-gather of the parameters; for optimizers that treat each element
            by itself. "parameters": whole parameters, for all others but LBFGS. True: what fits. The optimizer then
            has `clip_grad_norm_` and `consolidate_state_dict` besides: see docs/sharded.md.
        check_finite: look for an inf or NaN in this rank's gradients before they are exchanged, and let all ranks know.
            "raise": `step()` raises NonFiniteError on every rank. "skip": no rank steps, and `skipped_steps` counts it.
            "zero": zeros are exchanged in their place. Rank, parameter and index are named each time. "raise" and
            "skip" are for gradients on the CPU. See docs/checks.md, also for GradScaler.
        check_replicas_every: so many steps apart, all ranks compare a hash of their parameters, before the step. Where
            they differ, ReplicaError on every rank names those in the minority, and the first parameter that differs.
        verify_every: so many steps apart, one of the buckets, in turn, is exchanged a second time, and compared bit for
            bit on all ranks: VerificationError on every rank where it differs.
        missing_gradients: for a parameter that has a gradient on some ranks alone. "zero": zeros count for it on the
            others, and one line on stderr names them, once. "raise": MissingGradientError in `step()`, on every rank.

    Raises:
        UsageError, TypeError: here, for arguments that cannot be right.
        MismatchError: in the first `backward()` or `step()`, where the ranks' parameters or options differ; on
            every rank, naming the first parameter that differs, before any parameter changes. With `model`: here.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"DistributedOptimizer needs a torch.optim.Optimizer, not a {type(optimizer).__name__}"
        )
    if isinstance(optimizer, Distributed):
        raise UsageError("this optimizer is a DistributedOptimizer already")
    names = named_from(
        model.named_parameters() if named_parameters is None and model is not None else named_parameters
    )
    parameters = named(optimizer.param_groups, names)
    ours = known(compression)
    options = Options(
        op,
        backward_passes_per_step,
        gradient_predivide_factor,
        sparse_as_dense,
        default_bucket_bytes() if bucket_bytes is None else bucket_bytes,
        process_set,
        ours or Compression.none,
        "" if shard is False else sharded_by(optimizer, shard),
        checks_for(check_finite, check_replicas_every, verify_every, missing_gradients),
    )
    check_arguments(parameters, options)
    if options.shard:
        check_sharded(options, compression)
    if named_parameters is not None:
        check_names(parameters, names)
    if op is Adasum:
        if options.checks != Checks():
            raise UsageError(
                "op=Adasum exchanges no gradients: it takes none of check_finite, check_replicas_every, verify_every "
                "and missing_gradients"
            )
        return _adasum(optimizer, compression, process_set)
    grouped = group_numbers(parameters, num_groups, groups)
    hook = CommHook(None, UserCompression(compression, options)) if ours is None else None
    exchanges = process_set.included() and process_set.size() > 1
    exchange = Exchange(parameters, options, grouped, hook) if exchanges else None
    buffers = None
    if exchange is not None and model is not None:
        exchange.agreed()
        make_equal(model, exchange.name(), process_set)
        if broadcast_buffers:
            buffers = Buffers(model, exchange.name(), process_set)
            exchange.when_all_joined = buffers.begin_with_the_first
    _become(optimizer, _class_for(options), names, exchange, buffers)
    if exchange is None and check_finite is not None:
        optimizer._alone = Alone(check_finite, optimizer._named)  # type: ignore[attr-defined]
    if process_set.size() < world.size():
        optimizer._partial = Partial(optimizer._parameters)  # type: ignore[attr-defined]
    return optimizer


def _class_for(options: Options) -> type[Distributed]:
    from ringdp.torch.sharded.optimizer import Sharded

    return Sharded if options.shard else Distributed


def _adasum(optimizer: torch.optim.Optimizer, compression: Any, process_set: ProcessSet) -> Any:
    from ringdp.torch.adasum import AdasumOptimizer, Combination

    combines = process_set.included() and process_set.size() > 1
    combination = Combination(compression, process_set) if combines else None
    _become(optimizer, AdasumOptimizer if combines else Distributed, {}, None, None)
    if combination is not None:
        optimizer._combination = combination  # type: ignore[attr-defined]
    return optimizer


def _become(
    optimizer: torch.optim.Optimizer,
    distributed: type[Distributed],
    names: dict[torch.Tensor, str],
    exchange: Exchange | None,
    buffers: Buffers | None,
) -> None:
    """The optimizer gets a class of its own, derived from this one and from the one it has."""
    _remove_scheduler_patch(optimizer)
    kind = type(optimizer)
    optimizer.__class__ = type(kind.__name__, (distributed, kind), {"__module__": kind.__module__})
    optimizer._names = names  # type: ignore[attr-defined]
    optimizer._settle_in_step = True  # type: ignore[attr-defined]
    optimizer._exchange = exchange  # type: ignore[attr-defined]
    optimizer._buffers = buffers  # type: ignore[attr-defined]
    optimizer._alone = None  # type: ignore[attr-defined]


def _remove_scheduler_patch(optimizer: torch.optim.Optimizer) -> None:
    """A scheduler made before has put its own `step` on the instance, which would hide ours."""
    step = optimizer.__dict__.get("step")
    if step is None:
        return
    if not hasattr(step, "_wrapped_by_lr_sched") and not hasattr(step, "_with_counter"):
        raise UsageError(
            "something has replaced this optimizer's step(): call DistributedOptimizer before that"
        )
    del optimizer.__dict__["step"]
