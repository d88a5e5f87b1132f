"""What llama.cpp's caches hold, by formula: it does not tell."""

from collections.abc import Mapping

_BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}


def kv_bytes(metadata: Mapping[str, str], kv: str, tokens: int) -> int:
    """Bytes of so many tokens, from the file's dimensions and the bits of the type or types."""

    architecture = metadata["general.architecture"]

    def number(name: str, default: int = 0) -> int:
        return int(metadata.get(f"{architecture}.{name}", default))

    heads = number("attention.head_count")
    dim = number("attention.key_length", number("embedding_length") // heads)
    elements = number("block_count") * number("attention.head_count_kv", heads) * dim
    keys, _, values = kv.partition("/")
    bits = _BITS[keys] + _BITS[values or keys]
    return int(elements * bits / 8 * tokens)
