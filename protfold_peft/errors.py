"""Errors written for the person at the keyboard.

Every error that a user can cause is a `ProtfoldError`: one line that says what was wrong, in which file,
record, chain or residue, and what to do. The command line prints that line and no traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ProtfoldError(Exception):
    """Something a user can put right; the message is one line and names file, record and remedy.

    Line ends in the message, which come with what it quotes of a file, become spaces.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.splitlines()))


class StructureError(ProtfoldError):
    """A structure file that cannot be read rightly, or written without loss."""


class SequenceError(ProtfoldError):
    """A FASTA file or a sequence record that cannot be used."""


class CheckpointError(ProtfoldError):
    """Model or adapter weights that are missing, damaged or of another model."""


class ConfigError(ProtfoldError):
    """A configuration with an unknown, ill-typed or contradictory key."""


class NonFiniteError(ProtfoldError):
    """A model whose output holds NaN or infinity."""


class DataError(ProtfoldError):
    """A table, text or record that cannot be used; the message names file and line."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known word most like an unknown one, as a question with a space behind it; empty if none is like it."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{near[0]}'? " if near else ""
