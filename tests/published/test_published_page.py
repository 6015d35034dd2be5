"""docs/decks.md shows what `decodesim validate --published` prints."""

import re
from pathlib import Path

import pytest

from sim.published import hold
from sim.published.table import PREDICTED, load

PAGE = (Path(__file__).parents[2] / "docs/decks.md").read_text("utf-8")
LINE = re.compile(
    r"^\| `(?P<id>[^`]+)` \| .* \| (?P<printed>[^|]+) \| (?P<ours>[^|]+) \| (?P<error>[^|]*) \| (?P<label>[^|]+) \|$"
)
TABLE = load()
SHOWN = [m for line in PAGE.splitlines() if (m := LINE.match(line))]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda m: m["id"])
def test_a_row_of_the_page_is_true(shown: "re.Match[str]") -> None:
    """Printed number, ours, error and label are those of the table, to the digits shown."""
    (held,) = hold([TABLE.known[shown["id"]]], TABLE)
    assert shown["printed"] == held.row.published and held.ours is not None
    assert float(shown["ours"].replace(",", "")) == pytest.approx(held.ours, rel=1e-3)
    if held.error is not None:
        assert float(shown["error"].rstrip(" %")) == pytest.approx(100 * held.error, abs=0.06)
    assert shown["label"].replace("after one fit", PREDICTED) == held.row.label


def test_the_page_leaves_out_no_row_with_ours() -> None:
    """Of slides that print numbers; images of a table that another deck prints refer to it."""
    shown = {m["id"] for m in SHOWN}
    for row in TABLE.rows:
        own = any("no numbers on the slide" not in row.slide_in(deck) for deck in row.decks)
        if row.label != "data" and own:
            assert row.id in shown, row.id


def test_every_slide_has_its_heading() -> None:
    """In order, deck by deck."""
    found = re.findall(r"^### (\d{3}\.\d{2} .+)$", PAGE, re.MULTILINE)
    wanted = sorted({f"{deck}.{row.slide_in(deck)}" for row in TABLE.rows for deck in row.decks})
    assert found == wanted
