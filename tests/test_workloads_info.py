"""What is known of the shipped traces, and that the package stands on its own."""

import ast
import gzip
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

import workloads
from workloads import describe, info, open_trace, shipped
from workloads.columns import join

FOLDER = Path(workloads.__file__).parent

# rows, first and last arrival in s, inter-arrival CV: counted with awk and pandas from the published files
KNOWN = {
    "azure-2023-conv": (19_366, 3501.721937, 1.094),
    "azure-2023-code": (8_819, 3435.948056, 13.151),
    "mooncake-conversation": (12_031, 3536.999, 3.034),
    "mooncake-synthetic": (3_993, 1022.025, 1.011),
    "sharegpt-300": (300, 29.136836395, 0.942),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_of_the_shipped_traces(name):
    """Requests, span and burstiness as published."""
    facts, (rows, duration_s, cv) = describe(open_trace(name)), KNOWN[name]
    assert facts["rows"] == rows and facts["dropped"] == {}
    assert facts["duration_s"] == pytest.approx(duration_s, abs=1e-9)
    assert facts["inter_arrival_cv"] == pytest.approx(cv, abs=6e-4)
    assert facts["mean_rate_per_s"] == pytest.approx((rows - 1) / duration_s)
    assert facts["source"] and facts["licence"] and len(facts["sha256"]) == 64


def test_sharegpt_drops_its_empty_prompts_and_counts_them():
    """81,494 rows: 745 empty prompts, 74 empty outputs, none with both."""
    facts = describe(open_trace("sharegpt-vicuna"))
    assert facts["dropped"] == {"zero_prompt_tokens": 745, "zero_output_tokens": 74}
    assert facts["rows"] == 81_494 - 745 - 74 and facts["duration_s"] is None


@pytest.mark.parametrize("name, share", [("mooncake-conversation", 0.374), ("mooncake-synthetic", 0.651)])
def test_prefix_hits_of_an_infinite_cache(name, share):
    """37.4 % and 65.1 % of all input tokens."""
    assert round(describe(open_trace(name))["prefix_hit_fraction"], 3) == share


def test_prefix_hits_by_hand(tmp_path):
    """Prompts 600, 1030, 12 over blocks [0 1] [0 2 3] [4]: only block 0 is found again, 512 of 1642 tokens."""
    from workloads.readers import mooncake

    (tmp_path / "t").write_bytes(mooncake.SAMPLE)
    assert describe(open_trace(tmp_path / "t"))["prefix_hit_fraction"] == 512 / 1642


@pytest.mark.parametrize("name", ["azure-2023-code", "arxiv"])
def test_token_statistics_are_numpys(name):
    """Exact mean, percentiles (linear), min and max, from counts alone."""
    facts, all_rows = describe(open_trace(name)), join(list(open_trace(name).lengths()))
    for side in ("prompt_tokens", "output_tokens"):
        tokens = getattr(all_rows, side)
        assert facts[side]["mean"] == pytest.approx(tokens.mean(), rel=1e-12)
        for percent in info.PERCENTILES:
            assert facts[side][f"p{percent}"] == pytest.approx(np.percentile(tokens, percent), rel=1e-12)
        assert (facts[side]["min"], facts[side]["max"]) == (tokens.min(), tokens.max())


def test_statistics_stream(monkeypatch):
    """One row at a time gives the statistics of one chunk."""
    from workloads import trace

    whole = describe(open_trace("sharegpt-300"))
    read = trace.Trace.chunks
    monkeypatch.setattr(trace.Trace, "chunks", lambda self: read(self, 1))
    parts = describe(open_trace("sharegpt-300"))
    assert parts.pop("inter_arrival_cv") == pytest.approx(whole.pop("inter_arrival_cv"), rel=1e-12)
    assert parts == whole


def test_sources_list_every_file_with_its_hash_and_licence():
    """traces/SOURCES.md has one row per shipped file; the hash is of the decompressed bytes."""
    text = (FOLDER / "traces" / "SOURCES.md").read_text()
    files = [file for entry in shipped().values() for file in entry.files]
    assert {path.name for path in (FOLDER / "traces").glob("*.gz")} == {file.name for file in files}
    for file in files:
        row = re.search(rf"^\| `{re.escape(file.name)}` .*$", text, re.MULTILINE)
        assert row and f"`{hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest()[:16]}`" in row[0]


def test_the_shipped_traces_are_small():
    """Under 4 MB in all."""
    assert sum(path.stat().st_size for path in (FOLDER / "traces").iterdir()) < 4e6


def test_names_and_aliases_are_one_to_one():
    """No alias is also a name, or another trace's alias; each opens."""
    names = [name for entry in shipped().values() for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    for entry in shipped().values():
        if len(entry.files) == 1:
            assert {open_trace(name).path for name in (entry.name, *entry.aliases)} == set(entry.files)


def test_workloads_imports_nothing_of_sim_and_pyarrow_late():
    """Only NumPy and the standard library at module level; pyarrow within functions; `sim` nowhere."""
    for path in FOLDER.rglob("*.py"):
        tree = ast.parse(path.read_text())
        top = {node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                roots = {name.split(".")[0] for name in named}
                assert "sim" not in roots and (node not in top or not roots & {"pyarrow", "pandas"}), path
