"""Bytes into others: anywhere, and in GGUF files where their numbers and texts stand.

Everything comes from a generator that the caller seeds.
"""

import struct
from random import Random

MOST_BYTES = 1 << 20
_MOST_CHANGES = 6
_MOST_RUN = 64
# Sizes at which something overflows, ends or begins.
_BITS = (31, 32, 48, 63, 64)
_EDGES = (
    *(0, 1, 2, 7, 8, 31, 32, 63, 127, 128, 255, 256, 32767, 65535, 65536),
    *((1 << bits) - less for bits in _BITS for less in (0, 1)),
)


def mutated(data: bytes, rng: Random) -> bytes:
    """A few changes, at most `MOST_BYTES` long."""
    for _ in range(rng.randint(1, _MOST_CHANGES)):
        data = _changed(data, rng)
    return data[:MOST_BYTES]


def mutated_file(data: bytes, rng: Random) -> bytes:
    """The same, most often of what a GGUF file's header is made of."""
    if not data.startswith(b"GGUF") or rng.random() < 0.3:
        return mutated(data, rng)
    texts = [at for at in range(8, min(len(data), 1 << 14)) if _is_length(data, at)]
    if not texts:
        return mutated(data, rng)
    at = rng.choice(texts)
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    match rng.randrange(4):
        case 0:  # a text of another length, and its length with it
            text = mutated(data[at + 8 : end], rng)[: 1 << 12]
            return data[:at] + struct.pack("<Q", len(text)) + text + data[end:]
        case 1:  # a length that is no text's
            return data[:at] + _edge(rng, 8) + data[at + 8 :]
        case 2:  # what follows a key: its type, and the first of its value
            return data[:end] + _edge(rng, rng.choice((1, 4, 8, 12))) + data[end + 4 :]
        case _:  # a number behind it
            place = min(len(data), end + 4 * rng.randrange(8))
            size = rng.choice((4, 8))
            return data[:place] + _edge(rng, size) + data[place + size :]


def _is_length(data: bytes, at: int) -> bool:
    """Whether what stands there reads as the length of a text of ASCII."""
    if data[at + 1 : at + 8] != bytes(7):
        return False
    text = data[at + 8 : at + 8 + data[at]]
    return bool(text) and len(text) == data[at] and text.isascii()


def _changed(data: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(data))
    run = rng.randint(1, _MOST_RUN)
    match rng.randrange(8):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + rng.randbytes(run) + data[at + run :]
        case 2:
            return data[:at] + data[at + run :]
        case 3:
            return data[:at] + rng.randbytes(run) + data[at:]
        case 4:
            size = rng.choice((1, 2, 4, 8))
            return data[:at] + _edge(rng, size) + data[at + size :]
        case 5:  # a part once more, somewhere else
            start = rng.randint(0, len(data))
            return data[:at] + data[start : start + 4 * run] + data[at:]
        case 6:
            return data[:at]
        case _:  # a part many times
            return data[:at] + data[at : at + run] * rng.randint(2, 200) + data[at:]


def _edge(rng: Random, size: int) -> bytes:
    number = rng.choice(_EDGES) % (1 << 8 * min(size, 8))
    return number.to_bytes(min(size, 8), "little").ljust(size, b"\0")
