"""An example of a strategy outside the library: the head's bias, pulled towards nought, with a count of the steps."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import pydantic

from research.tuning.strategy import Base, Strategy, Tree


class Pull(Strategy):
    """Trains `head/output/bias` with a penalty of `strength` times its square."""

    kind: Literal["my_tuning.pull"] = "my_tuning.pull"
    strength: float = pydantic.Field(default=0.0, ge=0)

    def reach(self, base: Base) -> list[str]:
        return ["head/output/bias"]

    def init(self, rng: jax.Array, base: Base, data: Any = None) -> tuple[Tree, Tree, Tree]:
        rest = dict(base.params)
        return {"head/output/bias": rest.pop("head/output/bias")}, {"base": rest}, {"steps": jnp.zeros((), jnp.int32)}

    def weights(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        return frozen["base"] | trainable

    def penalty(self, trainable: Tree, frozen: Tree, state: Tree) -> Any:
        return self.strength * jnp.sum(trainable["head/output/bias"] ** 2)

    def update(self, state: Tree, trainable: Tree, grads: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        return trainable, {"steps": state["steps"] + 1}
