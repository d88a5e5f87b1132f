"""What can go wrong between a model's name and a network in memory."""

from kvcache.errors import EmberError


class GGUFError(EmberError):
    """A GGUF file is damaged, hostile, or holds something ember does not run."""


class ModelNotFoundError(EmberError):
    """No file answers to the given model name or path."""


class FetchError(EmberError):
    """A model could not be downloaded or failed its check."""
