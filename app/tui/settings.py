"""What a user may set, and the TOML file it is kept in.

Flags of the command line go before the file, the file before the defaults.
"""

import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import platformdirs

from app.sampling import Sampling
from kvcache.errors import EmberError


def default_path() -> Path:
    """Where the settings are: in the user's configuration folder."""
    return platformdirs.user_config_path("ember") / "settings.toml"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of the chat. seed -1 draws afresh each time."""

    theme: str = "ember"
    model: str = ""
    system: str = ""
    temp: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = -1
    max_tokens: int = 512
    panes: bool = True
    bell: bool = True

    def __post_init__(self) -> None:
        for each in fields(self):
            value, default = getattr(self, each.name), each.default
            if isinstance(default, float) and type(value) is int:
                object.__setattr__(self, each.name, float(value))
            elif type(value) is not type(default):
                kind = _KINDS[type(default)]
                raise EmberError(f"got {each.name} = {value!r}, expected {kind}")
        if self.max_tokens < 1:
            raise EmberError(f"got max_tokens = {self.max_tokens}, expected at least 1")
        self.sampling()

    def sampling(self) -> Sampling:
        """The sampling settings. Raises EmberError for one out of its bounds."""
        return Sampling(
            temperature=self.temp,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=None if self.seed == -1 else self.seed,
        )

    def with_text(self, name: str, text: str) -> Self:
        """A copy with one setting as a user types it. Raises EmberError."""
        known: dict[str, Any] = {each.name: each.default for each in fields(self)}
        if name not in known:
            raise EmberError(f"no setting {name!r}: there are {', '.join(known)}")
        kind: type[Any] = type(known[name])
        value: Any
        try:
            value = _BOOLEANS[text.strip().lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise EmberError(f"got {name} = {text!r:.60}, expected {_KINDS[kind]}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise EmberError(f"got {name} = {text}, expected {_KINDS[kind]}")
        return replace(self, **{name: value})


_KINDS: dict[type[Any], str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "on or off",
}
_BOOLEANS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


def load(path: Path) -> Settings:
    """The settings in a file; defaults where there is none. Raises EmberError for a bad one."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EmberError(f"{path}: cannot be read ({error}): correct it or remove it") from error
    unknown = set(found) - {each.name for each in fields(Settings)}
    if unknown:
        raise EmberError(f"{path}: no setting {', '.join(sorted(unknown))}: remove it")
    try:
        return Settings(**found)
    except EmberError as error:
        raise EmberError(f"{path}: {error}") from error


def save(settings: Settings, path: Path) -> None:
    """Write the settings that are not the defaults. Raises EmberError."""
    defaults = asdict(Settings())
    lines = [
        f"{name} = {_toml(value)}"
        for name, value in asdict(settings).items()
        if value != defaults[name]
    ]
    text = "# Settings of the ember chat; F2 or /set changes them.\n" + "\n".join([*lines, ""])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".new")
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        raise EmberError(f"{path}: the settings cannot be saved ({error.strerror})") from error


def _toml(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_escaped(each) for each in value) + '"'
    return repr(value)


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08X}"
