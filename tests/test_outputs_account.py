"""Accounts: causes add up to the clock, joules to the requests, counts to what one can compute by hand."""

import numpy as np
import pytest
from output_runs import RUNS, run, scenario

from sim import simulate
from sim.account import SECONDS, leap_rows, request_joules


def accounted(name: str) -> tuple:
    """(result, accounts, leaps, chunks, stays)."""
    result = run(name)
    recorder = result.recorder
    return result, result.accounts, recorder.leaps.frame(), recorder.chunks.frame(), recorder.stays.frame()


@pytest.mark.parametrize("name", RUNS)
def test_the_causes_of_a_leap_add_up_to_its_nanoseconds(name: str) -> None:
    """For every policy, scheduler and kind of model."""
    _, accounts, leaps, _, _ = accounted(name)
    total = sum(accounts.seconds[cause] for cause in SECONDS)
    np.testing.assert_allclose(total, leaps["duration_ns"] * 1e-9, rtol=1e-12)
    assert all((seconds >= 0).all() for seconds in accounts.seconds.values())


@pytest.mark.parametrize(
    "name", ["plain", "speculative", "windows", "experts", "prefill first", "two devices", "latent"]
)
def test_single_rounds_cost_what_the_clock_said(name: str) -> None:
    """Two codes, tables in the clock and ops in the accounts: equal up to the rounding to nanoseconds."""
    result = simulate(scenario(**RUNS[name]), stepping=True)
    leaps = result.recorder.leaps.frame()
    assert (leaps["rounds"] == 1).all()
    computed_ns = leaps["duration_ns"] / result.accounts.scale
    np.testing.assert_allclose(computed_ns, leaps["duration_ns"], rtol=1e-9, atol=0.51)


@pytest.mark.parametrize("name", RUNS)
def test_mean_rounds_are_hardly_scaled(name: str) -> None:
    """Leaps of many rounds too: the accounts of all leaps together are within 1 % of the clock."""
    _, accounts, leaps, _, _ = accounted(name)
    computed = leaps["duration_ns"] / accounts.scale
    assert computed.sum() == pytest.approx(leaps["duration_ns"].sum(), rel=0.01)


def test_leaping_and_stepping_account_alike() -> None:
    """A leap's mean round stands for its rounds: totals agree with those of single rounds to 0.1 %."""
    for name in ("plain", "speculative"):
        leaping, stepping = run(name), simulate(scenario(**RUNS[name]), stepping=True)
        for cause in SECONDS:
            total = leaping.accounts.seconds[cause].sum()
            exact = stepping.accounts.seconds[cause].sum()
            assert total == pytest.approx(exact, rel=1e-3, abs=2e-3 * leaping.metrics["duration_s"]), cause
        for key in ("flops", "weight_bytes", "kv_bytes"):
            exact = stepping.accounts.counts[key].sum()
            assert leaping.accounts.counts[key].sum() == pytest.approx(exact, rel=1e-6), key


def test_flops_are_those_of_the_tokens_run() -> None:
    """Autoregressive: every prompt and output token but the last runs once, and attends to what is before it."""
    result = run("plain")
    shape, n, prompt, output = result.built.shapes[0], 150, 300, 40
    tokens = prompt + output - 1
    named = [layer.attention.parameters(shape.d_model) for layer in shape.layers]
    weights = sum(names["attn.qkv"] + names["attn.out"] for names in named)
    linear = 2 * (weights + sum(3 * shape.d_model * layer.ffn.width for layer in shape.layers))
    pairs = tokens * (tokens + 1) // 2
    attention = sum(4 * layer.attention.heads * layer.attention.head_dim for layer in shape.layers) * pairs
    head = 2 * shape.d_model * shape.vocab * output
    expected = n * (linear * tokens + attention + head)
    assert result.accounts.counts["flops"].sum() == pytest.approx(expected, rel=1e-9)


def test_weights_are_read_once_a_round() -> None:
    """Bytes of weights per decode round: all parameters but the embedding, which is a gather."""
    result = run("plain")
    leaps, counts = result.recorder.leaps.frame(), result.accounts.counts
    rows = (leaps["chunks"] == 0) & (leaps["seats"] > 0)
    shape = result.built.shapes[0]
    per_round = counts["weight_bytes"][rows] / leaps["rounds"][rows]
    gather = leaps["seats"][rows] * shape.d_model * 2
    embedding = 0 if shape.tied else shape.vocab * shape.d_model
    np.testing.assert_allclose(per_round - gather, 2 * (shape.total_parameters - embedding), rtol=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_joules_of_requests_and_idle_time_are_all_joules(name: str) -> None:
    """Nothing is lost and nothing is counted twice; every finished request used some."""
    result, accounts, *_ = accounted(name)
    requests, energy = result.request_columns, result.metrics["energy"]
    assert float(requests["joules"].sum()) == pytest.approx(float(accounts.joules.sum()), rel=1e-9)
    assert energy["busy_joules"] + energy["idle_joules"] == pytest.approx(energy["joules"], rel=1e-12)
    assert (requests["joules"][requests["status"] == "finished"] > 0).all()


def test_joules_follow_the_tokens() -> None:
    """Two requests alone in turn: the one that does the same work pays the same."""
    result = simulate(scenario(workload={**RUNS["plain"].get("workload", {}), "rate": 0.5, "prompt": 64, "output": 8,
                                         "requests": 6, "arrivals": "constant"}))  # fmt: skip
    joules = result.request_columns["joules"]
    np.testing.assert_allclose(joules, joules[0], rtol=1e-9)


def test_no_joules_where_power_is_unknown() -> None:
    """A device without power gives nulls, not zeros."""
    import hardware_profiles

    unknown = next(
        (n for n in hardware_profiles.names() if hardware_profiles.load(n)["power"]["idle_W"] is None), None
    )
    if unknown is None:
        pytest.skip("every shipped device has a known idle power")
    result = simulate(scenario(hardware=unknown, workload={"rate": 1, "prompt": 20, "output": 4, "requests": 5}))
    assert result.metrics["energy"]["joules"] is None
    assert np.ma.getmaskarray(result.request_columns["joules"]).all()


def test_leap_rows_finds_interleaved_replicas() -> None:
    """Hand-made: replica 1's second leap is row 3."""
    leaps = {"replica": np.array([1, 0, 0, 1, 2]), "rounds": np.ones(5, int)}
    parts = {"replica": np.array([1, 0, 2, 0]), "leap": np.array([1, 0, 0, 1])}
    assert leap_rows(leaps, parts).tolist() == [3, 1, 4, 2]


def test_a_leap_is_shared_by_tokens_run() -> None:
    """Hand count: 12 J among 2 seats x 2 rounds x 1 token and a chunk of 8 tokens are 1 J a token."""
    leaps = {k: np.array([v]) for k, v in {"replica": 0, "seats": 2, "rounds": 2, "chunks": 1}.items()}
    chunks = {k: np.array([v]) for k, v in {"replica": 0, "leap": 0, "request": 7, "new": 8}.items()}
    stays = {"replica": np.array([0, 0]), "request": np.array([3, 4]), "first_leap": np.array([0, 0]),
             "last_leap": np.array([1, 1]), "seats": np.array([1, 1])}  # fmt: skip

    class Given:
        joules, prefill_tokens = np.array([12.0]), np.array([8])

    who, joules = request_joules(Given(), leaps, chunks, stays, 1)
    assert dict(zip(who.tolist(), joules.tolist(), strict=True)) == {3: 2.0, 4: 2.0, 7: 8.0}
