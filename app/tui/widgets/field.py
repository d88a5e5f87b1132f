"""A line to type into, in dialogs."""

from textual import events
from textual.widgets import Input


class Field(Input):
    """An input whose keys do what they do in the order in which they were typed."""

    async def _on_key(self, event: events.Key) -> None:
        own = self._bindings.key_to_bindings.get(event.key)
        # Textual would run it once the key has bubbled up to the app: after letters that were
        # typed later.
        if own and await self.app.run_action(own[0].action, self):
            event.stop()
            event.prevent_default()
        else:
            await super()._on_key(event)
