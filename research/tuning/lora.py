"""LoRA (Hu et al. 2022): `W + s A B` with A, B of low rank. rsLoRA's scale (Kalajdzievski 2023) by option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pydantic

from research.errors import InputError
from research.models.layers import drop
from research.trees import matching
from research.tuning.strategy import Base, Strategy, Tree, leaf_names, parse, ragged, spread


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """The factored form, at the site of a linear map: `y + s * (dropout(x) A) B`."""

    a: jax.Array  # [in, rank]; a leading layer axis while stacked
    b: jax.Array  # [rank, out]
    scale: float = field(metadata={"static": True})
    dropout: float = field(metadata={"static": True})

    def __call__(self, x: jax.Array, y: jax.Array, kernel: Any, rng: jax.Array | None) -> jax.Array:
        if self.dropout and rng is not None:
            x = drop(jax.random.key_data(rng)[-2:], self.dropout, x)
        return y + jnp.dot(jnp.dot(x, self.a.astype(x.dtype)), self.b.astype(x.dtype)) * self.scale


class LoRA(Strategy):
    """`weights` forms `W + s A B` (the definition); training applies the factors, which costs less.

    A is drawn uniformly from +-1/sqrt(in) and B is zero, so the model starts as the base.
    """

    kind: Literal["lora"] = "lora"
    rank: int = pydantic.Field(default=8, gt=0)
    alpha: float = pydantic.Field(default=16.0, gt=0)
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)  # of the input of A
    targets: tuple[str, ...] = pydantic.Field(default=(r".*/(query|value)/kernel",), min_length=1)
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / sqrt(rank) where rank-stabilised."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    def reach(self, base: Base) -> list[str]:
        # A fresh matrix trains itself: a low rank beside it would add nothing.
        names = matching(self.targets, [name for name in base.names if name not in base.fresh], "tuning.targets pattern")
        for name in names:
            if not name.endswith("/kernel"):
                raise InputError(f"tuning.targets chooses {name}, which is no matrix of a linear map (a .../kernel).")
        return names

    def init(self, rng: jax.Array, base: Base, data: Any = None) -> tuple[Tree, Tree, Tree]:
        trainable = {}
        for number, (path, rows) in enumerate(base.rows(self.reach(base)).items()):
            *_, width, features = base.params[path].shape
            if self.rank > min(width, features):
                raise InputError(f"tuning.rank is {self.rank}, but {path} is only {width} x {features}.")
            lead = () if rows is None else (len(rows),)
            bound = width**-0.5
            key = ragged(base, path, rows)
            draw = jax.random.uniform(jax.random.fold_in(rng, number), (*lead, width, self.rank), minval=-bound, maxval=bound)
            trainable[f"{key}/a"], trainable[f"{key}/b"] = draw, jnp.zeros((*lead, self.rank, features))
        return trainable, {"base": dict(base.params)}, {}

    def weights(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        params = dict(frozen["base"])
        for path, a, b in self._factors(trainable, params):
            delta = jnp.matmul(a, b, precision="highest") * self.scale
            params[path] = params[path] + delta.astype(params[path].dtype)
        return params

    def variables(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        sites = {
            path.removesuffix("kernel") + "site": (LowRank(a, b, self.scale, self.dropout),)
            for path, a, b in self._factors(trainable, frozen["base"])
        }
        return {"params": dict(frozen["base"]), "tuning": sites}

    def _factors(self, trainable: Tree, params: Tree):
        for key in (name.removesuffix("/a") for name in trainable if name.endswith("/a")):
            path, _ = parse(key)
            yield path, *(spread(key, trainable[f"{key}/{factor}"], params[path].shape[0]) for factor in "ab")

    def learning_names(self, base: Base, trainable: Tree) -> dict[str, list[str]]:
        keys = {name: name.rsplit("/", 1) for name in trainable}
        return {name: [f"{n}/lora_{factor}" for n in leaf_names(base, key)] for name, (key, factor) in keys.items()}
