"""Files of kernel timings: what is no such file is refused in one line, what is dirty is cleaned by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_fits import PLANTED, products
from typer.testing import CliRunner

import hardware_profiles
from sim.analytic.hardware import Device
from sim.calibration.kernel_rows import plausible, without_traps
from sim.calibration.kernel_tables import read_table
from sim.cli import app
from sim.silicon.users import calibrated, predict

H100 = Device.from_profile(hardware_profiles.load("h100-sxm"))


def good() -> pd.DataFrame:
    """200 products of an H100 in the documented layout."""
    frame = products(PLANTED, 0.03).frame
    return frame.assign(ms=frame["seconds"] * 1e3, backend="vllm")[
        ["gpu", "backend", "version", "dtype", "m", "n", "k", "ms"]
    ]


def write(frame: pd.DataFrame, folder: Path, name: str = "t.csv") -> str:
    path = folder / name
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f.drop(columns="n"), "no column 'n'"),
        (lambda f: f.rename(columns={"ms": "millis"}), "no column 'ms'"),
        (lambda f: f.assign(n=512), "n: the same in all rows"),
        (lambda f: f.assign(ms=0.01), "ms: the same in all rows"),
        (lambda f: f.head(3), "3 usable rows; allowed: at least 24"),
        (lambda f: f.assign(ms=np.nan), "0 usable rows"),
        (lambda f: f.assign(m="many"), "0 usable rows"),
    ],
)
def test_what_cannot_be_fitted_is_refused(spoil, said: str, tmp_path: Path) -> None:
    """One line that names the file and the column."""
    with pytest.raises(ValueError, match=said) as caught:
        read_table(write(spoil(good()), tmp_path))
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("factor", "said"), [(1e3, "microseconds"), (1e6, "nanoseconds"), (1e-3, "seconds instead")])
def test_other_units_are_recognised(factor: float, said: str, tmp_path: Path) -> None:
    """Times a thousand times off are implausible against the datasheet, and the message guesses the unit."""
    with pytest.raises(ValueError, match=said):
        plausible(read_table(write(good().assign(ms=lambda f: f["ms"] * factor), tmp_path)), H100)


def test_dirt_is_dropped_by_name(tmp_path: Path) -> None:
    """NaN, negative and impossible rows go, repeats become their median, and each is said."""
    frame = good()
    frame.loc[0, "ms"], frame.loc[1, "ms"], frame.loc[2, "k"] = np.nan, -1.0, 0
    table = read_table(write(pd.concat([frame, frame.tail(5)]), tmp_path))
    assert len(table.frame) == 197
    assert table.dropped == (
        "2 of 205 rows: ms is no positive number",
        "1 of 203 rows: a size is no positive number",
        "5 repeats: their median is kept",
    )


def test_mixed_engines_without_names_are_refused(tmp_path: Path) -> None:
    """The same case timed 1.6 times apart: two engines in one file, which has no column for them."""
    frame = good()
    both = pd.concat([frame, frame.assign(ms=frame["ms"] * 1.6)])
    with pytest.raises(ValueError, match="several engines or devices mixed"):
        read_table(write(both, tmp_path))


def test_mixed_devices_are_refused_unless_named(tmp_path: Path) -> None:
    """Of several devices, those of the one asked for are kept; where it is not among them, one line says so."""
    frame = pd.concat([good(), good().assign(gpu="l40s", ms=lambda f: f["ms"] * 3)])
    file = write(frame, tmp_path)
    assert len(predict(file, "h100-sxm").table.frame) == 200
    with pytest.raises(ValueError, match="none is b200-sxm; allowed: rows of one device"):
        predict(file, "b200-sxm")


def test_traps_are_left_out_by_name(tmp_path: Path) -> None:
    """vLLM's block-fp8 rows were timed eagerly: no fit takes them."""
    table = read_table(write(pd.concat([good(), good().assign(dtype="fp8_block")]), tmp_path))
    kept = without_traps(table)
    assert len(kept.frame) == 200 and "eagerly" in kept.dropped[0]


def test_outliers_bend_no_calibration(tmp_path: Path) -> None:
    """Every twentieth row a hundred times too long: held-out folds still predict the rest within 8 %."""
    frame = good()
    frame.loc[::20, "ms"] *= 100
    found = calibrated([write(frame, tmp_path, "t.parquet")], "h100-sxm")
    assert found.folds[0].n == 200 and found.folds[0].median < 0.08


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["t.csv", "t.parquet"]))
def test_garbage_is_refused_in_one_line(tmp_path_factory, content: bytes, name: str) -> None:
    """Whatever the bytes, a ValueError of one line, and nothing else."""
    path = tmp_path_factory.mktemp("g") / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def test_the_commands_go_round(tmp_path: Path) -> None:
    """calibrate --kernels writes a profile and a picture; validate --kernels with it predicts every row."""
    file, profile, out = write(good(), tmp_path), str(tmp_path / "k.yaml"), str(tmp_path / "rows.csv")
    run = CliRunner().invoke
    made = run(app, ["calibrate", "--kernels", file, "--device", "h100-sxm", "--out", profile])
    assert made.exit_code == 0 and (tmp_path / "k.png").stat().st_size > 5000
    done = run(app, ["validate", "--kernels", file, "--device", "h100", "--profile", profile, "--out", out, "--json"])
    rows = pd.read_csv(out)
    assert done.exit_code == 0 and len(rows) == 200
    assert (rows["predicted_ms"] / rows["ms"] - 1).abs().median() < 0.04


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["validate", "--kernels", "x.csv"], "add --device NAME"),
        (["validate", "--device", "h100"], "add --kernels FILE"),
        (["validate", "--silicon", "--published"], "one at a time"),
        (["validate", "--kernels", "none.csv", "--device", "h100"], "none.csv: cannot be read"),
        (["calibrate", "--kernels", "x.csv"], "add --device NAME"),
    ],
)
def test_the_commands_refuse_in_one_line(arguments: list[str], said: str) -> None:
    """What is missing or does not go together is named."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0 and said in str(done.exception)


def test_kernel_profiles_are_checked(tmp_path: Path) -> None:
    """Every shipped profile passes; an unknown key, a value outside its interval and a missing 'any' do not."""
    from hardware_profiles.kernel_files import kernels, measured, read_kernels

    assert set(measured()) >= {"a100-sxm-80gb", "b200-sxm", "h100-sxm", "l40s"}
    for name in hardware_profiles.names():
        assert kernels(name, "vllm")["matmul"]["bf16"]["any"]["compute"] > 0.2
    entry = "{compute: 0.5, memory: 0.5, floor_us: 1.0, overlap_p: 1.0, quantise: 0.0, depth_us: 0.0"
    head = "device: d\nmeasurements: m\nlibraries:\n  vllm:\n    matmul:\n      bf16:\n        "
    for text, said in (
        (f"any: {entry}, speed: 2}}", "speed is no known key"),
        (f"any: {entry}, interval: {{compute: [0.6, 0.7]}}}}", "outside its own interval"),
        (f"gqa: {entry}}}", "must have an entry 'any'"),
    ):
        (tmp_path / "k.yaml").write_text(head + text, "utf-8")
        with pytest.raises(ValueError, match=said):
            read_kernels(tmp_path / "k.yaml")


def test_siblings_stand_in_with_wider_intervals() -> None:
    """An H200 takes the H100's shares, a device of no measured kind the class default; both say so, both wider."""
    own, sibling, other = (hardware_profiles.kernels(name, "vllm") for name in ("h100-sxm", "h200-sxm", "mi300x"))
    assert "measured" in own["source"] and "sibling h100-sxm" in sibling["source"] and "class" in other["source"]
    spans = [p["matmul"]["bf16"]["any"]["interval"]["memory"] for p in (own, sibling, other)]
    widths = [high - low for low, high in spans]
    assert widths[0] < widths[1] < widths[2]
