"""What ember asks of a GPU's memory: that weights stay in it, and scratch does not.

macOS may page weights out between two answers, and MLX keeps freed buffers for
reuse without bound. Where there is no GPU both do nothing.
"""

import mlx.core as mx


def wire() -> None:
    """Let all that Metal recommends stay in memory; a limit, nothing is taken by it."""
    if mx.metal.is_available():
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))


def release_scratch() -> None:
    """Give freed buffers back to the system."""
    mx.clear_cache()
