"""The pure-Python tokenizer is the library's, byte for byte, and refuses files that it cannot honour."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.reference.tokenizer import read_tokenizer

SHIPPED = Path(__file__).parents[1] / "sim/reference/family/tokenizer.json"
TOKENIZER = read_tokenizer(SHIPPED)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60) | st.text(" \t\r\n'sdmtl<|>ae1", max_size=40)


def test_bytes_special_and_merges_make_the_vocabulary() -> None:
    """1 special token, 256 bytes, 767 merges: 1024 ids."""
    assert (TOKENIZER.vocab_size, len(TOKENIZER.ranks)) == (1024, 767)


def test_frequent_words_are_single_tokens_with_their_space() -> None:
    """Merges learned from the novels put ' the' into one token."""
    assert len(TOKENIZER.encode(" the")) == 1


def test_special_token_is_one_id_and_vanishes_in_decoding() -> None:
    """The end-of-text token is id 0, never cut, and shown only when asked for."""
    ids = TOKENIZER.encode("a<|endoftext|>b")
    assert ids[1] == 0 and len(ids) == 3
    assert TOKENIZER.decode(ids) == "ab"
    assert TOKENIZER.decode(ids, skip_special=False) == "a<|endoftext|>b"


@given(TEXTS)
def test_decoding_undoes_encoding(text: str) -> None:
    """Every text survives the round trip, unless it spells the special token."""
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special=False) == text


@pytest.mark.parity
@given(TEXTS, st.lists(st.integers(0, 1023), max_size=20))
def test_equals_the_library(text: str, ids: list[int]) -> None:
    """Same ids for every text, same text for every ids (broken UTF-8 included)."""
    library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(SHIPPED))
    assert TOKENIZER.encode(text) == library.encode(text).ids
    assert TOKENIZER.decode(ids) == library.decode(ids)


def test_unknown_id_is_refused() -> None:
    """An id past the vocabulary is named."""
    with pytest.raises(ValueError, match="1024 is not in the vocabulary of 1024"):
        TOKENIZER.decode([1024])


def broken(tmp_path: Path, **changes: object) -> Path:
    raw = json.loads(SHIPPED.read_text("utf-8"))
    for key, value in changes.items():
        place = raw["model"] if key in raw["model"] else raw
        place[key] = value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw), "utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "Unigram"}, "model.type: 'Unigram' is not supported; allowed: 'BPE'"),
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "pre_tokenizer.pretokenizers"),
        ({"vocab": {"a": 0}}, "byte alphabet"),
        ({"vocab": []}, "model.vocab: list is not allowed"),
        ({"merges": [["a", "zzz"]]}, "is not a pair"),
        ({"merges": [["a"]]}, "is not a pair"),
        ({"merges": [7]}, "is not a pair"),
    ],
)
def test_unsupported_files_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """One line that names the file, the key and what is allowed."""
    with pytest.raises(ValueError, match=message) as caught:
        read_tokenizer(broken(tmp_path, **changes))
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\udcff"])
def test_what_is_no_tokenizer_file_is_refused(tmp_path: Path, text: str) -> None:
    """Empty, cut, binary or of another kind: ValueError with the file's name."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="tokenizer.json"):
        read_tokenizer(path)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "a"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(["model", "type", "vocab", "merges", "normalizer", "pre_tokenizer", "added_tokens"])


@given(KEYS, JUNK)
def test_junk_in_any_place_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, key: str, junk: object
) -> None:
    """Whatever stands under a key, reading raises ValueError in one line or gives a tokenizer that round-trips."""
    path = broken(tmp_path_factory.mktemp("junk"), **{key: junk})
    try:
        tokenizer = read_tokenizer(path)
    except ValueError as error:
        assert "tokenizer.json" in str(error) and "\n" not in str(error)
    else:
        assert tokenizer.decode(tokenizer.encode("a truth"), skip_special=False) == "a truth"


def test_old_style_merges_are_read(tmp_path: Path) -> None:
    """Files of older library versions write a merge as one string."""
    merges = [" ".join(m) for m in json.loads(SHIPPED.read_text("utf-8"))["model"]["merges"]]
    old = read_tokenizer(broken(tmp_path, merges=merges))
    assert old.encode("It is a truth") == TOKENIZER.encode("It is a truth")
