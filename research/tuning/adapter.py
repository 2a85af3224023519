"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021): `y + up(f(down(y)))` after a sublayer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import pydantic

from research.models.config import Activation
from research.models.layers import ACTIVATIONS
from research.trees import matching
from research.tuning.strategy import Base, Strategy, Tree, leaf_names, parse, ragged, spread

_PARTS = ("down_kernel", "down_bias", "up_kernel", "up_bias")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bottleneck:
    """Called with a sublayer's output `y [B,T,D]`, before the residual sum."""

    down_kernel: jax.Array  # [D, width]; a leading layer axis while stacked
    down_bias: jax.Array
    up_kernel: jax.Array  # [width, D]
    up_bias: jax.Array
    activation: str = field(metadata={"static": True})

    def __call__(self, x: jax.Array, y: jax.Array, kernel: Any, rng: jax.Array | None) -> jax.Array:
        hidden = ACTIVATIONS[self.activation](jnp.dot(y, self.down_kernel.astype(y.dtype)) + self.down_bias.astype(y.dtype))
        return y + jnp.dot(hidden, self.up_kernel.astype(y.dtype)) + self.up_bias.astype(y.dtype)


class Adapter(Strategy):
    """`places` are sublayers: Houlsby's form has both `attention` and `mlp`, Pfeiffer's only `mlp`.

    The up-projection starts at zero, so the model starts as the base. Has no effective weights: it cannot be merged.
    """

    mergeable: ClassVar[bool] = False
    kind: Literal["adapter"] = "adapter"
    width: int = pydantic.Field(default=64, gt=0)
    activation: Activation = "gelu"
    places: tuple[Literal["attention", "cross", "mlp"], ...] = pydantic.Field(default=("attention", "mlp"), min_length=1)
    layers: str = r"(encoder|decoder)/layers/\d+"  # which layers, a pattern over `encoder/layers/3`

    def reach(self, base: Base) -> list[str]:
        last = {"attention": "attention/output/kernel", "cross": "cross/output/kernel", "mlp": "mlp/down/kernel"}
        return matching([f"(?:{self.layers})/{last[place]}" for place in self.places], base.names, "tuning.layers")

    def init(self, rng: jax.Array, base: Base, data: Any = None) -> tuple[Tree, Tree, Tree]:
        trainable = {}
        for number, (path, rows) in enumerate(base.rows(self.reach(base)).items()):
            key, n, features = ragged(base, path, rows), len(rows), base.params[path].shape[-1]
            down = jax.random.normal(jax.random.fold_in(rng, number), (n, features, self.width)) * features**-0.5
            shapes = down, jnp.zeros((n, self.width)), jnp.zeros((n, self.width, features)), jnp.zeros((n, features))
            trainable |= {f"{key}/{part}": value for part, value in zip(_PARTS, shapes, strict=True)}
        return trainable, {"base": dict(base.params)}, {}

    def variables(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        sites = {}
        for key in {name.rsplit("/", 1)[0]: None for name in trainable}:
            path, _ = parse(key)
            parts = [spread(key, trainable[f"{key}/{part}"], frozen["base"][path].shape[0]) for part in _PARTS]
            # .../mlp/down/kernel: the sublayer is two names up.
            sites[path.rsplit("/", 2)[0] + "/site"] = (Bottleneck(*parts, self.activation),)
        return {"params": dict(frozen["base"]), "tuning": sites}

    def learning_names(self, base: Base, trainable: Tree) -> dict[str, list[str]]:
        keys = ((name, *name.rsplit("/", 1)) for name in trainable)
        return {name: [f"{n.rsplit('/', 2)[0]}/adapter_{part}" for n in leaf_names(base, key)] for name, key, part in keys}
