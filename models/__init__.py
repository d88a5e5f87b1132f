"""GGUF files: reader, tokenizer, chat template, network, and where files are found.

Knows no user interface; of the cache only what `kvcache` exports.
"""

from models.errors import ChatTemplateError, FetchError, GGUFError, ModelNotFoundError
from models.loader import LoadedModel, load

__all__ = [
    "ChatTemplateError",
    "FetchError",
    "GGUFError",
    "LoadedModel",
    "ModelNotFoundError",
    "load",
]
