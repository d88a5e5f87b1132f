"""The chat's commands: what is typed after a slash, or chosen in the palette."""

from app.chat.command import Command
from app.tui.commands import output, persona, setup, turns, views
from app.tui.screens.chat import ChatScreen

COMMANDS: tuple[Command[ChatScreen], ...] = (
    Command(name="new", about="begin another chat", run=views.new, key="^N"),
    Command(
        name="retry",
        about="answer again; ← shows the answer before",
        run=turns.retry,
        key="^R",
        usage="[NAME VALUE]",
        choices=turns.retry_choices,
    ),
    Command(
        name="variant",
        about="another variant of the selected message",
        run=turns.variant,
        usage="[N|previous|next]",
        key="← →",
        choices=turns.variant_choices,
    ),
    Command(
        name="edit", about="change a question and ask again", run=turns.edit, key="^↑", usage="[N]"
    ),
    Command(name="continue", about="go on with the last answer", run=turns.continue_),
    Command(name="undo", about="take back the last question and answer", run=turns.undo),
    Command(
        name="redo",
        about="undo the last /undo, until something is said",
        run=turns.redo,
        key="^G",
    ),
    Command(name="fork", about="go on in a copy of the chat", run=turns.fork, usage="[N]"),
    Command(
        name="copy",
        about="copy the last answer, parts of it, or all",
        run=output.copy,
        usage="[code|thinking|chat]",
        choices=output.copy_choices,
        key="^Y",
    ),
    Command(
        name="export",
        about="write the chat to a file: Markdown, or JSON for .json",
        run=output.export,
        usage="[FILE]",
    ),
    Command(
        name="screenshot",
        about="write the screen to an SVG file",
        run=output.screenshot,
        usage="[FILE]",
    ),
    Command(
        name="model",
        about="choose or download a model",
        run=setup.model,
        usage="[NAME]",
        key="^L",
        choices=setup.model_choices,
    ),
    Command(
        name="system",
        about="set the system prompt; `clear` removes it",
        run=setup.system,
        usage="[TEXT]",
    ),
    Command(
        name="prompt",
        about="use or save a prompt or persona",
        run=persona.prompt,
        usage="[NAME]",
        choices=persona.prompt_choices,
    ),
    Command(
        name="sampling",
        about="sampling of this chat alone, or `clear`",
        run=persona.sampling,
        usage="[NAME VALUE]",
        choices=persona.sampling_choices,
    ),
    Command(
        name="set",
        about="change a setting, as in /set temp 0.7",
        run=setup.set_,
        usage="[NAME VALUE]",
        key="F2",
        choices=setup.set_choices,
    ),
    Command(
        name="think",
        about="have the model think first, or not",
        run=setup.think,
        usage="[on|off|auto]",
        choices=setup.think_choices,
    ),
    Command(
        name="theme",
        about="change the colours",
        run=setup.theme,
        usage="[NAME]",
        choices=setup.theme_choices,
    ),
    Command(name="attach", about="send a text file along", run=output.attach, usage="FILE"),
    Command(
        name="sessions", about="open, search, rename or delete chats", run=views.sessions, key="^O"
    ),
    Command(name="title", about="rename this chat", run=views.title, usage="TEXT"),
    Command(name="stats", about="speed in large", run=views.stats, key="F3"),
    Command(
        name="bench", about="measure the speed, in some seconds; the chat stays", run=views.bench
    ),
    Command(
        name="kv",
        about="the cache in large, or other codecs",
        run=setup.kv,
        usage="[K/V|BITS]",
        key="F4",
        choices=setup.kv_choices,
    ),
    Command(name="ctx", about="how many tokens the window holds", run=setup.ctx, usage="[N]"),
    Command(name="panes", about="show or hide the side pane", run=views.panes, key="F5"),
    Command(name="help", about="keys and commands", run=views.help_, key="F1"),
    Command(name="quit", about="leave; the chat is saved", run=views.quit_, key="^Q"),
)
