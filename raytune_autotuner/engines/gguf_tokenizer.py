"""The tokenizer inside a GGUF file, as a folder that Hugging Face's libraries load.

Only the file's header is read, and only ``tokenizers`` is needed: no torch, no transformers. Handles the
SentencePiece vocabulary with byte fallback (``tokenizer.ggml.model`` = llama) of the Gemma family.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1
"""Changes with what is written, so that a folder made by an older version is not used."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF."""
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct's letters by GGUF's value types."""

Merge = tuple[int, int, int, str, str]
"""Rank, the lengths of both halves, and the halves."""


class GgufError(ValueError):
    """The file is no GGUF, or its tokenizer is of another kind."""


class Header:
    """Reads the metadata of a GGUF file, one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def metadata(self) -> dict[str, Any]:
        if self.data[:4] != b"GGUF":
            raise GgufError("not a GGUF file")
        self.at = 4
        version, _tensors, count = self._numbers("IQQ")
        if version < 2:
            raise GgufError(f"GGUF version {version} is too old")
        return dict(self._entry() for _ in range(count))

    def _entry(self) -> tuple[str, Any]:
        key = self._string()
        return key, self._value(self._numbers("I")[0])

    def _numbers(self, letters: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{letters}", self.data, self.at)
        self.at += struct.calcsize(f"<{letters}")
        return values

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._numbers(SCALARS[kind])[0]
        inner, length = self._numbers("IQ")
        if inner in SCALARS:
            return self._numbers(f"{length}{SCALARS[inner]}")
        return tuple(self._value(inner) for _ in range(length))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata in the header of a GGUF file.

    Raises:
        GgufError: it is none, or it is cut off.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Header(data).metadata()
    except (OSError, KeyError, struct.error, ValueError) as error:
        raise error if isinstance(error, GgufError) else GgufError(f"no whole GGUF header: {error}") from error


def write(path: Path, folder: Path, chat_template: str) -> None:
    """Write the tokenizer of a GGUF file; ``chat_template`` is used when the file carries none.

    Raises:
        GgufError: see above.
    """
    metadata = read_metadata(path)
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "llama":
        raise GgufError(f"its tokenizer is of the kind {kind}; only llama (SentencePiece) can be converted")
    folder.mkdir(parents=True)
    tokens = [_spelled(token) for token in metadata["tokenizer.ggml.tokens"]]
    build(metadata, tokens).save(str(folder / "tokenizer.json"), pretty=False)
    config = json.dumps(_config(metadata, tokens, chat_template), indent=1)
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")


def _spelled(token: str) -> str:
    """llama.cpp keeps runs of spaces as they are, SentencePiece writes them as its mark."""
    return SPACE * len(token) if token and not token.strip(" ") else token


def build(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    """A byte-pair encoder that splits text as llama.cpp does."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = _token(metadata, tokens, "unknown")
    merges = _merges(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    kinds = metadata["tokenizer.ggml.token_type"]
    for special, add in ((CONTROL, tokenizer.add_special_tokens), (USER_DEFINED, tokenizer.add_tokens)):
        chosen = [token for token, kind in zip(tokens, kinds, strict=True) if kind == special]
        add([AddedToken(token, normalized=False, special=special == CONTROL) for token in chosen])
    _begin_with(tokenizer, metadata, _token(metadata, tokens, "bos"))
    return tokenizer


def _merges(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, in the order in which the encoder must try them.

    The file has no merges: those that make an earlier token come first, and among these the longer left half.
    """
    merges: list[Merge] = []
    for token, rank in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((rank, -len(left), -len(right), left, right))
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def _begin_with(tokenizer: Tokenizer, metadata: Mapping[str, Any], bos: str | None) -> None:
    from tokenizers import processors

    if bos and metadata.get("tokenizer.ggml.add_bos_token", True):
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
        )


def _token(metadata: Mapping[str, Any], tokens: Sequence[str], role: str) -> str | None:
    number = metadata.get(f"tokenizer.ggml.{role}_token_id")
    return None if number is None else tokens[number]


def _config(metadata: Mapping[str, Any], tokens: Sequence[str], chat_template: str) -> dict[str, Any]:
    architecture = metadata.get("general.architecture", "")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.get(f"{architecture}.context_length", 32768),
        "bos_token": _token(metadata, tokens, "bos"),
        "eos_token": _token(metadata, tokens, "eos"),
        "unk_token": _token(metadata, tokens, "unknown"),
        "pad_token": _token(metadata, tokens, "padding"),
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.get("tokenizer.chat_template", chat_template),
    }
