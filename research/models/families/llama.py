"""Llama (Touvron et al. 2023): a pre-norm decoder with RMSNorm, rotary positions, grouped keys and a gated MLP."""

from __future__ import annotations

from typing import Any, ClassVar

from research.errors import InputError
from research.models.config import Head, Layer, ModelConfig, Rotary, Run, Stack
from research.models.family import THEIRS, Family, Fields, only_layer


class Llama(Family):
    """`LlamaModel` and `LlamaForCausalLM`, head tied or not."""

    architectures: ClassVar = {"LlamaModel": None, "LlamaForCausalLM": "language"}
    prefix = "model."
    rules = (
        (r"^embeddings/tokens/", "embed_tokens/"),
        (r"^decoder/", ""),
        (r"/attention/(query|key|value|output)/", lambda match: f"/self_attn/{match[1][0]}_proj/"),
        (r"/attention_norm/", "/input_layernorm/"),
        (r"/mlp/(gate|up|down)/", r"/mlp/\1_proj/"),
        (r"/mlp_norm/", "/post_attention_layernorm/"),
        (r"^head/output/", "lm_head/"),
    )
    ties: ClassVar = {"lm_head.weight": "embed_tokens.weight"}
    harmless = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"

    def config(self, fields: Fields, tensors: frozenset[str]) -> ModelConfig:
        fields.only(
            quantization_config=(None,),
            is_decoder=(False, True, None),
            add_cross_attention=(False, None),
            is_encoder_decoder=(False,),
        )
        fields.raw("pretraining_tp")  # how the same products were cut up when training
        fields.raw("max_position_embeddings")  # rotary positions have no last one
        width, heads = fields("hidden_size", int, 4096), fields("num_attention_heads", int, 32)
        layer = Layer(
            heads=heads,
            kv_heads=fields("num_key_value_heads", int, heads),
            head_width=fields("head_dim", int, None) or fields.head_width(width, heads),
            causal=True,
            rotary=Rotary(base=_rotary_base(fields)),
            attention_bias=fields("attention_bias", bool, False),
            norm="rmsnorm",
            norm_first=True,
            epsilon=fields("rms_norm_eps", float, 1e-6),
            mlp_width=fields("intermediate_size", int, 11008),
            activation=fields.activation("hidden_act", "silu"),
            gated=True,
            mlp_bias=fields("mlp_bias", bool, False),
            attention_dropout=fields("attention_dropout", float, 0.0),
        )
        tied = fields("tie_word_embeddings", bool, False)
        return ModelConfig(
            family="llama",
            width=width,
            vocabulary=fields("vocab_size", int, 32000),
            decoder=Stack(runs=(Run(kinds=(layer,), repeats=fields("num_hidden_layers", int, 32)),), final_norm=True),
            head=Head(form="language", tied=tied) if self.form(fields) else None,
            initializer_range=fields("initializer_range", float, 0.02),
            end_tokens=fields.ends(2),
        )

    def json(self, config: ModelConfig) -> dict[str, Any]:
        stack, layer, head = config.decoder, only_layer(config.decoder), config.head
        base = layer.rotary.base if layer.rotary else 10000.0
        return {
            "architectures": [self.architecture(head.form if head else None)],
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "num_hidden_layers": stack.layers,
            "num_attention_heads": layer.heads,
            "num_key_value_heads": layer.kv_heads,
            "head_dim": layer.head_width,
            "intermediate_size": layer.mlp_width,
            "hidden_act": THEIRS[layer.activation],
            "attention_dropout": layer.attention_dropout,
            "attention_bias": layer.attention_bias,
            "mlp_bias": layer.mlp_bias,
            "rms_norm_eps": layer.epsilon,
            "rope_theta": base,
            "rope_parameters": {"rope_theta": base, "rope_type": "default"},
            "initializer_range": config.initializer_range,
            "tie_word_embeddings": bool(head and head.tied),
            "eos_token_id": list(config.end_tokens),
        }


def _rotary_base(fields: Fields) -> float:
    """The base of the rotary angles, from the old field or from the newer group; any scaling of them is refused."""
    base = fields("rope_theta", float, 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        group = fields(key, dict, {})
        kind = group.get("rope_type", group.get("type", "default"))
        if kind != "default" or group.keys() - {"rope_type", "type", "rope_theta"}:
            raise InputError(f"{fields.path}: {key} = {group} is not supported, only unscaled rotary positions.")
        base = float(group.get("rope_theta", base))
    return base
