"""Synthetic traffic against closed forms, with stated confidence intervals; determinism to the last integer."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads import synthetic, workload
from workloads.columns import Columns, join
from workloads.lengths import sampler

N = 60_000
Z = 4.0  # standard errors: a false alarm in 16,000 tests, and the seeds are fixed anyway


def drawn(spec: dict, seed: int = 1, rows: int = 65536) -> Columns:
    return join(list(workload({"prompt": 1, "output": 1, "requests": N, **spec}, seed, rows=rows)))


def gaps_s(spec: dict, seed: int = 1) -> np.ndarray:
    return np.diff(drawn(spec, seed).arrival_ns, prepend=0) / 1e9


def same(a: Columns, b: Columns) -> bool:
    names = ("arrival_ns", "prompt_tokens", "output_tokens", "priority", "samples")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


# closed forms ---------------------------------------------------------------------------------------


def weibull_cv(k: float) -> float:
    return math.sqrt(math.gamma(1 + 2 / k) / math.gamma(1 + 1 / k) ** 2 - 1)


RENEWALS = [
    ("poisson", 1.0),
    ({"kind": "gamma", "burstiness": 0.25}, 2.0),
    ({"kind": "gamma", "burstiness": 4}, 0.5),
    ({"kind": "gamma", "cv": 1.5}, 1.5),
    ({"kind": "weibull", "shape": 0.7}, weibull_cv(0.7)),
    ({"kind": "weibull", "shape": 2}, weibull_cv(2)),
]


@pytest.mark.parametrize("kind, cv", RENEWALS)
@pytest.mark.parametrize("rate", [0.5, 250.0])
def test_mean_and_cv_of_the_gaps(kind, cv, rate):
    """Mean 1/rate and the law's CV (gamma 1/sqrt(shape), Weibull by the gamma function), within 4 standard errors."""
    gaps = gaps_s({"rate": rate, "arrivals": kind})
    assert abs(gaps.mean() * rate - 1) < Z * cv / math.sqrt(N)
    error = bootstrap_error(gaps)
    assert error < 0.05 and abs(gaps.std() / gaps.mean() - cv) < Z * error


def bootstrap_error(gaps: np.ndarray) -> float:
    """Standard error of the CV: spread of the CV over 60 equal parts, over sqrt(60)."""
    parts = gaps.reshape(60, -1)
    return float((parts.std(axis=1) / parts.mean(axis=1)).std() / math.sqrt(60))


@pytest.mark.parametrize("kind", ["poisson", {"kind": "gamma", "burstiness": 0.25}, {"kind": "weibull", "shape": 0.7}])
def test_the_whole_law_of_the_gaps(kind):
    """Kolmogorov-Smirnov against SciPy's distribution: D below the 0.1 % critical value 1.95/sqrt(n)."""
    from scipy import stats

    law = {
        "poisson": stats.expon(),
        "gamma": stats.gamma(0.25, scale=4),
        "weibull": stats.weibull_min(0.7, scale=1 / math.gamma(1 + 1 / 0.7)),
    }[kind if isinstance(kind, str) else kind["kind"]]
    gaps = gaps_s({"rate": 1.0, "arrivals": kind})
    assert stats.kstest(gaps, law.cdf).statistic < 1.95 / math.sqrt(N)


def test_poisson_counts_are_poisson():
    """Requests per second at 40/s: variance over mean is 1 (index of dispersion), within 4 standard errors."""
    counts = np.bincount((drawn({"rate": 40.0}).arrival_ns // 10**9).astype(int))[:-1]
    assert abs(counts.var() / counts.mean() - 1) < Z * math.sqrt(2 / len(counts))


def test_uniform_arrivals_are_exact():
    """Request k at k/rate: 3/s gives 1/3 s, 2/3 s, 1 s to the nanosecond, and no drift after 60,000."""
    columns = drawn({"rate": 3, "arrivals": "uniform"})
    assert columns.arrival_ns[:3].tolist() == [333_333_333, 666_666_667, 10**9]
    assert columns.arrival_ns[-1] == 20_000 * 10**9
    assert same(columns, drawn({"rate": 3, "arrivals": "deterministic"}))


@pytest.mark.parametrize("spec", [{"rate": "inf"}, {"rate": math.inf}, {"arrivals": "inf"}])
def test_infinite_rate_puts_all_at_zero(spec):
    """Three spellings of everything at once."""
    assert not drawn(spec).arrival_ns.any()


def test_rescale_ends_where_vllm_bench_ends():
    """The last of N arrivals at exactly N/rate, and every gap stretched alike."""
    kind = {"kind": "gamma", "burstiness": 0.5}
    free = drawn({"rate": 7, "arrivals": kind, "requests": 20_000})
    scaled = drawn({"rate": 7, "arrivals": {**kind, "rescale": True}, "requests": 20_000})
    assert scaled.arrival_ns[-1] == round(20_000 / 7 * 1e9)
    ratio = scaled.arrival_ns[-1] / free.arrival_ns[-1]
    assert np.abs(scaled.arrival_ns - free.arrival_ns * ratio).max() <= 2


@pytest.mark.parametrize("amplitude", [0.0, 0.5, 1.0])
def test_diurnal_rate_follows_the_sine(amplitude):
    """Share of requests in the first half of each period: 1/2 + amplitude/pi."""
    kind = {"kind": "diurnal", "period_s": 100, "amplitude": amplitude}
    at = drawn({"rate": 10, "arrivals": kind}).arrival_ns / 1e9
    share = (at % 100 < 50).mean()
    wanted = 0.5 + amplitude / math.pi
    assert abs(share - wanted) < Z * math.sqrt(wanted * (1 - wanted) / N)
    assert abs(at[-1] - N / 10) < Z * math.sqrt(N) / 10 + 100


def test_diurnal_without_swing_is_poisson():
    """Amplitude 0 gives the very arrivals of a constant rate, to a nanosecond."""
    flat = drawn({"rate": 10, "arrivals": {"kind": "diurnal", "amplitude": 0}})
    assert np.abs(flat.arrival_ns - drawn({"rate": 10}).arrival_ns).max() <= 1


def test_on_off_keeps_the_mean_rate_and_bursts():
    """On 1 s at 40/s, off 3 s: mean rate 10/s; index of dispersion of counts 1 + 2 r p(1-p)/(p (a+b)) in the limit.

    A two-state MMPP with rates (r, 0), leaving rates a, b and on-share p has variance/mean -> 1 + 2 r (1-p)/(a+b)
    (Fischer and Meier-Hellstern 1993): r = 40, a = 1, b = 1/3, p = 1/4 give 46.
    """
    kind = {"kind": "on_off", "on_s": 1, "off_s": 3}
    at = drawn({"rate": 10, "arrivals": kind, "requests": 600_000}).arrival_ns / 1e9
    counts = np.bincount((at // 100).astype(int))[:-1]  # 100 s: many spells each
    dispersion = 1 + 2 * 40 * 0.75 / (1 + 1 / 3)
    assert abs(counts.mean() / 1000 - 1) < Z * math.sqrt(dispersion / 1000 / len(counts))
    assert abs(counts.var() / counts.mean() / dispersion - 1) < Z * math.sqrt(2 / len(counts)) + 0.01


def test_on_off_with_equal_rates_is_poisson():
    """off_fraction 1 removes the modulation: the very arrivals of a constant rate."""
    flat = drawn({"rate": 10, "arrivals": {"kind": "on_off", "off_fraction": 1}})
    assert np.abs(flat.arrival_ns - drawn({"rate": 10}).arrival_ns).max() <= 1


# lengths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0])
def test_lognormal_has_the_mean_and_cv_asked_for(cv):
    """Mean 2000 and CV before rounding, within 4 standard errors of the mean."""
    lengths = drawn({"rate": 1, "prompt": {"kind": "lognormal", "mean": 2000, "cv": cv}}).prompt_tokens
    assert abs(lengths.mean() / 2000 - 1) < Z * cv / math.sqrt(N)
    sigma = np.log(lengths).std()
    assert abs(sigma - math.sqrt(math.log1p(cv * cv))) < Z * sigma / math.sqrt(2 * N) + 1e-3


def test_lognormal_sigma_is_the_same_law():
    """cv and sigma say the same: sigma^2 = ln(1 + cv^2)."""
    by_cv = {"kind": "lognormal", "mean": 500, "cv": 1.0}
    by_sigma = {"kind": "lognormal", "mean": 500, "sigma": math.sqrt(math.log(2))}
    assert same(drawn({"rate": 1, "prompt": by_cv}), drawn({"rate": 1, "prompt": by_sigma}))


def test_uniform_lengths_take_every_value_alike():
    """4 .. 8 inclusive: five values, each N/5 times within 4 standard errors."""
    counts = np.bincount(drawn({"rate": 1, "output": {"kind": "uniform", "low": 4, "high": 8}}).output_tokens)
    assert counts[:4].sum() == 0 and len(counts) == 9
    assert np.abs(counts[4:] - N / 5).max() < Z * math.sqrt(N * 0.2 * 0.8)


def test_min_and_max_clip():
    """Lengths beyond the limits are set to them."""
    law = {"kind": "lognormal", "mean": 100, "cv": 3, "min": 50, "max": 60}
    lengths = drawn({"rate": 1, "prompt": law}).prompt_tokens
    assert lengths.min() == 50 and lengths.max() == 60


def test_servegen_lengths_follow_the_distribution():
    """DeepSeek-R1: mean 1268.2 in, 1527.4 out (sums over the shipped pmf, by hand), within 4 standard errors."""
    spec = {side: {"kind": "empirical", "name": "servegen-deepseek-r1"} for side in ("prompt", "output")}
    columns = drawn({"rate": 1, **spec})
    for tokens, mean in ((columns.prompt_tokens, 1268.245), (columns.output_tokens, 1527.410)):
        assert abs(tokens.mean() - mean) < Z * tokens.std() / math.sqrt(N)


def test_a_distribution_of_two_lengths_is_drawn_at_its_odds(tmp_path):
    """4 with probability 1/4 and 5 with 3/4, within 4 standard errors, and nothing else."""
    (tmp_path / "pmf").write_bytes(b"input_tokens,prob\n0,0.0\n4,0.25\n5,0.75\n")
    lengths = drawn({"rate": 1, "prompt": {"kind": "empirical", "file": str(tmp_path / "pmf")}}).prompt_tokens
    assert set(lengths.tolist()) == {4, 5}
    assert abs((lengths == 4).mean() - 0.25) < Z * math.sqrt(0.25 * 0.75 / N)


def test_empirical_lengths_come_from_the_file():
    """ShareGPT prompts: only lengths that occur, mean 123.04 (80,675 rows with tokens on both sides)."""
    lengths = drawn({"rate": 1, "prompt": {"kind": "empirical", "name": "sharegpt"}}).prompt_tokens
    assert lengths.min() >= 1 and lengths.max() <= 614
    assert abs(lengths.mean() - 123.0407) < Z * lengths.std() / math.sqrt(N)


def test_joint_lengths_keep_the_correlation():
    """`lengths: NAME` draws whole rows: every (prompt, output) pair occurs in the file; drawn apart most do not."""
    from workloads import open_trace

    file = join(list(open_trace("azure-code").chunks()))
    pairs = set(zip(file.prompt_tokens.tolist(), file.output_tokens.tolist(), strict=True))
    joint = join(list(workload({"rate": 1, "requests": 2000, "lengths": "azure-code"}, 1)))
    assert set(zip(joint.prompt_tokens.tolist(), joint.output_tokens.tolist(), strict=True)) <= pairs
    side = {"kind": "empirical", "name": "azure-code"}
    apart = drawn({"rate": 1, "requests": 2000, "prompt": side, "output": side})
    assert not set(zip(apart.prompt_tokens.tolist(), apart.output_tokens.tolist(), strict=True)) <= pairs


def test_priority_levels_by_weight():
    """Three levels at 1 : 2 : 7."""
    levels = drawn({"rate": 1, "priority": {0: 1, 5: 2, -1: 7}}).priority
    for level, share in ((0, 0.1), (5, 0.2), (-1, 0.7)):
        assert abs((levels == level).mean() - share) < Z * math.sqrt(share * (1 - share) / N)


def test_samples_and_fixed_priority_are_columns():
    """Constants fill their columns; without them there is none."""
    columns = drawn({"rate": 1, "samples": 4, "priority": 2, "requests": 3})
    assert columns.samples.tolist() == [4, 4, 4] and columns.priority.tolist() == [2, 2, 2]
    assert drawn({"rate": 1}).samples is None


# determinism ----------------------------------------------------------------------------------------

RICH = {
    "prompt": {"kind": "lognormal", "mean": 300, "cv": 1},
    "output": {"kind": "empirical", "name": "servegen-m-small"},
    "priority": {0: 1, 1: 1},
    "samples": 2,
}
GAMMA, WEIBULL = {"kind": "gamma", "burstiness": 0.3}, {"kind": "weibull", "shape": 0.5}
KINDS = ["poisson", GAMMA, WEIBULL, "on_off", "diurnal", "uniform"]


@pytest.mark.parametrize("kind", KINDS)
def test_chunk_size_and_length_do_not_matter(kind):
    """Chunks of 7 equal chunks of 65536; the first 9000 of 20000 equal a run of 9000."""
    spec = {"rate": 30, "arrivals": kind, **RICH}
    short = drawn({**spec, "requests": 9000})
    assert same(short, drawn({**spec, "requests": 9000}, rows=7))
    assert same(short, drawn({**spec, "requests": 20_000}).part(0, 9000))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**64 - 1), rows=st.integers(1, 300), n=st.integers(1, 200), more=st.integers(0, 200))
def test_any_seed_any_chunk_any_length(seed, rows, n, more):
    """The same for any seed and sizes."""
    spec = {"rate": 5, "arrivals": "on_off", **RICH}
    a = drawn({**spec, "requests": n}, seed, rows)
    assert len(a) == n and same(a, drawn({**spec, "requests": n + more}, seed).part(0, n))


def test_purposes_do_not_share_luck():
    """Changing the prompt law leaves arrivals and outputs alone; two seeds differ; rates share their luck."""
    base = {"rate": 2, "output": {"kind": "lognormal", "mean": 99, "cv": 1}}
    a, b = drawn({**base, "prompt": 5}), drawn({**base, "prompt": {"kind": "uniform", "low": 1, "high": 9}})
    assert np.array_equal(a.arrival_ns, b.arrival_ns) and np.array_equal(a.output_tokens, b.output_tokens)
    assert not np.array_equal(a.arrival_ns, drawn(base, seed=2).arrival_ns)
    assert np.abs(drawn({**base, "rate": 4}).arrival_ns * 2 - a.arrival_ns).max() <= 1


def test_duration_ends_the_stream():
    """Requests in [0, duration): the first of an endless stream."""
    until = join(list(workload({"rate": 50, "prompt": 1, "output": 1, "duration_s": 100}, 3)))
    endless = drawn({"rate": 50}, 3)
    n = int(np.searchsorted(endless.arrival_ns, 100 * 10**9))
    assert len(until) == n and same(until, endless.part(0, n))


def test_streams_are_lazy():
    """A hundred million requests cost nothing until they are read."""
    stream = synthetic({"rate": 1, "prompt": 1, "output": 1, "requests": 10**8}, 1)
    assert sum(len(chunk) for chunk in itertools.islice(stream, 2)) == 2 * 65536


def test_arrivals_beyond_the_clock_are_refused():
    """292 years of nanoseconds is all an int64 holds."""
    with pytest.raises(ValueError, match="arrivals must stay within 146 years; raise the rate"):
        drawn({"rate": 1e-9})


def test_a_sampler_alone_serves_a_notebook():
    """sampler(spec, side) needs only a generator."""
    lengths = sampler({"kind": "uniform", "low": 2, "high": 2}, "prompt")
    assert lengths(np.random.Generator(np.random.Philox(key=[1, 2])), 3).tolist() == [2, 2, 2]


def test_on_off_begins_in_equilibrium():
    """Over 800 seeds the first 0.2 s hold rate * 0.2 = 2 requests on average, within 4 standard errors."""
    spec = {"rate": 10, "arrivals": {"kind": "on_off", "on_s": 1, "off_s": 3}, "requests": 100}
    counts = np.array([(drawn(spec, seed).arrival_ns < 0.2e9).sum() for seed in range(800)])
    assert abs(counts.mean() - 2) < Z * counts.std() / math.sqrt(800)
