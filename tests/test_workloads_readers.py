"""Trace readers: every reader in the folder keeps the same promises; formats are read exactly."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from workloads import TraceError, csvfile, open_trace, source
from workloads.columns import Columns, join
from workloads.readers import readers, sniffed

AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
TRACES = [name for name in readers() if name != "servegen"]
TEXT = [name for name in TRACES if name != "parquet"]


def written(folder: Path, data: bytes, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def whole(path: Path, rows: int = 65536, **options: object) -> Columns:
    return join(list(open_trace(path, **options).lengths(rows)))


def same(a: Columns, b: Columns) -> bool:
    """Every column equal, prefix blocks included."""
    plain = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "priority", "samples")
    equal = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in plain)
    hashes = [None if c.hash_ids is None else [ids.tolist() for ids in c.hash_ids] for c in (a, b)]
    return equal and hashes[0] == hashes[1]


# conformance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", readers())
def test_a_sample_is_sniffed_by_its_reader_alone(name):
    """Content decides the format, and no two readers claim one sample."""
    assert [other for other, reader in readers().items() if reader.sniff(readers()[name].SAMPLE)] == [name]


@pytest.mark.parametrize("name", readers())
def test_a_reader_says_what_it_reads(name):
    """The docstring names the format; the text samples have three lines."""
    assert readers()[name].__doc__
    assert name == "parquet" or readers()[name].SAMPLE.count(b"\n") == 3


@pytest.mark.parametrize("name", TRACES)
def test_a_sample_keeps_the_contract(name, tmp_path):
    """Sorted arrivals from 0 on, at least one token on each side, int64, equal lengths."""
    columns = whole(written(tmp_path, readers()[name].SAMPLE))
    assert len(columns) >= 2
    assert columns.arrival_ns[0] >= 0 and (np.diff(columns.arrival_ns) >= 0).all()
    for tokens in (columns.prompt_tokens, columns.output_tokens):
        assert tokens.dtype == np.int64 and len(tokens) == len(columns) and (tokens >= 1).all()


@pytest.mark.parametrize("name", TEXT)
def test_gzip_is_recognised_by_magic(name, tmp_path):
    """The same bytes compressed, under a name that says nothing, give the same columns."""
    data = readers()[name].SAMPLE
    assert same(whole(written(tmp_path, data)), whole(written(tmp_path, gzip.compress(data), "other")))


@pytest.mark.parametrize("name", TRACES)
def test_chunk_size_does_not_matter(name, tmp_path):
    """One row at a time is the same as all at once."""
    path = written(tmp_path, readers()[name].SAMPLE)
    pieces = list(open_trace(path).lengths(1))
    assert all(len(piece) == 1 for piece in pieces) and same(join(pieces), whole(path))


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_line_endings_do_not_matter(name, ending, tmp_path):
    """No final newline, LF and CRLF read alike."""
    data = readers()[name].SAMPLE
    changed = data.rstrip(b"\n") if not ending else data.replace(b"\n", ending)
    assert same(whole(written(tmp_path, data)), whole(written(tmp_path, changed, "other")))


@pytest.mark.parametrize("name", TEXT)
def test_a_cut_last_line_names_it_and_keeps_the_rows_before(name, tmp_path):
    """A file that ends in the middle of a row yields the whole rows, then says which line is broken."""
    data = readers()[name].SAMPLE.rstrip(b"\n")
    broken = data[: data.rfind(b"\n") + 4]
    trace = open_trace(written(tmp_path, broken))
    expected = 2 if data.startswith(b"{") else 1
    got, error = until_error(trace)
    assert got == expected == error.rows_ok and error.line == 3
    assert str(trace.path) in str(error) and "\n" not in str(error)


def until_error(trace) -> tuple[int, TraceError]:
    """(rows yielded, the error that ended them)."""
    rows = 0
    with pytest.raises(TraceError) as caught:
        for chunk in trace.lengths():
            rows += len(chunk)
    return rows, caught.value


@pytest.mark.parametrize("name", TEXT)
def test_tokens_negative_or_absurd_are_errors(name, tmp_path):
    """A negative length, and one beyond 1e8 (a wrong unit), name line 2 or 3."""
    columns = whole(written(tmp_path, readers()[name].SAMPLE))
    last = str(columns.output_tokens[1]).encode()
    for bad in (b"-5", b"123456789", b"1.5", b"nan", b"99999999999999999999"):
        data = readers()[name].SAMPLE
        at = data.rfind(last) if not data.startswith(b"{") else data.find(b": " + last) + 2
        path = written(tmp_path, data[:at] + bad + data[at + len(last) :])
        rows, error = until_error(open_trace(path))
        assert rows == 1 and error.line == (2 if data.startswith(b"{") else 3), (bad, str(error))


# what exactly is read ------------------------------------------------------------------------------


def test_azure_2023_keeps_100_ns():
    """Seven digits of the first two shipped rows: 18:15:46.6805900 and 18:15:50.9951690 are 4.3145790 s apart."""
    columns = next(open_trace("azure-2023-conv").chunks(2))
    assert columns.arrival_ns.tolist() == [0, 4_314_579_000]
    assert columns.prompt_tokens.tolist() == [374, 396] and columns.output_tokens.tolist() == [44, 109]


def test_azure_2024_stamps_with_a_zone_and_without_a_fraction(tmp_path):
    """Microseconds with +00:00; a whole second is printed without its fraction."""
    data = AZURE + b"2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 00:00:01+00:00,3,4\n"
    assert whole(written(tmp_path, data)).arrival_ns.tolist() == [0, 990_070_000]


def test_stamps_with_and_without_a_zone_may_alternate(tmp_path):
    """The slow path reads what pyarrow will not: 02:00+02:00 is midnight UTC."""
    data = AZURE + b"2024-02-29 00:00:00,1,2\n2024-02-29 02:00:01.5+02:00,3,4\n"
    assert whole(written(tmp_path, data)).arrival_ns.tolist() == [0, 1_500_000_000]


def test_mooncake_reads_milliseconds_and_prefix_blocks(tmp_path):
    """Timestamps in ms; the ids of 512-token blocks stay lists, one per request."""
    columns = whole(written(tmp_path, readers()["mooncake"].SAMPLE))
    assert columns.arrival_ns.tolist() == [0, 40_000_000, 40_000_000]
    assert [ids.tolist() for ids in columns.hash_ids] == [[0, 1], [0, 2, 3], [4]] and columns.hash_block_tokens == 512


def test_mooncake_tolerates_what_aiperf_adds(tmp_path):
    """session_id numbers conversations in order of appearance; delay is ignored where there is a timestamp."""
    data = (
        b'{"timestamp": 1, "input_length": 5, "output_length": 2, "session_id": "b", "delay": 3}\n'
        b'{"timestamp": 2, "input_length": 6, "output_length": 2}\n'
        b'{"timestamp": 2.5, "input_length": 7, "output_length": 2, "session_id": "b"}\n'
    )
    columns = whole(written(tmp_path, data))
    assert columns.arrival_ns.tolist() == [1_000_000, 2_000_000, 2_500_000]
    assert columns.session.tolist() == [0, -1, 0]


def test_more_blocks_than_the_prompt_holds_is_a_wrong_block_size(tmp_path):
    """13 blocks of 64 tokens do not fit in 800 tokens of 512-token blocks; with the right size they do."""
    row = {"timestamp": 0, "input_length": 800, "output_length": 1, "hash_ids": list(range(13))}
    path = written(tmp_path, str(row).replace("'", '"').encode())
    with pytest.raises(TraceError, match="line 1: hash_ids: 13: at most one per 512 prompt tokens, 2"):
        whole(path)
    assert len(whole(path, hash_block_tokens=64).hash_ids[0]) == 13


def test_burstgpt_drops_failed_requests_and_counts_them(tmp_path):
    """Zero response tokens mark a failure."""
    data = readers()["burstgpt"].SAMPLE + b"50,GPT-4,10,0,10,API log\n51,GPT-4,0,5,5,API log\n"
    trace = open_trace(written(tmp_path, data))
    assert sum(len(c) for c in trace.chunks()) == 2
    assert trace.dropped == {"zero_output_tokens": 1, "zero_prompt_tokens": 1}
    list(trace.chunks())
    assert trace.dropped["zero_output_tokens"] == 1  # counted per pass, not twice


def test_relative_stamps_keep_the_zero_of_the_file(tmp_path):
    """Vidur's arrived_at is relative: 0.25 s stays 0.25 s."""
    assert whole(written(tmp_path, readers()["vidur"].SAMPLE)).arrival_ns.tolist() == [250_000_000, 500_000_000]


def test_plain_stamps_since_an_epoch_count_from_the_first(tmp_path):
    """Unix seconds are an epoch, not 54 years of waiting."""
    data = b"arrival_s,prompt_tokens,output_tokens\n1700000000.5,1,1\n1700000001,1,1\n"
    assert whole(written(tmp_path, data)).arrival_ns.tolist() == [0, 500_000_000]


@pytest.mark.parametrize("unit, text", [("ns", b"1500000000"), ("ms", b"1500"), ("s", b"1.5")])
def test_plain_units_are_in_the_column_names(unit, text, tmp_path):
    """1.5 s in each unit; optional columns are read, blank sessions are -1."""
    head = f"arrival_{unit},prompt_tokens,output_tokens,session,priority,samples\n".encode()
    columns = whole(written(tmp_path, head + text + b",3,4,x,-1,2\n" + text + b",3,4,,0,1\n"))
    assert columns.arrival_ns.tolist() == [1_500_000_000] * 2 and columns.session.tolist() == [0, -1]
    assert columns.priority.tolist() == [-1, 0] and columns.samples.tolist() == [2, 1]


def test_llmservingsim_json_lines_read_like_its_csv(tmp_path):
    """Both spellings of the format; agentic sessions are refused in words."""
    row = b'{"input_toks": 2358, "output_toks": 531, "arrival_time_ns": 46926808, "input_tok_ids": [1]}\n'
    columns = whole(written(tmp_path, row))
    assert (columns.arrival_ns[0], columns.prompt_tokens[0], columns.output_tokens[0]) == (46926808, 2358, 531)
    with pytest.raises(TraceError, match="sub_requests.*not agentic sessions"):
        whole(written(tmp_path, b'{"session_id": "a", "arrival_time_ns": 0, "sub_requests": []}\n'))


def test_files_without_arrivals_are_lengths_only():
    """ShareGPT gives lengths; asked for arrivals it says that there are none."""
    trace = open_trace("sharegpt")
    assert not trace.has_arrivals() and next(trace.lengths(3)).prompt_tokens.tolist() == [146, 17, 62]
    with pytest.raises(TraceError, match="line 2: arrivals: none: .* give a rate"):
        next(trace.chunks())


def test_a_distribution_is_not_a_trace(tmp_path):
    """ServeGen files say how they are meant to be used."""
    with pytest.raises(TraceError, match="length distribution: use {kind: empirical"):
        whole(written(tmp_path, readers()["servegen"].SAMPLE))
    with pytest.raises(ValueError, match="length distribution, not a trace"):
        open_trace("servegen-r1")


# Parquet --------------------------------------------------------------------------------------------


def parquet(path: Path, columns: dict, **options: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_across_row_groups(tmp_path):
    """10 groups of 100 rows come back as one stream, whatever the batch."""
    n = np.arange(1000)
    columns = {"arrival_ns": n * 7, "prompt_tokens": n + 1, "output_tokens": n + 3}
    path = parquet(tmp_path / "a", columns, row_group_size=100)
    got = whole(path)
    assert np.array_equal(got.arrival_ns, columns["arrival_ns"])
    assert np.array_equal(got.prompt_tokens, columns["prompt_tokens"])


def test_parquet_takes_timestamps_and_the_names_of_other_formats(tmp_path):
    """Azure's columns with real timestamps; Mooncake's with prefix blocks."""
    stamps = np.array(["2024-01-01T00:00:00", "2024-01-01T00:00:01.5"], "datetime64[us]")
    path = parquet(tmp_path / "a", {"TIMESTAMP": stamps, "ContextTokens": [1, 2], "GeneratedTokens": [3, 4]})
    assert whole(path).arrival_ns.tolist() == [0, 1_500_000_000]
    rows = {"timestamp": [0, 5], "input_length": [600, 5], "output_length": [1, 1], "hash_ids": [[0, 1], [2]]}
    columns = whole(parquet(tmp_path / "b", rows))
    assert [ids.tolist() for ids in columns.hash_ids] == [[0, 1], [2]] and columns.arrival_ns[1] == 5_000_000


@pytest.mark.parametrize("bad", [None, float("nan"), 2.5, -1.0])
def test_parquet_names_the_row_that_is_wrong(bad, tmp_path):
    """A null, NaN, fractional or negative length in row 2 of 3; row 1 comes first."""
    rows = {"prompt_tokens": [1.0, bad, 3.0], "output_tokens": [1, 1, 1]}
    got, error = until_error(open_trace(parquet(tmp_path / "a", rows)))
    assert (got, error.line, error.key) == (1, 2, "prompt_tokens")


def test_parquet_without_the_columns_says_which(tmp_path):
    """A misspelt column is suggested."""
    with pytest.raises(TraceError, match="output_tokens: missing column: did you mean 'output_token'"):
        whole(parquet(tmp_path / "a", {"prompt_tokens": [1], "output_token": [1]}))


# damage ---------------------------------------------------------------------------------------------

MOON = b'{"timestamp": 0, "input_length": 5, "output_length": 1}\n'
HEAD = b"arrival_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    "data, line, says",
    [
        (HEAD + b"1,1,1\n0.5,1,1\n", 3, "arrivals must not decrease"),
        (HEAD + b"1,1,1\n-0.5,1,1\n", 3, "must be >= 0"),
        (HEAD + b"nan,1,1\n", 2, "a finite number"),
        (HEAD + b"inf,1,1\n", 2, "a finite number"),
        (HEAD + b"0,1,1\n1700000000000,1,1\n", 3, "unit right"),
        (HEAD + b"0,1,1\n400000000,1,1\n", 3, "unit right"),
        (HEAD + b"0,1,1\n\n1,x,1\n", 4, "a whole number"),
        (HEAD + b"0,1,1\n1,1\n", 3, "3 values"),
        (HEAD + b"0,1,1\n1,1,1,1\n", 3, "3 values"),
        (HEAD + b"0,1,1\n1,\xff,1\n", 3, "UTF-8"),
        (HEAD + b"0,1,1\n1,,1\n", 3, "a whole number"),
        (AZURE + b"2023-02-29 00:00:00,1,1\n", 2, "that exist"),
        (AZURE + b"12:00,1,1\n", 2, "YYYY-MM-DD"),
        (HEAD, 1, "at least one row"),
        (b'{"input_length": 5}\n', 1, "output_length: missing"),
        (b'{"input_length": 5, "output_length": true}\n', 1, "a whole number"),
        (MOON + b'{"input_length": 5, "output_length": 1}', 2, "delay"),
        (b'{"input_length": 5, "output_length": 1}\n[1]\n', 2, "one JSON object"),
        (b'{"input_length": 5, "output_length": 1, "hash_ids": [-1]}\n', 1, "block numbers"),
        (b'{"input_length": ' + b"[" * 50_000 + b"\n", 1, "one JSON object"),
    ],
)  # fmt: skip
def test_damage_names_its_line(data, line, says, tmp_path):
    """Each kind of damage: one line, with file, line number and what is allowed; the rows before it are yielded."""
    rows, error = until_error(open_trace(written(tmp_path, data)))
    assert error.line == line and says in str(error), str(error)
    assert rows == error.rows_ok == min(1, max(0, line - 2) + data.startswith(b"{") * (line > 1))
    assert "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize("data", [b"", b"\n\n", gzip.compress(b"")])
def test_an_empty_file_is_an_error(data, tmp_path):
    """Nothing, blank lines, and nothing compressed."""
    with pytest.raises(TraceError, match="line 1: file: empty"):
        open_trace(written(tmp_path, data))


def test_a_file_of_no_known_format_lists_the_formats(tmp_path):
    """Nothing is guessed from a name such as trace.csv."""
    with pytest.raises(TraceError, match="format: 'a,b,c': the first line of one of: azure, burstgpt"):
        open_trace(written(tmp_path, b"a,b,c\n1,2,3\n", "trace.csv"))
    with pytest.raises(TraceError, match="timestamp"):  # would lose its arrivals if read as bare lengths
        open_trace(written(tmp_path, b"timestamp,input_length,output_length\n0,2,3\n"))


def test_a_missing_column_is_named_with_a_suggestion(tmp_path):
    """A format asked for by name tells which column it misses."""
    path = written(tmp_path, b"TIMESTAMP,ContextToken,GeneratedTokens\n")
    with pytest.raises(TraceError, match="ContextTokens: missing column: did you mean 'ContextToken'"):
        list(open_trace(path, format="azure").chunks())
    with pytest.raises(ValueError, match="format: 'azur': did you mean 'azure'"):
        open_trace(path, format="azur")


def test_a_cut_gzip_yields_its_rows_first(tmp_path):
    """The whole lines before the cut come, then the error says that the file ends early."""
    noise = np.random.default_rng(1).integers(1, 10**6, (60_000, 2))
    data = gzip.compress(b"input_length,output_length\n" + "".join(f"{a},{b}\n" for a, b in noise).encode())
    rows, error = until_error(open_trace(written(tmp_path, data[: len(data) // 2])))
    assert 20_000 < rows == error.rows_ok < 60_000 and error.line == rows + 2 and "gzip" in str(error)


def test_bad_utf8_far_into_a_file_is_found_at_its_line(tmp_path, monkeypatch):
    """Blocks of 64 bytes: the line number still counts from the top of the file."""
    monkeypatch.setattr(source, "BLOCK_BYTES", 64)
    data = HEAD + b"".join(b"%d,1,1\n" % i for i in range(100)) + b"100,1,\xff\n"
    rows, error = until_error(open_trace(written(tmp_path, data)))
    assert rows == 100 and error.line == 102


def test_an_endless_line_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    """No newline within the limit: an error, not an allocation."""
    monkeypatch.setattr(source, "LINE_BYTES_MAX", 1000)
    monkeypatch.setattr(source, "BLOCK_BYTES", 300)
    with pytest.raises(TraceError, match="lines of at most 1000 bytes"):
        list(open_trace(written(tmp_path, HEAD + b"1" * 5000)).chunks())


@pytest.mark.parametrize("size", [7, 64, 1 << 20])
def test_block_boundaries_do_not_matter(size, tmp_path, monkeypatch):
    """Blocks of a few bytes give what one block gives."""
    data = HEAD + b"".join(b"%d.25,%d,%d\n" % (i, i + 1, 2 * i + 1) for i in range(200))
    path = written(tmp_path, data)
    expected = whole(path)
    monkeypatch.setattr(source, "BLOCK_BYTES", size)
    assert same(whole(path), expected) and len(expected) == 200


@pytest.mark.parametrize("name", [name for name in TEXT if name != "mooncake"])
def test_fast_and_slow_paths_agree(name, tmp_path, monkeypatch):
    """Line by line gives what pyarrow gives."""
    path = written(tmp_path, readers()[name].SAMPLE)
    assert csvfile._fast is not None
    fast = whole(path)
    monkeypatch.setattr(csvfile, "_fast", lambda table, block: None)
    assert same(whole(path), fast)


def test_azure_fast_and_slow_paths_agree_on_the_shipped_trace(monkeypatch):
    """19,366 real stamps, to the nanosecond."""
    fast = join(list(open_trace("azure-2023-conv").chunks()))
    monkeypatch.setattr(csvfile, "_fast", lambda table, block: None)
    assert same(join(list(open_trace("azure-2023-conv").chunks())), fast)


def test_the_fast_path_is_taken(tmp_path, monkeypatch):
    """A clean file never falls back to reading line by line."""

    def slow(table, block):
        raise AssertionError("slow path")

    monkeypatch.setattr(csvfile, "_slow", slow)
    for name in ("azure-2023-conv", "azure-2023-code", "sharegpt-300", "sharegpt-vicuna", "arxiv"):
        list(open_trace(name).lengths())


def test_sniffing_ignores_a_byte_order_mark():
    """Spreadsheets write one."""
    assert sniffed(b"\xef\xbb\xbf" + readers()["plain"].SAMPLE) == "plain"


def test_unknown_names_list_what_ships():
    """A misspelt trace is suggested; the list follows."""
    with pytest.raises(ValueError, match="did you mean 'azure-2023-conv'.*mooncake-synthetic"):
        open_trace("azure-2023-con")
    with pytest.raises(ValueError, match="no such file"):
        open_trace("\0")
