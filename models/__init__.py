"""GGUF files: reader, tokenizer, chat template, network, and where files are found.

Knows no user interface; of the cache only what `kvcache` exports. A tensor of a file as an
MLX array: `mx.array(decode(file.tensor(name)))`, where `file` is a `GGUFFile`.
"""

from models.errors import ChatTemplateError, FetchError, GGUFError, ModelNotFoundError
from models.gguf.decode import decode
from models.gguf.file import GGUFFile
from models.loader import LoadedModel, load

__all__ = [
    "ChatTemplateError",
    "FetchError",
    "GGUFError",
    "GGUFFile",
    "LoadedModel",
    "ModelNotFoundError",
    "decode",
    "load",
]
