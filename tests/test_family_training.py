"""The trainer and the measurements compute what they say (needs the torch extra; nothing is trained for long)."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from sim.reference.training import configs as c  # noqa: E402
from sim.reference.training import nets, quantise, stages, store  # noqa: E402
from sim.reference.training.acceptance import as_rounds, compare, overlap, replay  # noqa: E402
from sim.reference.training.bench import load_tandem  # noqa: E402
from sim.reference.training.corpus import FAMILY  # noqa: E402
from sim.reference.training.generate import generate  # noqa: E402
from sim.reference.training.loop import learning_rate_factor  # noqa: E402
from sim.reference.training.pairs import tandem_overlap  # noqa: E402

pytestmark = pytest.mark.parity  # needs what only .ci/run installs

IDS = torch.from_numpy(np.random.default_rng(1).integers(1, 1024, (3, 192)))


@pytest.fixture(scope="module")
def primary() -> nets.Llama:
    torch.set_num_threads(1)
    return store.load_llama(FAMILY / "primary")


@pytest.mark.parity
@pytest.mark.parametrize("name", ["primary", "drafter", "drafter-distilled", "drafter-tiny", "matformer"])
def test_logits_are_those_of_transformers(name: str) -> None:
    """Hugging Face's Llama loads the folder as it is and agrees to float32 rounding."""
    library = pytest.importorskip("transformers")
    theirs = library.LlamaForCausalLM.from_pretrained(FAMILY / name, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (theirs(IDS).logits - store.load_llama(FAMILY / name)(IDS)).abs().max() < 1e-3


def test_cached_generation_is_plain_recomputation(primary: nets.Llama) -> None:
    """Greedy tokens from the cache are the argmaxes of one full pass over the result."""
    text = generate(primary, IDS[:, :5], 20, 0.0, seed=0)
    assert (primary(text)[:, 4:-1].argmax(-1) == text[:, 5:]).all()


def test_sampling_is_seeded(primary: nets.Llama) -> None:
    """The same seed draws the same text, another seed another one."""
    texts = [generate(primary, IDS[:, :5], 20, 1.0, seed) for seed in (1, 1, 2)]
    assert (texts[0] == texts[1]).all() and (texts[0] != texts[2]).any()


def test_tandem_without_finished_blocks_is_a_plain_decoder(primary: nets.Llama) -> None:
    """One block over everything leaves no foreign keys: the logits are those of the secondary alone."""
    tandem = load_tandem(FAMILY)
    states = primary.states(IDS)
    alone = tandem.net(IDS)
    assert torch.allclose(tandem(IDS, states, torch.zeros(192, dtype=torch.long)), alone, atol=1e-4)
    assert (tandem(IDS, states, torch.arange(192) // 4) - alone).abs().max() > 0.1


def test_tandem_index_is_the_distance_to_the_block_start(primary: nets.Llama) -> None:
    """Entry [t, i] of the overlap is what a block that begins i tokens before t gives, recomputed for one t and i."""
    tandem, at, index = load_tandem(FAMILY), 100, 3
    alpha, _ = tandem_overlap(primary, tandem, IDS, 1.0)
    states = primary.states(IDS)
    block = (torch.arange(192) >= at - index).long()  # all before is finished, nothing else is cut
    q = tandem(IDS, states, block)[:, at : at + 1]
    expected, _ = compare(primary.head(states[-1])[:, at : at + 1], q, IDS[:, at + 1 : at + 2], 1.0)
    assert np.allclose(alpha[:, at - 31, index], expected[:, 0], atol=1e-4)


def test_compare_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/4, 3/4): alpha 1/2; token 0 has beta 1/3, token 1 beta 1; greedy disagrees."""
    p, q = torch.log(torch.tensor([[[3.0, 1.0]] * 2])), torch.log(torch.tensor([[[1.0, 3.0]] * 2]))
    alpha, beta = compare(p, q, torch.tensor([[0, 1]]), 1.0)
    assert torch.allclose(alpha, torch.tensor([[0.5, 0.5]]))
    assert torch.allclose(beta, torch.tensor([[1 / 3, 1.0]]))
    assert compare(p, q, torch.tensor([[0, 1]]), 0.0)[0].tolist() == [[0.0, 0.0]]


def test_a_model_accepts_itself(primary: nets.Llama) -> None:
    """Draft = target: alpha and beta are 1 at every temperature."""
    for seen in overlap(primary, {"self": primary}, IDS[:, :64], 8, (1.0, 0.7, 0.0)).values():
        assert np.allclose(seen.alpha, 1.0, atol=1e-5) and np.allclose(seen.beta, 1.0)


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 3), (0.6, 4), (0.9, 8), (1.0, 2)])
def test_replay_of_constant_acceptance_is_geometric(beta: float, gamma: int) -> None:
    """Survival s_k = beta^k, within 5 standard errors of the about 40,000 rounds or more."""
    survival = replay(as_rounds(np.full((200, 160), beta), gamma), seed=3)
    exact = beta ** np.arange(1, gamma + 1)
    assert (np.abs(survival - exact) <= 5 * np.sqrt(exact * (1 - exact) / 40_000) + 1e-12).all()


def test_ternary_has_three_values_and_an_honest_gradient() -> None:
    """absmean: (3, -1, 0.1, -2) has scale 1.525 and becomes (1, -1, 0, -1) times it; the gradient passes through."""
    matrix = nets.Linear(4, 1)
    matrix.weight.data = torch.tensor([[3.0, -1.0, 0.1, -2.0]])
    matrix.ternary = True
    assert torch.allclose(matrix.effective_weight(), 1.525 * torch.tensor([[1.0, -1.0, 0.0, -1.0]]))
    matrix(torch.ones(1, 4)).sum().backward()
    assert torch.equal(matrix.weight.grad, torch.ones(1, 4))


def test_ternary_export_keeps_the_function(tmp_path: Path) -> None:
    """Packed and loaded again, the matrices are those that training saw, up to the float16 of the scale."""
    net = nets.Llama(c.TINY, seed=0)
    store.save_folder(tmp_path, c.TINY.to_hf(), store.ternary_tensors(net.state_dict()))
    loaded = store.load_llama(tmp_path).model.layers[0].mlp.up_proj.weight
    assert torch.allclose(loaded, nets.ternary(net.model.layers[0].mlp.up_proj.weight), rtol=1e-3)


def test_matformer_prefix_is_a_smaller_model() -> None:
    """Width 64 computes what a model with 64 hidden units cut out of the matrices computes."""
    nested = store.load_llama(FAMILY / "matformer")
    whole, cut = nested(IDS), nested(IDS, width=64)
    for layer in nested.model.layers:
        for name in ("gate_proj", "up_proj"):
            getattr(layer.mlp, name).weight.data[64:] = 0
    assert torch.allclose(nested(IDS), cut, atol=1e-4) and not torch.allclose(whole, cut, atol=1e-1)


def test_rounding_error_is_at_most_half_a_step() -> None:
    """int8 in groups of 32: error below half of max / 127 of the group."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    step = weight.unflatten(1, (2, 32)).abs().amax(-1, keepdim=True) / 127
    error = (quantise.round_to_nearest(weight, 8) - weight).unflatten(1, (2, 32)).abs()
    assert (error <= step / 2 + 1e-6).all()


def test_full_rank_is_exact_and_data_aware_rank_is_better_on_its_data() -> None:
    """SVD of full rank gives the matrix back; the whitened one has the smaller output error on skewed inputs."""
    g = torch.Generator().manual_seed(0)
    weight, skew = torch.randn(24, 16, generator=g), torch.diag(torch.linspace(0.1, 3, 16))
    x = torch.randn(500, 16, generator=g) @ skew
    assert torch.allclose(quantise.low_rank(weight, 16), weight, atol=1e-4)
    plain, aware = ((x @ (quantise.low_rank(weight, 4, d) - weight).T).square().mean() for d in (None, x))
    assert aware < plain


def test_schedule_by_hand() -> None:
    """Step 0 of 1000: 1/40; the middle: 1; half of the decay: 1/2; the last step: 1/450."""
    factors = [learning_rate_factor(step, 1000) for step in (0, 300, 775, 999)]
    assert factors == pytest.approx([1 / 40, 1.0, 0.5, 1 / 450])


@pytest.mark.slow
def test_training_is_seeded_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of 20 steps on the same luck save the same bytes, and beat the uniform guess."""
    monkeypatch.setitem(c.BUDGETS, "drafter", c.Budget(20, 6e-3))
    tokens = np.tile(np.arange(1, 400), 20)
    logs = [stages.train_drafter(stages.Run(tmp_path / str(i), tokens, 7, lambda line: None)) for i in range(2)]
    first, second = ((tmp_path / str(i) / "drafter/model.safetensors").read_bytes() for i in range(2))
    assert first == second
    assert logs[0].losses == logs[1].losses
    assert logs[0].losses[-1] < np.log(1024) - 0.2
