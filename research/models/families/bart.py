"""BART (Lewis et al. 2020): a post-norm encoder-decoder whose position tables begin two rows late."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from research.models.config import Head, Layer, ModelConfig, Run, Stack
from research.models.family import THEIRS, Family, Fields, only_layer


class Bart(Family):
    """`BartModel` and `BartForConditionalGeneration`, whose head is the shared embedding plus `final_logits_bias`."""

    architectures: ClassVar = {"BartModel": None, "BartForConditionalGeneration": "language"}
    prefix = "model."
    rules = (
        (r"^embeddings/tokens/", "shared/"),
        (r"/embeddings/positions/", "/embed_positions/"),
        (r"/embeddings/norm/", "/layernorm_embedding/"),
        (r"/(attention|cross)/(query|key|value)/", lambda match: f"/{match[1]}/{match[2][0]}_proj/"),
        (r"/(attention|cross)/output/", r"/\1/out_proj/"),
        (r"/attention/", "/self_attn/"),
        (r"/cross/", "/encoder_attn/"),
        (r"/attention_norm/", "/self_attn_layer_norm/"),
        (r"/cross_norm/", "/encoder_attn_layer_norm/"),
        (r"/mlp/up/", "/fc1/"),
        (r"/mlp/down/", "/fc2/"),
        (r"/mlp_norm/", "/final_layer_norm/"),
        (r"^head/bias", "final_logits_bias"),
    )
    ties = dict.fromkeys(("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight")

    def config(self, fields: Fields, tensors: frozenset[str]) -> ModelConfig:
        fields.only(
            normalize_before=(False,),
            add_final_layer_norm=(False,),
            normalize_embedding=(True,),
            add_bias_logits=(False,),
            static_position_embeddings=(False,),
            extra_pos_embeddings=(2,),
            encoder_layerdrop=(0.0,),
            decoder_layerdrop=(0.0,),
            tie_word_embeddings=(True,),
            tie_encoder_decoder=(False,),
            is_decoder=(False,),
            is_encoder_decoder=(True,),
            add_cross_attention=(False,),
            quantization_config=(None,),
        )
        for key in ("num_hidden_layers", "classif_dropout", "classifier_dropout"):  # a synonym; heads that are not read
            fields.raw(key)
        width = fields("d_model", int, 1024)
        head = Head(form="language", bias=True) if self.form(fields) else None
        return ModelConfig(
            family="bart",
            width=width,
            vocabulary=fields("vocab_size", int, 50265),
            encoder=_stack(fields, "encoder", width),
            decoder=_stack(fields, "decoder", width),
            head=head,
            initializer_range=fields("init_std", float, 0.02),
            start_token=fields("decoder_start_token_id", int, 2),
            end_tokens=fields.ends(2),
        )

    def json(self, config: ModelConfig) -> dict[str, Any]:
        head, values = config.head, {}
        for name, stack in config.stacks.items():
            layer = only_layer(stack)
            values |= {
                f"{name}_layers": stack.layers,
                f"{name}_attention_heads": layer.heads,
                f"{name}_ffn_dim": layer.mlp_width,
            }
        return values | {
            "architectures": [self.architecture(head.form if head else None)],
            "vocab_size": config.vocabulary,
            "d_model": config.width,
            "activation_function": THEIRS[layer.activation],
            "dropout": layer.dropout,
            "attention_dropout": layer.attention_dropout,
            "activation_dropout": layer.activation_dropout,
            "max_position_embeddings": stack.positions,
            "scale_embedding": stack.embedding_scale != 1.0,
            "init_std": config.initializer_range,
            "decoder_start_token_id": config.start_token,
            "eos_token_id": config.end_tokens[0] if len(config.end_tokens) == 1 else list(config.end_tokens),
            "is_encoder_decoder": True,
        }

    def unpack(self, name: str, tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape(-1) if name == "head/bias" else super().unpack(name, tensor)

    def pack(self, name: str, array: np.ndarray) -> np.ndarray:
        return array[None] if name == "head/bias" else super().pack(name, array)


def _stack(fields: Fields, name: str, width: int) -> Stack:
    heads, dropout = fields(f"{name}_attention_heads", int, 16), fields("dropout", float, 0.1)
    layer = Layer(
        heads=heads,
        kv_heads=heads,
        head_width=fields.head_width(width, heads),
        causal=name == "decoder",
        cross=name == "decoder",
        epsilon=1e-5,
        mlp_width=fields(f"{name}_ffn_dim", int, 4096),
        activation=fields.activation("activation_function", "gelu"),
        dropout=dropout,
        attention_dropout=fields("attention_dropout", float, 0.0),
        activation_dropout=fields("activation_dropout", float, 0.0),
    )
    return Stack(
        runs=(Run(kinds=(layer,), repeats=fields(f"{name}_layers", int, 12)),),
        positions=fields("max_position_embeddings", int, 1024),
        position_offset=2,
        embedding_norm=True,
        embedding_scale=width**0.5 if fields("scale_embedding", bool, False) else 1.0,
        embedding_dropout=dropout,
    )
