"""The Model: pure `init` and `apply` over one pytree of variables. Batch -> hidden states and logits.

    tokens --embeddings--> x --run 0: scan a period of Blocks--> x --run 1--> ... --norm--> hidden --head--> logits

`variables` is `{"params": ..., "tuning": ...}`. A run's parameters are stacked over its repeats, so compile time does not
grow with depth. `detached` runs lie below everything that trains: no gradient flows into or through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from research.batches.batch import Batch
from research.config import Config
from research.errors import InputError, nearest
from research.models import layout
from research.models.attention import rotary_table, visible
from research.models.block import Block, Context
from research.models.cache import Cache
from research.models.config import Head, ModelConfig, Run, Stack
from research.models.heads import HEADS, Pooler, first_tokens, gather
from research.models.layers import Embedding, Norm, dropout, site

WANTABLE = ("layers",)


class Policy(Config):
    """How a model is computed, apart from what it computes."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters stay float32
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes instead of keeping
    scan: bool = True  # one compiled body for all layers of a kind; False compiles each, slower to compile, faster to run


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What `apply` returns.

    `hidden [B,T,D]`: last hidden states (the decoder's, where there is one), None if not asked for. `logits`: `[B,T,V]` of a
    language head, `[B,C]` of a classification head, `[B,S,C]` of a batch that carries `ids`; None without a head. `cache`:
    with this call's tokens in it. `wanted["layers"]`: for each stack, `[L+1,B,T,D]`: what entered the first layer, then what
    left each.
    """

    hidden: Float[jax.Array, "B T D"] | None
    logits: jax.Array | None = None
    cache: Cache | None = None
    wanted: dict[str, Any] = field(default_factory=dict)


class Embeddings(nn.Module):
    """What enters a stack: token vectors plus learned positions and types, norm, dropout."""

    stack: Stack
    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, types: jax.Array | None) -> jax.Array:
        stack, width, scale = self.stack, self.config.width, self.config.initializer_range
        x = x * stack.embedding_scale
        if stack.positions:
            table = Embedding(stack.positions + stack.position_offset, width, ("positions", "embed"), scale, name="positions")
            x = x + table(positions + stack.position_offset, x.dtype)
        if stack.types:
            table = Embedding(stack.types, width, ("types", "embed"), scale, name="types")
            x = x + table(jnp.zeros_like(positions) if types is None else types, x.dtype)
        if stack.embedding_norm:
            layer = stack.runs[0].kinds[0]
            x = Norm(layer.norm, layer.epsilon, name="norm")(x)
        return site(self, x, dropout(self, x, stack.embedding_dropout))


@dataclass(frozen=True)
class Model:
    """A pure function of variables. Hashable, so it may be a static argument of `jit`."""

    config: ModelConfig
    policy: Policy = Policy()
    detached: tuple[tuple[str, int], ...] = ()  # (stack, number of runs) below everything that trains

    # ---- variables --------------------------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Fresh variables `{"params", "tuning": {}}`, float32, drawn as the family draws them."""
        return {"params": nn.unbox(self._boxed(rng)), "tuning": {}}

    def shapes(self) -> dict[str, Any]:
        """The parameters as `jax.ShapeDtypeStruct`s, without making any."""
        return nn.unbox(jax.eval_shape(self._boxed, jax.random.key(0)))

    def axes(self) -> dict[str, Any]:
        """The logical axes of every parameter, as `PartitionSpec`s."""
        return nn.get_partition_spec(jax.eval_shape(self._boxed, jax.random.key(0)))

    def _boxed(self, rng: jax.Array) -> dict[str, Any]:
        config, (b, t) = self.config, (1, 2)
        x, positions = jnp.zeros((b, t, config.width)), jnp.zeros((b, t), jnp.int32)
        keys = iter(jax.random.split(rng, 64))

        def new(module: nn.Module, *args) -> dict[str, Any]:
            return module.init({"params": next(keys)}, *args)["params"]

        def run(run: Run) -> dict[str, Any]:
            context = Context(_Same(jnp.ones((b, 1, t, t), bool)), {}, x, jnp.ones((b, 1, t, t), bool))
            made = {}
            for number, kind in enumerate(run.kinds):

                def init(key, kind=kind):
                    return Block(kind, config.width, config.initializer_range).init({"params": key}, x, context)["params"]

                stacked = jax.vmap(init)(jax.random.split(next(keys), run.repeats))
                add = nn.meta.add_axis
                made[str(number)] = add(stacked, 0, {nn.PARTITION_NAME: "layers"})
            return made

        params: dict[str, Any] = {"embeddings": {"tokens": new(self._tokens, positions, jnp.float32)}}
        for name, stack in config.stacks.items():
            part = {"embeddings": new(Embeddings(stack, config), x, positions, None)} if _has_embeddings(stack) else {}
            part["runs"] = {str(number): run(r) for number, r in enumerate(stack.runs)}
            if stack.final_norm:
                part["norm"] = new(_final_norm(stack), x)
            params[name] = part
        if config.pooler:
            params["pooler"] = new(Pooler(config), x[:, 0])
        if config.head:
            table = jnp.zeros((config.vocabulary, config.width))
            if head := HEADS[config.head.form](config).init({"params": next(keys)}, x, table).get("params"):
                params["head"] = head
        return params

    @property
    def _tokens(self) -> Embedding:
        config = self.config
        return Embedding(config.vocabulary, config.width, ("vocabulary", "embed"), config.initializer_range)

    # ---- the function -----------------------------------------------------------------------------------------------
    def apply(
        self,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        cache: Cache | None = None,
        rng: jax.Array | None = None,
        want: tuple[str, ...] = (),
        hidden: bool = True,
    ) -> Output:
        """Hidden states and logits of a batch.

        Args:
            variables: `{"params", "tuning"}` as `load`, `init` or a strategy returns them.
            batch: tokens `[B,T]`; an encoder-decoder also needs `source`, unless the cache already holds it.
            cache: earlier keys and values (`Cache.empty`); the batch's tokens are written after them.
            rng: randomness for dropout; None switches dropout off.
            want: more to return in `Output.wanted`, of "layers".
            hidden: False where only the logits are needed (`Output.hidden` is then None): the last layer computes no more
                than the places that the head reads, if the model is laid out for it (`split`).

        Raises:
            InputError: a batch that does not fit the model, or something unknown wanted.
        """
        self._check(variables, batch, cache, want)
        config, wanted = self.config, {}
        places = self._places(batch) if not hidden and not want and cache is None else None
        keys = iter([None] * 8 if rng is None else jax.random.split(rng, 8))
        memory = memory_segments = None
        if "encoder" in config.stacks:
            source = batch.source if "decoder" in config.stacks else batch
            if source is not None:
                memory, _, wanted["encoder"] = self._stack(
                    "encoder", variables, source, None, next(keys), want, places=places if source is batch else None
                )
                memory_segments = source.segments
            else:
                memory_segments = cache.source_segments
        if "decoder" in config.stacks:
            last, cache, wanted["decoder"] = self._stack(
                "decoder", variables, batch, cache, next(keys), want, (memory, memory_segments), places
            )
        else:
            last = memory
        logits = self._head(variables, batch, last, next(keys), places) if config.head else None
        return Output(last if places is None else None, logits, cache, {"layers": wanted} if "layers" in want else {})

    def _places(self, batch: Batch) -> jax.Array | None:
        """The places `[B,S]` that the head reads, None where it reads all or the last layer is not a run of its own."""
        config = self.config
        if config.head is None or config.head.form == "language" or list(config.stacks.values())[-1].runs[-1].layers > 1:
            return None
        return first_tokens(batch.segments, batch.slots)

    def _stack(self, name, variables, batch, cache, key, want, memory=(None, None), places=None):
        config, stack, dtype = self.config, self.config.stacks[name], jnp.dtype(self.policy.dtype)
        params, tuning = variables["params"][name], variables.get("tuning", {}).get(name, {})
        shared = {"params": variables["params"]["embeddings"]["tokens"], "tuning": _tuning(variables, "embeddings", "tokens")}
        keys = iter([None] * (len(stack.runs) + 1) if key is None else jax.random.split(key, len(stack.runs) + 1))
        positions = self._positions(stack, batch, cache)
        for shift in tuning.get("positions", {}).get("site", ()):
            positions = shift(positions)
        x = self._tokens.apply(shared, batch.tokens, dtype)
        scope = {"params": params.get("embeddings", {}), "tuning": tuning.get("embeddings", {})}
        x = Embeddings(stack, config).apply(scope, x, positions, batch.types, rngs=_rngs(next(keys)))

        memory, memory_segments = memory
        context = self._context(stack, batch, positions, cache, memory, memory_segments)
        kept, layers, detached = [], [x[None]], dict(self.detached).get(name, 0)
        for number, run in enumerate(stack.runs):
            scope = {
                c: v["runs"][str(number)]
                for c, v in (("params", params), ("tuning", tuning))
                if str(number) in v.get("runs", {})
            }
            part = None if cache is None else cache.layers[number]
            few = places if number == len(stack.runs) - 1 else None
            x, (run_kept, run_layers) = self._run(run, scope, x, context, part, next(keys), "layers" in want, few)
            if number < detached:
                x = jax.lax.stop_gradient(x)
            kept.append(run_kept)
            layers.append(run_layers)
        if stack.final_norm:
            x = _final_norm(stack).apply({"params": params["norm"]}, x)
        if cache is not None:
            cache = cache.advanced(tuple(kept), batch.segments, memory_segments)
        return x, cache, jnp.concatenate(layers) if "layers" in want else None

    def _run(self, run: Run, scope, x, context: Context, cached, key, want_layers: bool, places=None):
        """Scan the period of Blocks over the run's repeats. Returns x and, stacked over repeats, the cache and layers."""
        config = self.config

        def period(x, inputs):
            variables, cached, key = inputs
            kept, layers = {}, []
            for number, kind in enumerate(run.kinds):
                name = str(number)
                block = Block(kind, config.width, config.initializer_range)
                own = {c: tree.get(name, {}) for c, tree in variables.items()}
                rngs = _rngs(None if key is None else jax.random.fold_in(key, number))
                x, kept[name] = block.apply(own, x, context, None if cached is None else cached[name], places, rngs=rngs)
                layers.append(x)
            return x, (None if cached is None else kept, jnp.stack(layers) if want_layers else None)

        if self.policy.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.policy.remat == "dots" else None
            period = jax.checkpoint(period, policy=policy, prevent_cse=False)
        keys = None if key is None else jax.random.split(key, run.repeats)
        inputs = (scope, cached, keys)
        if run.repeats == 1:
            x, made = period(x, jax.tree.map(lambda a: a[0], inputs))
            kept, layers = jax.tree.map(lambda a: a[None], made)
        else:
            x, (kept, layers) = jax.lax.scan(period, x, inputs, length=run.repeats)
        return x, (kept, layers.reshape(-1, *layers.shape[2:]) if want_layers else None)

    def _context(self, stack: Stack, batch: Batch, positions, cache, memory, memory_segments) -> Context:
        kinds = {kind for run in stack.runs for kind in run.kinds}
        segments, slots = batch.segments, None
        if cache is not None:
            slots = cache.lengths[:, None] + jnp.arange(batch.tokens.shape[1])
            segments = cache.written(batch.segments)
        masks = {
            (causal, window): visible(batch.segments, segments, query_slots=slots, causal=causal, window=window)
            for causal, window in {(kind.causal, kind.window) for kind in kinds}
        }
        tables = {
            rotary: rotary_table(positions, rotary, width)
            for rotary, width in {(kind.rotary, kind.head_width) for kind in kinds}
            if rotary is not None
        }
        memory_mask = None if memory_segments is None else visible(batch.segments, memory_segments)
        return Context(masks, tables, memory, memory_mask, None if cache is None else cache.lengths)

    def _positions(self, stack: Stack, batch: Batch, cache: Cache | None) -> jax.Array:
        if batch.positions is not None:
            return jnp.asarray(batch.positions)
        start = 0 if cache is None else cache.lengths[:, None]
        return jnp.broadcast_to(start + jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)

    def _head(self, variables, batch: Batch, hidden: jax.Array, key, places) -> jax.Array:
        config, params = self.config, variables["params"]
        scope = {"params": params.get("head", {}), "tuning": _tuning(variables, "head")}
        if config.head.form != "language":
            if places is None:
                hidden = gather(hidden, first_tokens(batch.segments, batch.slots))
            if config.pooler:
                pooler = {"params": params["pooler"], "tuning": _tuning(variables, "pooler")}
                hidden = Pooler(config).apply(pooler, hidden)
        table = params["embeddings"]["tokens"]["embedding"]
        logits = HEADS[config.head.form](config).apply(scope, hidden, table, rngs=_rngs(key))
        return logits if batch.packed or config.head.form == "language" else logits[:, 0]

    def _check(self, variables: Mapping[str, Any], batch: Batch, cache: Cache | None, want: tuple[str, ...]) -> None:
        for name in want:
            if name not in WANTABLE:
                raise InputError(f"cannot return {name!r}.{nearest(name, WANTABLE)}")
        if cache is not None and "decoder" not in self.config.stacks:
            raise InputError("a cache serves decoders; this model has none.")
        if len(self.config.stacks) == 2 and batch.source is None and (cache is None or cache.source_segments is None):
            raise InputError("an encoder-decoder needs batch.source (or a cache that has read it).")
        longest = self.longest(variables)
        if longest is not None and cache is None and batch.positions is None and batch.tokens.shape[1] > longest:
            raise InputError(f"{batch.tokens.shape[1]} tokens, but the model has learned positions for {longest}.")
        if isinstance(batch.tokens, np.ndarray) and batch.tokens.size and batch.tokens.max() >= self.config.vocabulary:
            raise InputError(f"token id {batch.tokens.max()} is outside the model's vocabulary of {self.config.vocabulary}.")

    def longest(self, variables: Mapping[str, Any]) -> int | None:
        """The most tokens that learned positions leave room for, beside what prefixes occupy; None: any number."""
        room = []
        for name, stack in self.config.stacks.items():
            taken = 0
            for shift in _tuning(variables, name, "positions").get("site", ()):
                taken = shift(taken)
            room += [stack.positions - taken] if stack.positions else []
        return min(room, default=None)

    # ---- other models like this one ---------------------------------------------------------------------------------
    def with_policy(self, policy: Policy) -> Model:
        """The same function under another policy."""
        return replace(self, policy=policy)

    def with_head(self, head: Head | None) -> Model:
        """The same body under another head."""
        return replace(self, config=self.config.model_copy(update={"head": head}))

    def split(self, params: Mapping[str, Any], floors: Mapping[str, int]) -> tuple[Model, dict[str, Any]]:
        """The same function laid out for training: runs are cut where the work of their layers differs.

        Below layer `floors[stack]` nothing is differentiated and no gradient passes. The last layer, where a head reads only a
        few places, is a run of its own, so that it need compute no more than these. Without `policy.scan` every layer is.
        """
        stacks = self.config.stacks
        cuts = {name: {floors.get(name, 0)} for name in stacks}
        for name, stack in stacks.items():
            if not self.policy.scan:
                cuts[name] |= set(range(stack.layers))
        if self.config.head and self.config.head.form != "language":
            cuts[name].add(stack.layers - 1)
        config = layout.split(self.config, cuts)
        detached = tuple((name, layout.below(stack, floors.get(name, 0))) for name, stack in config.stacks.items())
        model = replace(self, config=config, detached=detached)
        same = config == self.config
        return model, dict(params) if same else layout.restack(config, layout.unstack(self.config, params))


class _Same(dict):
    """A mapping that answers every key alike: at `init` all masks are the same."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value

    def __missing__(self, key: Any) -> Any:
        return self.value


def _tuning(variables: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    node = variables.get("tuning", {})
    for key in path:
        node = node.get(key, {})
    return node


def _rngs(key: jax.Array | None) -> dict[str, jax.Array]:
    return {} if key is None else {"dropout": key}


def _has_embeddings(stack: Stack) -> bool:
    return bool(stack.positions or stack.types or stack.embedding_norm)


def _final_norm(stack: Stack) -> Norm:
    layer = stack.runs[-1].kinds[-1]
    return Norm(layer.norm, layer.epsilon)
