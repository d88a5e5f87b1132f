"""Where ember keeps what it can make again: compiled kernels, models, what was computed once."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """EMBER_CACHE, or `ember` in the user's cache; it need not be there."""
    override = os.environ.get("EMBER_CACHE")
    return Path(override).expanduser() if override else platformdirs.user_cache_path("ember")
