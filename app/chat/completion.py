"""What could stand at the cursor: a command, its argument, or a file after @.

Pure but for looking into folders; the screen shows and inserts.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.chat.command import Command, find
from app.chat.mentions import mention, paths_beginning
from kvcache.errors import EmberError

_AT_END = re.compile(r'(?<!\S)@"?([^\s"]*)$')


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One completion. start: where in the text before the cursor it goes in."""

    start: int
    insert: str
    label: str
    about: str = ""


Commands = Sequence[Command[Any]]
Choices = Callable[[Command[Any]], Iterable[str]]


def suggestions(before: str, commands: Commands, choices: Choices) -> list[Suggestion]:
    """Completions of the text before the cursor; `choices` knows a command's arguments."""
    if before.startswith("/") and "\n" not in before:
        name, space, argument = before[1:].partition(" ")
        return _arguments(commands, name, argument, choices) if space else _named(commands, name)
    if match := _AT_END.search(before):
        return [
            Suggestion(start=match.start(), insert=_ending(path), label=path)
            for path in paths_beginning(match[1])
        ]
    return []


def _named(commands: Commands, beginning: str) -> list[Suggestion]:
    return [
        Suggestion(
            start=0,
            insert=f"/{each.name}{' ' if each.usage else ''}",
            label=f"/{each.name} {each.usage}".rstrip(),
            about=each.about,
        )
        for each in commands
        if each.name.startswith(beginning)
    ]


def _arguments(commands: Commands, name: str, argument: str, choices: Choices) -> list[Suggestion]:
    try:
        command = find(commands, name)
    except EmberError:
        return []
    if command.choices is None or " " in argument:
        return []
    return [
        Suggestion(start=len(name) + 2, insert=each, label=each)
        for each in choices(command)
        if each.startswith(argument) and each != argument
    ]


def _ending(path: str) -> str:
    """A folder is left open for more; a file is done with."""
    return mention(path) if path.endswith("/") else f"{mention(path)} "
