"""One of the ranks of `test_mlx_lm_ranks`, given a folder and names of files.

Prints as JSON how far ember's logits of each file NAME.gguf in the folder, by each backend, are
from those of mlx-lm's own network with the same weights, sharded by mlx-lm over the same ranks.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from kvcache import Backend
from models.loader import load
from tests.models.network.mlx_lm_networks import network_of
from tests.models.network.test_rank_matrices import shape_of

_PROMPT = 50


def main() -> None:
    """Load every file twice, and read a prompt by both."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    group = mx.distributed.init(strict=True, backend="ring")
    found = {}
    for name in names:
        ids = mx.array([[(7 * at + 3) % shape_of(name).vocab for at in range(_PROMPT)]])
        network, _ = network_of(name, shape_of(name))
        whole = np.asarray(network(ids))
        network.shard(group)
        theirs = np.asarray(network(ids))
        for backend in (Backend.REFERENCE, Backend.CPU):
            ours = load(folder / f"{name}.gguf", backend=backend, group=group).model
            found[f"{name} {backend.value}"] = furthest(np.asarray(ours(ids)), theirs)
        found[f"{name} whole"] = furthest(whole, theirs)
        assert np.abs(theirs).max() > 1
    print(json.dumps(found))


def furthest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two networks' logits."""
    return float(np.abs(ours - theirs).max())


if __name__ == "__main__":
    main()
