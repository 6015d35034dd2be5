"""What every variant owes: found by name, never listed here. Options that reach its corners: tests/variant_setup.py."""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import replace
from functools import cache
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from analytic_models import CROSS, DENSE, LATENT, MOE, WINDOWED, device
from typer.testing import CliRunner
from variant_setup import VARIANTS

from sim import cli
from sim.analytic.cost import PassCost
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.placement import Layout
from sim.analytic.work import Work
from sim.plugin import build, catalogue, discover
from sim.quality import LOSSLESS, quality_of
from sim.variants import METHODS

A100 = device("a100-sxm-80gb")
TWO = replace(DENSE, name="two", layers=DENSE.layers[:2])
PLAIN = ModelShape(
    "plain", 64, 512, (Layer(Attention(8, 8, 16, 16, qkv_bias=True), Ffn(160, False, True)),) * 2, tied=True
)
ENCODER = replace(CROSS, name="encoder", layers=(), head=False)
ZOO = (TWO, DENSE, PLAIN, WINDOWED, MOE, LATENT, CROSS, ENCODER)
NAMES = sorted(discover("sim.variants"))
KNOWN = [name for name in NAMES if name in VARIANTS]
HOSTILE = (
    None,
    -1,
    0,
    True,
    1.5,
    10**9,
    math.nan,
    math.inf,
    "no such",
    [],
    [2.0],
    [1, None],
    {},
    {"kind": "none"},
    [[]],
)
READ = ("weight_bytes", "link_bytes")
COUNTS = ("flops", "weight_bytes", "kv_read_bytes", "kv_write_bytes", "activation_bytes", "link_bytes", "inputs")


def examples() -> list[tuple[str, dict[str, Any]]]:
    """Every variant with each of its example options."""
    return [(name, options) for name in NAMES for options in VARIANTS.get(name, ())]


def made(name: str, options: dict[str, Any]) -> Any:
    """The variant of an example."""
    return build("sim.variants", f"variants.{name}", {"name": name, **options})


def _id(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()) or "plain"


ALL = pytest.mark.parametrize(("name", "options"), examples(), ids=_id)


@cache
def cost_of(variant: Any, shape: ModelShape) -> PassCost:
    """A shape's cost with the variant."""
    return PassCost(shape, A100, variants=[variant])


@cache
def plain_cost(shape: ModelShape) -> PassCost:
    """A shape's cost without any."""
    return PassCost(shape, A100)


@cache
def works_on(variant: Any, shape: ModelShape) -> bool:
    """Whether a variant applies to a shape; where it does not, it has to say why in one line that names its option."""
    try:
        cost_of(variant, shape)
    except ValueError as error:
        assert str(error).startswith(f"variants.{variant.name}") and "\n" not in str(error), error
        return False
    return True


def shapes_of(variant: Any) -> list[ModelShape]:
    """The shapes of the zoo that it works on."""
    return [shape for shape in ZOO if works_on(variant, shape)]


def rounds(shape: ModelShape) -> Work:
    """Four rounds of decodes beside prompt chunks, and the encoder's part where there is one; shapes [4]."""
    if not shape.layers:
        return Work.encode(np.array([1, 2, 130, 1000]), 9)
    windows, batch = shape.windows, np.array([1, 2, 130, 1000])
    if shape.encoder:
        return Work.decode(batch, 70, windows=windows)._replace(cross_pairs=batch * 5, cross_reads=batch * 5)
    return Work.mixed(Work.decode(batch, 70, windows=windows), Work.chunk(33, 20, batch=batch, windows=windows))


def one(work: Work, i: int) -> Work:
    """Round ``i`` of a work."""

    def at(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(at(v) for v in value)
        return value if value is None else int(np.broadcast_to(value, 4)[i])

    return Work(*(at(value) for value in work))


# --- what it is -----------------------------------------------------------------------------------


def test_every_variant_has_examples() -> None:
    """In tests/variant_setup.py, without which nothing here would run it; and every example is of a variant."""
    assert set(VARIANTS) == set(NAMES)


@pytest.mark.parametrize("name", KNOWN)
def test_a_variant_is_a_frozen_dataclass_of_its_options(name: str) -> None:
    """One name, no base class, values that compare and hash, at least one of the four methods, documented options."""
    kind = discover("sim.variants")[name]
    assert kind.__bases__ == (object,) and kind.__name__.lower() == name.replace("_", "")
    variant = made(name, VARIANTS[name][0])
    assert variant == made(name, VARIANTS[name][0]) and hash(variant) == hash(made(name, VARIANTS[name][0]))
    assert any(hasattr(kind, method) for method in METHODS)
    for option in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(variant, option.name, 1)
        assert f"``{option.name}``" in inspect.getdoc(kind), f"{option.name} is not explained"


@pytest.mark.parametrize("name", KNOWN)
def test_options_are_checked(name: str) -> None:
    """Whatever a scenario says, an option is taken (and then works or says why not) or refused in a line naming it."""
    kind, good = discover("sim.variants")[name], VARIANTS[name][0]
    with pytest.raises(ValueError, match=rf"^variants\.{name}\.no_such_option: [^\n]+$"):
        made(name, {**good, "no_such_option": 1})
    refused = set()
    for option in dataclasses.fields(kind):
        for value in HOSTILE:
            try:
                variant = made(name, {**good, option.name: value})
            except ValueError as error:
                assert str(error).startswith("variants.") and "\n" not in str(error) and option.name in str(error), (
                    error
                )
                refused.add(option.name)
            else:
                works_on(variant, TWO)
    assert refused == {f.name for f in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", NAMES)
def test_the_command_lists_it_with_its_options(name: str) -> None:
    """``decodesim variants`` shows name and options, and the documentation says where it comes from or what it is."""
    [row] = [r for r in catalogue("sim.variants") if r["name"] == name]
    assert set(row["options"]) == {f.name for f in dataclasses.fields(discover("sim.variants")[name])}
    shown = CliRunner().invoke(cli.app, ["variants", "--json"])
    assert shown.exit_code == 0 and f'"{name}"' in shown.output and len(row["about"]) > 80


@ALL
def test_it_works_on_a_small_model_or_says_why_not(name: str, options: dict[str, Any]) -> None:
    """Every kind of model is either costed or refused in one line; at least one is costed."""
    assert shapes_of(made(name, options))


# --- what it does ---------------------------------------------------------------------------------


@ALL
def test_a_round_costs_the_same_alone_and_among_others(name: str, options: dict[str, Any]) -> None:
    """Seconds bit for bit, and the seconds are the sum of their causes."""
    variant = made(name, options)
    for shape in shapes_of(variant):
        cost = cost_of(variant, shape)
        work = rounds(cost.shape)
        together = cost.seconds(work)
        assert together.tolist() == [float(cost.seconds(one(work, i))) for i in range(4)], shape.name
        assert sum(cost.causes(work).values()) == pytest.approx(together, rel=1e-9), shape.name


@ALL
def test_counts_are_never_negative_and_more_work_costs_no_less(name: str, options: dict[str, Any]) -> None:
    """Every op, rounds without decodes or without prompts included; seconds are finite and rise with the batch."""
    variant = made(name, options)
    for shape in shapes_of(variant):
        cost = cost_of(variant, shape)
        for work in (rounds(cost.shape), Work(0, 0), Work(3, 1, encoder_tokens=2)):
            for op in cost.ops(work):
                values = [np.asarray(getattr(op, kind), dtype=float) for kind in COUNTS]
                assert all(np.isfinite(v).all() and (v >= 0).all() for v in values), (shape.name, op.name)
                assert op.layers >= 1
        seconds = cost.seconds(rounds(cost.shape)).tolist()
        assert all(0 < a <= b < math.inf for a, b in pairwise(seconds)), shape.name


@ALL
def test_it_is_pure(name: str, options: dict[str, Any]) -> None:
    """Asking twice gives the same answer, and what it was given is as it was."""
    variant = made(name, options)
    for shape in shapes_of(variant):
        bare = cost_of(variant, shape)
        work, stored = rounds(bare.shape), dict(bare.weight_bytes_by_op)
        if hasattr(variant, "rewrite"):
            given = plain_cost(bare.shape).ops(work)
            said = [repr(op) for op in given]
            first, second = ([repr(op) for op in variant.rewrite(given, work)] for _ in range(2))
            assert first == second and said == [repr(op) for op in given], shape.name
        if hasattr(variant, "reshape"):
            assert variant.reshape(shape) == variant.reshape(shape)
        if hasattr(variant, "resident"):
            before = dict(stored)
            assert variant.resident(stored) == variant.resident(stored) and stored == before
    for shape in shapes_of(variant)[::3]:  # put together once more
        work = rounds(cost_of(variant, shape).shape)
        again = PassCost(shape, A100, variants=[variant]).seconds(work)
        assert cost_of(variant, shape).seconds(work).tolist() == again.tolist(), shape.name


def read_bytes(cost: PassCost) -> tuple[float, float]:
    """Weights read in one large pass through everything, gathers of embeddings left out; and what came over a link."""
    shape, tokens = cost.shape, 1 << 20
    work = Work.decode(tokens, 9, windows=shape.windows) if shape.layers else Work(0, 0)
    work = work._replace(encoder_tokens=tokens, encoder_pairs=9 * tokens, cross_kv_tokens=tokens)
    ops = [op for op in cost.ops(work) if op.name.removeprefix("encoder.") != "embed"]
    read, linked = (sum(op.layers * float(np.max(getattr(op, kind))) for op in ops) for kind in READ)
    return read, linked


@ALL
def test_what_is_read_is_in_memory(name: str, options: dict[str, Any]) -> None:
    """A pass that visits every expert reads no more weights than are resident or come over a link. Latent attention is
    left out, whose two absorbed products read one matrix; 5 % are for scales of columns, which memory does not count.
    """
    variant = made(name, options)
    for shape in shapes_of(variant):
        cost = cost_of(variant, shape)
        if not any(layer.attention.latent for layer in cost.shape.layers):
            read, linked = read_bytes(cost)
            assert read <= 1.05 * cost.bytes_weights + linked, shape.name


@ALL
def test_over_two_devices_no_device_does_more(name: str, options: dict[str, Any]) -> None:
    """Tensor parallel: the matrix products of one device are at most those of one alone, or it says why it cannot."""
    variant = made(name, options)
    work = Work.decode(np.array([1, 64]), 70)
    try:
        both, alone = PassCost(TWO, A100, layout=Layout(tensor=2), variants=[variant]), cost_of(variant, TWO)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    half, whole = (
        cost.counts(work._replace(decode_pairs=(70,), decode_reads=(70,)))["flops"] for cost in (both, alone)
    )
    assert (half <= whole * (1 + 1e-12)).all() and (half > 0).all()


@ALL
def test_whatever_saves_work_says_what_it_loses(name: str, options: dict[str, Any]) -> None:
    """A variant that computes or reads less than the plain model, or stores other numbers, has a ``quality``; what has
    none, or says LOSSLESS, multiplies at least as much."""
    variant = made(name, options)
    quality = quality_of(variant)
    assert quality.loss_percent is None or math.isfinite(quality.loss_percent)
    assert quality.what and quality.source
    if quality != LOSSLESS:
        return
    for shape in shapes_of(variant):
        plain, ours = plain_cost(shape), cost_of(variant, shape)
        work = rounds(shape)
        less = ours.counts(work)["flops"] < plain.counts(work)["flops"] * (1 - 1e-9)
        assert not less.any(), f"{shape.name}: saves products and says it loses nothing"
        formats = ("weights", "activations", "kv")
        assert all(getattr(ours.precision, f) == getattr(plain.precision, f) for f in formats), shape.name


@ALL
def test_clashes_name_plug_ins_and_say_why(name: str, options: dict[str, Any]) -> None:
    """What it says it cannot go with is a variant or a policy, not itself, with a reason of one line."""
    clashes = getattr(made(name, options), "clashes", {})
    assert set(clashes) <= {*NAMES, *discover("sim.policies")} - {name}
    assert all(isinstance(reason, str) and 10 < len(reason) < 240 and "\n" not in reason for reason in clashes.values())


def test_the_suite_catches_what_it_is_for() -> None:
    """Planted faults: a variant that shares a round's cost with its neighbours, one that counts below zero, one that
    saves work in silence."""

    class Mean:
        name = "mean"

        def rewrite(self, ops: list[Any], work: Work) -> list[Any]:
            return [replace(op, weight_bytes=op.weight_bytes * (1 + np.mean(work.tokens))) for op in ops]

    cost = PassCost(TWO, A100, variants=[Mean()])
    work = rounds(TWO)
    alone = [float(sum(cost.causes(one(work, i)).values())) for i in range(4)]
    assert sum(cost.causes(work).values()).tolist() != pytest.approx(alone)

    class Thief:
        name = "thief"

        def reshape(self, shape: ModelShape) -> ModelShape:
            return replace(shape, layers=shape.layers[:1])

    assert quality_of(Thief()) == LOSSLESS
    less = PassCost(TWO, A100, variants=[Thief()]).counts(work)["flops"]
    assert (less < PassCost(TWO, A100).counts(work)["flops"]).all()


def test_the_order_of_the_list_does_not_matter_across_stages() -> None:
    """Number formats come first and places last, however a scenario lists them."""
    specs = [{"name": "offload", "weights": 0.5}, "contextual_sparsity", {"name": "quantization", "format": "awq"}]
    plugins = [build("sim.variants", "variants", spec) for spec in specs]
    work = Work.decode(4, 900, windows=PLAIN.windows)
    found = {PassCost(PLAIN, A100, variants=order).seconds(work) for order in permutations(plugins)}
    assert len(found) == 1
