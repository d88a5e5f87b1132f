"""The calls that are tried, in the emulator as on a real GPU; each has a name for a table."""

import mlx.core as mx

from kvcache.codecs import NAMES
from tests.metal.samples import Case

# What no kernel reads: its residual needs a projection of its own.
UNREAD = tuple(name for name in NAMES if name.startswith("turbo") and name.endswith("p"))
# One of each family, and each width of a code at least once.
PAIRS = (
    *(("hkivi4", "turbo4u"), ("hkivi5", "turbo3u"), ("kvarn4", "kvarn3"), ("q6", "h3")),
    *(("f16", "q8"), ("turbo4", "f16")),
    *(("kivi2", "hkivi4"), ("turbo2", "kvarn5"), ("h5", "kivi3"), ("q2", "turbo4u")),
    *(("trellis4", "trellis3"), ("kvarn2", "trellis2"), ("trellis3", "trellis4")),
)

CODECS = {
    name: Case(keys=name, values=name, threadgroups=1, blocks=6)
    for name in NAMES
    if name not in UNREAD
}

SHAPES = {
    f"D{dim} G{group} L{new}": Case(dim=dim, group=group, new=new, kv_heads=3, seed=dim)
    for dim in (64, 80, 96, 128)
    for group, new in ((1, 1), (8, 1), (3, 2), (5, 8))
} | {
    "G71": Case(group=71, kv_heads=1),
    "B3": Case(batch=3, group=2),
    "D72": Case(dim=72, keys="kivi4", values="kivi3"),
    "D112": Case(dim=112, keys="hkivi3", values="turbo4"),
    "D48": Case(dim=48, values="q6", kv_heads=1),
    "D40": Case(dim=40, keys="kivi4", values="turbo2"),
    "D24": Case(dim=24, group=5, values="turbo3"),
    "D8": Case(dim=8, values="turbo3"),
    "D256": Case(dim=256, group=2, blocks=0),
    "D256 encoded": Case(dim=256, group=2, new=3),
    "D256 G4": Case(dim=256, group=4, kv_heads=1),
    "D256 L8": Case(dim=256, group=2, new=8, keys="kvarn8", values="kvarn8", blocks=2),
    "D256 f16": Case(dim=256, group=4, keys="f16", values="q8", traditional=False),
    "D128 G8, large codecs": Case(dim=128, group=8, keys="f16", values="kvarn8", blocks=2),
    "D64 G12, large keys": Case(group=12, keys="f16", values="kivi2", blocks=2),
    "D112, trellises": Case(dim=112, group=8, keys="trellis4", values="trellis3"),
    "D8, trellises": Case(dim=8, keys="trellis3", values="trellis2"),
    "D24, trellises": Case(dim=24, keys="trellis2", values="trellis3"),
    "D40, trellises": Case(dim=40, group=5, keys="trellis3", values="trellis4"),
    "D256, trellises": Case(dim=256, group=2, keys="trellis4", values="trellis3", blocks=2),
    "f32": Case(dtype=mx.float32),
    "f32 G8": Case(dtype=mx.float32, group=8, dim=80),
    "bf16": Case(dtype=mx.bfloat16, query=mx.bfloat16),
    "f16": Case(query=mx.float16),
    "bf16 queries": Case(query=mx.bfloat16, dtype=mx.float16),
}

BLOCKS = {
    f"M{block} {keys}/{values}": Case(block=block, keys=keys, values=values)
    for block in (1, 20, 33, 96)
    for keys, values in (
        *(("q5", "h3"), ("hkivi4", "turbo4u"), ("hkivi5", "turbo3u"), ("kvarn3", "kivi2")),
        ("trellis3", "trellis4"),
    )
}

BLOCKS["M1 in one slot of one head"] = Case(
    block=1,
    kv_heads=1,
    keys="turbo2",
    values="q2",
    segments=(1, 1),
    slots=2,
    first_slot=1,
    blocks=2,
)

_NEW = 3
TURNS = {
    "half-split": Case(new=_NEW, traditional=False, window_step=13),
    "of some pairs": Case(new=_NEW, pairs=9, window_step=13),
    "of some pairs, half-split": Case(new=_NEW, pairs=9, traditional=False, dim=80),
    "of two pairs": Case(pairs=2, traditional=False),
    "of one query of two": Case(new=2, evicted=0, window_step=7, pinned=77),
    "far away": Case(new=2, evicted=1_234_567, pinned=40),
}
TIERS = {
    "nothing held": Case(new=_NEW, blocks=0, hot=0, pinned=0, evicted=0),
    "pinned only": Case(new=_NEW, blocks=0, hot=0),
    "hot only": Case(new=_NEW, blocks=0, pinned=0),
    "hot full": Case(new=_NEW, hot=83),
    "hot full, wrapped by one": Case(new=_NEW, hot=83, hot_start=1),
    "hot of one, at the end": Case(new=_NEW, hot=1, hot_start=82),
    "hot grows": Case(new=_NEW, hot=17, hot_start=0, ring=32),
    "pinned many": Case(new=_NEW, pinned=311),
    "cold only": Case(new=_NEW, hot=0, pinned=0),
    "cold of one": Case(new=_NEW, blocks=1),
    "cold full": Case(new=_NEW, blocks=6),
    "cold full, not wrapped": Case(new=_NEW, blocks=6, first_slot=0),
    "cold grows": Case(new=_NEW, blocks=2, first_slot=0, segments=(2,), slots=11),
    "cold of four segments": Case(new=_NEW, segments=(1, 1, 2, 4), slots=8, first_slot=7, blocks=8),
    "cold of eight segments": Case(
        new=_NEW, segments=(1, 1, 2, 1, 3, 2, 1, 3), slots=14, first_slot=9, blocks=14
    ),
    "cold of many spans": Case(
        new=_NEW, segments=(5, 5, 10, 20), slots=40, first_slot=9, blocks=40
    ),
    "many blocks for each": Case(
        new=_NEW,
        segments=(5, 5, 10, 20),
        slots=40,
        first_slot=9,
        blocks=40,
        ring=700,
        hot=690,
        pinned=300,
        threadgroups=5,
    ),
    "large scores": Case(new=_NEW, sharpness=50, pinned=70, threadgroups=30),
    "one span outweighs the rest": Case(new=_NEW, blocks=0, hot=0, pinned=140, sharpness=300),
    "window moves": Case(new=_NEW, window_step=41),
    "window past a block": Case(new=_NEW, window_step=70),
    "window past the cold": Case(new=_NEW, window_step=150),
    "none new": Case(in_tiers=_NEW),
    "none new, none hot": Case(in_tiers=_NEW, hot=0),
    "none new, only pinned": Case(in_tiers=_NEW, hot=0, blocks=0, evicted=0),
    "none new, only cold": Case(in_tiers=1, hot=0, pinned=0),
    "two launches": Case(
        new=_NEW,
        keys="kvarn4",
        values="kvarn3",
        segments=(1, 1, 2, 4),
        slots=8,
        first_slot=5,
        blocks=8,
    ),
}

WINDOWS = {
    f"W{window} L{new} {name}": Case(new=new, window=window, pinned=0, **tiers)
    for window, new in ((1, 1), (31, 1), (32, 3), (33, 8), (37, 2), (83, 5))
    for name, tiers in (
        ("in one ring", {"blocks": 0, "hot": 83, "dim": 256, "group": 2}),
        ("across tiers", {"hot": 11}),
    )
}

ALL = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("codec", CODECS),
        ("shape", SHAPES),
        ("block", BLOCKS),
        ("tiers", TIERS),
        ("turn", TURNS),
        ("window", WINDOWS),
    )
    for name, case in cases.items()
}
