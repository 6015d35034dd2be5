"""Random Llamas small enough to enumerate: every continuation of a prompt, with its exact probability."""

import itertools

import numpy as np

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.numerics import Numerics
from sim.reference.rope import Rope
from sim.reference.sampling import Sampler, stream
from sim.reference.transformer import Transformer


def random_llama(seed, vocab=4, d=16, layers=2, heads=2, sharpness=1.0, exact=False, attention=1.0, name="tiny"):
    """A Llama with Gaussian weights; ``sharpness`` scales the logits, ``attention`` what each layer attends to."""
    dim, width = d // heads, 2 * d
    layer = Layer(Attention(heads, 1, dim, dim), Ffn(width))
    shape = ModelShape(name, d, vocab, (layer,) * layers)
    luck = stream(seed, "weights")

    def matrix(rows, columns, scale=1.0):
        return (luck.normal(size=(rows, columns)) * scale / np.sqrt(rows)).astype(np.float32)

    ones = np.ones(d, np.float32)
    weights = {"embed": luck.normal(size=(vocab, d)).astype(np.float32), "norm.final": ones}
    weights["logits"] = matrix(d, vocab, sharpness)
    for i in range(layers):
        key = f"layers.{i}."
        weights |= {
            key + "norm.attn": ones,
            key + "norm.mlp": ones,
            key + "attn.qkv": matrix(d, (heads + 2) * dim, 2.0),
            key + "attn.out": matrix(d, d, attention),
            key + "mlp.up": matrix(d, 2 * width),
            key + "mlp.down": matrix(width, d),
        }
    return Transformer(shape, Numerics(rope=Rope(dim)), weights, exact=exact)


def teacher_forced(model, texts, sampler=None):
    """Next-token distributions along texts of equal length, [b, n] -> [b, n, V]: row t is that after token t."""
    logits = model.forward(list(np.asarray(texts)), model.new_cache(len(texts)), rows="all")
    b, n = np.shape(texts)
    return (sampler or Sampler()).probabilities(logits).reshape(b, n, -1)


def exact_distribution(model, prompt, tokens, sampler=None):
    """P(continuation) for all V^tokens continuations of a prompt, in counting order, [V^tokens]."""
    vocab = model.shape.vocab
    paths = np.array(list(itertools.product(range(vocab), repeat=tokens)))  # [V^tokens, tokens]
    texts = np.concatenate([np.tile(prompt, (len(paths), 1)), paths], axis=1)
    p = teacher_forced(model, texts[:, :-1], sampler)[:, len(prompt) - 1 :]  # [V^tokens, tokens, V]
    return np.take_along_axis(p, paths[..., None], axis=2)[..., 0].prod(axis=1)
