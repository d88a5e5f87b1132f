"""How many tokens each tier of each layer holds: what is asked for, within a budget.

Plain numbers: knows no codec, no backend and no model but its context and windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvcache.config import MOST_TOKENS, CacheConfig
from kvcache.errors import CacheError
from kvcache.tiers.ledger import TierSizes


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Bytes of an unencoded token and of an encoded block, in one layer."""

    token: int
    block: int

    def of(self, sizes: TierSizes, tokens: int | None = None) -> int:
        """Bytes of a layer that was given so many tokens, or is full."""
        blocks = sizes.cold_memory
        if tokens is not None:
            encoded = tokens - sizes.pinned - sizes.hot
            blocks = min(blocks, max(0, -(-encoded // sizes.block)))
        return (sizes.pinned + sizes.hot_memory) * self.token + blocks * self.block

    @classmethod
    def together(cls, layers: Sequence["Costs"]) -> "Costs":
        """In all of these layers."""
        return cls(
            token=sum(each.token for each in layers), block=sum(each.block for each in layers)
        )


def layer_tiers(
    config: CacheConfig, context: int, windows: Sequence[int | None], costs: Sequence[Costs]
) -> tuple[TierSizes, tuple[TierSizes, ...]]:
    """The tiers that are asked for, as far as the budget and the model's context go.

    Of layers that see all tokens, and of each layer. Windows come whole, and other layers
    share the rest of a budget. Where these then hold no more tokens than a window shows,
    its layer is one of them, the widest window first: so any budget is used.

    windows, costs: of each layer; None sees all tokens.
    """
    widths = sorted({window for window in windows if window is not None})
    least, seen = config.pinned + config.block, list(zip(windows, costs, strict=True))
    by_window = {
        width: Costs.together([cost for each, cost in seen if each == width]) for width in windows
    }
    # What is too narrow to hold what other layers must.
    narrow = sum(width < least for width in widths)
    for whole in range(len(widths), narrow - 1, -1):
        held = {width: _held_window(config, width, by_window[width]) for width in widths[:whole]}
        fixed = sum(by_window[width].of(sizes) for width, sizes in held.items())
        others = Costs.together([by_window[width] for width in by_window if width not in held])
        bounded = config if whole == len(widths) else _bounded(config, widths[whole])
        sizes = _all_seeing(bounded, context, fixed, others)
        if sizes is not None and (not whole or sizes.max_tokens > widths[whole - 1]):
            return sizes, tuple(
                sizes if each is None else held.get(each, sizes) for each in windows
            )
    needed = fixed + (least + (config.slack or 0)) * others.token
    raise CacheError(
        f"a budget of {config.budget} bytes does not hold {config.pinned} pinned tokens and a "
        f"block of {config.block}: this model needs {needed} bytes for them; "
        "give a larger `budget`"
    )


def _held_window(config: CacheConfig, width: int, costs: Costs) -> TierSizes:
    """What holds a layer's window in the fewest bytes: all of it unencoded, or two tiers."""
    slack = config.slack or 0
    ways = (
        TierSizes.of_window(width, hot=hot, block=config.block, slack=slack)
        for hot in (width, config.hot)
    )
    return min(ways, key=costs.of)


def _bounded(config: CacheConfig, tokens: int) -> CacheConfig:
    """The same with `max_tokens` of at most so many."""
    return replace(config, max_tokens=min(config.max_tokens or tokens, tokens))


def _all_seeing(config: CacheConfig, context: int, fixed: int, costs: Costs) -> TierSizes | None:
    """The tiers of layers that see all tokens; None where the budget holds too little.

    fixed: bytes of a budget that others take. costs: in all these layers.
    """
    window, hot = config.max_tokens or context, config.hot
    if config.budget is not None and costs.token:
        fits = _fitting(config, config.budget - fixed, costs)
        if fits is None:
            return None
        window, hot = min(fits.max_tokens, config.max_tokens or fits.max_tokens), fits.hot
    elif config.budget is not None and config.budget < fixed:
        return None
    window = min(window, MOST_TOKENS if config.beyond_context else context)
    least = config.pinned + config.block
    if not config.beyond_context and context < least:
        raise CacheError(
            f"the model was trained for {context} tokens, fewer than {config.pinned} pinned "
            f"tokens and a block of {config.block}; give smaller `sinks`, `keep` or `block`, or "
            f"`beyond_context` with `max_tokens` {least} or more"
        )
    return TierSizes.within(
        window, pinned=config.pinned, hot=hot, block=config.block, slack=config.slack or 0
    )


def _fitting(config: CacheConfig, budget: int, costs: Costs) -> TierSizes | None:
    """The tiers that a budget pays for: pinned, then hot up to half of the rest, then cold."""
    pinned, block = config.pinned, config.block
    slack = config.slack or 0
    rest = budget // costs.token - pinned - slack
    if rest < block:
        return None
    hot = min(config.hot, max(rest // 2, block) - block + 1)
    left = budget - (pinned + hot + block - 1 + slack) * costs.token
    slots = max(0, left // costs.block - -(-slack // block))
    return TierSizes(pinned=pinned, hot=hot, block=block, slots=slots, slack=slack)
