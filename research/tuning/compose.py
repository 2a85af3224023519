"""Several strategies at once: their weights folded over the base, their sites chained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import pydantic

from research.errors import InputError
from research.tuning._selection import Selection
from research.tuning.strategy import Base, Strategy, Tree, strategy, trained

Part = Annotated[pydantic.SerializeAsAny[Strategy], pydantic.BeforeValidator(strategy)]


class Compose(Strategy):
    """Selections act first, then the other parts in their order; a composition among them is taken apart.

    No base leaf may be trained by two of them.

    `trainable` and `state` are `{"0": part 0's, "1": ...}`; `frozen` is the same beside the common `base`.
    """

    kind: Literal["compose"] = "compose"
    parts: tuple[Part, ...] = pydantic.Field(min_length=1)

    @pydantic.field_validator("parts")
    @classmethod
    def _parts(cls, parts: tuple[Strategy, ...]) -> tuple[Strategy, ...]:
        flat = (inner for part in parts for inner in (part.parts if isinstance(part, Compose) else (part,)))
        # What a selection takes out of the base must be back before others add to it.
        return tuple(sorted(flat, key=lambda part: not isinstance(part, Selection)))

    @property
    def mergeable(self) -> bool:
        return all(part.mergeable for part in self.parts)

    @property
    def identity(self) -> bool:
        return all(part.identity for part in self.parts)

    def reach(self, base: Base) -> list[str]:
        reached = {name for part in self.parts for name in part.reach(base)}
        return [name for name in base.names if name in reached]

    def init(self, rng: jax.Array, base: Base, data: Any = None) -> tuple[Tree, Tree, Tree]:
        trainable, frozen, state, taken = {}, {"base": dict(base.params)}, {}, {}
        for number, part in enumerate(self.parts):
            key = str(number)
            trainable[key], own, state[key] = part.init(jax.random.fold_in(rng, number), base, data)
            for path in base.params.keys() - own.pop("base").keys():
                frozen["base"].pop(path, None)
            for name in trained(base, trainable[key]):
                if name in taken:
                    raise InputError(f"tuning parts {taken[name]!r} and {part.kind!r} both train {name}.")
                taken[name] = part.kind
            frozen[key] = own
        return trainable, frozen, state

    def _fold(self, call: Callable[..., Tree], trainable: Tree, frozen: Tree, state: Tree, rng) -> Tree:
        params, tuning = frozen["base"], {}
        for number, part in enumerate(self.parts):
            key, own = str(number), None if rng is None else jax.random.fold_in(rng, number)
            made = call(part, trainable[key], {"base": params, **frozen[key]}, state[key], own)
            params = made["params"]
            for place, sites in made["tuning"].items():
                tuning[place] = (*tuning.get(place, ()), *sites)
        return {"params": params, "tuning": tuning}

    def weights(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        call = lambda part, *args: {"params": part.weights(*args), "tuning": {}}
        return self._fold(call, trainable, frozen, state, rng)["params"]

    def variables(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        return self._fold(lambda part, *args: part.variables(*args), trainable, frozen, state, rng)

    def penalty(self, trainable: Tree, frozen: Tree, state: Tree) -> Any:
        parts = enumerate(self.parts)
        return sum(p.penalty(trainable[str(i)], {"base": frozen["base"], **frozen[str(i)]}, state[str(i)]) for i, p in parts)

    def update(self, state: Tree, trainable: Tree, grads: Tree, step: jnp.ndarray) -> tuple[Tree, Tree]:
        made = {str(i): p.update(state[str(i)], trainable[str(i)], grads[str(i)], step) for i, p in enumerate(self.parts)}
        return {k: v[0] for k, v in made.items()}, {k: v[1] for k, v in made.items()}

    def learning_names(self, base: Base, trainable: Tree) -> dict[str, list[str]]:
        return {
            f"{i}/{path}": names
            for i, part in enumerate(self.parts)
            for path, names in part.learning_names(base, trainable[str(i)]).items()
        }
