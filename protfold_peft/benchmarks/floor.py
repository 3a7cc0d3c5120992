"""What folding costs at the least: operations and bytes of every part as functions of the length.

Operations are those of matrix products, two for a multiplication with its addition. Bytes are those that have to move
between the chip and its memory if every kernel keeps on chip whatever one row of the pair state needs: weights once,
in bf16; the pair state between operations in fp32, its projections in bf16. A part takes at least the longer of the
two times, and the parts run one after another.

Axis letters: `n` residues, `c` channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Width, layers of the language model; widths of the sequence and the pair state, heads of the attention along the
# sequence and of triangle attention, blocks; the structure module's width, heads, head width, points to match and to
# attend, steps.
_LANGUAGE, _LAYERS = 2560, 36
_SEQUENCE, _PAIR, _SEQUENCE_HEADS, _PAIR_HEADS, _BLOCKS = 1024, 128, 32, 4, 48
_SINGLE, _IPA_HEADS, _IPA_WIDTH, _QK_POINTS, _V_POINTS, _STEPS = 384, 12, 16, 4, 8, 8
_BF16, _FP32 = 2, 4


@dataclass(frozen=True)
class Part:
    """A part of the model.

    Attributes:
        name: Of the part.
        operations: Of matrix products, by length, all layers, blocks or steps together.
        bytes: To and from memory, by length.
    """

    name: str
    operations: Callable[[int], int]
    bytes: Callable[[int], int]

    def seconds(self, n: int, rate: float, bandwidth: float) -> float:
        """At least this long, at `rate` operations and `bandwidth` bytes a second."""
        return max(self.operations(n) / rate, self.bytes(n) / bandwidth)


def language_model_layer(t: int) -> int:
    """Operations of one layer on `t` tokens: four projections, a transition of 4, attention."""
    return 24 * t * _LANGUAGE**2 + 4 * t**2 * _LANGUAGE


def sequence_update(n: int) -> int:
    """Of one block: attention along the sequence with its bias and gate, its transition, and the way to the pairs."""
    attention = 10 * n * _SEQUENCE**2 + 4 * n**2 * _SEQUENCE + 2 * n**2 * _PAIR * _SEQUENCE_HEADS
    return attention + 16 * n * _SEQUENCE**2 + 2 * n * _SEQUENCE * _PAIR + 2 * n**2 * _PAIR**2


def triangle_multiplication(n: int) -> int:
    """Of one: five projections and one back, and the product over the third residue."""
    return 12 * n**2 * _PAIR**2 + 2 * n**3 * _PAIR


def triangle_attention(n: int) -> int:
    """Of one: four projections and one back, the bias, scores and sums of all rows."""
    return 10 * n**2 * _PAIR**2 + 2 * n**2 * _PAIR * _PAIR_HEADS + 4 * n**3 * _PAIR


def pair_transition(n: int) -> int:
    """Of one block: to four times the width and back."""
    return 16 * n**2 * _PAIR**2


def structure_step(n: int) -> int:
    """Of one step: invariant point attention, transition, frames and angles."""
    points = _IPA_HEADS * 3 * (2 * _QK_POINTS + _V_POINTS)
    ways_in = 2 * n * _SINGLE * (3 * _IPA_HEADS * _IPA_WIDTH + points)
    pairs = 2 * n**2 * _IPA_HEADS * (_IPA_WIDTH + _IPA_WIDTH + 3 * _V_POINTS + _PAIR)
    way_out = 2 * n * _IPA_HEADS * (_IPA_WIDTH + 4 * _V_POINTS + _PAIR) * _SINGLE
    resnet = 2 * n * (2 * _SINGLE * 128 + 4 * 128**2 + 128 * 14)
    return ways_in + pairs + way_out + 2 * n * 3 * _SINGLE**2 + 2 * n * _SINGLE * 6 + resnet


def heads(n: int) -> int:
    """Distogram and predicted aligned error, from the pair state to 64 bins each."""
    return 2 * 2 * n**2 * _PAIR * 64


def into_structure(n: int) -> int:
    """The two states' way into the structure module, and the bias that all its steps share."""
    return 2 * n**2 * _PAIR * (_PAIR + _IPA_HEADS) + 2 * n * _SINGLE * (_SEQUENCE + _SINGLE)


def _pair(n: int, *widths: int) -> int:
    """Bytes of so many passes over an array of the pair state's shape."""
    return n**2 * _PAIR * sum(widths)


def _moved_language(n: int) -> int:
    t = n + 2
    # Weights; per layer the state is read and written twice, and its projections (3 + 1 + 8 widths) there and back.
    return _LAYERS * (12 * _LANGUAGE**2 * _BF16 + t * _LANGUAGE * _BF16 * (4 + 2 * 12))


def _moved_sequence(n: int) -> int:
    weights = (10 // 2 + 16 // 2) * _SEQUENCE**2 * _BF16
    state = n * _SEQUENCE * (4 * _FP32 + 2 * 9 * _BF16)
    # The bias is read from the pair state, whose update by the sequence reads and writes it.
    return _BLOCKS * (weights + state + _pair(n, 3 * _FP32) + 2 * n**2 * _SEQUENCE_HEADS * _BF16)


def _moved_multiplication(n: int) -> int:
    # State in; two operands out and in; product out and in; state in again for the gate, and out.
    return 2 * _BLOCKS * _pair(n, _FP32, 2 * 2 * _BF16, 2 * _BF16, _FP32, _FP32)


def _moved_attention(n: int) -> int:
    # State in; queries, keys and values out and in; result out and in; state in again for the gate, and out.
    return 2 * _BLOCKS * _pair(n, _FP32, 2 * 3 * _BF16, 2 * _BF16, _FP32, _FP32)


def _moved_transition(n: int) -> int:
    return _BLOCKS * _pair(n, 2 * _FP32)


def _moved_structure(n: int) -> int:
    # Every step reads the pairs to sum them; the way in reads and writes them; bias and heads read them.
    return _STEPS * _pair(n, _FP32) + _pair(n, 5 * _FP32) + 2 * n**2 * 64 * _FP32


def _structure(n: int) -> int:
    return into_structure(n) + _STEPS * structure_step(n) + heads(n)


PARTS = (
    Part("language model", lambda n: _LAYERS * language_model_layer(n + 2), _moved_language),
    Part("sequence state", lambda n: _BLOCKS * sequence_update(n), _moved_sequence),
    Part("triangle multiplication", lambda n: 2 * _BLOCKS * triangle_multiplication(n), _moved_multiplication),
    Part("triangle attention", lambda n: 2 * _BLOCKS * triangle_attention(n), _moved_attention),
    Part("pair transition", lambda n: _BLOCKS * pair_transition(n), _moved_transition),
    Part("structure module, heads", _structure, _moved_structure),
)


def table(lengths: tuple[int, ...], rate: float, bandwidth: float) -> list[str]:
    """Lines of a Markdown table: for every length operations, bytes and the least time of each part.

    Args:
        lengths: Residues.
        rate: Operations a second that the chip reaches on large products.
        bandwidth: Bytes a second that it copies.
    """
    lines = ["| residues | | 10^12 operations | GB | least ms | bound by | share |", "|---|---|---|---|---|---|---|"]
    for n in lengths:
        times = {part.name: part.seconds(n, rate, bandwidth) for part in PARTS}
        total = sum(times.values())
        dominant = max(times, key=lambda name: times[name])
        for part in PARTS:
            operations, moved = part.operations(n), part.bytes(n)
            bound = "operations" if operations / rate > moved / bandwidth else "bytes"
            name = f"**{part.name}**" if part.name == dominant else part.name
            share = times[part.name] / total
            cells = (
                f"{operations / 1e12:.2f} | {moved / 1e9:.1f} | {1e3 * times[part.name]:.2f} | {bound} | {share:.0%}"
            )
            lines.append(f"| {n} | {name} | {cells} |")
        operations = sum(part.operations(n) for part in PARTS)
        moved = sum(part.bytes(n) for part in PARTS)
        lines.append(f"| {n} | all | {operations / 1e12:.2f} | {moved / 1e9:.1f} | {1e3 * total:.2f} | | |")
    return lines
