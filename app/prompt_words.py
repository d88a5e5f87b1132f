"""A model and a prompt as people type them after a command: either alone, or one after the other.

Knows what names a model, and nothing of what becomes of the prompt.
"""

import argparse

STDIN = "-"


def part(args: argparse.Namespace, *, has_prompt: bool = False) -> None:
    """Have `name` be a model's and `words` the prompt's, whatever stood first.

    has_prompt: a flag gives one. Raises ModelNotFoundError for a word that is neither.
    """
    is_model = args.name is not None and args.name == args.model
    if args.name is None or is_model:
        return
    if args.model or _is_prompt(args.name, has_words=bool(args.words), has_prompt=has_prompt):
        args.words, args.name = [args.name, *args.words], None


def _is_prompt(name: str, *, has_words: bool, has_prompt: bool) -> bool:
    """Whether what stands in a model's place is a prompt: words alone, which name no file."""
    from models.errors import ModelNotFoundError
    from models.finding.source import locate, parse

    if has_words or name == STDIN:
        return name == STDIN
    if len(name.split()) > 1 and not name.casefold().endswith(".gguf"):
        try:
            locate(name)
        except ModelNotFoundError:
            return True
    elif not has_prompt:
        try:
            parse(name)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"{error}; a prompt stands after the model") from error
    return False
