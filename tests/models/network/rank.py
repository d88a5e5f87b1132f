"""One of the ranks of `test_ranks`: `python -m tests.models.network.rank FOLDER ARCHITECTURE...`.

Writes logits of each file NAME.gguf in the folder to NAME-SIZE-RANK.npy, and prints what of its
bytes it holds as JSON. Without MLX_RANK it is alone.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from kvcache import Backend, CacheConfig, HotDtype, make_prompt_cache
from models.loader import LoadedModel, load
from models.network.cpu_llama import CpuMatrix
from models.network.layers import Linear

LOSSLESS = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=96, hot=64, block=32
)
PROMPT, STEP = 50, 23


def main() -> None:
    """Load every file and read a prompt, in steps."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    group = mx.distributed.init(strict=True, backend="ring") if "MLX_RANK" in os.environ else None
    rank, size = (0, 1) if group is None else (group.rank(), group.size())
    found = {}
    for name in names:
        backend = Backend(name.rpartition("-")[2])
        loaded = load(folder / f"{name}.gguf", backend=backend, group=group)
        np.save(folder / f"{name}-{size}-{rank}.npy", logits(loaded, backend))
        found[name] = held(loaded)
    print(json.dumps(found))


def logits(loaded: LoadedModel, backend: Backend) -> np.ndarray:
    """Of all tokens of a prompt that is read in steps."""
    vocabulary = loaded.model.vocabulary
    ids = [(7 * at + 3) % vocabulary for at in range(PROMPT)]
    caches = make_prompt_cache(loaded.model, replace(LOSSLESS, backend=backend))
    steps = [mx.array([ids[at : at + STEP]]) for at in range(0, PROMPT, STEP)]
    return np.concatenate([np.asarray(loaded.model(each, caches))[0] for each in steps])


def held(loaded: LoadedModel) -> dict[str, int]:
    """Bytes of matrices in the mapped file, and in memory of the rank's own."""
    found = {"mapped": 0, "own": 0, "said": loaded.weight_bytes}
    for _, module in loaded.model.named_modules():
        if isinstance(module, CpuMatrix):
            data = module.packed.data
            found["mapped" if np.shares_memory(data, loaded.opened.data) else "own"] += data.nbytes
        elif isinstance(module, Linear):
            found["own"] += module.weight.nbytes
    return found


if __name__ == "__main__":
    main()
