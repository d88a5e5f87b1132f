"""Commands that choose the model and change settings.

Screens are imported once they are shown, as in `views`.
"""

from collections.abc import Iterable
from dataclasses import fields

from app.chat.settings import BY_MODEL, THINK, Settings
from app.chat.state import OWN_SAMPLING
from app.service.contract import CacheWish
from app.tui.screens.chat import ChatScreen
from kvcache.config import DEFAULT_KV
from kvcache.errors import EmberError, quoted
from models.text.thinking import no_switch

_OF_CACHE = {each.name for each in fields(CacheWish)}
_PAIRS = ("f16", "h8", "q6", DEFAULT_KV, "q4", "turbo3u")


def model(screen: ChatScreen, text: str) -> None:
    """Load or fetch a model by name, or open the picker."""
    if text:
        screen.chat.use(text)
        return
    from app.tui.screens.models import ModelsScreen

    def done(spec: str | None) -> None:
        if spec is not None:
            screen.attempt(lambda: screen.chat.use(spec))

    screen.app.push_screen(ModelsScreen(screen.chat), done)


def model_choices(screen: ChatScreen) -> Iterable[str]:
    """The models that can be chosen."""
    return screen.offer.names


def system(screen: ChatScreen, text: str) -> None:
    """Set the system prompt of this chat; without text, put it into the prompt to be changed."""
    if not text:
        screen.composer.put_text(f"/system {screen.chat.chat.system}")
        return
    screen.chat.set_system("" if text == "clear" else text)
    said = "removed" if text == "clear" else "set"
    screen.notify(f"system prompt {said}, from the next answer on", markup=False)


def set_(screen: ChatScreen, text: str) -> None:
    """Change one setting, or open the settings."""
    name, _, value = text.partition(" ")
    if not name:
        _open_settings(screen)
    elif not value:
        raise EmberError(f"{name} is {_value(screen, name)}; /set {name} VALUE changes it")
    else:
        if name == "theme":
            _require_theme(screen, value.strip())
        screen.change_settings(screen.settings.with_text(name, value.strip()), name)
        # Of the cache it is said what that did, once it has been done.
        if name not in _OF_CACHE or not screen.chat.busy:
            screen.notify(f"{name} is {_value(screen, name)}", markup=False)


def set_choices(_screen: ChatScreen) -> Iterable[str]:
    """The names of the settings."""
    return (each.name for each in fields(Settings))


def kv(screen: ChatScreen, text: str) -> None:
    """Show the cache in large, or change its codecs."""
    if text:
        set_(screen, f"kv {text}")
        return
    from app.tui.screens.figures import CacheScreen

    screen.app.push_screen(CacheScreen(screen.chat, screen.gauges.tier_log))


def kv_choices(_screen: ChatScreen) -> Iterable[str]:
    """Pairs of codecs, from the best to the smallest."""
    return _PAIRS


def ctx(screen: ChatScreen, text: str) -> None:
    """Change the window, or say what it is."""
    if text:
        set_(screen, f"ctx {text}")
        return
    model = screen.chat.model
    window = (
        ""
        if model is None
        else f"the window is {model.window} tokens, in whole blocks of {model.block}; "
    )
    screen.notify(f"{window}/ctx N changes it, 0 is all that the model has", markup=False)


def think(screen: ChatScreen, text: str) -> None:
    """Have the model think or not, or say how that is."""
    model, budget = screen.chat.model, screen.settings.think_budget
    if text and text not in THINK:
        raise EmberError(f"got {quoted(text)}, expected {', '.join(think_choices(screen))}")
    if model is not None and not model.has_switch and text != "auto":
        raise EmberError(no_switch(thinks=model.thinks, budget="/set think_budget 0"))
    if text:
        screen.change_settings(screen.settings.with_text("think", text), "think")
    screen.notify(f"think is {screen.settings.think}, at most {budget} tokens", markup=False)


def think_choices(_screen: ChatScreen) -> Iterable[str]:
    """What the model can be told."""
    return THINK


def theme(screen: ChatScreen, text: str) -> None:
    """Change the theme, or choose one."""
    if not text:
        screen.action_palette("theme ")
        return
    _require_theme(screen, text)
    screen.change_settings(screen.settings.with_text("theme", text))


def _require_theme(screen: ChatScreen, name: str) -> None:
    if name not in screen.app.available_themes:
        raise EmberError(f"no theme {quoted(name)}: there are {', '.join(theme_choices(screen))}")


def theme_choices(screen: ChatScreen) -> Iterable[str]:
    """The names of the themes."""
    return sorted(screen.app.available_themes)


def _open_settings(screen: ChatScreen) -> None:
    from app.tui.screens.settings import SettingsScreen

    def done(settings: Settings | None) -> None:
        if settings is not None:
            screen.attempt(lambda: screen.change_settings(settings))

    themes = sorted(screen.app.available_themes)
    models = screen.chat.recommended.values
    screen.app.push_screen(SettingsScreen(screen.settings, themes, models), done)


def _value(screen: ChatScreen, name: str) -> str:
    """What a setting is; of sampling, whether that is the model's."""
    if name not in set_choices(screen):
        screen.settings.with_text(name, "")
    value = getattr(screen.settings, name)
    if isinstance(value, bool):
        return "on" if value else "off"
    if name not in OWN_SAMPLING:
        return str(value)
    models = f"{screen.chat.recommended.values[name]:g}"
    if value is None:
        return f"{models}, the model's"
    return f"{value:g}, yours; /set {name} {BY_MODEL} takes the model's, {models}"
