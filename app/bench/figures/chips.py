"""Memory and GPUs of chips, as their makers state them.

Sources: the technical specifications of Apple's Macs (the largest memory a chip is
sold with, its full configuration), and NVIDIA's data sheet of the H200 SXM. Apple does
not state its GPUs' clocks. The M4 Max's is what macOS's powermetrics shows of a Mac Studio
under load (1578 MHz, noted by SoCMetrics, a library that was compared with it); the M1's
and the M3 Pro's are commonly stated, which makes them assumptions.
"""

from dataclasses import dataclass

from kvcache.gpu.device import threadgroups_of, threadgroups_on


@dataclass(frozen=True, kw_only=True)
class Chip:
    """gb_s: peak bandwidth, in 1e9 bytes. memory_gib: the most there is.

    gpu_cores, gpu_ghz: of the largest GPU that the chip is sold with, 0 where no clock is
    known to us. kind: the last letter of MLX's name of an Apple GPU, for base chips and Pro,
    Max, Ultra. multiprocessors: of a CUDA GPU.
    """

    name: str
    gb_s: float
    memory_gib: int
    gpu_cores: int = 0
    gpu_ghz: float = 0.0
    kind: str = "g"
    multiprocessors: int = 0

    @property
    def threadgroups(self) -> int:
        """That the kernels have there, where there is work for so many."""
        if self.multiprocessors:
            return threadgroups_on(self.multiprocessors)
        return threadgroups_of(self.kind)


CHIPS = (
    Chip(name="M1", gb_s=68.25, memory_gib=16, gpu_cores=8, gpu_ghz=1.278),
    Chip(name="M1 Pro", gb_s=200, memory_gib=32),
    Chip(name="M1 Max", gb_s=400, memory_gib=64, kind="s"),
    Chip(name="M2", gb_s=100, memory_gib=24),
    Chip(name="M2 Pro", gb_s=200, memory_gib=32),
    Chip(name="M2 Max", gb_s=400, memory_gib=96, kind="s"),
    Chip(name="M2 Ultra", gb_s=800, memory_gib=192, kind="d"),
    Chip(name="M3", gb_s=100, memory_gib=24),
    Chip(name="M3 Pro", gb_s=150, memory_gib=36, gpu_cores=18, gpu_ghz=1.398),
    Chip(name="M3 Max", gb_s=400, memory_gib=128, kind="s"),
    Chip(name="M3 Ultra", gb_s=819, memory_gib=512, kind="d"),
    Chip(name="M4", gb_s=120, memory_gib=32),
    Chip(name="M4 Pro", gb_s=273, memory_gib=64),
    Chip(name="M4 Max", gb_s=546, memory_gib=128, gpu_cores=40, gpu_ghz=1.578, kind="s"),
    Chip(name="H200", gb_s=4800, memory_gib=131, multiprocessors=132),
)
