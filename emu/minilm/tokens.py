# SPDX-License-Identifier: Apache-2.0
"""Text to token numbers as BERT's uncased tokenizers do: clean, lower, split, then WordPiece.

https://arxiv.org/abs/1609.08144, section 4.1: a word is cut greedily into the longest pieces that
the vocabulary has; pieces inside a word begin with ``##``.
"""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from emu.errors import UserError

LONGEST_WORD = 100
_IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
               (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))


def _is_punctuation(c: str) -> bool:
    ascii_symbol = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    return ascii_symbol or unicodedata.category(c).startswith("P")


def _cleaned(text: str) -> str:
    """Without control characters and accents, in lower case; ideographs stand alone."""
    found = []
    for c in text:
        if c in "\t\n\r" or unicodedata.category(c) == "Zs":
            found.append(" ")
        elif ord(c) in (0, 0xFFFD) or unicodedata.category(c).startswith("C"):
            continue
        elif any(low <= ord(c) <= high for low, high in _IDEOGRAPHS):
            found.append(f" {c} ")
        else:
            found.append(c)
    text = unicodedata.normalize("NFD", "".join(found))
    return "".join(c for c in text if unicodedata.category(c) != "Mn").lower()


def _words(text: str) -> list[str]:
    spaced = "".join(f" {c} " if _is_punctuation(c) else c for c in _cleaned(text))
    return spaced.split()


@dataclass(frozen=True)
class Tokenizer:
    """Word pieces to numbers; ``limit`` tokens at most, the first and last of which frame."""

    vocabulary: dict[str, int]
    limit: int

    @classmethod
    def load(cls, path: Path, limit: int) -> "Tokenizer":
        """From a ``tokenizer.json``.

        Raises
        ------
        UserError
            If there is no such file, or it is not an uncased WordPiece tokenizer.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            kind, lower = found["model"]["type"], found["normalizer"]["lowercase"]
            vocabulary = found["model"]["vocab"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path}: not a tokenizer.json that can be read") from None
        if kind != "WordPiece" or not lower:
            raise UserError(f"{path}: an uncased WordPiece tokenizer expected")
        return cls(vocabulary, limit)

    def __call__(self, text: str) -> list[int]:
        """Numbers of ``[CLS]``, the pieces of ``text`` (cut to ``limit``) and ``[SEP]``."""
        pieces = [number for word in _words(text) for number in self._pieces(word)]
        first, last = self.vocabulary["[CLS]"], self.vocabulary["[SEP]"]
        return [first, *pieces[: self.limit - 2], last]

    def _pieces(self, word: str) -> list[int]:
        unknown = [self.vocabulary["[UNK]"]]
        if len(word) > LONGEST_WORD:
            return unknown
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                number = self.vocabulary.get(prefix + word[start:end])
                if number is not None:
                    found.append(number)
                    start = end
                    break
            else:
                return unknown
        return found


__all__ = ["Tokenizer"]
