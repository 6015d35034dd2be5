"""docs/policies/index.md: a row for every policy, variant and name; what is lost; whether it really runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from engine_setup import POLICIES
from variant_setup import VARIANTS

from sim.names import NAMES
from sim.plugin import build, discover
from sim.quality import LOSSLESS, quality_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/policies/index.md"
PAGES = {"load_adaptive": "load-adaptive", "kv_eviction": "kv-eviction", "kv_sharing": "kv-sharing",
         "contextual_sparsity": "contextual-sparsity", "early_exit": "early-exit", "input_copy": "input-copy",
         "text_editing": "text-editing", "token_routing": "matformer"}  # fmt: skip
OWN = {"packed_products": "how the NumPy executor multiplies; for validation only"}


def rows() -> dict[str, list[str]]:
    """Cells of the page's table rows by plug-in."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: [cell.strip() for cell in line.strip("|").split("|")] for line in lines}


@pytest.mark.parametrize("kind", ["policies", "variants"])
def test_every_plug_in_has_a_row_with_its_page(kind: str) -> None:
    """And no row is left of one that is gone."""
    for name in set(discover(f"sim.{kind}")) - set(OWN):
        page = f"{PAGES.get(name, name)}.md"
        assert f"]({page})" in rows()[name][0], name
        assert (ROOT / "docs/policies" / page).is_file(), page
    assert set(rows()) == {*discover("sim.policies"), *discover("sim.variants")} - set(OWN)


@pytest.mark.parametrize(("kind", "table"), [("policies", POLICIES), ("variants", VARIANTS)])
def test_what_is_lost_is_what_the_plug_ins_say(kind: str, table: dict[str, list[dict[str, object]]]) -> None:
    """``lossless`` where no example loses anything, beside something else where some do, and nowhere else."""
    for name, examples in table.items():
        if name in OWN:
            continue
        lossless = [quality_of(build(f"sim.{kind}", "x", {"name": name, **o})) == LOSSLESS for o in examples]
        said = rows()[name][2]
        if any(lossless):
            assert "lossless" in said and (all(lossless) or "or " in said), f"{name}: {said}"
        else:
            assert not said.startswith("lossless"), f"{name}: {said}"


def test_twins_are_told() -> None:
    """A row says ``yes`` where a twin of that name exists, and why where none does."""
    twins = {p.stem for folder in ("twins", "variants") for p in (ROOT / "sim/reference" / folder).glob("[a-z]*.py")}
    for name, cells in rows().items():
        has = name in twins or name == "quantization"
        assert cells[3].startswith("yes") == has, f"{name}: {cells[3]}"


def test_names_of_the_field_are_listed() -> None:
    said = set(re.findall(r"`(\w+)`", PAGE.read_text("utf-8").split("## Names")[1]))
    assert set(NAMES) <= said
