"""GPU kernels for attention over the two tiers, for Metal and CUDA from one text.

`kernels/` holds the text, `decode.py` runs it for few new tokens, `prefill.py` attends many by
MLX's fused attention. Knows no cache: both read a `Snapshot` as a `Sight` says.
"""

from kvcache.gpu.decode import TierDecoder
from kvcache.gpu.prefill import TierPrefill

__all__ = ["TierDecoder", "TierPrefill"]
