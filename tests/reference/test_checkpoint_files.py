"""Checkpoint files that are broken are refused in one line that names the file and the tensor or key."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import LLAMA, checkpoint_tensors, write_checkpoint, write_safetensors

from sim.analytic.config import shape_from_config
from sim.reference import load
from sim.reference.checkpoint import SHIPPED, shipped_names
from sim.reference.config_file import Config
from sim.reference.families import FAMILIES, describe
from sim.reference.safetensors_file import read_header, read_index
from sim.reference.tokenizer import read_tokenizer

Tensors = dict[str, np.ndarray]
Spoil = Callable[[dict[str, Any]], None]
Q = "model.layers.0.self_attn.q_proj.weight"


def test_a_handmade_checkpoint_loads(tmp_path: Path) -> None:
    """A file written by the format's description alone gives the weights written, laid out [in, out]."""
    write_checkpoint(tmp_path, LLAMA)
    tensors, model = checkpoint_tensors(LLAMA), load(tmp_path)
    qkv = [tensors[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv"]
    np.testing.assert_array_equal(model.weights["layers.0.attn.qkv"], np.concatenate(qkv).T)
    assert model.shape.total_parameters == sum(t.size for t in tensors.values())
    assert load(tmp_path, np.float64).forward([np.arange(3)], model.new_cache()).dtype == np.float64


def _pack(values: np.ndarray) -> np.ndarray:
    """Two bits a weight by a plain loop: rows cut into four blocks, block i in bits 2i and 2i + 1."""
    rows = len(values) // 4
    out = np.zeros((rows, values.shape[1]), np.uint8)
    for r in range(rows):
        for c in range(values.shape[1]):
            out[r, c] = sum((int(values[i * rows + r, c]) + 1) << 2 * i for i in range(4))
    return out


def _ternary(seed: int = 3) -> tuple[Tensors, Tensors]:
    """A checkpoint with packed queries, and the same one in floats."""
    values = np.random.default_rng(seed).integers(-1, 2, (8, 8))
    plain = checkpoint_tensors(LLAMA) | {Q: (values * 0.25).astype(np.float32)}
    return plain | {Q: _pack(values), f"{Q}_scale": np.array([0.25], np.float32)}, plain


def test_packed_ternary_matrices_are_unpacked(tmp_path: Path) -> None:
    """Bytes with a scale beside them load as the floats they stand for; a code that is no value is refused."""
    packed, plain = _ternary()
    write_checkpoint(tmp_path / "packed", LLAMA, packed)
    write_checkpoint(tmp_path / "plain", LLAMA, plain)
    name = "layers.0.attn.qkv"
    np.testing.assert_array_equal(load(tmp_path / "packed").weights[name], load(tmp_path / "plain").weights[name])
    packed[Q][0, 0] = 255
    write_checkpoint(tmp_path / "bad", LLAMA, packed)
    with pytest.raises(ValueError, match=rf"tensor {Q}: two-bit code 3 found"):
        load(tmp_path / "bad")


def test_a_plain_relu_block_loads(tmp_path: Path) -> None:
    """``mlp_gated: false`` with ReLU (the shipped sparse primary) has one up matrix and no gate."""
    config = LLAMA | {"mlp_gated": False, "hidden_act": "relu"}
    write_checkpoint(tmp_path, config)
    model, tensors = load(tmp_path), checkpoint_tensors(config)
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    up, down = (tensors[f"model.layers.0.mlp.{n}_proj.weight"] for n in ("up", "down"))
    np.testing.assert_allclose(model.ffn(0, x), np.maximum(x @ up.T, 0) @ down.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in shipped_names() if n not in ("medusa", "tandem")])
def test_shipped_models_read_english_better_than_chance(name: str) -> None:
    """Every shipped language model puts a famous sentence far above the 6.9 nats a token of a blind guess."""
    text = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want"
    ids = np.array(read_tokenizer(SHIPPED / "tokenizer.json").encode(text))
    model = load(name, np.float64)
    logits = model.forward([ids], model.new_cache(), rows="all")[:-1]
    nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    assert nll.mean() < 4


def _header(edit: Spoil) -> Callable[[Path], None]:
    return lambda folder: write_safetensors(folder / "model.safetensors", checkpoint_tensors(LLAMA), edit)


def _set(key: str, value: Any) -> Spoil:
    def spoil(header: dict[str, Any]) -> None:
        header[Q][key] = value

    return spoil


def _bytes(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(make(file.read_bytes()))

    return spoil


def _tensors(edit: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = checkpoint_tensors(LLAMA)
        edit(tensors)
        write_safetensors(folder / "model.safetensors", tensors)

    return spoil


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no file": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
    "empty": (_bytes(lambda raw: b""), r"model\.safetensors: header: 0 bytes announced, the file has 0"),
    "cut in the header": (_bytes(lambda raw: raw[:40]), r"header: \d+ bytes announced, the file has 40"),
    "cut in the numbers": (_bytes(lambda raw: raw[:-4]), r"tensor [\w.]+: ends at byte \d+.*truncated"),
    "huge header": (_bytes(lambda raw: struct.pack("<Q", 1 << 62) + raw[8:]), r"4611686018427387904 bytes announced"),
    "no JSON": (_bytes(lambda raw: raw[:8] + b"\xff" + raw[9:]), r"header: not JSON"),
    "deep JSON": (_bytes(lambda raw: struct.pack("<Q", 200000) + b"[" * 200000), r"header: not JSON"),
    "list": (_bytes(lambda raw: struct.pack("<Q", 2) + b"[]"), r"header: list is not allowed"),
    "missing": (_tensors(lambda t: t.pop(Q)), rf"tensor {Q}: missing; nearest is model\.layers\.0\.self_attn\.\w_proj"),
    "wrong shape": (_tensors(lambda t: t.update({Q: np.zeros((8, 9), np.float32)})), r"shape \(8, 9\) is not allowed"),
    "turned": (_tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()})), r"\(8, 11\).*\(11, 8\)"),
    "dtype": (_header(_set("dtype", "F8_E4M3")), r"q_proj\.weight: dtype: 'F8_E4M3' is not supported, allowed: F64"),
    "huge shape": (_header(_set("shape", [1 << 40, 1 << 40])), r"do not hold shape \[1099511627776, 1099511627776\]"),
    "negative shape": (_header(_set("shape", [-8, -8])), r"shape: \[-8, -8\] is not allowed"),
    "float shape": (_header(_set("shape", [8.0, 8])), r"shape: \[8\.0, 8\] is not allowed"),
    "backward": (_header(_set("data_offsets", [256, 0])), r"data_offsets: -256 bytes do not hold"),
    "beyond": (_header(_set("data_offsets", [1 << 50, (1 << 50) + 256])), r"q_proj\.weight: ends at byte .*truncated"),
    "half offsets": (_header(_set("data_offsets", [0])), r"data_offsets: \[0\] is not allowed"),
    "no entry": (_header(lambda h: h.update({Q: None})), r"q_proj\.weight: dtype: None is not supported"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_safetensors_are_refused(case: str, tmp_path: Path) -> None:
    """One line, naming the file and the tensor."""
    write_checkpoint(tmp_path, LLAMA)
    spoil, message = BROKEN[case]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@settings(max_examples=150)
@given(data=st.data())
def test_no_damage_to_a_header_escapes_as_another_error(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Flipped bytes either still load or raise ValueError; nothing else, and no memory for sizes not there."""
    folder = tmp_path_factory.mktemp("damaged")
    write_checkpoint(folder, LLAMA)
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        load(folder)
    except ValueError as error:
        assert str(folder) in str(error)


INDEXES = {
    "no map": ({}, "weight_map: missing or not a mapping"),
    "numbers": ({"weight_map": {"a": 1}}, "weight_map: missing or not a mapping"),
    "outside": ({"weight_map": {"a": "../model.safetensors"}}, "is not allowed, shards lie beside the index"),
    "no shard": ({"weight_map": {"a": "gone.safetensors"}}, r"gone\.safetensors: no such file"),
    "not in it": ({"weight_map": {"a": "model.safetensors"}}, r"tensor a is not in model\.safetensors"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_broken_shard_indexes_are_refused(case: str, tmp_path: Path) -> None:
    """An index that does not lead to its tensors is an error that names it."""
    write_checkpoint(tmp_path, LLAMA)
    index, message = INDEXES[case]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        read_index(tmp_path)


def test_metadata_of_a_header_is_no_tensor(tmp_path: Path) -> None:
    """``__metadata__`` is skipped."""
    write_safetensors(tmp_path / "x", {}, lambda header: header.update({"__metadata__": {"format": "pt"}}))
    assert read_header(tmp_path / "x") == {}


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"model_type": "lama"}, r"model_type: 'lama' is not allowed, did you mean (lla|ge)ma\? known: gemma"),
    "unknown": ({"model_type": "mamba"}, r"model_type: 'mamba' is not allowed"),
    "no type": ({"model_type": None}, r"model_type: None is not allowed"),
    "no width": ({"hidden_size": None}, r"hidden_size: None is not allowed, a whole number from 1"),
    "huge": ({"vocab_size": 1 << 40}, r"vocab_size: 1099511627776 is not allowed"),
    "heads": ({"num_key_value_heads": 3}, r"num_key_value_heads: 3 is not allowed, a divisor of num_attention_heads"),
    "uneven": ({"hidden_size": 9}, r"num_attention_heads: 2 is not allowed, a divisor of hidden_size \(9\)"),
    "odd head": ({"head_dim": 5}, r"head_dim: 5 is not allowed, an even number"),
    "activation": ({"hidden_act": "mish"}, r"hidden_act: 'mish' is not allowed, known activations: gelu"),
    "rope": (
        {"rope_scaling": {"type": "longrope"}},
        r"rope_scaling: type: 'longrope' is not allowed",
    ),
    "rope factor": ({"rope_scaling": {"type": "linear"}}, r"factor: None is not allowed, a number above 0"),
    "rope list": ({"rope_scaling": []}, r"rope_scaling: \[\] is not allowed, an object"),
    "eps": ({"rms_norm_eps": "small"}, r"rms_norm_eps: 'small' is not allowed"),
    "flag": ({"tie_word_embeddings": 1}, r"tie_word_embeddings: 1 is not allowed, true or false"),
    "kinds": ({"model_type": "gemma2", "layer_types": ["chunked"]}, r"layer_types: \['chunked'\] is not allowed"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configurations_are_refused(case: str, tmp_path: Path) -> None:
    """One line with file, key, value and what is allowed."""
    write_checkpoint(tmp_path, LLAMA)
    change, message = CONFIGS[case]
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **change}))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value) and "\n" not in str(caught.value)


JSON = st.none() | st.booleans() | st.integers(-3, 40) | st.just(10**30) | st.floats() | st.text(max_size=6)
JSON = JSON | st.lists(JSON, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor"]), JSON)


@settings(max_examples=300)
@given(kind=st.sampled_from(sorted(FAMILIES)), data=st.data())
def test_no_value_in_a_configuration_escapes_as_another_error(kind: str, data: st.DataObject) -> None:
    """Any JSON value under any key is understood or refused in one line."""
    config = {"model_type": kind, **SAME[kind], "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3)):
        config[key] = data.draw(JSON)
    try:
        describe(Config("config.json", config))
    except ValueError as error:
        assert str(error).startswith("config.json") and "\n" not in str(error)


def test_a_missing_model_is_named_with_what_there_is(tmp_path: Path) -> None:
    """Neither a path nor a shipped name; a folder without config.json; a configuration that is no object."""
    with pytest.raises(ValueError, match=r"nowhere: no such model folder or file.*shipped:"):
        load("nowhere")
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: list is not allowed"):
        load(tmp_path)


SIZES = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 6,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "tie_word_embeddings": False}  # fmt: skip
T5_SIZES = {"vocab_size": 96, "d_model": 48, "d_kv": 10, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SAME: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "hidden_act": "silu"},
    "mistral": {**SIZES, "hidden_act": "silu", "sliding_window": 32},
    "mixtral": {**SIZES, "hidden_act": "silu", "num_local_experts": 8, "num_experts_per_tok": 2,
                "sliding_window": None},
    "qwen2": {**SIZES, "hidden_act": "silu", "use_sliding_window": True, "max_window_layers": 3, "sliding_window": 16},
    "qwen3": {**SIZES, "hidden_act": "silu", "head_dim": 16},
    "qwen3_moe": {**SIZES, "hidden_act": "silu", "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 24, "norm_topk_prob": True},
    "gemma": {**SIZES, "head_dim": 16, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {**SIZES, "head_dim": 16, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh",
               "sliding_window": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {**SIZES, "head_dim": 16, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh",
                    "sliding_window": 16, "sliding_window_pattern": 6, "query_pre_attn_scalar": 16},
    "gpt2": {"vocab_size": 96, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64,
             "activation_function": "gelu_new"},
    "t5": {**T5_SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_simulator_and_witness_read_one_shape_out_of_a_configuration(kind: str) -> None:
    """Two readers written apart agree on every layer, head and width (activation names are spelt freely)."""
    config = {"model_type": kind, **SAME[kind]}
    theirs, ours = shape_from_config(config, "same"), describe(Config("config.json", config)).shape
    assert _plain(ours) == _plain(theirs)
    assert ours.total_parameters == theirs.total_parameters


def _plain(shape: Any) -> Any:
    layers = [
        tuple(replace(layer, ffn=replace(layer.ffn, activation="")) for layer in stack)
        for stack in (shape.layers, shape.encoder)
    ]
    return replace(shape, name="", layers=layers[0], encoder=layers[1])
