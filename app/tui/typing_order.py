"""Keys and pastes, given one after the other to the screen that is there by then.

Textual gives all of a burst, as a slow line delivers it, to what has the focus as it comes: before
the first of them has opened or closed a screen, moved the focus or run an action.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from textual import events
from textual.app import App
from textual.message_pump import MessagePump
from textual.screen import Screen

Typed = events.Key | events.Paste

# What a key does may be told by a message, whose handler may tell another.
_GENERATIONS = 3
# What hangs longer keeps nobody from typing.
_MOST_SECONDS = 0.5


class TypingOrder:
    """Holds what is typed back until what was typed before has been done.

    give: passes it on to what has the focus. decides: whether it does more than to add to a text,
    with this screen on top. Texts are not waited for but by what decides.
    """

    def __init__(
        self,
        app: App[Any],
        *,
        give: Callable[[Typed], Awaitable[None]],
        decides: Callable[[Typed, Screen[Any]], bool],
    ) -> None:
        self._app, self._give, self._decides = app, give, decides
        self._held = deque[Typed]()
        self._is_settled = True
        self._settling: asyncio.Task[None] | None = None

    async def take(self, event: Typed) -> None:
        """Give it when its turn has come."""
        self._held.append(event)
        await self._give_held()

    async def _give_held(self) -> None:
        while self._held and self._settling is None:
            screen = self._app.screen
            if not screen.is_mounted:
                # Its widgets come before what is called later.
                screen.call_later(self._app.call_later, self._give_held)
                return
            decides = self._decides(self._held[0], screen)
            chain = (screen.focused or screen).ancestors_with_self
            if self._is_settled or not decides:
                self._is_settled = False
                await self._give(self._held.popleft())
            if decides:
                self._settling = asyncio.create_task(self._settle(chain))

    async def _settle(self, chain: Sequence[MessagePump]) -> None:
        """Wait until all that a key passes, from the focus to the app, has done with it."""
        try:
            for pump in [*chain] * _GENERATIONS:
                passed = asyncio.Event()
                if pump.call_later(passed.set):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(passed.wait(), _MOST_SECONDS)
        finally:
            self._settling, self._is_settled = None, True
            self._app.call_later(self._give_held)
