"""GPU kernels for attention over the two tiers and for encoding, for Metal and CUDA from one text.

`kernels/` holds the text, `decode.py` runs it for few new tokens, `prefill.py` attends many by
MLX's fused attention; both read a `Snapshot` as a `Sight` says. `encode.py` writes blocks. Knows
no cache.
"""

from kvcache.gpu.decode import TierDecoder
from kvcache.gpu.encode import TierEncoder
from kvcache.gpu.prefill import TierPrefill

__all__ = ["TierDecoder", "TierEncoder", "TierPrefill"]
