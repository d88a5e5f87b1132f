"""Which model an empty chat offers, and what Enter takes where none is loaded."""

import asyncio

from textual.strip import Strip

from app.chat.controller import ChatController
from app.chat.state import Phase
from app.model_list import ListedModel, listed
from app.tui.text.lines import LineMaker
from app.tui.welcome import welcome


class ModelOffer:
    """The default model first, then those on this machine.

    default: what is loaded at the start; a model that is not here is offered before it
    is fetched.
    """

    def __init__(self, chat: ChatController, default: str) -> None:
        self._chat, self._default = chat, default
        self._found: list[ListedModel] = []

    async def look(self) -> None:
        """Look for models on this machine."""
        self._found = await asyncio.to_thread(listed)

    @property
    def names(self) -> list[str]:
        """The models that can be chosen."""
        return [each.spec for each in self._found]

    def welcome(self, maker: LineMaker) -> list[Strip]:
        """Lines for an empty chat."""
        here = [(each.spec, each.size or 0) for each in self._found if each.path is not None]
        return welcome(maker, self._chat, here, self._default)

    def take(self) -> bool:
        """Where no model is loaded, load or fetch the default.

        False, and nothing is done, if it could not be loaded, or is to be fetched while other
        models are here: one of all is to be chosen. Raises EmberError.
        """
        if self._chat.phase is not Phase.NO_MODEL or self._chat.models.fetching is not None:
            return True
        others = any(each.path is not None for each in self._found)
        is_here = self._chat.service.is_here(self._default)
        if self._chat.models.problem is not None if is_here else others:
            return False
        self._chat.use(self._default)
        return True
