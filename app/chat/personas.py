"""Prompts and personas that a user has saved, in a TOML file: a name, and what it puts in force.

brief = {system = "Answer in one sentence.", temp = 0.2}
review = {text = "Review this code:"}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from app import toml_file
from app.chat.settings import Settings
from app.chat.state import OWN_SAMPLING
from app.sessions.chat import sampling_line
from kvcache.errors import EmberError, quoted, reason, short

_HEADING = "# Prompts and personas of the ember chat; /prompt uses and saves them."
_WHAT = "the saved prompts"
_MOST_OF_REPLACED = 200


def default_path() -> Path:
    """Where they are: beside the settings."""
    return platformdirs.user_config_path("ember") / "prompts.toml"


@dataclass(frozen=True, kw_only=True)
class Persona:
    """text: what is put into the prompt. system, sampling: what a chat is given, where they are.

    problem: why it cannot be used, as somebody has written it otherwise than expected.
    """

    name: str
    text: str = ""
    system: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def about(self) -> str:
        """What it does, in a line."""
        said = (self.problem, self.system, sampling_line(self.sampling), self.text)
        return " · ".join(filter(None, (" ".join(each.split()) for each in said)))


class Personas:
    """Those of a file; None keeps none, and has none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def all(self) -> list[Persona]:
        """By name, those too that cannot be used. Raises EmberError for a file that is none."""
        found = {} if self._path is None else toml_file.read(self._path, _WHAT)
        return [_persona(name, found[name]) for name in sorted(found)]

    def get(self, name: str) -> Persona:
        """The one of that name. Raises EmberError where there is none, or it cannot be used."""
        found = self._known(name)
        if found.problem:
            raise EmberError(f"the saved prompt {quoted(name)}: {found.problem}")
        return found

    def _known(self, name: str) -> Persona:
        known = {each.name: each for each in self.all()}
        if name not in known:
            there = ", ".join(known) or "none yet: /prompt save NAME keeps this chat's"
            raise EmberError(f"no saved prompt {quoted(name)}: there are {there}")
        return known[name]

    def save(self, persona: Persona) -> list[str]:
        """Keep one, in place of another of its name; returns what is to be said of that."""
        fields = {
            "text": persona.text,
            "system": persona.system,
            **persona.sampling,
        }
        return self._change(
            persona.name, {name: each for name, each in fields.items() if each != ""}
        )

    def remove(self, name: str) -> list[str]:
        """Forget one. Raises EmberError where there is none."""
        self._known(name)
        return self._change(name, None)

    def _change(self, name: str, fields: dict[str, Any] | None) -> list[str]:
        if self._path is None:
            raise EmberError("prompts are not kept here: there is no file for them")
        try:
            found, notes = toml_file.read_to_write(self._path, _WHAT)
            before = found.pop(name, None)
            if fields is not None:
                found[name] = fields
            if fields is not None and before is not None:
                about = short(_persona(name, before).about, _MOST_OF_REPLACED)
                notes.append(f"it replaces another {quoted(name)}, which was: {about}")
            toml_file.write(self._path, _HEADING, found)
        except OSError as error:
            raise EmberError(f"{self._path}: {_WHAT} cannot be kept ({reason(error)})") from error
        return notes


def _persona(name: str, found: object) -> Persona:
    if not isinstance(found, dict):
        return Persona(name=name, problem=f"got {quoted(found)}, expected {{text = …}}")
    texts = {key: found.get(key, "") for key in ("text", "system")}
    sampling = {key: value for key, value in found.items() if key in OWN_SAMPLING}
    if unknown := found.keys() - texts.keys() - sampling.keys():
        got, expected = ", ".join(sorted(unknown)), ", ".join((*texts, *OWN_SAMPLING))
        return Persona(name=name, problem=f"got {short(got)}, expected {expected}")
    for key, value in texts.items():
        if not isinstance(value, str):
            return Persona(name=name, problem=f"got {key}={quoted(value)}, expected text")
    try:
        own = Settings(**sampling).own_sampling()
    except EmberError as error:
        return Persona(name=name, problem=str(error))
    return Persona(name=name, **texts, sampling=own)
