"""mlx-lm's own sharding as an oracle: over the same ranks its networks and ember's agree."""

import json
import sys
from pathlib import Path

from models.gguf.tensor_types import TensorType
from tests.architectures import write_network
from tests.gguf_factory import sentencepiece_tokenizer
from tests.local_ranks import told_by_ranks
from tests.models.network.test_rank_matrices import shape_of
from tests.tiny_files import SEED, VOCABULARY

# Of the architectures that mlx-lm can shard.
NAMES = ("llama", "mistral3", "qwen3")


def test_ranks_say_what_mlx_lm_s_ranks_say(tmp_path: Path) -> None:
    for name in NAMES:
        write_network(
            tmp_path / f"{name}.gguf",
            shape_of(name),
            kind=TensorType.F32,
            tokenizer_metadata=sentencepiece_tokenizer(VOCABULARY),
            seed=SEED,
        )
    command = [sys.executable, "-m", "tests.models.network.mlx_lm_rank", str(tmp_path), *NAMES]
    for told in told_by_ranks(command, 2, tmp_path):
        found = json.loads(told)
        assert len(found) == 3 * len(NAMES)
        assert max(found.values()) <= 1e-4, found
