"""Bits by layer: which codecs each layer takes so that the whole loses least in so many bits.

Layers differ by a hundredfold in what coarse keys or values of theirs do to a model's answers,
and what several layers lose adds up. So a codec is chosen for each layer's keys and for its
values by what it loses there alone. Does not know how that was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from kvcache.errors import CacheError
from kvcache.given import instance, number, refused

# Halvings of the price of a bit: down to where choices differ no more.
_HALVINGS = 60


class Choice(NamedTuple):
    """A codec of one layer's keys or values: bits per element, and what it loses."""

    codec: str
    bits: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What codecs lose where one layer alone is encoded: its keys or its values.

    keys, values: of each codec, by name, a loss for each layer. Nats per token, or any unit
    that adds up over layers.
    """

    keys: Mapping[str, Sequence[float]]
    values: Mapping[str, Sequence[float]]


def allocate(losses: Losses, bits: Mapping[str, float], mean: float) -> tuple[str, ...]:
    """The codecs KEYS/VALUES of each layer that lose least in at most `mean` bits per element.

    bits: per element of each codec, all-in. Raises CacheError where the coarsest take more,
    and for losses of unlike layers.
    """
    instance("losses", losses, Losses)
    mean = number("mean", mean, above=0)
    each_bits: object = bits
    if not isinstance(each_bits, Mapping):
        raise refused("bits", each_bits, "the bits of each codec, by its name")
    lengths = {len(layers) for role in (losses.keys, losses.values) for layers in role.values()}
    if len(lengths) != 1 or not (losses.keys and losses.values):
        raise refused("losses", losses, "as many layers in each of keys and values")
    if absent := {*losses.keys, *losses.values} - each_bits.keys():
        raise refused("bits", dict(each_bits), f"those of {', '.join(sorted(absent))} too")
    keys, values = (
        [
            [Choice(name, bits[name], of_layer[layer]) for name, of_layer in role.items()]
            for layer in range(len(next(iter(role.values()))))
        ]
        for role in (losses.keys, losses.values)
    )
    chosen = _cheapest([*keys, *values], mean * (len(keys) + len(values)))
    names = [choice.codec for choice in chosen]
    return tuple(map("/".join, zip(names[: len(keys)], names[len(keys) :], strict=True)))


def _cheapest(options: Sequence[Sequence[Choice]], room: float) -> list[Choice]:
    """One of each, of least total loss in `room` bits: by a price of a bit, then by what is left.

    The price alone gives the best of all choices of as many bits (Lagrange); what it leaves
    of the room goes to the single changes that gain most.
    """
    low, high = 0.0, max(choice.loss for each in options for choice in each) + 1.0
    chosen = _at(options, high)
    if _bits(chosen) > room:
        got, least = room / len(options), _bits(chosen) / len(options)
        # Rounded up, so that so many are enough.
        raise CacheError(f"got {got:.4g} bits, expected at least {ceil(least * 100) / 100:g}")
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        found = _at(options, price)
        if _bits(found) > room:
            low = price
        else:
            high, chosen = price, found
    while changes := [
        (chosen[at].loss - choice.loss, at, choice)
        for at, each in enumerate(options)
        for choice in each
        if choice.loss < chosen[at].loss and _bits(chosen) - chosen[at].bits + choice.bits <= room
    ]:
        _, at, choice = max(changes)
        chosen[at] = choice
    return chosen


def _at(options: Sequence[Sequence[Choice]], price: float) -> list[Choice]:
    return [min(each, key=lambda choice: choice.loss + price * choice.bits) for each in options]


def _bits(chosen: Sequence[Choice]) -> float:
    return sum(choice.bits for choice in chosen)
