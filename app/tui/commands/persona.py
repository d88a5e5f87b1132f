"""Commands for what a chat is given beside its words: saved prompts, personas, sampling."""

from collections.abc import Iterable

from app.chat.personas import Persona
from app.chat.state import OWN_SAMPLING
from app.sessions.chat import sampling_line
from app.tui.screens.chat import ChatScreen
from kvcache.errors import EmberError, quoted

_SAVE, _REMOVE, _CLEAR = "save", "remove", "clear"
_QUOTES = "\"'“”‘’«»"


def prompt(screen: ChatScreen, text: str) -> None:
    """Use a saved prompt or persona, keep one, remove one; without a name, choose one."""
    verb, _, rest = text.partition(" ")
    name, _, words = rest.strip().partition(" ")
    if not text:
        _choose(screen)
    elif verb in (_SAVE, _REMOVE) and not name:
        raise EmberError(f"expected a name: /prompt {verb} NAME")
    elif verb == _SAVE:
        _save(screen, name, words.strip())
    elif verb == _REMOVE:
        screen.chat.notices += screen.personas.remove(name)
        screen.notify(f"removed {name}", markup=False)
    elif text == _CLEAR:
        screen.chat.set_own(screen.chat.default_system, {})
        screen.notify("this chat goes by the settings again", markup=False)
    else:
        _use(screen, screen.personas.get(text))


def prompt_choices(screen: ChatScreen) -> Iterable[str]:
    """What can be used, and what can be done."""
    try:
        names = [each.name for each in screen.personas.all()]
    except EmberError:
        names = []
    return (*names, _SAVE, _REMOVE, _CLEAR)


def sampling(screen: ChatScreen, text: str) -> None:
    """Set how answers of this chat alone are drawn, or say how that is."""
    chat = screen.chat.chat
    if not text:
        said, makers = (
            screen.chat.chat.sampling_line or "as in the settings",
            screen.chat.recommended,
        )
        screen.notify(
            f"this chat is sampled {said}; recommended for the model: "
            f"{sampling_line(makers.values)} ({makers.source})",
            markup=False,
        )
        return
    if text == _CLEAR:
        screen.chat.set_own(chat.system, {})
        screen.notify("this chat is sampled as in the settings", markup=False)
        return
    own = {**chat.sampling, **typed_sampling(screen, text, "/sampling")}
    screen.chat.set_own(chat.system, own)
    screen.notify(f"this chat is sampled {screen.chat.chat.sampling_line}", markup=False)


def typed_sampling(screen: ChatScreen, text: str, command: str) -> dict[str, float]:
    """Names and values as they are typed after a command. Raises EmberError."""
    words = text.split()
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) % 2 or not pairs.keys() <= set(OWN_SAMPLING):
        names = ", ".join(OWN_SAMPLING)
        raise EmberError(f"expected names of {names}, each with its value: {command} temp 0.7")
    settings = screen.settings
    for name, value in pairs.items():
        settings = settings.with_text(name, value)
    models, own = screen.chat.recommended.values, settings.own_sampling()
    return {name: own.get(name, models[name]) for name in pairs}


def sampling_choices(_screen: ChatScreen) -> Iterable[str]:
    """The names of the settings."""
    return (*OWN_SAMPLING, _CLEAR)


def _choose(screen: ChatScreen) -> None:
    # Once it is shown, as in `views`.
    from app.tui.screens.prompts import PromptsScreen

    def done(name: str | None) -> None:
        if name is not None:
            screen.attempt(lambda: _use(screen, screen.personas.get(name)))

    screen.app.push_screen(PromptsScreen(screen.personas), done)


def _use(screen: ChatScreen, persona: Persona) -> None:
    chat = screen.chat.chat
    if persona.system or persona.sampling:
        screen.chat.set_own(persona.system or chat.system, persona.sampling)
        screen.notify(f"{persona.name}: {persona.about}", markup=False)
    if persona.text:
        screen.composer.put_text(persona.text)


def _save(screen: ChatScreen, name: str, words: str) -> None:
    """Words as a prompt; without any, what this chat is given, as a persona."""
    if name in (_SAVE, _REMOVE, _CLEAR):
        raise EmberError(f"{name} is what /prompt does: take another name")
    if name[0] in _QUOTES:
        raise EmberError(f"got {quoted(name)}, expected a name, which is one word without quotes")
    chat = screen.chat.chat
    if words:
        persona = Persona(name=name, text=words)
    elif chat.system or chat.sampling:
        persona = Persona(name=name, system=chat.system, sampling=chat.sampling)
    else:
        raise EmberError(
            f"this chat has no system prompt and no sampling of its own: /system TEXT first, or "
            f"/prompt save {name} TEXT"
        )
    screen.chat.notices += screen.personas.save(persona)
    screen.notify(f"kept as {name}: /prompt {name} uses it", markup=False)
