"""The workload mapping of a scenario: what it may say, and how it says no."""

import itertools

import numpy as np
import pytest

from workloads import lengths, open_trace, workload
from workloads.columns import Columns, join
from workloads.keys import ARRIVALS, CLOSED, LENGTHS, MIX, SYNTHETIC, TRACE

OPEN = {"rate": 10, "prompt": 512, "output": 128, "requests": 100}


def run(spec, seed=1, **options) -> Columns:
    return join(list(workload(spec, seed, **options)))


@pytest.mark.parametrize(
    "spec, says",
    [
        ({**OPEN, "rate": "10"}, "workload: rate: '10': must be a number > 0 and <= 1e+09 or inf"),
        ({**OPEN, "rate": True}, "rate: True: must be a number"),
        ({**OPEN, "rate": 0}, "rate: 0: must be"),
        ({**OPEN, "rate": float("nan")}, "rate: nan: must be"),
        ({**OPEN, "requests": "1e6"}, "requests: '1e6': must be a whole number >= 1"),
        ({**OPEN, "requests": 1.5}, "requests: 1.5: must be a whole number >= 1"),
        ({**OPEN, "request": 5}, "'request': unknown key: did you mean 'requests'?"),
        ({**OPEN, "prompt": "512"}, "prompt: '512': must be a whole number"),
        ({**OPEN, "prompt": 0}, "prompt: 0: must be a whole number >= 1"),
        ({**OPEN, "prompt": {"kind": "log-normal"}}, "prompt: kind: 'log-normal': did you mean 'lognormal'"),
        ({**OPEN, "prompt": {"mean": 5}}, "prompt: kind: missing: allowed: empirical, fixed"),
        ({**OPEN, "prompt": {"kind": "lognormal", "mean": 5}}, "needs mean and one of cv, sigma"),
        ({**OPEN, "prompt": {"kind": "lognormal", "mean": 5, "cv": 1, "sigma": 1}}, "one of cv, sigma"),
        ({**OPEN, "prompt": {"kind": "lognormal", "mean": 5, "cv": 1, "min": 9, "max": 2}}, "min: 9: must be at most"),
        ({**OPEN, "prompt": {"kind": "uniform", "low": 5}}, "uniform: needs low and high"),
        ({**OPEN, "prompt": {"kind": "uniform", "low": 5, "high": 4}}, "low: 5: must be at most high, 4"),
        ({**OPEN, "prompt": {"kind": "empirical", "name": "sharegtp"}}, "did you mean 'sharegpt'"),
        ({**OPEN, "prompt": {"kind": "empirical"}}, "needs one of name, file"),
        ({**OPEN, "prompt": {"kind": "empirical", "name": "arxiv", "column": "in"}}, "one of prompt, output"),
        ({"rate": 1, "prompt": 5, "requests": 1}, "output: missing"),
        ({**OPEN, "lengths": "arxiv"}, "give prompt and output, or lengths"),
        ({"rate": 1, "prompt": 1, "output": 1}, "requests: missing: give requests or duration_s"),
        ({"rate": "inf", "prompt": 1, "output": 1, "duration_s": 5}, "no duration ends the stream"),
        ({"prompt": 1, "output": 1, "requests": 1}, "rate: missing"),
        ({**OPEN, "arrivals": "poison"}, "arrivals: kind: 'poison': did you mean 'poisson'"),
        ({**OPEN, "arrivals": "inf"}, "leave rate out"),
        ({**OPEN, "arrivals": "weibull"}, "arrivals: shape: missing"),
        ({**OPEN, "arrivals": {"kind": "gamma", "burstiness": 1, "cv": 1}}, "burstiness or cv, not both"),
        ({**OPEN, "arrivals": {"kind": "gamma", "burstines": 1}}, "did you mean 'burstiness'"),
        ({**OPEN, "arrivals": {"kind": "diurnal", "amplitude": 2}}, "amplitude: 2: must be a number >= 0 and <= 1"),
        ({**OPEN, "priority": "high"}, "priority: 'high': must be a whole number"),
        ({**OPEN, "priority": {"high": 1}}, "priority: 'high': 1: a whole level and a weight > 0"),
        ({**OPEN, "concurrency": 5}, "concurrency: a closed loop has no arrival stream"),
        ({"trace": "azure-code", "rate_scale": 0}, "rate_scale: 0: must be a number > 0"),
        ({"trace": "azure-code", "ratescale": 2}, "did you mean 'rate_scale'"),
        ({"trace": "azure-code", "start_s": 9, "end_s": 3}, "end_s: 3: must be > start_s, 9"),
        ({"trace": "azure-code", "rate": 5, "rate_scale": 2}, "rate_scale: not with rate or arrivals"),
        ({"trace": 5}, "trace: 5: must be a name or a path"),
        ({"trace": "sharegpt"}, "rate: missing: sharegpt-vicuna gives lengths only"),
        ({"trace": "servegen-r1", "rate": 1}, "length distribution"),
        ({"mix": []}, "mix: []: a list of 1 to 255 workloads"),
        ({"mix": [{"mix": []}]}, "no mix within a mix"),
        ({"mix": [{**OPEN, "weight": -1}]}, "mix[0]: weight: -1: must be a number > 0"),
        ({"mix": [OPEN, {**OPEN, "rate": -1}]}, "mix[1]: rate: -1: must be"),
        ({"mix": [OPEN], "rate": 5, "requests": 5}, "mix[0]: rate: belongs to the mix as a whole"),
        ({"mix": [{"prompt": 1, "output": 1}], "rate": 5}, "requests: missing"),
        ({"mixx": []}, "did you mean 'mix'"),
        ({}, "rate: missing: a workload needs trace, mix, or rate"),
        ([], "a mapping with trace, mix, or rate"),
    ],
)  # fmt: skip
def test_a_bad_spec_says_so_before_anything_is_read(spec, says):
    """One line with key, value and what is allowed, at the call and not at the first chunk."""
    with pytest.raises(ValueError) as caught:
        workload(spec, 1)
    assert says in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "1", None])
def test_a_bad_seed_is_named(seed):
    """Whole numbers that a 64-bit key holds."""
    with pytest.raises(ValueError, match="seed: "):
        run(OPEN, seed)


def test_where_names_the_file():
    """A scenario passes its own name on."""
    with pytest.raises(ValueError, match="^chat.yaml: workload: rate: 0"):
        workload({**OPEN, "rate": 0}, 1, where="chat.yaml: workload")


def test_numpy_numbers_are_numbers():
    """A sweep hands over NumPy scalars."""
    assert len(run({**OPEN, "rate": np.float64(3), "requests": np.int64(4), "prompt": np.int64(5)})) == 4


def test_every_key_says_what_it_allows():
    """The tables carry words for a schema or a help page."""
    tables = [SYNTHETIC, TRACE, MIX, CLOSED, *ARRIVALS.values(), *LENGTHS.values()]
    assert all(rule.allowed for table in tables for rule in table.values())


# traces ---------------------------------------------------------------------------------------------


def test_a_trace_by_name_is_the_file():
    """No key but trace: every request, its own time."""
    got, file = run({"trace": "azure-conv"}), join(list(open_trace("azure-2023-conv").chunks()))
    assert np.array_equal(got.arrival_ns, file.arrival_ns) and len(got) == 19_366


def test_a_window_scaled_and_capped():
    """600 s to 1200 s of the conversation trace at twice its rate fit in 300 s; caps hold."""
    spec = {"trace": "azure-conv", "start_s": 600, "end_s": 1200, "rate_scale": 2, "max_prompt": 1000, "max_output": 50}
    got, file = run(spec), join(list(open_trace("azure-conv").chunks()))
    inside = (file.arrival_ns >= 600 * 10**9) & (file.arrival_ns < 1200 * 10**9)
    assert np.array_equal(got.arrival_ns, np.rint((file.arrival_ns[inside] - 600 * 10**9) / 2).astype(np.int64))
    assert np.array_equal(got.prompt_tokens, np.minimum(file.prompt_tokens[inside], 1000))
    assert got.output_tokens.max() == 50


def test_a_looped_trace_runs_on():
    """Two passes of 300 requests; `requests` counts over both."""
    assert len(run({"trace": "sharegpt-300", "loop": 2})) == 600
    assert len(run({"trace": "sharegpt-300", "loop": 2, "requests": 450})) == 450


def test_lengths_in_file_order_at_a_rate():
    """{trace: sharegpt-vicuna, rate: 10}: Poisson arrivals, the file's lengths in order, zero tokens left out."""
    got = run({"trace": "sharegpt-vicuna", "rate": 10, "arrivals": "poisson", "requests": 5000})
    file = next(open_trace("sharegpt-vicuna").lengths(5000))
    assert np.array_equal(got.prompt_tokens, file.prompt_tokens)
    assert np.array_equal(got.arrival_ns, run({**OPEN, "requests": 5000}).arrival_ns)
    assert len(run({"trace": "sharegpt-300", "rate": "inf"})) == 300


def test_samples_and_priority_on_a_trace():
    """They replace or add the columns."""
    got = run({"trace": "sharegpt-300", "samples": 3, "priority": {0: 1, 1: 1}})
    assert set(got.samples.tolist()) == {3} and set(got.priority.tolist()) == {0, 1} and len(got) == 300


@pytest.mark.parametrize(
    "spec",
    [
        {"trace": "mooncake", "spread_quantum_s": 3, "loop": 2, "rate_scale": 1.5, "priority": {0: 1, 1: 3}},
        {"trace": "sharegpt-300", "rate": 5, "loop": 3, "samples": 2},
        {"mix": [{"trace": "azure-code"}, {"lengths": "arxiv", "weight": 2}], "rate": 9, "requests": 9999},
        {"mix": [{"trace": "azure-code", "weight": 0.5}, {"trace": "sharegpt-300"}, {**OPEN, "requests": 3000}]},
    ],
)
def test_chunk_size_does_not_matter(spec):
    """Chunks of 501 rows equal chunks of 65536 for everything a spec can combine."""
    a, b = run(spec), run(spec, rows=501)
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "session", "priority", "samples"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert (np.diff(a.arrival_ns) >= 0).all()


# mixes ----------------------------------------------------------------------------------------------


def test_a_mix_at_one_rate_picks_by_weight():
    """Weights 1 and 3: a quarter short prompts, within 4 standard errors, at Poisson arrivals of the whole."""
    short, long = {"prompt": 10, "output": 1, "weight": 1}, {"prompt": 1000, "output": 2, "weight": 3}
    got = run({"mix": [short, long], "rate": 10, "requests": 20_000})
    assert abs((got.prompt_tokens == 10).mean() - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5
    assert np.array_equal(got.arrival_ns, run({**OPEN, "requests": 20_000}).arrival_ns)
    assert np.array_equal(got.prompt_tokens == 10, got.output_tokens == 1)


def test_parts_of_a_mix_do_not_share_luck():
    """Two equal parts give two different streams."""
    part = {**OPEN, "requests": 50}
    got = run({"mix": [part, part]})
    assert len(got) == 100 and len(np.unique(got.arrival_ns)) == 100


def test_a_trace_in_a_mix_at_one_rate_starts_again():
    """300 requests of the file serve 2,000."""
    got = run({"mix": [{"trace": "sharegpt-300"}], "rate": 1, "requests": 2000})
    assert len(got) == 2000 and np.array_equal(got.prompt_tokens[:300], got.prompt_tokens[300:600])


# closed loops ---------------------------------------------------------------------------------------


def test_lengths_of_a_closed_loop():
    """Lengths without times: the same luck as the open loop, endless without requests."""
    spec = {"concurrency": 32, "think_time_s": 0.5, "prompt": {"kind": "lognormal", "mean": 99, "cv": 1}, "output": 7}
    got = join(list(lengths({**spec, "requests": 9000}, 1)))
    assert len(got) == 9000 and not got.arrival_ns.any()
    assert np.array_equal(got.prompt_tokens, run({**OPEN, "prompt": spec["prompt"], "requests": 9000}).prompt_tokens)
    assert sum(len(c) for c in itertools.islice(lengths(spec, 1), 3)) == 3 * 65536


def test_a_closed_loop_over_a_trace_takes_its_requests_in_order():
    """Arrivals of the file are ignored, zero-token rows left out."""
    got = join(list(lengths({"trace": "azure-code", "concurrency": 4, "requests": 10}, 1)))
    assert got.prompt_tokens[:3].tolist() == [4808, 3180, 110] and not got.arrival_ns.any()


@pytest.mark.parametrize("key", ["rate", "arrivals", "start_s", "rate_scale", "duration_s"])
def test_a_closed_loop_has_no_clock(key):
    """Keys about time do not belong in it."""
    with pytest.raises(ValueError, match=f"{key}: not in a closed loop"):
        lengths({"prompt": 1, "output": 1, "concurrency": 3, key: 1}, 1)
    with pytest.raises(ValueError, match="concurrency: 0: must be a whole number >= 1"):
        lengths({"prompt": 1, "output": 1, "concurrency": 0}, 1)
