"""GGUF files as networks. Three calls are what most scripts need:

    loaded = load("smollm2")                            a name or a path
    ids = mx.array([loaded.tokenizer.encode(text)])     and .decode(ids)
    logits = loaded.model(ids, cache)                   cache: kvcache.make_prompt_cache(...)

Reader, tokenizer, chat template, network, and where files are found.

Knows no user interface; of the cache only what `kvcache` exports. A tensor of a file as an
MLX array: `mx.array(decode(file.tensor(name)))`, where `file` is a `GGUFFile`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvcache import __version__ as __version__

if TYPE_CHECKING:
    from models.errors import ChatTemplateError as ChatTemplateError
    from models.errors import FetchError as FetchError
    from models.errors import GGUFError as GGUFError
    from models.errors import ModelNotFoundError as ModelNotFoundError
    from models.errors import UnevenError as UnevenError
    from models.gguf.decode import decode as decode
    from models.gguf.file import GGUFFile as GGUFFile
    from models.loader import LoadedModel as LoadedModel
    from models.loader import load as load

# What is exported, and where it is; imported when it is first asked for, as in `kvcache`.
_PLACES = {
    "ChatTemplateError": "errors",
    "FetchError": "errors",
    "GGUFError": "errors",
    "GGUFFile": "gguf.file",
    "LoadedModel": "loader",
    "ModelNotFoundError": "errors",
    "UnevenError": "errors",
    "decode": "gguf.decode",
    "load": "loader",
}
__all__ = ["__version__", *_PLACES]

if not TYPE_CHECKING:  # it would have every name be there

    def __getattr__(name: str) -> Any:
        """What is exported under a name."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return __all__
