"""GPU kernels for attention over the two tiers, for Metal and CUDA from one text.

`kernels/` holds the text, `decode.py` runs it for few new tokens, `prefill.py` attends many by
MLX's fused attention. Knows no cache: `tiers.py` says what a caller hands over.
"""

from kvcache.gpu.decode import TierDecoder
from kvcache.gpu.prefill import TierPrefill
from kvcache.gpu.tier_arrays import ColdBlocks, DenseTokens, HotRing, TierArrays

__all__ = ["ColdBlocks", "DenseTokens", "HotRing", "TierArrays", "TierDecoder", "TierPrefill"]
