"""Strategies that train base leaves themselves: the parent of full, head, bitfit and their kind.

A stacked leaf of which only some layers are chosen is kept ragged: `trainable` holds just those rows, under
`path@rows`, so that counts and optimizer memory are honest.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from research.tuning.strategy import Base, Strategy, Tree, parse, ragged


class Selection(Strategy):
    """Trains some leaves of the base. Subclasses say which by `reach`."""

    def init(self, rng: jax.Array, base: Base, data: Any = None) -> tuple[Tree, Tree, Tree]:
        rest, trainable = dict(base.params), {}
        for path, rows in base.rows(self.reach(base)).items():
            key = ragged(base, path, rows)
            trainable[key] = rest.pop(path) if key == path else rest[path][jnp.asarray(rows)]
        return trainable, {"base": rest}, {}

    def weights(self, trainable: Tree, frozen: Tree, state: Tree, rng: jax.Array | None = None) -> Tree:
        params = dict(frozen["base"])
        for key, leaf in trainable.items():
            path, rows = parse(key)
            params[path] = leaf if rows is None else jnp.asarray(params[path]).at[jnp.asarray(rows)].set(leaf)
        return params
