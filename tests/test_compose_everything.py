"""Any policy with any variants on any shape and device: it runs, leaping as stepping, or is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analytic_models import CROSS, DENSE, LATENT, MOE, WINDOWED
from engine_setup import POLICIES
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from variant_setup import VARIANTS

from sim import Scenario, build
from sim.account import account
from sim.analytic.memory import DoesNotFit
from sim.axes import Axis
from sim.plugin import build as make
from sim.plugin import discover
from sim.policies import Chunk, Chunks
from sim.run import Result, simulate
from sim.serving.rounds import Rounds
from sim.speedup import curve
from sim.validation.counts import each

ZOO = {shape.name: shape for shape in (DENSE, WINDOWED, MOE, LATENT, CROSS)}
DRAFTS = {
    "little": replace(DENSE, name="little", layers=DENSE.layers[:1]),
    "little-cross": replace(CROSS, name="little-cross", layers=CROSS.layers[:1]),
}
DEVICES = ("h100-sxm", "a10", "generic-phone", "groq-lpu-v1", "epyc-9654")
WORKLOAD = {"requests": 5, "rate": 2e4, "prompt": {"kind": "uniform", "low": 1, "high": 40}, "output": 24}
COUNTED = ("flops", "vector_flops", "weight_bytes", "kv_bytes", "activation_bytes", "onchip_bytes", "link_bytes")
POLICY = [(name, options) for name, table in POLICIES.items() for options in table]
VARIANT = [{name: options} for name, table in VARIANTS.items() for options in table]
SELF_DRAFTS: dict[str, dict[str, Any]] = {
    "int4 copy": {"model": "self", "variants": [{"quantization": {"weights": 4, "group": "channel"}}]},
    "int4 draft": {"model": "little", "variants": [{"quantization": {"weights": 4, "group": "channel"}}]},
    "slice on one cache": {"model": "self", "variants": [{"matformer": {"size": "S"}}], "kv": "shared"},
    "slice": {"model": "self", "variants": [{"matformer": {"size": "S"}}]},
    "prefix on one cache": {"model": "self", "variants": [{"early_exit": {"layers": 1}}], "kv": "shared"},
    "prefix in int8": {"model": "self", "variants": [{"early_exit": {"layers": 1}}, {"quantization": {"weights": 8}}]},
}


@pytest.fixture(autouse=True, scope="module")
def zoo() -> Iterator[None]:
    """Scenarios may name the shapes of the zoo."""
    shipped, known = build.load_shape, {**ZOO, **DRAFTS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_shape", lambda name, key: known.get(name) or shipped(name, key))
        yield


def with_draft(options: Any, draft: Any) -> Any:
    """Options in which every draft named "d" is ``draft``."""
    if isinstance(options, dict):
        return {k: draft if k == "draft" and v == "d" else with_draft(v, draft) for k, v in options.items()}
    return [with_draft(v, draft) for v in options] if isinstance(options, list) else options


def asked(name: str, options: Any, variants: Any, shape: str, device: str, draft: Any = None) -> Scenario:
    """A scenario of five requests that arrive nearly at once."""
    little = "little-cross" if shape == "cross" else "little"
    said = with_draft(deepcopy(options), little if draft is None else draft)
    return Scenario.model_validate(
        {
            "model": shape, "hardware": device, "policy": {"name": name, **said}, "variants": variants,
            "workload": WORKLOAD, "scheduler": {"name": "chunked", "token_budget": 48, "max_sequences": 4},
        }
    )  # fmt: skip


def names_in(scenario: Scenario) -> set[str]:
    """What a refusal may blame: a policy, a variant, an option of theirs, or the model."""
    variants = {name for spec in scenario.variants for name in spec}
    return {"policy", "variants", "model", scenario.policy["name"], *variants}


def refused(scenario: Scenario) -> str | None:
    """The one line with which a scenario is refused; None where it can be put together."""
    try:
        build.build_scenario(scenario)
    except DoesNotFit as error:
        return str(error)
    except ValueError as error:
        said = str(error)
        blamed = [name for name in names_in(scenario) if said.startswith(name) or f"{name}." in said]
        assert blamed and "\n" not in said, said
        return said
    return None


def same(a: Any, b: Any, rel: float = 0.0) -> bool:
    """Whether two columns are equal, masks and unknowns included; numbers to ``rel``."""
    a, b = np.ma.asarray(a), np.ma.asarray(b)
    if a.shape != b.shape or not np.array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b)):
        return False
    a, b = a.compressed(), b.compressed()
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    return bool(np.allclose(a, b, rtol=rel, atol=0.0, equal_nan=True))


EVEN = {"autoregressive", "bigram", "blockwise", "load_adaptive", "speculative"}


def check_runs(scenario: Scenario) -> None:
    """Leaping and stepping tell the same of every request, tokens are conserved, counts are those of the passes.

    Joules are accounted for afterwards, by the mean round of a leap (sim/account.py). Where all rounds of a leap run as
    many tokens, that is the sum over its rounds but for the last bits: n times a mean is not a sum of n, in floats.
    Where they differ (drafts of random length, matches, plans), energy is not linear in the tokens of a round: 5 % of a
    request's joules, 12 % where units that rows choose are read in union (8 % of a run's).
    """
    leapt, stepped = simulate(scenario), simulate(scenario, stepping=True)
    ours, theirs = leapt.request_columns, stepped.request_columns
    assert [name for name in ours if name != "joules" and not same(ours[name], theirs[name])] == []
    even = scenario.policy["name"] in EVEN and not scenario.variants
    assert same(ours["joules"], theirs["joules"], 1e-12 if even else 0.25)
    check_tokens(leapt)
    check_counts(stepped)


def check_tokens(result: Result) -> None:
    """Whoever finished has all its tokens; whoever did not was rejected, and says so."""
    columns = result.request_columns
    done = columns["status"] == "finished"
    assert set(columns["status"]) <= {"finished", "rejected"} and len(columns["id"]) == 5
    assert (columns["output_tokens"][done] == 24).all()
    assert (columns["accepted_tokens"] <= columns["drafted_tokens"]).all()


def check_counts(stepped: Result) -> None:
    """FLOPs and bytes that the run accounts for equal the sum of PassCost.counts over the passes of its rounds."""
    rounds, recorder = stepped.built.setup.rounds, stepped.recorder
    leaps, chunks = recorder.leaps.frame(), recorder.chunks.frame()
    assert leaps["rounds"].max() == 1
    accounts = account(rounds, leaps, chunks)
    totals = dict.fromkeys(COUNTED, 0.0)
    sums = [name for name in leaps if name.startswith("sum_")]
    for number in range(len(leaps["rounds"])):
        own = (chunks["replica"] == leaps["replica"][number]) & (chunks["leap"] == number)
        rows = zip(*(chunks[c][own].tolist() for c in ("cached", "new", "last", "prompt")), strict=True)
        prompts = Chunks([Chunk(a, b, bool(c), d) for a, b, c, d in rows]) if own.any() else None
        seats = int(leaps["seats"][number])
        channels = np.array([leaps[name][number] for name in sums])[:, None] if seats else None
        for one in rounds.passes(seats, channels, prompts):
            for work in each(one.work):
                found = rounds.costs[one.model].counts(work)
                for key in COUNTED:
                    totals[key] += float(found[key])
    got = {key: float(accounts.counts[key].sum()) for key in COUNTED}
    assert got == pytest.approx(totals, rel=1e-9)


def check_speedup(scenario: Scenario) -> None:
    """A number above zero, finite, wherever it runs."""
    found = curve(scenario, [Axis("batch", (1, 8)), Axis("context", (64,))]).table["speedup"]
    assert np.isfinite(found).all() and (found > 0).all()


@settings(
    max_examples=80, deadline=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking runs whole scenarios, for minutes
)  # fmt: skip
@given(
    st.sampled_from(POLICY), st.lists(st.sampled_from(VARIANT), max_size=3), st.sampled_from(sorted(ZOO)),
    st.sampled_from(DEVICES), st.none() | st.sampled_from(sorted(SELF_DRAFTS)),
)  # fmt: skip
def test_anything_goes_or_says_why_not(
    policy: tuple[str, Any], variants: list[Any], shape: str, device: str, draft: str | None
) -> None:
    """Policy, up to three variants, shape, device, and what drafts: all drawn."""
    scenario = asked(*policy, variants, shape, device, SELF_DRAFTS[draft] if draft else None)
    if (why := refused(scenario)) is not None:
        event("refused")
        assert why
        return
    event("runs")
    check_runs(scenario)
    check_speedup(scenario)


DRAFTING = [name for name, table in POLICIES.items() if any("draft" in str(options) for options in table)]


@pytest.mark.parametrize("draft", SELF_DRAFTS)
@pytest.mark.parametrize("name", DRAFTING)
def test_a_draft_with_variants_under_every_policy_that_drafts(name: str, draft: str) -> None:
    """An int4 copy, a slice on the target's cache, a prefix of its layers: each runs, or is refused by a tandem, whose
    secondary must have a cache of its own to be projected into."""
    options = next(o for o in POLICIES[name] if with_draft(o, "x") != o)
    scenario = asked(name, options, [], "dense", "h100-sxm", SELF_DRAFTS[draft])
    why = refused(scenario)
    if why is not None:
        assert name in ("tandem", "plan") and "policy.draft" in why
        return
    check_runs(scenario)
    check_speedup(scenario)


def test_a_clash_names_both_and_says_why() -> None:
    """Every pair that a variant or policy says it cannot go with is refused where it is put together."""
    seen = 0
    for name, examples in VARIANTS.items():
        clashes = getattr(make("sim.variants", "variants", {"name": name, **examples[0]}), "clashes", {})
        for other, reason in clashes.items():
            with_policy = other in discover("sim.policies")
            policy = (other, POLICIES[other][0]) if with_policy else ("autoregressive", {})
            variants = [{name: examples[0]}, *([] if with_policy else [{other: VARIANTS[other][0]}])]
            why = refused(asked(*policy, variants, "dense", "h100-sxm"))
            assert why is not None and reason in why and name in why and other in why
            seen += 1
    assert seen >= 5


def test_the_checks_catch_a_forgotten_pass_and_a_leap_that_goes_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts that leave out the draft's passes differ from the passes; a stepper with other luck from the leaper."""
    scenario = asked("speculative", {"draft": "d", "gamma": 3}, [], "dense", "h100-sxm")
    check_runs(scenario)
    stepped = simulate(scenario, stepping=True)
    true = Rounds.mean_passes
    forgetful = lambda self, *given: [one for one in true(self, *given) if not one.model]  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(Rounds, "mean_passes", forgetful)
        with pytest.raises(AssertionError):
            check_counts(stepped)
    seeds = iter((1, 2))
    monkeypatch.setattr(build, "Luck", lambda seed, make=build.Luck: make(next(seeds)))
    with pytest.raises(AssertionError):
        check_runs(scenario)
