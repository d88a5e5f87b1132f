"""The keys that the bottom line of the chat tells of, the most important first."""

from app.tui.widgets.key_bar import Hint

HINTS: tuple[Hint, ...] = (
    ("⏎", "Send", "screen.submit"),
    ("esc", "Stop", "screen.stop"),
    ("F1", "Help", "screen.command('help')"),
    ("^R", "Retry", "screen.command('retry')"),
    ("^O", "Chats", "screen.command('sessions')"),
    ("^L", "Model", "screen.command('model')"),
    ("^Q", "Quit", "screen.command('quit')"),
    ("F4", "KV", "screen.command('kv')"),
    ("F3", "Speed", "screen.command('stats')"),
    ("F5", "Panes", "screen.command('panes')"),
    ("F2", "Settings", "screen.command('set')"),
    ("^J", "Newline", "screen.newline"),
    ("^Y", "Copy", "screen.command('copy')"),
    ("^P", "Palette", "screen.palette"),
)
