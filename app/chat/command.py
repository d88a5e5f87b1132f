"""A thing that can be done by name: typed after a slash, or chosen in the palette.

Plain data: which commands there are, and what they do, is handed to the screen.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvcache.errors import EmberError, quoted

Screen = TypeVar("Screen")


@dataclass(frozen=True, kw_only=True)
class Command(Generic[Screen]):
    """One command.

    run: takes the chat's screen and the text after the name; refuses by EmberError.
    usage: its arguments, as help shows them. choices: for completion.
    """

    name: str
    about: str
    run: Callable[[Screen, str], None]
    usage: str = ""
    key: str = ""
    choices: Callable[[Screen], Iterable[str]] | None = None

    def start(self, screen: Screen, text: str) -> None:
        """Run it, unless it has no use for the text. Raises EmberError."""
        if text and not self.usage:
            raise EmberError(f"/{self.name} stands alone: got {quoted(text)} after it")
        self.run(screen, text)

    @property
    def needs_nothing(self) -> bool:
        """Whether it can be run without an argument."""
        return not self.usage or self.usage.startswith("[")


def find(commands: Sequence[Command[Screen]], name: str) -> Command[Screen]:
    """The command of that name, or of which it is the only beginning. Raises EmberError."""
    matches = [each for each in commands if each.name.startswith(name)]
    exact = [each for each in matches if each.name == name]
    if exact or len(matches) == 1:
        return (exact or matches)[0]
    hint = ", ".join(f"/{each.name}" for each in matches) or "/help lists them"
    raise EmberError(f"no command /{name}: {hint}")
