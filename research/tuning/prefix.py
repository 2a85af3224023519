"""Prefix tuning (Li & Liang 2021), in its direct form (P-tuning v2, Liu et al. 2022): trained keys and values in front of
every layer's attention, while the model stays frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import pydantic

from research.errors import InputError
from research.trees import matching
from research.tuning.strategy import Base, Strategy, Tree, leaf_names


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeysValues:
    """At a layer's attention: `length` keys and values that every query sees, whatever its segment."""

    key: jax.Array  # [K, length, d]; a leading layer axis while stacked
    value: jax.Array

    def keys_values(self, shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Both as `[B, K, length, d]` for keys of `shape [B, K, S, d]`."""
        return tuple(jnp.broadcast_to(a.astype(dtype), (shape[0], *a.shape)) for a in (self.key, self.value))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shift:
    """The places that a prefix occupies push the tokens' positions back."""

    length: int = field(metadata={"static": True})

    def __call__(self, positions: jax.Array) -> jax.Array:
        return positions + self.length


class Prefix(Strategy):
    """Trains `length` keys and values a layer, drawn as the model draws its weights: the start is not the base."""

    mergeable: ClassVar[bool] = False
    identity: ClassVar[bool] = False
    kind: Literal["prefix"] = "prefix"
    length: int = pydantic.Field(default=16, gt=0)
    stacks: tuple[Literal["encoder", "decoder"], ...] | None = None  # None: every stack there is

    def reach(self, base: Base) -> list[str]:
        stacks = self.stacks or tuple(base.config.stacks)
        for stack in stacks:
            if stack not in base.config.stacks:
                raise InputError(f"tuning.stacks names the {stack}, which a {base.config.family} model does not have.")
            learned = base.config.stacks[stack].positions
            if learned and self.length >= learned:
                raise InputError(f"tuning.length {self.length} leaves no place among the {learned} learned positions.")
        return matching([f"{stack}/layers/\\d+/attention/key/kernel" for stack in stacks], base.names, "tuning.stacks")

    def init(self, rng: jax.Array, base: Base, data: Any = None) -> tuple[Tree, Tree, Tree]:
        trainable = {}
        for number, (path, rows) in enumerate(base.rows(self.reach(base)).items()):
            stack, _, run, kind, _ = path.split("/", 4)
            layer = base.config.stacks[stack].runs[int(run)].kinds[int(kind)]
            shape = (2, len(rows), layer.kv_heads, self.length, layer.head_width)
            drawn = jax.random.normal(jax.random.fold_in(rng, number), shape) * base.config.initializer_range
            trainable[f"{path}/prefix_key"], trainable[f"{path}/prefix_value"] = drawn
        return trainable, {"base": dict(base.params)}, {}

    def variables(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        sites = {}
        for path in (name.removesuffix("/prefix_key") for name in trainable if name.endswith("/prefix_key")):
            place = KeysValues(trainable[f"{path}/prefix_key"], trainable[f"{path}/prefix_value"])
            sites[path.removesuffix("key/kernel") + "prefix"] = (place,)
            sites[f"{path.split('/')[0]}/positions/site"] = (Shift(self.length),)
        return {"params": dict(frozen["base"]), "tuning": sites}

    def learning_names(self, base: Base, trainable: Tree) -> dict[str, list[str]]:
        keys = ((name, *name.rsplit("/", 1)) for name in trainable)
        return {name: [f"{n.rsplit('/', 2)[0]}/{part}" for n in leaf_names(base, key)] for name, key, part in keys}
