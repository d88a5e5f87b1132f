"""The one base class of every error a user may see, the cache's own, and how causes are told.

A message says what was got, what was expected, and what to do. Errors are
caught once, at the edge (command line or TUI), and shown as one line.
"""


class EmberError(Exception):
    """Base of all errors that ember raises on purpose."""


class CacheError(EmberError):
    """A refused cache operation; the cache is as it was before the call."""


class NativeUnavailableError(CacheError):
    """The native kernels cannot be built or loaded here; the message says what to install."""


class BuildStoppedError(CacheError):
    """Whoever asked for the kernels does not want them any more."""


def short(text: str, most: int = 60) -> str:
    """A text of at most `most` characters: of a longer one the middle is left out."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 3]}...{text[-tail:]}"


def quoted(value: object, most: int = 60) -> str:
    """What was got, as Python writes it, in at most `most` characters; its quotes are closed."""
    return short(repr(value), most)


def reason(error: Exception) -> str:
    """Why the system refused something, in its words: no number, and not the path once more."""
    told = error.strerror if isinstance(error, OSError) else None
    return told or str(error)
