"""A titled block of the side pane that redraws only when its figures change."""

from textual.content import Content
from textual.widget import Widget


class Pane(Widget):
    """Base of the panes: subclasses fill `content` from figures."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.border_title = title
        self._content = Content("")

    def draw(self, content: Content) -> None:
        """Show `content` if it is not what is shown."""
        if content != self._content or content.spans != self._content.spans:
            grown = content.plain.count("\n") != self._content.plain.count("\n")
            self._content = content
            self.refresh(layout=grown)

    def render(self) -> Content:
        return self._content
