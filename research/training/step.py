"""The one training step: split, differentiate what trains, accumulate, clip, update. Everything else is an argument.

    batch --rows cut in parts--> [gradient of the loss's sum, denominator] --sum / denominator--> optimizer --> State'

Losses are sums with denominators, so that accumulation, packing and data parallelism give the gradient of one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.batches.batch import Batch
from research.objectives.objective import Objective
from research.training.state import State
from research.tuning.strategy import Tuned

Metrics = dict[str, jax.Array]


def train_step(
    tuned: Tuned,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    average: float | None = None,
) -> Callable[[State, Any, Batch], tuple[State, Metrics]]:
    """`(state, frozen, batch) -> (state, metrics)`, not yet compiled.

    Metrics: `loss` (penalty included), `gradient_norm` (before clipping), `finite`, `examples`, and the objective's own.

    Args:
        accumulate: parts that the batch's rows are computed in, one after another (rows are added empty if need be).
        average: decay of the moving average of the trainable leaves, None for no average.
    """

    def loss(trainable: Any, frozen: Any, strategy: Any, batch: Batch, rng: jax.Array):
        """The loss, or its sum where the denominator is yet to come from other parts of the batch."""
        variables = tuned.variables(trainable, frozen, strategy, jax.random.fold_in(rng, 1))
        output = tuned.model.apply(variables, batch, rng=jax.random.fold_in(rng, 2), hidden=False)
        total, count, aux = objective.loss(output, batch)
        sums = aux | {"denominator": count, "examples": jnp.sum(batch.weights)}
        if accumulate == 1:
            total = total / _positive(count) + tuned.strategy.penalty(trainable, frozen, strategy)
        return total, sums

    differentiate = jax.value_and_grad(loss, has_aux=True)

    def gradients(state: State, frozen: Any, batch: Batch, rng: jax.Array):
        """`((loss, sums), gradient)` of the whole batch."""
        if accumulate == 1:
            return differentiate(state.trainable, frozen, state.strategy, batch, rng)

        def part(total, inputs):
            number, batch = inputs
            own = differentiate(state.trainable, frozen, state.strategy, batch, jax.random.fold_in(rng, number))
            return jax.tree.map(jnp.add, total, own), None

        parts = split_rows(batch, accumulate)
        first = jax.tree.map(lambda a: a[0], parts)
        shapes = jax.eval_shape(differentiate, state.trainable, frozen, state.strategy, first, rng)
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        (total, sums), grads = jax.lax.scan(part, zero, (jnp.arange(accumulate), parts))[0]
        penalty, slope = jax.value_and_grad(tuned.strategy.penalty)(state.trainable, frozen, state.strategy)
        count = _positive(sums["denominator"])
        return (total / count + penalty, sums), jax.tree.map(lambda g, p: g / count + p, grads, slope)

    def step(state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        (value, sums), grads = gradients(state, frozen, batch, rng)
        norm = optax.tree.norm(grads)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        trainable, strategy = tuned.strategy.update(state.strategy, trainable, grads, state.step)
        smooth = state.average
        if average is not None:
            smooth = jax.tree.map(lambda old, new: average * old + (1 - average) * new, smooth, trainable)
        examples = sums.pop("examples")
        del sums["denominator"]
        metrics = {
            "loss": value,
            "gradient_norm": norm,
            "finite": jnp.isfinite(value) & jnp.isfinite(norm),
            "examples": examples,
        }
        metrics |= {name: total / jnp.maximum(examples, 1) for name, total in sums.items()}
        state = State(state.step + 1, trainable, strategy, optimizer_state, state.rng, smooth)
        return state, metrics

    return step


def _positive(denominator: jax.Array) -> jax.Array:
    return jnp.maximum(denominator, 1e-9)


def predict_step(tuned: Tuned, objective: Objective) -> Callable[..., tuple[dict[str, jax.Array], Metrics]]:
    """`(trainable, frozen, strategy state, batch) -> (predictions, sums)`, without dropout, not yet compiled.

    `sums` holds the loss's `sum` and `denominator` where the batch has targets.
    """

    def step(trainable: Any, frozen: Any, strategy: Any, batch: Batch):
        output = tuned.model.apply(tuned.variables(trainable, frozen, strategy), batch, hidden=False)
        sums = {}
        if batch.targets:
            total, denominator, _ = objective.loss(output, batch)
            sums = {"sum": total, "denominator": denominator}
        return objective.predict(output, batch), sums

    return step


def split_rows(batch: Batch, parts: int) -> Batch:
    """Every array `[B, ...]` of a batch -> `[parts, B / parts, ...]`; rows are added empty to make B divisible.

    Rows are dealt round, so that each part gets its share of the real ones.
    """

    def deal(a: Any, empty: int) -> Any:
        short = -a.shape[0] % parts
        xp = np if isinstance(a, np.ndarray) else jnp
        a = xp.pad(a, ((0, short), *((0, 0),) * (a.ndim - 1)), constant_values=empty) if short else a
        return a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1)

    ids = None if batch.ids is None else deal(batch.ids, -1)
    return jax.tree.map(lambda a: deal(a, 0), batch.replace(ids=None)).replace(ids=ids)
