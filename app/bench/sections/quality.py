"""`bench quality`: what each codec costs in bits, and what it changes in the model's answers.

Every row reads the same text and answers the same questions; the f16 cache's side
is computed once. Differences of mean divergence from `h4` come with an interval. Pairs
read a second text of another kind too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.bench.figures.bootstrap import paired_bootstrap
from app.bench.figures.formulas import elements_per_token
from app.bench.figures.shapes import network_of
from app.bench.meter import Meter
from app.bench.sections.harness import Exact, Harness
from app.bench.sections.passkey import Passkeys, filler_tokens, make
from app.bench.sections.text import Text, text_ids
from app.bench.settings import (
    BASELINE_KV,
    DEFAULT_KV,
    QUALITY_HOT,
    QUALITY_SINKS,
    QualitySettings,
)
from app.divergence import Divergence
from kvcache import Backend, CacheConfig, CachePlan, EmberError, resolve
from kvcache.codecs.names import NAMES
from kvcache.tiers.plan import cold_codec
from models import load

# Pairs of different codecs that lie near the best compromise.
MIXES = (
    "hkivi5/turbo3",
    "hkivi5/h4",
    "hkivi4/turbo3u",
    "kivi5/turbo4",
    "h5/h4",
    "h5/turbo3u",
    "kvarn5/kvarn3",
    "kvarn4/turbo3u",
    "kvarn3/turbo3u",
    "hkivi4/turbo2u",
)
# A run of neighbouring tokens that the bootstrap keeps together.
_BOOTSTRAP_BLOCK = 32
_TOKEN_SECONDS = 0.002
_LOADING_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One row's cache."""

    kv: str
    hot: int
    sinks: int

    @property
    def pair(self) -> tuple[str, str]:
        """Codecs of keys and of values."""
        keys, _, values = self.kv.partition("/")
        return keys, values or keys

    @property
    def alone(self) -> bool:
        """Whether only keys or only values are encoded."""
        return "f16" in self.pair

    @property
    def texts(self) -> Sequence[Text]:
        """What it reads."""
        whole = not self.alone and (self.hot, self.sinks) == (QUALITY_HOT, QUALITY_SINKS)
        return tuple(Text) if whole else (Text.ACTS,)


_REFERENCE = Setup(kv=BASELINE_KV, hot=QUALITY_HOT, sinks=QUALITY_SINKS)


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One cache against the f16 one.

    bits, key_bits, value_bits: per element of the cold tier, all-in; window_bits: of all
    tiers together in a full window of the model's context.
    kld_*: divergence of the next-token distribution, nats; top1: equal first choices.
    score_rms: error of scaled attention scores against cold keys.
    recall, f16_recall: the share of passkeys found.
    versus_*: mean divergence less that of `h4`, and its 95% interval.
    technical_*: the same of the second text; None where it was not read.
    """

    kv: str
    hot: int
    sinks: int
    bits: float
    key_bits: float
    value_bits: float
    window_bits: float
    kld_mean: float
    kld_median: float
    kld_p999: float
    top1: float
    ppl: float
    f16_ppl: float
    score_rms: float
    recall: float
    f16_recall: float
    tokens: int
    versus: float
    versus_low: float
    versus_high: float
    technical_kld_mean: float | None = None
    technical_kld_p999: float | None = None
    technical_top1: float | None = None

    @property
    def alone(self) -> bool:
        """Whether only keys or only values are encoded."""
        return Setup(kv=self.kv, hot=0, sinks=0).alone


def setups(settings: QualitySettings) -> list[Setup]:
    """The rows to measure, the baseline first."""
    kinds = [BASELINE_KV, DEFAULT_KV, *(settings.kv or (*_every_codec(), *MIXES))]
    tiers = [(hot, QUALITY_SINKS) for hot in settings.hot]
    tiers += [(QUALITY_HOT, sinks) for sinks in settings.sinks]
    pairs = [Setup(kv=kv, hot=QUALITY_HOT, sinks=QUALITY_SINKS) for kv in kinds]
    further = [Setup(kv=kv, hot=hot, sinks=sinks) for hot, sinks in tiers for kv in settings.varied]
    return list(dict.fromkeys(pairs + further))


def expected_seconds(settings: QualitySettings) -> float:
    """Of the whole section."""
    rows = sum(_row_seconds(settings, setup) for setup in setups(settings))
    return _LOADING_SECONDS + _row_seconds(settings, _REFERENCE) + rows


def run(settings: QualitySettings, meter: Meter) -> Iterator[QualityRow]:
    """A row for each setup, as they are measured."""
    expected = _LOADING_SECONDS + _row_seconds(settings, _REFERENCE)
    with meter.step("quality: the f16 reference", expected):
        harness, texts = open_harness(settings)
        exact = {text: harness.exact(ids) for text, ids in texts.items()}
    baseline: Divergence | None = None
    for setup in setups(settings):
        label = f"quality: {setup.kv}, hot {setup.hot}, sinks {setup.sinks}"
        with meter.step(label, _row_seconds(settings, setup)):
            plan = harness.plan(*setup.pair, hot=setup.hot, sinks=setup.sinks)
            found = {text: harness.divergence(plan, exact[text]) for text in setup.texts}
            baseline = baseline or found[Text.ACTS]
            row = _row(harness, setup, plan, exact[Text.ACTS], found, baseline)
        yield row


def open_harness(settings: QualitySettings) -> tuple[Harness, Mapping[Text, Sequence[int]]]:
    """Load the model and encode texts and questions. Raises EmberError for no or a short text."""
    backend = Backend(settings.backend).resolve()
    loaded = load(settings.model, backend=backend)
    texts = {text: text_ids(loaded.tokenizer, text)[: settings.tokens] for text in Text}
    shortest = min(map(len, texts.values()))
    if shortest < settings.skip + 2:
        raise EmberError(
            f"got --tokens {shortest}, expected more than --skip {settings.skip} and one"
        )
    # One beginning-of-text id at most: pieces are encoded without.
    encode = partial(loaded.tokenizer.encode, add_special=False)
    words = text_ids(loaded.tokenizer, add_special=False)
    start = loaded.tokenizer.encode("")

    def passkeys(hot: int) -> Passkeys:
        return make(encode, filler_tokens(words, _filler(hot)), start=start)

    config = CacheConfig(backend=backend)
    longest = max(map(len, texts.values()))
    harness = Harness(loaded.model, passkeys, config=config, longest=longest, skip=settings.skip)
    return harness, texts


def _row(
    harness: Harness,
    setup: Setup,
    plan: CachePlan,
    exact: Exact,
    texts: Mapping[Text, Divergence],
    baseline: Divergence,
) -> QualityRow:
    found, second = texts[Text.ACTS], texts.get(Text.TECHNICAL)
    versus = paired_bootstrap(found.kl, baseline.kl, block=_BOOTSTRAP_BLOCK)
    key_bits, value_bits = _bits(plan)
    return QualityRow(
        kv=setup.kv,
        hot=setup.hot,
        sinks=setup.sinks,
        bits=plan.cold_bits,
        key_bits=key_bits,
        value_bits=value_bits,
        window_bits=window_bits(plan, plan.shape.context),
        kld_mean=float(found.kl.mean()),
        kld_median=float(np.median(found.kl)),
        kld_p999=float(np.quantile(found.kl, 0.999)),
        top1=float(found.agrees.mean()),
        ppl=found.perplexity,
        f16_ppl=float(np.exp(found.reference_nll.mean())),
        score_rms=harness.score_error(plan, exact),
        recall=harness.recall(plan),
        f16_recall=harness.f16_recall(plan),
        tokens=len(found.kl),
        versus=versus.value,
        versus_low=versus.low,
        versus_high=versus.high,
        technical_kld_mean=None if second is None else float(second.kl.mean()),
        technical_kld_p999=None if second is None else float(np.quantile(second.kl, 0.999)),
        technical_top1=None if second is None else float(second.agrees.mean()),
    )


def _bits(plan: CachePlan) -> tuple[float, float]:
    """Per element of cold keys and of cold values."""
    config = plan.config
    keys, values = (
        cold_codec(name, config.hot_dtype, 0).bits_per_element(config.block, plan.shape.head_dim)
        for name in (config.keys, config.values)
    )
    return keys, values


def window_bits(plan: CachePlan, window: int) -> float:
    """Per element of a full window of so many tokens, sinks and hot ones included."""
    fields = plan.config.as_dict() | {"max_tokens": window}
    full = resolve(CacheConfig.from_dict(fields), plan.shape)
    elements = full.token_bytes // full.hot_dtype.mx.size // full.shape.layers
    held = sum(layers * sizes.max_tokens for sizes, layers in full.kinds.items())
    return 8 * full.max_bytes / (elements * held)


def _every_codec() -> list[str]:
    """Each for both, for keys alone and for values alone."""
    encoded = [name for name in NAMES if name != "f16"]
    return [kv for name in encoded for kv in (name, f"{name}/f16", f"f16/{name}")]


def _filler(hot: int) -> int:
    """Tokens that push the passkeys out of the hot tier."""
    return hot + 2 * CacheConfig().block


def _row_seconds(settings: QualitySettings, setup: Setup) -> float:
    tokens = len(setup.texts) * settings.tokens + _filler(setup.hot) + 210
    scale = elements_per_token(network_of(settings.model)) / 11520  # of the default model
    return tokens * _TOKEN_SECONDS * max(1.0, scale)
