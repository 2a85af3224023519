"""What a tuning strategy is: pure functions that say what trains and how effective weights are formed.

    base params --init--> trainable (the optimizer's)   frozen (the rest)   state (never differentiated)
                              \\__________________ variables __________________/
                                                      |
                                     {"params", "tuning"}  what Model.apply takes

There are three seams: *weights* (the params returned), *activations* and *inputs* (callables at named sites, the tuning
returned). Everything is addressed by logical names, one per layer, whatever the storage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import pydantic

from research.config import Config, validated, variant
from research.errors import InputError
from research.models import layout
from research.models.config import ModelConfig
from research.trees import flatten, unflatten

Tree = dict[str, Any]


@dataclass(frozen=True)
class Base:
    """What a strategy starts from: the model's parameters by stored path, and what their logical names are."""

    config: ModelConfig
    params: dict[str, Any]  # flat: stored path -> array, stacked over repeats within a run
    fresh: frozenset[str] = frozenset()  # logical names that were newly initialised, not loaded

    @property
    def names(self) -> list[str]:
        """All logical names."""
        return [name for path in self.params for name in self.logical(path)]

    def logical(self, path: str) -> list[str]:
        """The logical names behind a stored path."""
        return layout.logical(self.config, path)

    def rows(self, names: Iterable[str]) -> dict[str, list[int] | None]:
        """`{stored path: rows}` of some logical names; None where the leaf is not stacked."""
        chosen: dict[str, list[int] | None] = {}
        for name in names:
            path, row = layout.stored(self.config, name)
            if row is None:
                chosen[path] = None
            else:
                chosen.setdefault(path, []).append(row)
        return chosen


def ragged(base: Base, path: str, rows: list[int] | None) -> str:
    """The key of a stored leaf or, where only some layers of it are meant, of those rows: `path@1,3`."""
    whole = rows is None or len(rows) == len(base.logical(path))
    return path if whole else f"{path}@{','.join(map(str, rows))}"


def parse(key: str) -> tuple[str, list[int] | None]:
    """The stored path and the rows (None: all) of a `ragged` key."""
    path, _, rows = key.partition("@")
    return path, [int(row) for row in rows.split(",")] if rows else None


def spread(key: str, leaf: jax.Array, repeats: int) -> jax.Array:
    """A ragged leaf -> all `repeats` rows, zero where it has none."""
    _, rows = parse(key)
    return leaf if rows is None else jnp.zeros((repeats, *leaf.shape[1:]), leaf.dtype).at[jnp.asarray(rows)].set(leaf)


def leaf_names(base: Base, key: str) -> list[str]:
    """The logical names behind a ragged key."""
    path, rows = parse(key)
    names = base.logical(path)
    return names if rows is None else [names[row] for row in rows]


def trained(base: Base, trainable: Tree) -> list[str]:
    """The logical names of those base leaves, or rows of them, that are in `trainable` as themselves."""
    places = {key: key.partition("@") for key in trainable}
    own = [key for key, (path, _, rest) in places.items() if path in base.params and "/" not in rest]
    return [name for key in own for name in leaf_names(base, key)]


class Strategy(Config):
    """Base of all strategies. A subclass is frozen configuration plus the pure functions below.

    `frozen` is a dict: `frozen["base"]` holds the base leaves that the strategy did not take, flat by stored path, and
    the rest is the strategy's own.
    """

    kind: str
    mergeable: ClassVar[bool] = True  # whether `weights` alone gives the tuned model
    identity: ClassVar[bool] = True  # whether the model at initialisation equals the base

    @pydantic.model_validator(mode="before")
    @classmethod
    def _variant(cls, value: Any) -> Any:
        if cls is Strategy:
            raise ValueError("a strategy is built by research.tuning.strategy.strategy(...)")
        return value

    def reach(self, base: Base) -> list[str]:
        """The logical names of the weights (or of the maps whose sites) the strategy trains.

        The model is cut below the lowest layer among them, and nothing under the cut is differentiated.

        Raises:
            InputError: a pattern that matches nothing.
        """
        raise TypeError(f"{type(self).__name__} does not say what it reaches")

    def init(self, rng: jax.Array, base: Base, data: Any = None) -> tuple[Tree, Tree, Tree]:
        """`(trainable, frozen, state)`. The optimizer sees `trainable` only."""
        raise TypeError(f"{type(self).__name__} does not say what it trains")

    def weights(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        """The definition: effective params, flat by stored path. Default: the base as it is."""
        return dict(frozen["base"])

    def variables(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        """What training applies: flat `{"params", "tuning"}`. Overridden where sites implement what `weights` defines."""
        return {"params": self.weights(trainable, frozen, state, rng), "tuning": {}}

    def penalty(self, trainable: Tree, frozen: Tree, state: Tree) -> Any:
        """A scalar added to the loss."""
        return 0.0

    def update(self, state: Tree, trainable: Tree, grads: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        """`(trainable, state)` after the optimizer's update."""
        return trainable, state

    def learning_names(self, base: Base, trainable: Tree) -> dict[str, list[str]]:
        """The logical names behind each leaf of `trainable` (flat), for learning-rate and decay groups: one a row."""
        return {key: leaf_names(base, key) for key in trainable}


def strategy(value: Any) -> Strategy:
    """A Strategy from itself, `"lora"`, `{"kind": "lora", "rank": 4}`, or a list of these (their composition).

    Raises:
        InputError: an unknown kind (naming the nearest).
    """
    if isinstance(value, Strategy):
        return value
    if isinstance(value, list | tuple):
        value = {"kind": "compose", "parts": list(value)}
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise InputError(f"a tuning strategy needs a kind, got {value!r}.")
    return variant("research.tuning", Strategy, value["kind"]).model_validate(value)


class _Chosen(Config):
    """What `tune` was told, so that a mistake in it is said as one in a file is."""

    tuning: Strategy

    @pydantic.field_validator("tuning", mode="before")
    @classmethod
    def _tuning(cls, value: Any) -> Strategy:
        return strategy(value)


@dataclass(frozen=True)
class Tuned:
    """A model under a strategy: the cut model, and `trainable`, `frozen`, `state` ready for the training step."""

    model: Any
    strategy: Strategy
    base: Base = field(repr=False)
    trainable: Tree = field(repr=False)
    frozen: Tree = field(repr=False)
    state: Tree = field(repr=False)

    @property
    def variables(self) -> Callable[..., Tree]:
        """`(trainable, frozen, state, rng=None) -> {"params", "tuning"}` as nested trees: what `Model.apply` takes."""
        return lambda *args, **kwargs: nested(self.strategy.variables(*args, **kwargs))

    @property
    def names(self) -> dict[str, list[str]]:
        """The logical names behind every leaf of `trainable`, for the optimizer's groups."""
        return self.strategy.learning_names(self.base, self.trainable)


def nested(flat: Tree) -> Tree:
    """Flat `{"params", "tuning"}` -> nested. Sites are named by path: `encoder/runs/0/0/attention/query/site`."""
    return {name: unflatten(part) for name, part in flat.items()}


def tune(model: Any, params: Tree, how: Any, rng: jax.Array, *, fresh: Iterable[str] = (), data: Any = None) -> Tuned:
    """Put a model under a strategy. Freshly initialised leaves (a new head) train under every strategy.

    Args:
        model, params: as `load` returns them (`variables["params"]`).
        how: whatever `strategy` takes.
        fresh: logical names of newly initialised leaves.
        data: examples, for strategies that initialise from data.

    Raises:
        InputError: an unknown strategy or option, or a pattern that matches nothing.
    """
    chosen, fresh = validated(_Chosen, {"tuning": how}).tuning, frozenset(fresh)
    whole = Base(model.config, flatten(params), fresh)
    reached = chosen.reach(whole)
    if missing := [name for name in whole.names if name in fresh and name not in set(reached)]:
        chosen = strategy([chosen, {"kind": "select", "patterns": [re.escape(name) for name in missing]}])
        reached = [*reached, *missing]
    cut, params = model.split(params, _floors(model.config, reached))
    base = Base(cut.config, flatten(params), fresh)
    return Tuned(cut, chosen, base, *chosen.init(rng, base, data))


def _floors(config: ModelConfig, names: Iterable[str]) -> dict[str, int]:
    """The lowest layer of each stack that some name lies in; 0 where something below the layers trains.

    An encoder-decoder's encoder is below everything of its decoder only through the decoder's cross-attention, so its
    floor is its own; a decoder needs all of its gradients where anything of the encoder trains.
    """
    floors, names = {stack: part.layers for stack, part in config.stacks.items()}, list(names)
    for name in names:
        if place := layout.layer_of(name):
            floors[place[0]] = min(floors[place[0]], place[1])
        elif name.startswith("embeddings/"):
            floors = dict.fromkeys(floors, 0)
        elif "/embeddings/" in name:
            floors[name.split("/")[0]] = 0
    if len(floors) == 2 and any(name.startswith("encoder/") for name in names):
        floors["decoder"] = 0
    return floors
