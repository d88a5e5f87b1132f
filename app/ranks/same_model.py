"""A model that all ranks load, each its share of the same file, beside a cache that fits on all."""

from collections.abc import Callable
from dataclasses import replace

from app.memory import Admitted
from app.options import MOST_TOKENS
from app.ranks.calls import Load
from app.ranks.company import Company, OtherRankError
from app.ranks.meeting import least
from kvcache import EmberError
from models.loader import LoadedModel

_DIGITS = 7  # hexadecimal, of a file's identity, that make a number of 32 bits


def load_together(company: Company, call: Load, read: Callable[[], LoadedModel]) -> LoadedModel:
    """What `read` gives here, once all ranks have done the same.

    Raises EmberError unless all have loaded the same file; rank 0 says it.
    """
    loaded = company.together(call, read)
    number = int(loaded.identity[:_DIGITS], 16)
    lowest, highest = least([number, -number], company.group)
    if lowest != -highest:
        kind = EmberError if company.leads else OtherRankError
        raise kind(f"not all ranks have the same file {loaded.path.name}: copy one to all")
    return loaded


def narrowest(admitted: Admitted, company: Company) -> Admitted:
    """What fits beside the model on every rank."""
    config = admitted.config
    (tokens,) = least([config.max_tokens or MOST_TOKENS], company.group)
    if tokens in (config.max_tokens, MOST_TOKENS):
        return admitted
    said = f"the window is {tokens} tokens: another rank has memory for no more"
    return Admitted(config=replace(config, max_tokens=tokens), notes=(*admitted.notes, said))
