"""The tokenizer of llama2.c, a file of scored pieces, as a `tokenizers.Tokenizer`.

    longest int32 | score float32, length int32, bytes | score, length, bytes | ...      piece number = place in the file

Text begins with a space that is not in it, unknown characters become bytes, and the best scored pair of neighbours is merged
until none is left (Kudo & Richardson 2018), which are merges in the order of their scores.
"""

from __future__ import annotations

import struct
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from research.errors import InputError
from research.text.tokenizer import Tokenizer

_SPECIAL = ("<unk>", "<s>", "</s>")  # pieces 0, 1 and 2, whatever the file calls them; 3..258 are the bytes


def load(path: Path) -> Tokenizer:
    """The tokenizer stored at `path`; every text begins with `<s>`.

    Raises:
        InputError: the file is damaged.
    """
    data, at, pieces = path.read_bytes(), 4, []
    try:
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            pieces.append((data[at + 8 : at + 8 + length].decode(), score))
            at += 8 + length
        if at != len(data) or len(pieces) < 259:
            raise ValueError(f"{len(pieces)} pieces in {len(data)} bytes")
    except (struct.error, ValueError) as error:
        raise InputError(f"{path} is no tokenizer of llama2.c ({error}).") from None
    named = [(name, 0.0) for name in _SPECIAL] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)] + pieces[259:]
    number = {piece: index for index, (piece, _) in enumerate(named)}
    ranked = sorted((p for p in named[259:] if len(p[0]) > 1), key=lambda p: -p[1])
    merges = [(p[:cut], p[cut:]) for p, _ in ranked for cut in range(1, len(p)) if p[:cut] in number and p[cut:] in number]

    backend = tokenizers.Tokenizer(models.BPE(number, merges, byte_fallback=True, unk_token=_SPECIAL[0], fuse_unk=True))
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return Tokenizer(backend, {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}})
