"""The cold ring's arrays as kernels take them: every part of every segment is an input.

The text names a part once, in PICK(part), and `segment` chooses among its arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import mlx.core as mx

from kvcache.gpu.arguments import Argument
from kvcache.gpu.families import Family
from kvcache.gpu.kernel import in_device_memory
from kvcache.snapshot import Bounds, ColdBlocks

_STARTS = tuple(argument for argument in Argument if argument.name.startswith("START_"))
_SEGMENTS = len(_STARTS)  # as many as a ring has at most
_MOST_BUFFERS = 31  # that a Metal kernel takes


@dataclass(frozen=True, kw_only=True)
class Role:
    """Keys or values: `name` in the text, `index` in a segment's pair."""

    name: str
    index: int
    family: Family

    @property
    def inputs(self) -> tuple[str, ...]:
        """The parts as the text names them."""
        return tuple(f"{self.name}_{part}" for part in self.family.parts)

    @property
    def macros(self) -> tuple[tuple[str, str], ...]:
        """The family's structure and what to make it of."""
        parts = ", ".join(f"PICK({name})" for name in self.inputs)
        return (f"{self.name.upper()}S", self.family.structure), (
            f"{self.name.upper()}_PARTS",
            parts,
        )


def key_role(family: Family) -> Role:
    """Keys of a codec."""
    return Role(name="key", index=0, family=family)


def value_role(family: Family, *, index: int = 1) -> Role:
    """Values of a codec; with index 0 keys that are read the way of values."""
    return Role(name="value", index=index, family=family)


@dataclass(frozen=True, kw_only=True)
class SegmentInputs:
    """roles: what a kernel reads. others: how many buffers it has besides."""

    roles: tuple[Role, ...]
    others: int

    @cached_property
    def segments(self) -> int:
        """Segments that one launch can read: their parts must fit in a kernel's buffers."""
        parts = sum(len(role.inputs) for role in self.roles)
        return min(_SEGMENTS, (_MOST_BUFFERS - self.others) // parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs' names."""
        return tuple(
            f"{name}_{i}"
            for i in range(self.segments)
            for role in self.roles
            for name in role.inputs
        )

    @property
    def macros(self) -> tuple[tuple[str, str], ...]:
        """PICK, which segment a slot lies in, and the roles' own."""
        last = self.segments - 1
        choice = "".join(f"segment == {i} ? name##_{i} : " for i in range(last))
        pick = ("PICK(name)", f"({choice}name##_{last})")
        passed = (f"int(slot >= args[ARG_START_{i}])" for i in range(1, self.segments))
        place = ("SEGMENT_OF(slot)", " + ".join(passed) or "0")
        return (pick, place, *(macro for role in self.roles for macro in role.macros))

    def inputs(self, cold: ColdBlocks) -> list[list[mx.array]]:
        """Of each launch; one, unless there are too many parts."""
        launches = []
        for at in range(0, len(cold.segments), self.segments):
            taken = list(cold.segments[at : at + self.segments])
            taken += taken[:1] * (self.segments - len(taken))  # never read
            parts = (
                pair[role.index][part]
                for pair in taken
                for role in self.roles
                for part in role.family.parts
            )
            launches.append([in_device_memory(part) for part in parts])
        return launches

    def numbers(
        self, bounds: Bounds, segments: int, slots: Sequence[int]
    ) -> list[dict[Argument, int]]:
        """Of each launch, of so many segments of these slots."""
        starts, launches = list(accumulate(slots, initial=0)), []
        for at in range(0, segments, self.segments):
            count = min(self.segments, segments - at)
            stop = starts[at + count]
            first = [*starts[at : at + count], *[stop] * (_SEGMENTS - count)]
            numbers = {
                **dict(zip(_STARTS, first, strict=True)),
                Argument.STOP: stop,
                Argument.SLOTS: sum(slots),
                Argument.FIRST_SLOT: bounds.first_slot,
                Argument.BLOCKS: bounds.blocks,
            }
            launches.append(numbers)
        return launches
