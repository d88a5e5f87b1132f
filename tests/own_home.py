"""A home of its own for a process of ember, in which nothing is but the compiled kernels."""

import os
import shutil
from pathlib import Path

from kvcache import Backend
from kvcache.cache_folder import cache_folder
from models.native.kernels import kernels

KERNELS = "native"


def own_home(folder: Path, *, has_kernels: bool = True) -> dict[str, str]:
    """The environment of a process whose chats, settings and caches all lie in a folder."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    caches = folder / "cache"
    caches.mkdir(parents=True, exist_ok=True)
    if has_kernels and not (caches / KERNELS).exists():
        Backend.AUTO.resolve()
        kernels()
        shutil.copytree(cache_folder() / KERNELS, caches / KERNELS)
    return {
        **others,
        "HOME": str(folder),
        "EMBER_CACHE": str(caches),
        "EMBER_CALIBRATE": "0",
        "TERM": "xterm-256color",
        "LC_ALL": "C.UTF-8",
    }
