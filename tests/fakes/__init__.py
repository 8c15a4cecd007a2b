"""Stand-ins for what the tests cannot have: servers without a model, a tokenizer without a vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def tiny_tokenizer(folder: Path) -> Path:
    """Write a tokenizer that takes every byte for a token, as a folder that ``AutoTokenizer`` loads."""
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, **{character: index for index, character in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "model_max_length": 100_000}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
