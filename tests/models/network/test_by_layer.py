"""Layers with codecs of their own: the CPU kernels of all layers at once against plain MLX."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from kvcache import Backend, CacheConfig, make_prompt_cache
from models import load
from tests.app.conftest import write_tiny

BY_LAYER = ("hkivi4/turbo2u", "f16/q8", "f16")


def test_all_backends_agree(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    ids = np.random.default_rng(5).integers(1, 40, 173).tolist()
    found = []
    for backend in (Backend.CPU, Backend.REFERENCE):
        model = load(str(path), backend=backend).model
        assert model.shape.layers == len(BY_LAYER)
        config = CacheConfig(
            by_layer=BY_LAYER, hot=24, block=16, sinks=3, max_tokens=120, backend=backend
        )
        caches = make_prompt_cache(model, config)
        for start in range(0, 160, 16):
            mx.eval(model.hidden(mx.array([ids[start : start + 16]]), caches))
        rows = [np.asarray(model(mx.array([[each]]), caches)) for each in ids[160:]]
        found.append(np.concatenate(rows).astype(np.float64))
        assert caches[0].stats().cold > 0
        assert len({cache.stats().cold_bytes for cache in caches}) == len(BY_LAYER)
    assert np.abs(found[0] - found[1]).max() < 0.02 * np.abs(found[1]).max()
