"""What can go wrong between a model's name and a network in memory."""

from kvcache.errors import EmberError


class GGUFError(EmberError):
    """A GGUF file is damaged, hostile, or holds something ember does not run."""


class UnknownArchitectureError(GGUFError):
    """A file of an architecture that ember does not run. name: as the file has it, quoted."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class ModelNotFoundError(EmberError):
    """No file answers to the given model name or path."""


class FetchError(EmberError):
    """A model could not be downloaded or failed its check."""


class ChatTemplateError(EmberError):
    """A chat template is none, refuses a conversation, or reached a limit."""


class RenderStoppedError(ChatTemplateError):
    """The rendering of a conversation was stopped by whoever asked for it."""

    def __init__(self) -> None:
        super().__init__("the chat template was stopped")


class UnevenError(EmberError):
    """So many ranks cannot share a network."""
