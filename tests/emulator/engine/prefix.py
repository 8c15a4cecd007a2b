"""A prefix cache over text: how much of a prompt was seen before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from zlib import crc32

BYTES_PER_TOKEN = 4
BLOCK_TOKENS = 32


def tokens(text: str) -> int:
    """About as many tokens as an English text has; servers count, the client's tokenizer only shapes prompts."""
    return max(1, round(len(text.encode()) / BYTES_PER_TOKEN))


class PrefixCache:
    """Remembers the blocks of prompts up to a number of tokens, the least recently used go first."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity = capacity_tokens // BLOCK_TOKENS
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def put(self, text: str) -> int:
        """Remember a prompt; the tokens at its beginning that were there before."""
        hits = 0
        missed = False
        for block in _chain(text):
            if not missed and block in self._blocks:
                hits += 1
            else:
                missed = True
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
        return hits * BLOCK_TOKENS

    def clear(self) -> None:
        self._blocks.clear()


def _chain(text: str) -> Iterator[int]:
    """A hash for each whole block, of it and all before it."""
    data, size, value = text.encode(), BLOCK_TOKENS * BYTES_PER_TOKEN, 0
    for start in range(0, len(data) - size + 1, size):
        value = crc32(data[start : start + size], value)
        yield (start << 32) | value
