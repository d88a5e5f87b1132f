"""What llama.cpp's caches hold, by formula: it does not tell."""

from collections.abc import Mapping

from app.bench.engines.case import Case

_BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}


def kv_bytes(metadata: Mapping[str, str], case: Case) -> int:
    """Bytes of the tokens held, from the file's dimensions and the type's bits."""

    architecture = metadata["general.architecture"]

    def number(name: str, default: int = 0) -> int:
        return int(metadata.get(f"{architecture}.{name}", default))

    heads = number("attention.head_count")
    dim = number("attention.key_length", number("embedding_length") // heads)
    elements = number("block_count") * number("attention.head_count_kv", heads) * dim
    keys, _, values = case.kv.partition("/")
    bits = _BITS[keys] + _BITS[values or keys]
    return int(elements * bits / 8 * (case.depth + case.pp + case.tg))
