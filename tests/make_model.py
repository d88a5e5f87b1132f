"""Write a GGUF file with a real model's dimensions and random weights.

    python -m tests.make_model tinyllama|llama-2-7b|llama-3.1-8b|qwen3-4b|gemma-3-4b OUT.gguf
        [--type Q5_K] [--layers N]

The types are llama.cpp's Q4_K_M mix unless `--type` gives one for all
matrices. Such a file answers nonsense at a real model's speed and size; with fewer
`--layers` it is a smaller one. Llama-2 and TinyLlama have the chat templates of their makers: in
made-up words a guess at one is five times as many tokens.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from models.gguf.tensor_types import TensorType
from models.text.builtin_templates import TemplateSource, builtin
from tests.architectures import Shape, write_large
from tests.gguf_factory import (
    LLAMA_2_7B,
    TINYLLAMA,
    LlamaShape,
    every_matrix,
    q4_k_m,
    sentencepiece_tokenizer,
    write_llama,
)

LLAMA_3_1_8B = Shape(
    architecture="llama",
    layers=32,
    width=4096,
    ffn=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128256,
    context=131072,
    norm_eps=1e-5,
    keys={"rope.dimension_count": 128, "rope.freq_base": 500000.0},
    vectors={"rope_freqs.weight": (*[1.0] * 29, *[3.0] * 6, *[8.0] * 29)},
)
QWEN3_4B = Shape(
    architecture="qwen3",
    layers=36,
    width=2560,
    ffn=9728,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=151936,
    context=40960,
    norm_eps=1e-6,
    tied=True,
    keys={"rope.freq_base": 1000000.0},
)
GEMMA_3_4B = Shape(
    architecture="gemma3",
    layers=34,
    width=2560,
    ffn=10240,
    heads=8,
    kv_heads=4,
    head_dim=256,
    vocab=262144,
    context=131072,
    norm_eps=1e-6,
    tied=True,
    keys={
        "rope.freq_base": 1000000.0,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
        "attention.sliding_window": 1024,
    },
)
_SHAPES: dict[str, LlamaShape | Shape] = {
    "tinyllama": TINYLLAMA,
    "llama-2-7b": LLAMA_2_7B,
    "llama-3.1-8b": LLAMA_3_1_8B,
    "qwen3-4b": QWEN3_4B,
    "gemma-3-4b": GEMMA_3_4B,
}
_TEMPLATES = {"tinyllama": TemplateSource.ZEPHYR, "llama-2-7b": TemplateSource.LLAMA2}


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=_SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=[kind.name for kind in TensorType])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config, out, seed = _SHAPES[arguments.model], arguments.out, arguments.seed
    config = replace(config, layers=arguments.layers or config.layers)
    types = every_matrix(TensorType[arguments.type]) if arguments.type else q4_k_m(config)
    tokenizer = sentencepiece_tokenizer(config.vocab)
    if template := _TEMPLATES.get(arguments.model):
        tokenizer["tokenizer.chat_template"] = builtin(template).text
    if isinstance(config, Shape):
        write_large(out, config, types=types, tokenizer_metadata=tokenizer, seed=seed)
    else:
        write_llama(out, config=config, types=types, tokenizer_metadata=tokenizer, seed=seed)
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
