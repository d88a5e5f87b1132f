"""The screen where one talks with the model.

Takes what the controller has on a timer, and shows it; decides nothing about
the chat itself.
"""

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen

from app.chat.asking import cost_line
from app.chat.command import Command, find
from app.chat.completion import Suggestion, suggestions
from app.chat.controller import ChatController
from app.chat.history import PromptHistory
from app.chat.personas import Personas
from app.chat.settings import Preferences, Settings
from app.chat.state import Draft, Problem
from app.service.contract import TooLong
from app.sessions.chat import ChatMessage
from app.tui.model_offer import ModelOffer
from app.tui.notice import has_room
from app.tui.screens import copying
from app.tui.screens.gauges import Gauges
from app.tui.screens.palette import Entry, PaletteScreen
from app.tui.screens.too_long import ask_about_length
from app.tui.terminal import garbage, title
from app.tui.welcome import STARTERS
from app.tui.widgets.composer import Composer
from app.tui.widgets.conversation import Conversation
from app.tui.widgets.header_bar import HeaderBar
from app.tui.widgets.key_bar import KeyBar
from app.tui.widgets.side_pane import SidePane
from app.tui.widgets.status_line import StatusLine
from kvcache.errors import EmberError

_TICK = 1 / 20
_FIGURES_TICK = 1 / 4
_SIDE_PANE_FROM = 100
_SHORT = 26
_LINES = 3  # above the conversation, above the prompt and below it
_QUIT_SECONDS = 2.0
# What /variant takes beside a number.
PREVIOUS, NEXT = "previous", "next"


class ChatScreen(Screen[None]):
    """Conversation, composer and figures.

    commands: what can be done by name, and how. composer: the prompt and what belongs to it.
    conversation: the messages.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", show=False),
        Binding("ctrl+c", "interrupt", "Copy, stop or quit", show=False),
        Binding("ctrl+end", "follow", "End", show=False, priority=True),
        Binding("ctrl+r", "command('retry')", "Answer again", show=False),
        Binding("ctrl+g", "command('redo')", "Redo", show=False),
        Binding("ctrl+n", "command('new')", "New chat", show=False),
        Binding("ctrl+o", "command('sessions')", "Chats", show=False),
        Binding("ctrl+l", "command('model')", "Model", show=False),
        Binding("ctrl+y", "command('copy')", "Copy", show=False),
        Binding("ctrl+t", "thinking", "Thinking", show=False),
        Binding("ctrl+p", "palette", "Palette", show=False),
        Binding("f1", "command('help')", "Help", show=False),
        Binding("f2", "command('set')", "Settings", show=False),
        Binding("f3", "command('stats')", "Speed", show=False),
        Binding("f4", "command('kv')", "Cache", show=False),
        Binding("f5", "command('panes')", "Panes", show=False),
    ]

    def __init__(
        self,
        chat: ChatController,
        offer: ModelOffer,
        preferences: Preferences,
        personas: Personas,
        commands: Sequence[Command["ChatScreen"]],
    ) -> None:
        super().__init__()
        self.chat, self.offer = chat, offer
        self._preferences, self.personas, self.commands = preferences, personas, commands
        # Held, not looked up: a timer may fire when some of them are already gone.
        self.composer = Composer(
            weigh=self._cost,
            complete=self._completions,
            history=PromptHistory(chat.asked_before),
            selects=lambda: self.conversation.selected is not None,
            takes_back=lambda: self.chat.queued is not None,
            send=self._ask,
            run_command=self._run_command,
            send_nothing=self._send_nothing,
            pass_on=self._take_key,
        )
        self.conversation = Conversation(offer.welcome, lambda: self.settings.show_thinking)
        self._header, self._side, self._status = HeaderBar(), SidePane(), StatusLine()
        self.gauges = Gauges(self._header, self._side, self.conversation)
        self._starter, self._was_busy = -1, False
        # What the figures are of, those beside the draft too.
        self._shown: tuple[object, ...] = ()
        self._asked_about: TooLong | None = None
        self._problem: Problem | None = None
        self._interrupted_at = 0.0

    def compose(self) -> ComposeResult:
        yield self._header
        with Horizontal(id="main"):
            yield self.conversation
            yield self._side
        yield from (self._status, self.composer, KeyBar())

    def on_mount(self) -> None:
        """Start the timers."""
        self.composer.prompt.focus()
        self.set_interval(_TICK, self._tick)
        self.set_interval(_FIGURES_TICK, lambda: self.gauges.show(self.chat))
        self.set_class(not self.settings.panes, "panes-off")
        self.run_worker(self._find_models(), exit_on_error=False)

    def on_resize(self) -> None:
        """Narrow screens have no side pane, short ones no frame."""
        self.set_class(self.size.width < _SIDE_PANE_FROM, "narrow")
        self.set_class(self.size.height < _SHORT, "short")
        self.composer.fit(self.size.height - _LINES)

    # -- parts that commands use --

    @property
    def settings(self) -> Settings:
        """The user's settings."""
        return self._preferences.settings

    def change_settings(self, settings: Settings, *named: str) -> None:
        """Use and keep other settings, as `Preferences.change`. Raises EmberError.

        Those of the cache once it has been changed, which may take a moment, and may fail.
        """
        now, wish = self.settings, settings.cache()
        if wish == now.cache():
            self._keep(settings, named)
            return

        def changed() -> None:
            self.attempt(lambda: self._keep(self.settings.with_cache(wish), named))

        self.chat.change_cache(wish, changed)
        if (others := settings.with_cache(now.cache())) != now:
            self._keep(others, ())

    def _keep(self, settings: Settings, named: Sequence[str]) -> None:
        self.chat.notices += self._preferences.change(settings, *named)

    def copy(self, text: str, what: str) -> None:
        """Copy a text and say so."""
        copying.copy(self, text, what)

    def send(self, draft: Draft) -> None:
        """Send a draft as if it were typed."""
        self.composer.put(draft)
        self.composer.submit()

    # -- showing --

    def _tick(self) -> None:
        changed = self.chat.tick()
        if self.chat.notices and has_room(self.app, self.chat.notices[0]):
            self.notify(self.chat.notices.pop(0), markup=False, timeout=8)
        self.show_messages()
        self._tell_of_problem()
        if changed and not self.chat.chat.messages:
            self.conversation.refresh_placeholder()
        if self._was_busy and not self.chat.busy:
            self._settled()
        self._was_busy = self.chat.busy
        self._show_status()
        long = self.chat.too_long
        # A dialog that closes has not decided yet: its answer comes after this tick.
        is_new = long is not None and long is not self._asked_about
        if is_new and self.is_active and self.composer.prompt.rests:
            self._asked_about = long
            ask_about_length(self.app, self.chat, self.attempt, self.composer)

    def _tell_of_problem(self) -> None:
        """Who has scrolled away does not see its card, which is at the end."""
        problem = self.chat.problem
        is_new = problem is not None and problem is not self._problem
        if problem is not None and is_new and not self.conversation.following:
            self.notify(f"{problem.title}: {problem.cause}", severity="error", markup=False)
        self._problem = problem

    def show_messages(self) -> None:
        """Show what the chat says now, and its figures at once where that is something else."""
        chat = self.chat.chat
        self.conversation.show(chat.messages, self.chat.problem, at_once=not self.chat.busy)
        if self.composer.editing not in (None, *chat.messages):
            kept = "your text is a new draft" if self.composer.end_edit() else "nothing was changed"
            self.notify(f"the question that you edited is not shown now: {kept}", markup=False)
        shown = chat, tuple(chat.messages), chat.context, self.chat.settings
        if shown != self._shown:
            self._shown = shown
            self.gauges.show(self.chat)
            self.conversation.refresh()
            self.composer.recount()

    def _settled(self) -> None:
        """The model has loaded or answered."""
        self.gauges.show(self.chat)
        self.composer.recount()
        garbage.rest()
        if not self.app.app_focus and self.settings.bell:
            self.app.bell()
            title.set_title(self.app, "● ember: done")

    def on_app_focus(self) -> None:
        """The user is back."""
        title.set_title(self.app, "ember")

    def _show_status(self) -> None:
        self._status.show(self.chat, unseen=self.conversation.unseen, draft=self.composer.note)

    async def _find_models(self) -> None:
        await self.offer.look()
        self.conversation.refresh_placeholder()

    # -- typing --

    def take_keys(self) -> None:
        """The prompt has the focus, in a terminal that is said not to be in front too.

        Textual takes the focus away then, and some terminals tell too late that they are back;
        and by a click beyond the screen, which comes from a terminal that has just shrunk.
        """
        if self.focused is None and self.is_mounted:
            self.set_focus(self.composer.prompt)

    def _completions(self, before: str) -> list[Suggestion]:
        return suggestions(
            before, self.commands, lambda each: each.choices(self) if each.choices else ()
        )

    async def _cost(self, draft: Draft, editing: ChatMessage | None) -> str:
        """What a draft would cost, as it is shown beside it."""
        return await cost_line(lambda: self.chat.weigh(draft, editing))

    def _ask(self, draft: Draft, editing: ChatMessage | None) -> None:
        def send() -> None:
            try:
                self.chat.ask(draft, editing)
            except EmberError:
                # Not before lines that have been typed already, which are no part of it.
                shown = editing if editing in self.chat.chat.messages else None
                self.call_later(self.composer.give_back, draft, shown)
                raise
            self.composer.accept(draft)
            self.conversation.unselect()
            self.action_follow()
            self._provide_model()

        self.attempt(send)

    def _run_command(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        self.action_command(name.strip(), argument.strip())

    def _send_nothing(self) -> None:
        """Enter on nothing takes the offered model."""
        self.attempt(self._provide_model)

    def _provide_model(self) -> None:
        if not self.offer.take():
            self.action_command("model")

    @on(Composer.Noted)
    def _noted(self) -> None:
        self._show_status()

    def _take_key(self, key: str) -> None:
        """A key of the prompt that is for the conversation."""
        match key:
            case "pageup":
                self.conversation.scroll_page_up(animate=False)
            case "pagedown":
                self.conversation.scroll_page_down(animate=False)
            case "home":
                self.conversation.action_top()
            case "end":
                self.action_follow()
            case "up" | "down" if self.conversation.selected is not None:
                self.conversation.action_select(-1 if key == "up" else 1)
            case "left" | "right" if self.varied:
                self.action_command("variant", PREVIOUS if key == "left" else NEXT)
            case "ctrl+up":
                self.action_command("edit")
            case "tab":
                self._tab()
            case "ctrl+d":
                self.app.exit()

    @property
    def varied(self) -> list[ChatMessage]:
        """The messages of which another variant may be shown: the selected one, or the last."""
        selected = self.conversation.selected
        return self.chat.chat.last_varied if selected is None else [selected]

    @on(Conversation.VariantRequested)
    def _variant_requested(self, event: Conversation.VariantRequested) -> None:
        if event.message in self.chat.chat.messages:  # not where a key was heard before
            self.conversation.select(event.message)
            self.action_command("variant", PREVIOUS if event.step < 0 else NEXT)

    def _tab(self) -> None:
        """On an empty prompt: a starter, or the last message is selected, or none any more."""
        if self.conversation.unselect():
            return
        if self.chat.chat.messages:
            self.conversation.action_select(0)
        else:
            self._starter = (self._starter + 1) % len(STARTERS)
            self.composer.put_text(STARTERS[self._starter])

    # -- keys --

    def action_command(self, name: str, argument: str = "") -> None:
        """Run a command by its name."""
        self.attempt(lambda: find(self.commands, name).start(self, argument))

    def action_submit(self) -> None:
        """Send what is typed."""
        self.composer.submit()

    def action_newline(self) -> None:
        """Break the line."""
        self.composer.prompt.action_newline()

    def action_follow(self) -> None:
        """Go to the end of the conversation."""
        self.conversation.action_follow()

    def action_thinking(self) -> None:
        """Open or fold what was thought before an answer."""
        if not self.conversation.toggle_thought():
            self.notify("no thinking here", markup=False)

    def action_stop(self) -> None:
        """Close what is open, else stop what runs."""
        self.clear_selection()
        if self.conversation.unselect() or self.composer.dismiss():
            return
        if self.chat.queued is not None:
            self.composer.put(self.chat.unqueue())
        elif self.chat.busy:
            self.chat.stop()
        elif self.chat.models.fetching is not None:
            self.chat.models.stop_fetch()

    def action_interrupt(self) -> None:
        """Ctrl-C: copies a selection, else stops an answer, else quits when pressed twice."""
        selection = self.get_selected_text() or self.composer.prompt.selected_text
        now = time.monotonic()
        if selection:
            self.copy(selection, "the selection")
            self.clear_selection()
        elif self.chat.busy and not self.chat.stopping:
            self.chat.stop()
        elif now - self._interrupted_at < _QUIT_SECONDS:
            self.app.exit()
        else:
            self._interrupted_at = now
            self.notify("Ctrl-C again quits", timeout=_QUIT_SECONDS, markup=False)

    @on(Conversation.CopyRequested)
    def _copy_requested(self, event: Conversation.CopyRequested) -> None:
        self.copy(event.text, "the text")

    @on(Conversation.ActionRequested)
    def _action_requested(self, event: Conversation.ActionRequested) -> None:
        kind, _, value = event.action.partition(":")
        if kind == "start":
            self.composer.put_text(STARTERS[int(value)])
        elif kind == "model":
            self.attempt(lambda: self.chat.use(value))

    def attempt(self, step: Callable[[], None]) -> None:
        """Do what the user asks for, and show it; say why where that is refused.

        At once: the next key is for what is shown then.
        """
        try:
            step()
        except EmberError as error:
            self.notify(str(error), severity="warning", markup=False)
        self.show_messages()

    # -- other screens --

    def action_palette(self, search: str = "") -> None:
        """Open the list of commands to run at once, with a search begun."""

        def done(entry: Entry | None) -> None:
            if entry is not None:
                self.action_command(entry.name, entry.argument)

        themes = sorted(self.app.available_themes)
        self.app.push_screen(PaletteScreen(self.commands, themes, search), done)
