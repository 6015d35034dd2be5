"""The shipped family is whole, small, what its configs say, and as good as its record claims."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.reference.training import configs
from sim.reference.training.__main__ import main, stage_names
from sim.reference.training.corpus import CORPUS, FAMILY, read_novels, split_corpus
from sim.reference.training.packing import pack_ternary, unpack_ternary

LIMIT_BYTES = 10_000_000
MEMBERS = tuple(configs.BUDGETS)
SHAPES = {
    "primary": configs.PRIMARY,
    "drafter": configs.DRAFTER,
    "drafter-distilled": configs.DRAFTER,
    "drafter-tiny": configs.TINY,
    "matformer": configs.MATFORMER,
    "relu": configs.RELU,
    "tandem": configs.TANDEM,
    "ternary": configs.PRIMARY,
}
RECORD = json.loads((FAMILY / "record.json").read_text("utf-8"))
LOG = json.loads((FAMILY / "training_log.json").read_text("utf-8"))


def tensors(name: str) -> dict[str, np.ndarray]:
    """All tensors of a member, read with nothing but NumPy."""
    raw = (FAMILY / name / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    kinds = {"F16": "<f2", "U8": "u1"}
    body = raw[8 + size :]
    return {
        key: np.frombuffer(body[slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"])
        for key, t in header.items()
    }


def llama_shapes(c: configs.NetConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a tied Llama of this config has, counted here by hand."""
    d, f, q, kv = c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads
    out = {"model.embed_tokens.weight": (c.vocab_size, d), "model.norm.weight": (d,)}
    for i in range(c.num_hidden_layers):
        layer = {
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
            "self_attn.q_proj": (q * c.head_dim, d),
            "self_attn.k_proj": (kv * c.head_dim, d),
            "self_attn.v_proj": (kv * c.head_dim, d),
            "self_attn.o_proj": (d, q * c.head_dim),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        } | ({"mlp.gate_proj": (f, d)} if c.mlp_gated else {})
        out |= {f"model.layers.{i}.{key}.weight": shape for key, shape in layer.items()}
    return out


def rows(section: str, **wanted: object) -> list[dict]:
    return [r for r in RECORD[section] if all(r.get(k) == v for k, v in wanted.items())]


def only(section: str, **wanted: object) -> dict:
    (row,) = rows(section, **wanted)
    return row


def nll(model: str, text: str = "held_out_a") -> float:
    return only("nll", model=model, text=text)["nll_nats"]


def alpha(draft: str, text: str = "held_out_a", temperature: float = 1.0) -> float:
    return only("acceptance", draft=draft, text=text, temperature=temperature)["alpha"]


def test_the_family_is_under_ten_megabytes() -> None:
    """Weights, vocabulary, text and records together stay under 10 MB."""
    assert sum(p.stat().st_size for p in FAMILY.rglob("*") if p.is_file()) < LIMIT_BYTES


def test_no_file_is_there_that_the_sources_do_not_name() -> None:
    """A member folder holds its config and its weights; every file beside them has its source in SOURCES.md."""
    members = {f"{m}/{f}" for m in MEMBERS for f in ("config.json", "model.safetensors")}
    found = {p.relative_to(FAMILY).as_posix() for p in FAMILY.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    sources = (FAMILY / "SOURCES.md").read_text("utf-8")
    assert {f for f in found - members if f"`{f}`" not in sources} == {"SOURCES.md"}
    assert members | {"tokenizer.json", "record.json", "training_log.json", CORPUS.name} <= found


@pytest.mark.parametrize("name", MEMBERS)
def test_hashes_are_those_that_were_measured(name: str) -> None:
    """The record speaks of these very weights."""
    raw = (FAMILY / name / "model.safetensors").read_bytes()
    row = only("members", member=name)
    assert (row["sha256"], row["file_bytes"]) == (hashlib.sha256(raw).hexdigest(), len(raw))


@pytest.mark.parametrize("name", SHAPES)
def test_config_is_the_shape_that_was_trained(name: str) -> None:
    """Every key of the trainer's config stands in config.json with the same value."""
    config = json.loads((FAMILY / name / "config.json").read_text("utf-8"))
    assert config.items() >= SHAPES[name].to_hf().items()


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "ternary"])
def test_tensors_are_those_of_the_config(name: str) -> None:
    """Names and shapes are Hugging Face's for the config; all numbers are finite and in float16."""
    found = tensors(name)
    extra = {f"proj.{j}.weight": (96, 160) for j in range(2)} if name == "tandem" else {}
    assert {k: t.shape for k, t in found.items()} == llama_shapes(SHAPES[name]) | extra
    assert all(t.dtype == np.float16 and np.isfinite(t).all() for t in found.values())


def test_medusa_tensors_are_two_squares_a_head() -> None:
    """Four heads of two 160 x 160 matrices."""
    expected = {f"heads.{k}.{m}.weight": (160, 160) for k in range(4) for m in ("inner", "residual")}
    assert {k: t.shape for k, t in tensors("medusa").items()} == expected


def test_ternary_matrices_unpack_to_three_values() -> None:
    """Every layer matrix holds all of -1, 0, 1 (and no other code), with one positive scale."""
    found = tensors("ternary")
    for key, shape in llama_shapes(configs.PRIMARY).items():
        if len(shape) == 1 or "embed" in key:
            assert found[key].shape == shape
            continue
        values = unpack_ternary(found[key])
        assert values.shape == shape
        assert set(np.unique(values)) == {-1, 0, 1}
        assert found[key + "_scale"].shape == (1,)
        assert found[key + "_scale"][0] > 0


def test_parameter_counts_are_in_the_promised_ranges() -> None:
    """Primary 1 to 3 M, drafters 0.1 to 0.3 M, counted from the shapes."""
    counts = {n: sum(int(np.prod(s)) for s in llama_shapes(c).values()) for n, c in SHAPES.items()}
    assert 1_000_000 <= counts["primary"] <= 3_000_000
    assert all(100_000 <= counts[n] <= 300_000 for n in ("drafter", "drafter-distilled", "drafter-tiny", "tandem"))
    assert all(only("members", member=n)["params"] == counts[n] for n in counts if n != "tandem")


def test_packing_by_hand() -> None:
    """Rows -1, 0, 1, 1 of one column are codes 0, 1, 2, 2 in bits 0-1, 2-3, 4-5, 6-7: 4 + 32 + 128."""
    packed = pack_ternary(np.array([[-1], [0], [1], [1]], dtype=np.int8))
    assert packed.tolist() == [[164]]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32))
def test_packing_round_trip(rows: int, columns: int, seed: int) -> None:
    """Unpacking gives back what was packed."""
    values = np.random.default_rng(seed).integers(-1, 2, (4 * rows, columns)).astype(np.int8)
    assert (unpack_ternary(pack_ternary(values)) == values).all()


def test_packing_refuses_what_is_not_ternary() -> None:
    """Other values, other row counts and the unused code are errors."""
    with pytest.raises(ValueError, match="multiple of 4"):
        pack_ternary(np.zeros((3, 2), np.int8))
    with pytest.raises(ValueError, match="-1, 0 and 1"):
        pack_ternary(np.full((4, 2), 2, np.int8))
    with pytest.raises(ValueError, match="code 3"):
        unpack_ternary(np.array([[3]], np.uint8))


def test_the_three_texts_are_disjoint_and_complete() -> None:
    """Glued together in order, train, A and B are each novel, and their hashes are the record's."""
    split = split_corpus()
    glued = ["".join(parts) for parts in zip(split.train, split.held_out_a, split.held_out_b, strict=True)]
    assert glued == list(read_novels().values())
    for part in ("train", "held_out_a", "held_out_b"):
        raw = "".join(getattr(split, part)).encode()
        assert only("texts", part=part)["sha256"] == hashlib.sha256(raw).hexdigest()


def test_held_out_paragraphs_were_not_trained_on() -> None:
    """No paragraph of 200 characters or more of A or B stands in the training text or in the other."""
    split = split_corpus()
    train, a, b = (
        {p for text in part for p in text.split("\n") if len(p) >= 200}
        for part in (split.train, split.held_out_a, split.held_out_b)
    )
    assert min(len(a), len(b)) > 200
    assert not a & train and not b & train and not a & b


def test_a_text_without_its_novels_is_refused(tmp_path: Path) -> None:
    """The error names the file and the title that is missing."""
    import lzma

    path = tmp_path / "other.txt.xz"
    path.write_bytes(lzma.compress(b"EMMA\n\ntext\n"))
    with pytest.raises(ValueError, match=r"other\.txt\.xz.*MANSFIELD PARK"):
        read_novels(path)


def test_every_stage_is_in_the_log_and_learned() -> None:
    """Each stage ran its whole budget and ended below where it began; the whole took under 40 CPU minutes."""
    for name, budget in configs.BUDGETS.items():
        log = LOG["stages"][name]
        assert (log["steps"], log["lr"]) == (budget.steps, budget.lr)
        assert log["losses"][-1] < log["losses"][0]
    assert LOG["cpu_s_total"] < 40 * 60


def test_likelihoods_are_in_order() -> None:
    """Better models have lower nll on both texts: primary, drafter, tiny; XL to S; more bits to fewer."""
    for text in ("held_out_a", "held_out_b"):
        assert nll("primary", text) < nll("drafter", text) < nll("drafter-tiny", text) < np.log(1024) / 1.8
        assert nll("matformer@512", text) <= nll("matformer@128", text) < nll("matformer@64", text)
        assert abs(nll("primary-int8", text) - nll("primary", text)) < 0.002
        assert nll("primary", text) < nll("primary-int4", text) < nll("primary-int3", text)
        assert nll("primary", text) < nll("ternary", text) < nll("primary-ternary-post-training", text) - 1
        assert nll("relu@top96", text) < nll("relu@top768", text) + 0.1


def test_acceptance_is_in_order() -> None:
    """Distillation helps, nesting helps more, int8 is nearly the model itself; A predicts B."""
    assert alpha("drafter-tiny") < alpha("drafter") < alpha("drafter-distilled") < alpha("primary-int4")
    assert alpha("primary-int8") > 0.99
    assert alpha("matformer@64") < alpha("matformer@128") < alpha("matformer@256")
    for row in rows("acceptance", text="held_out_a"):
        twin = only("acceptance", **{k: row[k] for k in ("target", "draft", "temperature")}, text="held_out_b")
        assert abs(row["alpha"] - twin["alpha"]) < 5 * np.hypot(row["se"], twin["se"]) + 0.01


def test_own_text_agrees_with_held_out_text_at_temperature_one() -> None:
    """At temperature 1 the target's samples look like its text: acceptance differs by less than 0.03."""
    for row in rows("acceptance", text="held_out_a", temperature=1.0):
        own = only("acceptance", target=row["target"], draft=row["draft"], text="own_a", temperature=1.0)
        assert abs(row["alpha"] - own["alpha"]) < 0.03


def test_medusa_accuracies_fall_with_the_head_and_rise_with_the_rank() -> None:
    """On held-out text, and far above chance (1 / 1024)."""
    for row in rows("medusa", text="held_out_a"):
        table = np.array(row["top_1_to_10"])
        assert (np.diff(table, axis=1) > 0).all() and (np.diff(table[:, 0]) < 0).all()
        assert table[-1, 0] > 0.02


def test_tandem_reads_the_primary() -> None:
    """With the primary's states behind it, it drafts at index 1 and later at least as well as the plain drafter."""
    row = only("tandem", text="own_a", temperature=1.0)
    assert min(row["alpha_by_index"][1:]) > alpha("drafter", "own_a")


def test_relu_recall_rises_with_candidates_and_bits() -> None:
    """int4 with half as many candidates again misses almost nothing; int2 and thin low rank miss more."""
    for row in RECORD["relu"]["recall"]:
        values = list(row["recall"].values())
        assert values == sorted(values)
    by_name = {(r["layer"], r["k"], r["estimate"]): r["recall"] for r in RECORD["relu"]["recall"]}
    for layer in range(configs.RELU.num_hidden_layers):
        assert by_name[layer, 96, "int4_g32"]["1.5"] > 0.99
        assert by_name[layer, 96, "int2_g32"]["1.0"] < by_name[layer, 96, "int4_g32"]["1.0"]
        assert by_name[layer, 96, "svd_8"]["1.0"] < by_name[layer, 96, "svd_64"]["1.0"]


def test_an_unknown_stage_is_refused_with_a_hint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The command line names the stage and the likely meaning, writes nothing and returns 2."""
    assert main(["--out", str(tmp_path / "x"), "--only", "primry"]) == 2
    assert "unknown stage 'primry'; did you mean 'primary'?" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_stages_run_in_training_order() -> None:
    """Whatever the order of the arguments, what is distilled comes after its teacher."""
    assert stage_names(["tandem", "primary"]) == ["primary", "tandem"]
    assert stage_names([]) == list(configs.BUDGETS)
