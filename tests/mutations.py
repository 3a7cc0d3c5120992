"""Files damaged as files are: cut short, lines lost or doubled, numbers out of range, bytes of another encoding."""

from __future__ import annotations

import gzip
import random
import re

# What stands where a number should. None is so large that a program that believes it fills the memory of a test.
_TOKENS = (b"", b"-", b"nan", b"NaN", b"inf", b"1e999", b"-1", b"0", b"99999", b"1.5.2", b"?", b".", b"***", b"null")
_TOKENS += (b"[]", b"{}", b'"x"', b"true", b"0x1F", b"\xc2\xb2", b"\xff\xfe")
_BYTES = (b"\x00", b"\n", b"\r", b"\r\n", b"'", b'"', b";", b"#", b"\t", b" ", b"{", b"}", b"[", b"]", b":", b"\xe4")
_BYTES += (b"\x1a", b"\x0c", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"data_", b"loop_\n", b">", b"&a", b"*a", b"!!python/")
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def damaged(data: bytes, seed: int) -> bytes:
    """`data` with one to four things wrong, the same for the same seed."""
    chance = random.Random(seed)
    packed = data.startswith(b"\x1f\x8b") and chance.random() < 0.8
    if packed:
        data = gzip.decompress(data)
    for _ in range(chance.randint(1, 4)):
        data = chance.choice(_WAYS)(data, chance)
    return gzip.compress(data, mtime=0) if packed else data


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _lose(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.choice((1, 2, 8, 80, 800)) :]


def _flip(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    place = chance.randrange(len(data))
    return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]


def _insert(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) + 1)
    return data[:place] + chance.choice(_BYTES) + data[place:]


def _number(data: bytes, chance: random.Random) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return _insert(data, chance)
    place = chance.choice(found)
    new = chance.choice(_TOKENS)
    # In files of fixed columns a longer number moves all that follows; half of the time it does not.
    new = new.rjust(len(place[0])) if chance.random() < 0.5 else new
    return data[: place.start()] + new + data[place.end() :]


def _lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    one, other = (chance.randrange(len(lines)) for _ in range(2))
    way = chance.randrange(4)
    if way == 0:
        lines[one], lines[other] = lines[other], lines[one]
    elif way == 1:
        lines.insert(one, lines[other])
    elif way == 2:
        del lines[one]
    else:
        lines[one] = lines[one][: chance.randrange(len(lines[one]) + 1)]
    return b"\n".join(lines)


def _repeat(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    part = data[start : start + chance.choice((4, 40, 400))]
    return data[:start] + part * 2 + data[start + len(part) :]


_WAYS = (_cut, _lose, _flip, _flip, _insert, _number, _number, _lines, _lines, _repeat)
