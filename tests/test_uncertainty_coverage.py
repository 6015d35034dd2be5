"""Coverage: 80 % intervals hold 70 to 90 % of points that nobody has seen, and collapse without the misfit."""

from functools import cache

import numpy as np
import pytest

from hardware_profiles.kernel_files import read_kernels, textbook_ratios
from sim.calibration.kernel_predict import entries_of, predicted
from sim.calibration.kernel_rows import is_held
from sim.calibration.kernel_tables import KINDS, KernelTable
from sim.calibration.ship import devices_of, of_device
from sim.calibration.spread import annotated, for_checking, for_spread, quantiles
from sim.silicon.coverage import LIMITS, Covered, covered, inside
from sim.silicon.kernels import shipped
from sim.silicon.sections import Section


@cache
def table(kind: str) -> KernelTable:
    """A shipped table."""
    return shipped(kind)


def test_inside_counts_what_lies_between_the_outer_percentiles() -> None:
    """Of 0 to 100 the 10th percentile is 10 and the 90th 90, ends included."""
    samples = np.repeat(np.arange(101.0)[:, None], 4, axis=1)
    assert inside(samples, np.array([9.9, 10.0, 90.0, 90.1])).tolist() == [False, True, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_spread_and_check_never_meet(kind: str) -> None:
    """A row fits, gives the spread, or checks: no two of them, and no shape is on two sides."""
    one = table(kind)
    spread, check, held = for_spread(one), for_checking(one), is_held(kind, one.frame)
    assert not (spread & check).any()
    assert ((spread | check) == held).all()
    assert spread.any() and check.any()
    if kind == "gemm":
        shapes = [set(map(tuple, one.frame.loc[rows, ["n", "k"]].to_numpy())) for rows in (spread, check, ~held)]
        assert not (shapes[0] & shapes[1] | shapes[0] & shapes[2] | shapes[1] & shapes[2])


def test_a_shipped_ratio_is_that_of_its_rows() -> None:
    """Measured over predicted seconds of vLLM's bf16 products on an A100, from the shipped rows, by hand."""
    own = of_device(table("gemm"), "a100_sxm")
    device = devices_of([own])["a100_sxm"]
    rows = for_spread(own) & ((own.frame["library"] == "vllm") & (own.frame["dtype"] == "bf16")).to_numpy()
    ratios = own.frame["seconds"].to_numpy()[rows] / predicted(own, device)[rows]
    entry = entries_of("matmul", ("vllm", "0.14.0", "bf16", ""), device)["any"]
    assert entry["ratio"] == pytest.approx(np.quantile(ratios, [0.1, 0.5, 0.9]), rel=1e-3)
    fitted = own.frame[~is_held("gemm", own.frame) & (own.frame["library"] == "vllm")]
    assert entry["range"]["m"] == [fitted["m"].min(), fitted["m"].max()]


def test_annotating_again_changes_nothing() -> None:
    """The profile that ships is what its own rows say of it."""
    from importlib.resources import as_file, files

    device = devices_of([table("gemm")])["a100_sxm"]
    with as_file(files("hardware_profiles") / "kernels" / f"{device.name}.yaml") as path:
        profile = read_kernels(path)
    made = annotated(profile, [of_device(table(kind), "a100_sxm") for kind in KINDS], device)
    for library, sections in made["libraries"].items():
        for group, formats in sections.items():
            for name, entries in formats.items():
                for key, entry in entries.items():
                    said = profile["libraries"][library][group][name][key]
                    assert entry["ratio"] == pytest.approx(said["ratio"], rel=2e-3), (library, group, name, key)
                    assert entry["range"] == said["range"]


def test_a_datasheet_is_too_fast_at_the_median() -> None:
    """Every kind of kernel takes 1.3 to 2.6 times as long at the median, and none less than the datasheet."""
    for formats in textbook_ratios().values():
        low, middle, high = formats["any"]
        assert 1.0 <= low <= middle <= high
        assert 1.3 < middle < 2.6


def test_quantiles_leave_nan_out() -> None:
    """A row that no profile predicts has no ratio."""
    assert quantiles(np.array([1.0, np.nan, 3.0])) == pytest.approx([1.2, 2.0, 2.8])


def test_a_share_outside_its_limits_fails() -> None:
    """Too narrow and too wide both fail, as does NaN; without limits nothing is judged."""
    shares = [0.69, 0.7, 0.9, 0.91, float("nan")]
    passed = [Covered("x", "all", 9, share, LIMITS).passed for share in shares]
    assert passed == [False, True, True, False, False]
    assert Covered("x", "h100", 9, 0.2).passed
    assert not Section("s", [], [], covered=(Covered("x", "all", 9, 0.2, LIMITS),)).passed


def test_collectives_are_covered_and_collapse_without_misfit() -> None:
    """The quick table: 70 to 90 % inside; with parameters alone next to none, and the check fails."""
    (whole,) = [c for c in covered([table("collectives")]) if c.limits]
    assert whole.passed, whole
    (bare,) = [c for c in covered([table("collectives")], misfit=False) if c.limits]
    assert bare.share < 0.1
    assert not bare.passed


@pytest.mark.slow
def test_intervals_hold_as_often_as_they_say() -> None:
    """The section of validate --silicon, devices left out included."""
    found = [c for c in covered() if c.limits]
    assert len(found) == 6
    for one in found:
        assert one.passed, one


@pytest.mark.slow
def test_parameters_alone_are_too_sure() -> None:
    """Planted fault: without the misfit, every class fails, with less than half of its points inside."""
    for one in covered([table(kind) for kind in KINDS], misfit=False):
        if one.limits:
            assert one.share < 0.5
            assert not one.passed
