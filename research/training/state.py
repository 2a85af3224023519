"""The training state: everything that a step changes, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A pytree that `jit` donates: after a step the old one is gone. The frozen leaves are not in it."""

    step: jax.Array  # int32: updates made
    trainable: Any
    strategy: Any  # the strategy's own state (masks, budgets, ...)
    optimizer: Any
    rng: jax.Array  # key data, uint32 [2], fixed: a step folds in its number
    average: Any = None  # exponential moving average of `trainable`, where asked for

    @classmethod
    def create(cls, trainable: Any, strategy: Any, optimizer: Any, seed: int, *, average: bool = False) -> Self:
        """The state before the first step. Arrays are copied, since the first step consumes them."""
        copy = lambda tree: jax.tree.map(lambda a: jnp.array(a, copy=True), tree)
        trainable = copy(trainable)
        rng = jax.random.key_data(jax.random.key(seed))
        first = jnp.zeros((), jnp.int32)
        return cls(first, trainable, copy(strategy), optimizer.init(trainable), rng, copy(trainable) if average else None)

    @property
    def evaluated(self) -> Any:
        """What evaluation and the best checkpoint use: the average where there is one."""
        return self.trainable if self.average is None else self.average

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)
