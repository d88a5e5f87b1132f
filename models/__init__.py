"""GGUF files as networks. Three calls are what most scripts need:

    loaded = load("smollm2")                            a name or a path
    ids = mx.array([loaded.tokenizer.encode(text)])     and .decode(ids)
    logits = loaded.model(ids, cache)                   cache: kvcache.make_prompt_cache(...)

Reader, tokenizer, chat template, network, and where files are found.

Knows no user interface; of the cache only what `kvcache` exports. A tensor of a file as an
MLX array: `mx.array(decode(file.tensor(name)))`, where `file` is a `GGUFFile`.
"""

from kvcache import __version__
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
    "__version__",
    "decode",
    "load",
]
