"""The smallest parts: declared arrays, the one linear map, norms, embeddings, dropout. Flax Linen builds their trees.

Every array is declared once with its shape, logical axes and initialiser (`declare`); shardings and abstract shapes
derive from that. Places where a tuning strategy may act are *sites*: `site` calls what the `tuning` collection holds
under the module's own path, and is the identity where it holds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

Axes = tuple[str | None, ...]


def declare(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: Axes) -> jax.Array:
    """A parameter with logical axes. A value that is there is taken as it is, so it may be any registered leaf type."""
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def site(module: nn.Module, x: jax.Array, y: jax.Array, kernel=None, name: str = "site") -> jax.Array:
    """Let the strategies' callables at this place change `y`, the output for input `x`, each in turn."""
    if module.has_variable("tuning", name):
        rng = module.make_rng("dropout") if module.has_rng("dropout") else None
        for number, change in enumerate(module.get_variable("tuning", name)):
            y = change(x, y, kernel, None if rng is None else jax.random.fold_in(rng, number))
    return y


def linear(x: jax.Array, kernel) -> jax.Array:
    """`x @ kernel` in x's dtype; `kernel [in, out]` is an array or a registered leaf type that knows its `linear`."""
    if not isinstance(kernel, jax.Array) and hasattr(kernel, "linear"):
        return kernel.linear(x)
    return _product(x, kernel.astype(x.dtype))


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`. Only the kernel's gradient is spelt out: the narrower factor goes to the left, where CPUs and XLA have
    to transpose it; automatic differentiation always puts the output's gradient there, which is the wider one in an MLP."""
    return jnp.dot(x, kernel)


def _product_backward(saved, g):
    x, kernel = saved
    leading = tuple(range(x.ndim - 1))
    contract = ((leading, leading), ((), ()))
    if x.shape[-1] <= g.shape[-1]:
        dkernel = jax.lax.dot_general(x, g, contract)
    else:
        dkernel = jax.lax.dot_general(g, x, contract).T
    return jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ()))), dkernel


_product.defvjp(lambda x, kernel: (jnp.dot(x, kernel), (x, kernel)), _product_backward)


class Linear(nn.Module):
    """`y = x @ kernel + bias`, then the site. `kernel [in, out]`, `bias [out]`."""

    features: int
    axes: tuple[str, str]
    bias: bool = True
    scale: float = 0.02

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = declare(self, "kernel", nn.initializers.normal(self.scale), shape, self.axes)
        y = linear(x, kernel)
        if self.bias:
            y = y + declare(self, "bias", nn.initializers.zeros_init(), shape[1:], self.axes[1:]).astype(y.dtype)
        return site(self, x, y, kernel)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis, computed in float32."""

    kind: str
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, axes = x.shape[-1:], ("embed",)
        scale = declare(self, "scale", nn.initializers.ones_init(), shape, axes).astype(jnp.float32)
        if self.kind == "rmsnorm":
            return rmsnorm(x.astype(jnp.float32), scale, self.epsilon).astype(x.dtype)
        bias = declare(self, "bias", nn.initializers.zeros_init(), shape, axes).astype(jnp.float32)
        return layernorm(x.astype(jnp.float32), scale, bias, self.epsilon).astype(x.dtype)


class Embedding(nn.Module):
    """A table of vectors, `embedding [rows, features]`."""

    rows: int
    features: int
    axes: tuple[str, str]
    scale: float = 0.02

    @nn.compact
    def __call__(self, index: jax.Array, dtype: jnp.dtype) -> jax.Array:
        table = declare(self, "embedding", nn.initializers.normal(self.scale), (self.rows, self.features), self.axes)
        return jnp.take(table, index, axis=0).astype(dtype)


def rmsnorm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """`x / sqrt(mean(x^2) + epsilon) * scale`."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + epsilon) * scale


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layernorm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`; its backward pass keeps only `x` and two numbers a row."""
    return _layernorm_forward(x, scale, bias, epsilon)[0]


def _layernorm_forward(x, scale, bias, epsilon):
    mean = jnp.mean(x, -1, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), -1, keepdims=True) + epsilon)
    return (x - mean) * rstd * scale + bias, (x, mean, rstd, scale)


def _layernorm_backward(epsilon, saved, g):
    x, mean, rstd, scale = saved
    normal = (x - mean) * rstd
    leading = tuple(range(x.ndim - 1))
    weighted = g * scale
    centre = jnp.mean(weighted, -1, keepdims=True)
    slope = jnp.mean(weighted * normal, -1, keepdims=True)
    return (weighted - centre - normal * slope) * rstd, jnp.sum(g * normal, leading), jnp.sum(g, leading)


layernorm.defvjp(_layernorm_forward, _layernorm_backward)


# ---- activations ----------------------------------------------------------------------------------------------------
@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """`x * Phi(x)`, exact (Hendrycks & Gimpel 2016). The derivative is formed in the forward pass, where it is cheap."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_forward(x):
    wide = x.astype(jnp.float32)
    cdf = 0.5 * (1.0 + jax.lax.erf(wide * 0.7071067811865476))
    slope = cdf + wide * jnp.exp(-0.5 * wide * wide) * 0.3989422804014327
    return (wide * cdf).astype(x.dtype), slope.astype(x.dtype)


gelu.defvjp(_gelu_forward, lambda slope, g: (g * slope,))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


# ---- dropout --------------------------------------------------------------------------------------------------------
def random_bytes(words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform bytes, a counter generator: two rounds of a 32-bit avalanche over the element's index.

    Cheap arithmetic on an iota, so a mask fuses into its consumer and the backward pass forms it again instead of
    keeping it; and a pure function of (words, index), so stable under vmap, scan and sharding. The mixing constants are
    those of a published low-bias integer hash search (Wellons 2018).
    """
    low, high = words
    size = math.prod(shape)
    index = jax.lax.iota(jnp.uint32, -(-size // 4))
    return jax.lax.bitcast_convert_type(_avalanche(_avalanche(index ^ low) + high), jnp.uint8).reshape(-1)[:size].reshape(shape)


def _avalanche(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def keep_mask(words: jax.Array, shape: tuple[int, ...], rate: float, dtype: jnp.dtype) -> jax.Array:
    """0 where dropped, `1 / (1 - rate)` where kept, the rate rounded to 1/256 (0.1 becomes 26/256) and the scale exact
    for the rounded rate, so that the expectation is one."""
    dropped = min(255, max(1, round(rate * 256)))
    return jnp.where(random_bytes(words, shape) >= dropped, 256 / (256 - dropped), 0.0).astype(dtype)


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Dropout (Srivastava et al. 2014) where the module was given a `dropout` rng, else the identity."""
    if rate == 0.0 or not module.has_rng("dropout"):
        return x
    return drop(dropout_words(module), rate, x)


def dropout_words(module: nn.Module) -> jax.Array:
    """The next two random words of the module's `dropout` stream, uint32 [2]."""
    return jax.random.key_data(module.make_rng("dropout")).astype(jnp.uint32)[-2:]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def drop(words: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """`x * keep_mask(words)`; the backward pass forms the mask again instead of keeping it."""
    return x * keep_mask(words, x.shape, rate, x.dtype)


drop.defvjp(lambda words, rate, x: (drop(words, rate, x), words), lambda rate, words, g: (None, drop(words, rate, g)))
