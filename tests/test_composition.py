"""Any model with any variants as a draft, any name of the field as a policy, and what does not go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sim.build import Built, build_scenario
from sim.names import expand, names
from sim.plugin import discover
from sim.policies import Model
from sim.policies.drafting import model_of
from sim.run import simulate
from sim.scenario import Scenario
from sim.variants import check_clashes

INT4 = {"quantization": {"weights": 4, "group": "channel"}}


def built(policy: Any, **more: Any) -> Built:
    """A Llama-3.1-8B on an H100, decoded in some way."""
    workload = {"requests": 20, "rate": 4, "prompt": 64, "output": 8}
    base = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "workload": workload}
    return build_scenario(Scenario.model_validate({**base, "policy": policy, **more}))


def speculative(draft: Any) -> Built:
    return built({"name": "speculative", "gamma": 3, "draft": draft})


def lines(one: Built) -> dict[str, float]:
    return dict(one.budget.lines)


def test_a_draft_with_variants_is_that_model_with_fewer_bytes() -> None:
    """int4 weights of the draft alone: its memory and its passes shrink, the target's stay."""
    plain, packed = speculative("llama-3.2-1b"), speculative({"model": "llama-3.2-1b", "variants": [INT4]})
    assert lines(packed)["draft weights"] < lines(plain)["draft weights"]
    assert lines(packed)["weights"] == lines(plain)["weights"]
    assert packed.costs[0].weight_bytes_by_op == plain.costs[0].weight_bytes_by_op
    assert packed.costs[1].variants and not packed.costs[0].variants


def test_the_targets_variants_stay_with_the_target_unless_it_drafts_itself() -> None:
    """A draft of another model does not inherit them; ``self`` is the target as it is served."""
    other = built({"name": "speculative", "draft": "llama-3.2-1b"}, variants=[INT4])
    itself = built({"name": "speculative", "draft": "self"}, variants=[INT4])
    assert other.costs[0].variants and not other.costs[1].variants
    assert itself.costs[0].variants == itself.costs[1].variants


def test_a_copy_of_the_target_is_held_twice_and_the_target_itself_once() -> None:
    """An int4 copy needs its own bytes; ``self`` as it is needs none."""
    assert lines(speculative("self"))["draft weights"] == 0.0
    copy = speculative({"model": "self", "variants": [INT4]})
    assert lines(copy)["draft weights"] == copy.costs[1].bytes_weights > 0.0


def test_a_shared_cache_is_counted_once() -> None:
    """KV bytes a token: target and draft with caches of their own, the target's alone where it is shared."""
    own, shared = (speculative({"model": "self", "variants": [INT4], "kv": kv}) for kv in ("own", "shared"))
    [token] = {sum(span.token_bytes for span in shared.setup.kv.spans)}
    assert token == sum(shared.costs[0].kv_bytes_per_token) == 131_072
    assert sum(span.token_bytes for span in own.setup.kv.spans) == 2 * token


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (3, r"policy\.draft: 3 is not the name"),
        ({}, r"policy\.draft: \{\} is not the name"),
        ({"model": "llama-3.2-1b", "variant": []}, r"policy\.draft\.variant: unknown.*did you mean 'variants'"),
        ({"model": "llama-3.2-1b", "kv": "shared"}, r"policy\.draft\.kv: llama-3.2-1b is another model"),
        ({"model": "self", "kv": "ours"}, r"policy\.draft\.kv: 'ours': must be own or shared"),
        ({"model": "self", "variants": "int4"}, r"policy\.draft\.variants: 'int4' is not a list"),
        ({"model": "self", "variants": ["quantisation"]}, r"policy\.draft\.variants\[0\]: 'quantisation'"),
        ({"model": "gpt2"}, r"policy\.draft: gpt2 has a vocabulary of 50257"),
    ],
)
def test_a_wrong_draft_is_refused_in_one_line(draft: Any, said: str) -> None:
    """Key, value and what is allowed."""
    with pytest.raises(ValueError, match=said) as refused:
        speculative(draft)
    assert "\n" not in str(refused.value)


def test_a_draft_by_name_stays_a_name() -> None:
    assert model_of("x") == "x" and model_of("self") == Model(None)
    assert model_of({"model": "x", "kv": "own"}) == Model("x")


@pytest.mark.parametrize("name", sorted(set(discover("sim.variants"))))
def test_a_variant_by_name_is_autoregressive_decoding_of_it(name: str) -> None:
    """Options go to the variant, and it comes before the scenario's own."""
    if name in discover("sim.policies"):
        pytest.skip("a policy of this name exists")
    assert name in names()
    assert expand({"name": name, "x": 1}, ["y"]) == ("autoregressive", [{name: {"x": 1}}, "y"])


def test_policies_and_typos_are_left_alone() -> None:
    for said in ("autoregressive", {"name": "speculative", "gamma": 2}, 7, {"gamma": 1}):
        assert expand(said, []) == (said, [])


@pytest.mark.parametrize("name", ["medusa", "hydra", "eagle", "eagle2", "eagle3", "mtp", "specinfer", "sequoia"])
def test_names_of_trees_run_and_gain(name: str) -> None:
    """Each is a tree whose rounds give more than a token, built and run by its name alone; options override."""
    workload = {"requests": 5, "rate": 5, "prompt": 64, "output": 40}
    scenario = _scenario(name, []).model_copy(update={"workload": workload})
    found = simulate(scenario)
    assert found.built.scenario.policy["name"] == "tree" and found.metrics["acceptance"]["mean_accepted_length"] > 1.3
    assert expand({"name": name, "host_us": 7.0}, [])[0]["host_us"] == 7.0


def test_auto_finds_a_draft_wherever_one_is_named() -> None:
    """As the model of a draft with variants, too."""
    packed = speculative({"model": "auto", "variants": [INT4]})
    assert packed.costs[1].shape.name == "llama-3.2-1b"


def test_a_name_that_nothing_has_is_refused_with_the_nearest() -> None:
    """Names of the field are among what is offered."""
    with pytest.raises(ValueError, match=r"^policy: 'matformr': must be one of .*; did you mean 'matformer'\?$"):
        expand("matformr", [])


def test_quantization_as_a_policy_is_quantization_as_a_variant() -> None:
    """Same run, to the nanosecond, and the resolved scenario says what was run."""
    one = simulate(_scenario({"name": "quantization", "format": "awq"}, []))
    other = simulate(_scenario("autoregressive", [{"quantization": {"format": "awq"}}]))
    assert one.requests.equals(other.requests)
    assert one.built.scenario.policy["name"] == "autoregressive" and len(one.built.scenario.variants) == 1


def _scenario(policy: Any, variants: list[Any]) -> Scenario:
    workload = {"requests": 40, "rate": 5, "prompt": 100, "output": 30}
    return Scenario.model_validate(
        {"model": "llama-3.1-8b", "hardware": "h100-sxm", "workload": workload, "policy": policy, "variants": variants}
    )


@dataclass(frozen=True)
class Cat:
    """Does not like dogs."""

    name: ClassVar[str] = "cat"
    clashes: ClassVar[dict[str, str]] = {"dog": "they fight"}


@dataclass(frozen=True)
class Dog:
    """Does not care."""

    name: ClassVar[str] = "dog"


def test_what_clashes_says_why() -> None:
    for pair in ([Cat(), Dog()], [Dog(), Cat()]):
        with pytest.raises(ValueError, match=r"^variants: cat cannot go with dog: they fight$"):
            check_clashes(pair)
    check_clashes([Cat(), Cat()])
