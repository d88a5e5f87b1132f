"""Commands that show something else, or leave.

Screens are imported once they are shown: a start would take a tenth longer.
"""

from app.sessions.chat import shown_title
from app.tui.screens.chat import ChatScreen
from kvcache.errors import EmberError


def new(screen: ChatScreen, _text: str) -> None:
    """Begin another chat."""
    screen.chat.new_chat()
    screen.action_follow()


def sessions(screen: ChatScreen, _text: str) -> None:
    """Choose among the saved chats."""
    from app.tui.screens.chats import ChatsScreen

    def done(number: int | None) -> None:
        if number is not None:
            screen.attempt(lambda: screen.chat.show_chat(screen.chat.store.load(number)))
            screen.action_follow()

    screen.app.push_screen(ChatsScreen(screen.chat), done)


def title(screen: ChatScreen, text: str) -> None:
    """Rename this chat."""
    chat = screen.chat.chat
    if not text:
        screen.composer.put_text(f"/title {chat.title}")
        return
    if not chat.messages:
        raise EmberError("this chat is empty: ask something first")
    screen.chat.rename(text)
    screen.notify(f"renamed to {shown_title(text)}", markup=False)


def stats(screen: ChatScreen, _text: str) -> None:
    """Show the speed in large."""
    from app.tui.screens.figures import SpeedScreen

    screen.app.push_screen(SpeedScreen(screen.chat))


def bench(screen: ChatScreen, _text: str) -> None:
    """Measure the speed, and show it in large."""
    screen.chat.measure()
    stats(screen, "")


def panes(screen: ChatScreen, _text: str) -> None:
    """Show or hide the side pane."""
    if screen.has_class("narrow"):
        raise EmberError("the panes need 100 columns; F3 and F4 open them")
    screen.toggle_class("panes-off")


def help_(screen: ChatScreen, _text: str) -> None:
    """Show keys and commands."""
    from app.tui.screens.help import HelpScreen

    screen.app.push_screen(HelpScreen(screen.commands, screen.chat))


def quit_(screen: ChatScreen, _text: str) -> None:
    """Leave."""
    screen.app.exit()
