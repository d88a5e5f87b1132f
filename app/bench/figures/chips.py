"""Memory of chips, as their makers state it.

Sources: the technical specifications of Apple's Macs (the largest memory a chip is
sold with, its full configuration), and NVIDIA's data sheet of the H200 SXM.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Chip:
    """gb_s: peak bandwidth, in 1e9 bytes. memory_gib: the most there is."""

    name: str
    gb_s: float
    memory_gib: int


CHIPS = (
    Chip(name="M1", gb_s=68.25, memory_gib=16),
    Chip(name="M1 Pro", gb_s=200, memory_gib=32),
    Chip(name="M1 Max", gb_s=400, memory_gib=64),
    Chip(name="M2", gb_s=100, memory_gib=24),
    Chip(name="M2 Pro", gb_s=200, memory_gib=32),
    Chip(name="M2 Max", gb_s=400, memory_gib=96),
    Chip(name="M2 Ultra", gb_s=800, memory_gib=192),
    Chip(name="M3", gb_s=100, memory_gib=24),
    Chip(name="M3 Pro", gb_s=150, memory_gib=36),
    Chip(name="M3 Max", gb_s=400, memory_gib=128),
    Chip(name="M3 Ultra", gb_s=819, memory_gib=512),
    Chip(name="M4", gb_s=120, memory_gib=32),
    Chip(name="M4 Pro", gb_s=273, memory_gib=64),
    Chip(name="M4 Max", gb_s=546, memory_gib=128),
    Chip(name="H200", gb_s=4800, memory_gib=131),
)
