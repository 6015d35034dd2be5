"""DistilBERT on a CPU: half the layers do not take half the time."""

from __future__ import annotations

from sim.analytic.cost import PassCost
from sim.analytic.work import Work
from sim.published import shapes
from sim.published.table import Published, Table

TOKENS = 30  # a pair of sentences of STS-B


def _pass_s(name: str) -> float:
    cost = PassCost(shapes.shape(name), shapes.device("xeon-8480+"))
    return float(cost.seconds(Work.encode(1, TOKENS)))


def layers_alone(row: Published, table: Table) -> float:
    """Seconds of an encoder pass of twelve layers over those of six, on the pure roofline of a CPU."""
    return _pass_s("bert-base") / _pass_s("distilbert")


def parameters(row: Published, table: Table) -> float:
    """The ratio of all parameters, embeddings included."""
    return shapes.shape("bert-base").total_parameters / shapes.shape("distilbert").total_parameters


def by_layers(row: Published, table: Table) -> float:
    """Seconds of a full pass: a fixed part and one a layer, from the two timings of the table."""
    base = table.value(table.one(row, quantity="inference_s", model="BERT-base 110M").id)
    small = table.value(table.one(row, quantity="inference_s", model="DistilBERT 66M").id)
    many, few = (len(shapes.shape(name).layers) or _encoder_layers(name) for name in ("bert-base", "distilbert"))
    layer = (base - small) / (many - few)
    own = few if "Distil" in row.model else many
    return base - many * layer + own * layer


def _encoder_layers(name: str) -> int:
    return len(shapes.shape(name).encoder)
