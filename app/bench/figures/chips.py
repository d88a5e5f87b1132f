"""Memory of chips, as their makers state it.

Sources: the technical specifications of Apple's Macs (the largest memory a chip is
sold with, its full configuration), and NVIDIA's data sheet of the H200 SXM. Apple does
not state its GPUs' clocks: they are as others have measured them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Chip:
    """gb_s: peak bandwidth, in 1e9 bytes. memory_gib: the most there is.

    gpu_cores, gpu_ghz: of the largest GPU that the chip is sold with, 0 where nobody has
    measured its clock.
    """

    name: str
    gb_s: float
    memory_gib: int
    gpu_cores: int = 0
    gpu_ghz: float = 0.0


CHIPS = (
    Chip(name="M1", gb_s=68.25, memory_gib=16, gpu_cores=8, gpu_ghz=1.278),
    Chip(name="M1 Pro", gb_s=200, memory_gib=32),
    Chip(name="M1 Max", gb_s=400, memory_gib=64),
    Chip(name="M2", gb_s=100, memory_gib=24),
    Chip(name="M2 Pro", gb_s=200, memory_gib=32),
    Chip(name="M2 Max", gb_s=400, memory_gib=96),
    Chip(name="M2 Ultra", gb_s=800, memory_gib=192),
    Chip(name="M3", gb_s=100, memory_gib=24),
    Chip(name="M3 Pro", gb_s=150, memory_gib=36, gpu_cores=18, gpu_ghz=1.398),
    Chip(name="M3 Max", gb_s=400, memory_gib=128),
    Chip(name="M3 Ultra", gb_s=819, memory_gib=512),
    Chip(name="M4", gb_s=120, memory_gib=32),
    Chip(name="M4 Pro", gb_s=273, memory_gib=64),
    Chip(name="M4 Max", gb_s=546, memory_gib=128, gpu_cores=40, gpu_ghz=1.578),
    Chip(name="H200", gb_s=4800, memory_gib=131),
)
