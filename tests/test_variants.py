"""The seam for variants: found by name, options checked, composed in order."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim import plugin, variants
from sim.analytic.rewrite import apply

SOURCE = '''
from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True)
class Shallow:
    """Leaves out layers."""

    name: ClassVar[str] = "shallow"
    layers: int = 1

    def reshape(self, shape):
        return shape[: self.layers]
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of variants with one file in it."""
    folder = tmp_path / "some_variants"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "shallow.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "some_variants"
    for name in [n for n in sys.modules if n.startswith("some_variants")]:
        del sys.modules[name]
    plugin.discover.cache_clear()


def test_a_list_of_names_and_options_builds_variants(package: str) -> None:
    built = variants.build(["shallow", {"shallow": {"layers": 3}}, {"shallow": None}], package)
    assert [v.layers for v in built] == [1, 3, 1]
    assert variants.build([]) == ()


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ("shallow", "must be a list"),
        ({"shallow": {}}, "must be a list"),
        (["shalow"], r"variants\[0\]: 'shalow': .* did you mean 'shallow'"),
        ([{"shallow": {"layer": 2}}], r"variants\[0\]\.layer: .* did you mean 'layers'"),
        (["shallow", 3], r"variants\[1\]: 3 must be a name"),
        ([{"shallow": 3}], r"variants\[0\]\.shallow: 3 must be a mapping"),
        ([{"shallow": {}, "deep": {}}], r"variants\[0\]: .* must be a name"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line(package: str, specs: object, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        variants.build(specs, package)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_a_variant_without_a_method_changes_nothing(package: str) -> None:
    [two, one] = variants.build([{"shallow": {"layers": 2}}, "shallow"], package)
    assert apply([two, one], "reshape", "abcdef") == "a" and apply([one, two], "reshape", "abcdef") == "a"
    assert apply([two], "reshape", "abcdef") == "ab"
    assert apply([two], "rewrite", [1, 2], None) == [1, 2]
