"""Write a GGUF file with a real model's dimensions and random weights.

    python -m tests.make_model tinyllama|llama-2-7b OUT.gguf [--type Q5_K]

The types are llama.cpp's Q4_K_M mix unless `--type` gives one for all
matrices. Such a file answers nonsense at a real model's speed and size.
"""

import argparse
from pathlib import Path

from models.gguf.tensor_types import TensorType
from tests.gguf_factory import (
    LLAMA_2_7B,
    TINYLLAMA,
    every_matrix,
    q4_k_m,
    sentencepiece_tokenizer,
    write_llama,
)

_SHAPES = {"tinyllama": TINYLLAMA, "llama-2-7b": LLAMA_2_7B}


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=_SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=[kind.name for kind in TensorType])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = _SHAPES[arguments.model]
    types = every_matrix(TensorType[arguments.type]) if arguments.type else q4_k_m(config)
    write_llama(
        arguments.out,
        config=config,
        types=types,
        tokenizer_metadata=sentencepiece_tokenizer(config.vocab),
        seed=arguments.seed,
    )
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
