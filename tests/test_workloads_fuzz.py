"""Hostile bytes: only ValueError (TraceError among them) escapes, and every row yielded is sound."""

import gzip
import warnings
from datetime import datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from workloads import csvfile, open_trace, source
from workloads.columns import join
from workloads.readers import readers, servegen
from workloads.source import Source

PIECES = [b"\n", b",", b"-", b"e9", b'"', b"\0", b"nan", b"9" * 20]
FEW = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def read_hostile(path, name: str | None) -> None:
    """Reads what can be read; checks that every row yielded keeps the contract."""
    last = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            trace = open_trace(path, format=name)
            for chunk in trace.lengths(3):
                assert (chunk.prompt_tokens >= 1).all() and (chunk.output_tokens >= 1).all()
                assert chunk.arrival_ns[0] >= last and (np.diff(chunk.arrival_ns) >= 0).all()
                last = int(chunk.arrival_ns[-1])
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize("name", readers())
@FEW
@given(data=st.binary(max_size=200))
@example(data=b"PAR1PAR1")
@example(data=b"\x1f\x8b\x08\x00")
@example(data=b'{"input_length": 1' + b"0" * 5000 + b"}")
def test_random_bytes(name, data, tmp_path):
    """Bytes that are no trace at all, read as each format."""
    path = tmp_path / "hostile"
    path.write_bytes(data)
    read_hostile(path, name)
    read_hostile(path, None)


@st.composite
def mutated(draw, data: bytes) -> bytes:
    """The sample with a few bytes replaced, inserted, removed or repeated."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.one_of(st.binary(max_size=3), st.sampled_from(PIECES)))
        data = data[:at] + piece + data[at + draw(st.integers(0, 3)) :]
    return data


@pytest.mark.parametrize("name", readers())
@FEW
@given(draw=st.data())
def test_mutated_samples(name, draw, tmp_path):
    """A sound file with a few bytes changed, plain and compressed."""
    data = draw.draw(mutated(readers()[name].SAMPLE))
    path = tmp_path / "hostile"
    path.write_bytes(data)
    read_hostile(path, name)
    path.write_bytes(gzip.compress(data))
    read_hostile(path, None)


@FEW
@given(draw=st.data())
def test_mutated_gzip(draw, tmp_path):
    """Compressed bytes changed after compression."""
    path = tmp_path / "hostile"
    path.write_bytes(draw.draw(mutated(gzip.compress(readers()["azure"].SAMPLE * 50))))
    read_hostile(path, None)


@FEW
@given(draw=st.data())
def test_mutated_distributions(draw, tmp_path):
    """A length distribution either loads as one or is a ValueError."""
    path = tmp_path / "hostile"
    path.write_bytes(draw.draw(mutated(servegen.SAMPLE)))
    try:
        values, upto = servegen.distribution(Source(path))
    except ValueError:
        return
    assert (values >= 1).all() and upto[-1] == 1 and (np.diff(upto) >= 0).all()


stamps = st.datetimes(min_value=datetime(1990, 1, 1)).map(str)
odd = st.text('0123456789-+.e:T Z,"x', max_size=12)
cells = st.one_of(st.integers(-(10**19), 10**19).map(str), st.floats().map(repr), stamps, odd)


@FEW
@given(rows=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=4))
@example(rows=[("2261-12-31 00:00:00", "1", "1")])
@example(rows=[("9999-12-31 23:59:59", "1", "1")])
@example(rows=[("0001-01-01 00:00:00", "1", "1")])
@pytest.mark.parametrize("header", ["TIMESTAMP,ContextTokens,GeneratedTokens", "arrival_s,prompt_tokens,output_tokens"])
def test_fast_and_slow_paths_agree_on_hostile_rows(header, rows, tmp_path, monkeypatch):
    """Where pyarrow accepts a block, reading it line by line gives the same rows."""
    path = tmp_path / "hostile"
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]), "utf-8")
    fast = outcome(path)
    with monkeypatch.context() as patch:
        patch.setattr(csvfile, "_fast", lambda table, block: None)
        slow = outcome(path)
    assert fast == slow


def outcome(path) -> tuple[list, str]:
    """(rows yielded, error message)."""
    got, said = [], ""
    try:
        for chunk in open_trace(path).chunks():
            got.append(chunk)
    except ValueError as error:
        said = str(error)
    rows = join(got) if got else None
    columns = [] if rows is None else [rows.arrival_ns, rows.prompt_tokens, rows.output_tokens]
    return [column.tolist() for column in columns], said


def test_the_limits_that_bound_memory_are_what_the_docs_say():
    """2 MiB blocks, 16 MiB lines."""
    assert (source.BLOCK_BYTES, source.LINE_BYTES_MAX) == (2 << 20, 16 << 20)
