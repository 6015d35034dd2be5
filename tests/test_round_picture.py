"""One decoding round taken apart: seconds, bytes and masks are those of the policy's own passes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from analysis.plots.round import attention_mask, bytes_moved, round_figure, round_timeline
from analysis.round_picture import Round, attends_of, round_of
from sim import Scenario
from sim.axes import parse_axes
from sim.build import build_scenario
from sim.cli import app
from sim.policies.tandem import Tandem
from sim.policies.tree import Tree
from sim.speedup import curve

POLICIES = {
    "autoregressive": ("chat_h100", []),
    "speculative": ("bench_speculative", []),
    "mean draft lengths": ("chat_h100", ["policy={name: adaptive, draft: llama-3.2-1b}"]),
    "tree": ("chat_h100", ["model=llama-2-7b", "policy.name=tree"]),
    "tandem": ("chat_h100", ["policy={name: tandem, draft: llama-3.2-1b, gamma: 3}"]),
    "n-gram": ("chat_h100", ["policy={name: ngram, lookup_us: 50}"]),
    "encoder": ("gec_t5", []),
}


def built(name: str) -> tuple[Scenario, Any]:
    scenario = Scenario.load(POLICIES[name][0], POLICIES[name][1])
    return scenario, build_scenario(scenario)


def found(name: str, batch: int = 4, context: int = 64) -> Round:
    return round_of(built(name)[1], batch, context)


@pytest.mark.parametrize("name", POLICIES)
def test_the_passes_and_the_host_make_the_round(name: str) -> None:
    """The round is as long as `speedup` says, its causes add up to its passes, and one pass begins where one ends."""
    scenario, parts = built(name)
    one = round_of(parts, 4, 64)
    [row] = curve(scenario, parse_axes(["batch=4", "context=64"])).rows()
    assert one.seconds * 1e3 == pytest.approx(row["round_ms"], rel=1e-9)
    assert one.tokens == pytest.approx(row["expected_tokens"])
    at = one.host_s
    for step in one.steps:
        assert step.start_s == pytest.approx(at, abs=1e-12) and step.seconds > 0
        assert sum(step.causes.values()) == pytest.approx(step.seconds, rel=1e-9)
        at += step.seconds
    assert at == pytest.approx(one.seconds)


def test_bytes_are_those_of_the_weights_and_the_cache() -> None:
    """A verification pass of Llama-3.1-8B reads all weights but the embedding table once and 4 caches of 64 tokens."""
    verify = found("speculative").steps[-1]
    assert verify.label == "verify" and verify.tokens == 4 * 5
    table, rows = 128256 * 4096, 20 * 4096
    assert verify.moved["weights"] == 2 * (8_030_261_248 - table + rows)
    assert verify.moved["kv"] == 4 * 64 * 131_072 + 4 * 5 * 131_072  # reads, and what the five tokens write
    assert [s.label for s in found("speculative").steps] == ["draft 1", "draft 2", "draft 3", "draft 4", "verify"]


def test_roles_by_policy() -> None:
    """Heads draft a tree; a tandem projects after its primary; plain decoding only decodes; look-ups are the host's."""
    assert [s.label for s in found("tree").steps] == ["heads", "verify"]
    assert [s.label for s in found("tandem").steps] == ["draft 1", "draft 2", "draft 3", "verify", "project"]
    assert [s.label for s in found("autoregressive").steps] == ["decode"]
    assert found("n-gram").host_s == pytest.approx(4 * 50e-6)


def test_a_chain_sees_what_came_before() -> None:
    """The lower triangle among gamma + 1 tokens, the cache in full."""
    attends = attends_of(built("speculative")[1].policy)
    own = np.array(attends.cells)[:, attends.cached :]
    assert (own > 0).tolist() == np.tril(np.ones((5, 5), dtype=bool)).tolist()
    assert (np.array(attends.cells)[:, : attends.cached] == 1).all()


def test_a_tree_mask_has_the_ancestors() -> None:
    """Node [0, 0] sees the last token, [0] and itself, not its uncle; pairs are those that the pass is charged for."""
    policy = Tree(tree=[[0], [1], [0, 0]])
    attends = attends_of(policy)
    own = np.array(attends.cells)[:, attends.cached :] > 0
    assert attends.rows == ("last", "0", "1", "0.0")
    assert own.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    work = next(p.work for p in policy.passes(1, [0, 0, 0], None, ((None,), (None,))) if p.model == 0)
    assert work.decode_pairs is not None and own.sum() == work.decode_pairs[0]


def test_a_tandem_attends_to_the_primarys_blocks() -> None:
    """Before its block the secondary sees projections and nothing of its own; the primary sees its own cache."""
    attends = attends_of(Tandem(draft="llama-3.2-1b", gamma=3))
    cells = np.array(attends.cells)
    assert cells.shape == (3 + 4, 2 * 4 + 4) and attends.cached == 8
    assert (cells[:3, :8] == 3).all() and (cells[3:, :8] == 1).all()
    assert (cells[:3, 8:11] == 2 * np.tril(np.ones((3, 3)))).all() and not cells[:3, 11].any()
    assert (cells[3:, 8:] == 2 * np.tril(np.ones((4, 4)))).all()


def test_bars_are_drawn_to_scale() -> None:
    """Widths in one lane are the milliseconds of its passes; in another picture, the gigabytes."""
    one = found("speculative")
    bars = round_timeline(one).patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(one.seconds * 1e3)
    assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(one.seconds * 1e3)
    moved = sum(sum(step.moved.values()) for step in one.steps) / 1e9
    assert sum(bar.get_width() for bar in bytes_moved(one).patches) == pytest.approx(moved)


def test_the_mask_is_drawn_cell_by_cell() -> None:
    attends = attends_of(Tree(tree=[[0], [1], [0, 0]]))
    mesh = attention_mask(attends).collections[0]
    assert np.asarray(mesh.get_array()).ravel().tolist() == np.ravel(attends.cells).tolist()


@pytest.mark.parametrize("name", ["tree", "tandem"])
def test_the_whole_picture_is_the_same_bytes_twice(name: str, tmp_path: Path) -> None:
    from analysis.plots import save_figure

    for i in range(2):
        save_figure(round_figure(found(name, 1, 128)), tmp_path / f"{i}.svg")
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, a picture, JSON; what does not go together is refused before anything is written."""
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    said = run(app, ["explain", "bench_speculative", "--round", "--out", "round.svg", "--batch", "2"])
    assert said.exit_code == 0 and "verify" in said.output and "wrote round.svg" in said.output
    assert (tmp_path / "round.svg").read_text("utf-8").startswith("<?xml")
    plain = json.loads(run(app, ["explain", "chat_h100", "--round", "--json"]).output)
    assert plain["batch"] == 1 and plain["steps"][0]["label"] == "decode" and plain["attends"]["cells"]
    for options, reason in (
        (["--out", "x.svg"], "add --round"),
        (["--round", "--finetune"], "leave out --finetune"),
        (["--round", "--out", "x.bmp"], "ends in .png"),
    ):
        failed = run(app, ["explain", "chat_h100", *options])
        assert isinstance(failed.exception, ValueError) and reason in str(failed.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["round.svg"]


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="batch: 0 must be a whole number of at least 1"):
        round_of(built("autoregressive")[1], 0)
