"""Errors of the library in the words of the command line: its arguments are flags here."""

import re

# Arguments whose flags are called otherwise than they are.
_FLAGS = {"budget": "kv-budget", "max_tokens": "ctx"}
_ARGUMENT = re.compile(r"`([a-z_]+)`")


def with_flags(error: object) -> str:
    """What an error says, each `argument` in it as the flag that sets it."""

    def flag(match: re.Match[str]) -> str:
        name = match[1]
        return "--" + _FLAGS.get(name, name.replace("_", "-"))

    return _ARGUMENT.sub(flag, str(error))
