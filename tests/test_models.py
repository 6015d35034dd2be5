"""Shipped configs against published parameter counts, and every way a config can be wrong."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.analytic.config import FAMILIES, shape_from_config
from sim.analytic.model import ModelShape
from workloads import models

# Totals that the checkpoints' own metadata or the papers' repositories print, a tied head counted once.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "deepseek-v3": 671_026_419_200,
    "deepseek-r1": 671_026_419_200,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "distilbert": 66_362_880,
    "vit-b-16": 86_567_656,
    "vit-l-16": 304_326_632,
    "smollm2-135m": 134_515_008,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "bloom-176b": 176_247_271_424,
}

# Sizes that papers print, and how far rounding (or, for 1.3B, two digits) may put them from the exact count.
PRINTED = {
    "kimi-k2.5": (1e12, 0.03),  # "1T", of which the text model
    "minimax-m2.5": (230e9, 0.008),
    "matlm-78m": (78e6, 0.008),
    "matlm-180m": (180e6, 0.008),
    "matlm-310m": (310e6, 0.008),
    "matlm-463m": (463e6, 0.008),
    "matlm-850m": (850e6, 0.008),
    "matlm-1.3b": (1.3e9, 0.024),
    "matlm-2.6b": (2.6e9, 0.008),
    "sheared-llama-1.3b": (1.3e9, 0.04),
    "sheared-llama-2.7b": (2.7e9, 0.01),
}


def shape(name: str) -> ModelShape:
    return shape_from_config(*models.find(name))


def config(name: str, **changes: Any) -> dict[str, Any]:
    return {**models.find(name).config, **changes}


def refused(mapping: Any) -> str:
    with pytest.raises(ValueError) as caught:
        shape_from_config(mapping, "x", "dir/config.json")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("dir/config.json: ")
    return message


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_published_count(name: str) -> None:
    assert shape(name).total_parameters == PUBLISHED[name]


# SigLIP so400m at 896 pixels, by hand: 27 layers of width 1152 and inner width 4304 with biases, 14 x 14 patches of
# 3 colours, 4096 positions, one last LayerNorm.
TOWER = 27 * (4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152)
TOWER += 3 * 14 * 14 * 1152 + 1152 + 4096 * 1152 + 2 * 1152


@pytest.mark.parametrize(
    ("name", "published"),
    [("gemma-3-4b", 4_300_079_472), ("gemma-3-12b", 12_187_325_040), ("gemma-3-27b", 27_432_406_640)],
)
def test_gemma_3_text_is_the_published_total_less_the_vision_tower(name: str, published: int) -> None:
    text = shape(name)
    projector = 1152 * text.d_model + 1152
    assert TOWER == 416_866_032
    assert text.total_parameters == published - TOWER - projector


def test_every_shipped_config_has_a_count_to_meet() -> None:
    assert set(models.names()) - set(PUBLISHED) - set(PRINTED) == {"gemma-3-4b", "gemma-3-12b", "gemma-3-27b"}


@pytest.mark.parametrize("name", PRINTED)
def test_parameters_round_to_the_printed_size(name: str) -> None:
    printed, tolerance = PRINTED[name]
    assert shape(name).total_parameters == pytest.approx(printed, rel=tolerance)


def test_every_shipped_config_is_listed_with_its_source() -> None:
    listed = (Path(models.__file__).parent / "SOURCES.md").read_text()
    assert [name for name in models.names() if f"| `{name}` |" not in listed] == []


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("llama-2-7b", 2 * 32 * 32 * 128),
        ("llama-3.1-8b", 2 * 32 * 8 * 128),
        ("llama-3.1-70b", 2 * 80 * 8 * 128),
        ("deepseek-v3", 61 * (512 + 64)),  # one latent and one shared rotary key a layer (arXiv 2412.19437)
    ],
)
def test_kv_numbers_of_a_token_follow_the_key_value_heads(name: str, numbers: int) -> None:
    assert shape(name).kv_width_per_token == numbers


@pytest.mark.parametrize(
    ("name", "window", "windowed", "layers"),
    [
        ("mistral-7b-v0.1", 4096, 32, 32),
        ("mistral-7b-v0.3", None, 0, 32),
        ("qwen2.5-7b", None, 0, 28),  # the config names a window and does not use it
        ("gpt-oss-20b", 128, 12, 24),
        ("gemma-2-9b", 4096, 21, 42),
        ("gemma-3-1b", 512, 22, 26),  # full attention in layers 6, 12, 18, 24
        ("gemma-3-27b", 1024, 52, 62),
    ],
)
def test_windowed_layers_are_those_of_the_family(name: str, window: int | None, windowed: int, layers: int) -> None:
    kinds = [layer.attention.window for layer in shape(name).layers]
    assert len(kinds) == layers
    assert sum(kind is not None for kind in kinds) == windowed
    assert {kind for kind in kinds if kind is not None} == ({window} if window else set())


def test_alternation_starts_with_the_window_and_gemma_3_ends_each_six_with_full_attention() -> None:
    assert [layer.attention.window for layer in shape("gpt-oss-20b").layers[:2]] == [128, None]
    assert [layer.attention.window for layer in shape("gemma-2-2b").layers[:2]] == [4096, None]
    assert [layer.attention.window for layer in shape("gemma-3-1b").layers[4:7]] == [512, None, 512]


def test_deepseek_v3_has_three_dense_layers_a_shared_expert_and_37_billion_active() -> None:
    model = shape("deepseek-v3")
    assert [bool(layer.ffn.experts) for layer in model.layers] == [False] * 3 + [True] * 58
    ffn = model.layers[3].ffn
    assert (ffn.experts, ffn.experts_per_token, ffn.shared_width, ffn.router_bias) == (256, 8, 2048, True)
    idle = 58 * (256 - 8) * sum(ffn.expert_parameters(model.d_model).values())
    assert (model.total_parameters - idle) / 1e9 == pytest.approx(37, abs=0.6)  # arXiv 2412.19437: 37B


def test_gpt_oss_stores_experts_in_mxfp4_with_sinks_and_biases() -> None:
    model = shape("gpt-oss-20b")
    attention = model.layers[0].attention
    assert model.expert_format == "mxfp4"
    assert attention.sinks and attention.qkv_bias and attention.out_bias
    assert model.layers[0].ffn.bias and model.layers[0].ffn.router_bias


def test_encoders_see_both_ways_and_decoders_do_not() -> None:
    t5 = shape("t5-v1.1-small")
    assert not t5.encoder[0].attention.causal and t5.layers[0].attention.causal
    assert t5.layers[0].cross is not None and not t5.layers[0].cross.causal
    assert shape("bert-base").layers == () and not shape("bert-base").encoder[0].attention.causal


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("google/t5-v1_1-xxl", "t5-v1.1-xxl"),
        ("google/gemma-3-27b-pt", "gemma-3-27b"),
        ("mistral-7b", "mistral-7b-v0.1"),
        ("GPT2", "gpt2"),
    ],
)
def test_models_are_found_by_name_and_by_hugging_face_id(said: str, name: str) -> None:
    assert models.find(said).name == name


def test_aliases_lead_to_shipped_models() -> None:
    assert set(models.aliases().values()) == set(models.names())
    assert all(models.find(alias).name == name for alias, name in models.aliases().items())


def test_a_file_and_a_folder_with_a_config_work(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config("gpt2")))
    for path in (folder, folder / "config.json"):
        found = models.find(path)
        assert (found.name, found.source) == ("my-model", str(folder / "config.json"))
        assert shape_from_config(*found).total_parameters == PUBLISHED["gpt2"]


def test_unknown_names_and_files_are_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model config 'llama-3.1-9b'; did you mean 'llama-3.1-8b'"):
        models.find("llama-3.1-9b")
    with pytest.raises(ValueError, match="no such file"):
        models.find(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "must be a JSON object"),
        ('{"a": 1', "not valid JSON"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a": "\xff"}'.encode("latin-1"), "not valid JSON"),
        (" " * (models.MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_hostile_json_file_is_refused_in_one_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        models.find(path)
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "lama"}, "model_type is 'lama', supported: bert"),
        ({"model_type": "lama"}, "did you mean 'llama'?"),
        ({"model_type": None}, "model_type is None"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000, allowed: a whole number from 1 to 4096"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": -4096}, "hidden_size is -4096"),
        ({"hidden_size": 4096.0}, "hidden_size is 4096.0"),
        ({"hidden_size": float("nan")}, "hidden_size is nan"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"hidden_size": 10**5000}, "hidden_size is a huge number"),
        ({"hidden_size": None}, "key 'hidden_size' is missing"),
        ({"num_attention_heads": 31, "num_key_value_heads": 31}, "num_attention_heads is 31, allowed: a divisor of"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5, allowed: a divisor of num_attention_heads (32)"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', allowed: true or false"),
        ({"hidden_act": 3}, "hidden_act is 3, allowed: text"),
    ],
)
def test_a_bad_key_is_named_with_file_value_and_what_is_allowed(change: dict[str, Any], words: str) -> None:
    assert words in refused(config("llama-3.1-8b", **change))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "is 9, allowed: at most num_local_experts (8)"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "layer_types is ['full_attention'], allowed: a list"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [True]}, "allowed: a list of layer numbers"),
        ("opt-6.7b", {"do_layer_norm_before": False}, "do_layer_norm_before is False, allowed: true"),
        ("deepseek-v3", {"attention_bias": True}, "attention_bias is True, allowed: false"),
    ],
)
def test_family_specific_nonsense_is_refused(name: str, change: dict[str, Any], words: str) -> None:
    assert words in refused(config(name, **change))


def test_something_that_is_no_mapping_is_refused() -> None:
    assert "must be a JSON object" in refused([1])


def test_the_families_own_small_models_may_drop_the_gate() -> None:
    plain = shape_from_config(config("smollm2-135m", mlp_gated=False, hidden_act="relu"), "x")
    gate = 30 * 576 * 1536
    assert plain.total_parameters == PUBLISHED["smollm2-135m"] - gate
    assert plain.layers[0].ffn.activation == "relu"


def test_qwen2_windows_begin_at_the_named_layer_when_switched_on() -> None:
    changed = config("qwen2.5-7b", use_sliding_window=True, sliding_window=4096, max_window_layers=20)
    model = shape_from_config(changed, "x")
    assert [layer.attention.window for layer in model.layers] == [None] * 20 + [4096] * 8


def test_qwen_moe_layers_can_be_dense_by_step_and_by_list() -> None:
    model = shape_from_config(config("qwen3-30b-a3b", decoder_sparse_step=2, mlp_only_layers=[1]), "x")
    assert [bool(layer.ffn.experts) for layer in model.layers[:6]] == [False, False, False, True, False, True]


def test_deepseek_v2_lite_has_the_published_15_7_billion() -> None:
    """Plain query projection, greedy router without bias (arXiv 2405.04434, appendix: 15.7B total)."""
    lite = config(
        "deepseek-v3",
        model_type="deepseek_v2",
        **{"hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "first_k_dense_replace": 1},
        **{"n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "num_hidden_layers": 27},
        **{"num_attention_heads": 16, "q_lora_rank": None, "vocab_size": 102400, "topk_method": "greedy"},
    )
    assert shape_from_config(lite, "lite").total_parameters == 15_706_484_224


JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@given(st.data())
def test_any_changed_key_gives_a_shape_or_one_line(data: st.DataObject) -> None:
    """However a shipped config is damaged, the answer is a shape with parameters or a ValueError naming the file."""
    name = data.draw(st.sampled_from(models.names()))
    damaged = config(name)
    for key in data.draw(st.lists(st.sampled_from(sorted(damaged)), min_size=1, max_size=2)):
        damaged[key] = data.draw(JUNK)
    try:
        assert shape_from_config(damaged, name, "f.json").total_parameters > 0
    except ValueError as error:
        assert str(error).startswith("f.json: ") and "\n" not in str(error)


def test_the_example_in_the_docstring_runs() -> None:
    assert doctest.testmod(models) == doctest.TestResults(failed=0, attempted=1)


def test_every_family_is_reached_by_a_shipped_config_or_a_test_here() -> None:
    inner = (models.find(name).config for name in models.names())
    used = {(c.get("text_config") or c)["model_type"] for c in inner}
    assert set(FAMILIES) - used == {"qwen2_moe", "deepseek_v2", "gemma", "gemma3"}


@pytest.mark.parametrize(
    ("like", "change", "published"),
    [
        (
            "gemma-2-2b",  # google/gemma-2b
            {
                **{"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384},
                **{"num_hidden_layers": 18, "num_key_value_heads": 1},
            },
            2_506_172_416,
        ),
        (
            "qwen2.5-3b",  # Qwen/Qwen1.5-MoE-A2.7B
            dict(
                model_type="qwen2_moe",
                **{"intermediate_size": 5632, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
                **{"num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16},
                tie_word_embeddings=False,
            ),
            14_315_784_192,
        ),
    ],
)
def test_families_that_do_not_ship_meet_published_counts_too(like: str, change: dict[str, Any], published: int) -> None:
    assert shape_from_config(config(like, **change), "x").total_parameters == published
