"""Acceptance measured token by token: the walk along a text, what it averages to, and the files it is read from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.acceptance import survival_vector, walk
from sim.policies.speculative import Speculative
from sim.reference.replay import survival_vector as replayed
from sim.serving.luck import Luck
from workloads import acceptance


def empirical(betas):
    """The option as a scenario writes it."""
    return {"kind": "empirical", "betas": betas}


def test_a_walk_by_hand():
    """Ring 1, 0.5, 0.2 at gamma 2: survivals from place 0 are (1, .5), from 1 (.5, .1), from 2 (.2, .2)."""
    along = walk(empirical([1.0, 0.5, 0.2]), 2)
    assert along.kept(0, [0.4, 0.19, 0.5]) == [2, 2, 1]  # 0 -> 3 = 0 again: .19 < .5 keeps both; 0 again: .5 < 1 only
    assert along.kept(0, [0.6, 0.1, 0.05]) == [1, 2, 2]  # .6 keeps one: on to 2; .1 < .2, .2; 2 -> 5 = 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(1, 6), st.integers(0, 99))
def test_a_walk_goes_on_after_what_it_kept(betas, gamma, offset):
    """Every round's kept drafts follow from the survival at its place; the next place is kept + 1 further on."""
    along, coins = walk(empirical(betas), gamma), np.random.default_rng(offset).random(20).tolist()
    at = offset % len(betas)
    for coin, kept in zip(coins, along.kept(at, coins), strict=True):
        survival = np.cumprod([betas[(at + k) % len(betas)] for k in range(gamma)])
        assert kept == int((coin < survival).sum())
        at += kept + 1


def test_one_beta_everywhere_is_iid():
    """A text of equal betas has the survival vector alpha^k, and sequences of the same law."""
    assert survival_vector(empirical([0.7] * 5), 4) == pytest.approx(0.7 ** np.arange(1, 5), rel=1e-12)
    assert survival_vector(empirical([1.0] * 5), 3).tolist() == [1, 1, 1]
    assert survival_vector(empirical([0.0]), 3).tolist() == [0, 0, 0]


def test_survival_is_that_of_the_witness():
    """On a long text the ring's mean survival is the replay's (which knows an end and no ring) within 0.5 %."""
    betas = acceptance.load("primary--drafter")
    assert survival_vector(empirical("primary--drafter"), 4) == pytest.approx(replayed(betas, 4), rel=5e-3)


@pytest.mark.parametrize("gamma", [1, 4])
def test_drawn_rounds_have_that_survival(gamma):
    """P(at least k kept) over 3,000 sequences of 60 tokens: each position within 4.5 standard errors."""
    policy = Speculative("d", gamma, empirical("primary--drafter"))
    luck, kept = Luck(3), []
    for request in range(3000):
        future = policy.future(luck.of(request), 0, 60)
        kept.append(future.kept[future.offsets + gamma + 1 <= 60])
    together = np.concatenate(kept)
    for k, want in enumerate(policy.survival, 1):
        per_run = np.array([(run >= k).sum() - want * len(run) for run in kept])
        assert abs(per_run.sum()) < 4.5 * per_run.std() * len(per_run) ** 0.5 + 0.004 * len(together)


def test_hard_places_come_together():
    """What i.i.d. loses: on a text half sure, half hopeless, all four drafts are kept far more often than alpha^4."""
    betas = [1.0] * 50 + [0.0] * 50
    assert survival_vector(empirical(betas), 4)[-1] > 0.14 > 2 * 0.5**4


def test_sequences_start_in_different_places():
    """The place is addressed: the same for the same request, spread over the text between requests."""
    policy = Speculative("d", 1, empirical([1.0] + [0.0] * 9))
    first = [policy.future(Luck(0).of(i), 0, 9).kept.tolist() for i in range(300)]
    assert first == [policy.future(Luck(0).of(i), 0, 9).kept.tolist() for i in range(300)]
    assert 10 < sum(f[0] for f in first) < 60


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ("primary--draftr", "no measured acceptance 'primary--draftr'; did you mean 'primary--drafter'?"),
        ("no/such.csv", "no/such.csv: no such file"),
        ([], "betas: 0 tokens; allowed: 1 to 200000"),
        ([0.5, 1.5], r"betas\[1\]: 1.5 is not a probability"),
        (3, "3 is not a CSV file, a measured pair or a list"),
    ],
)
def test_bad_betas_are_named(betas, message):
    """One line that begins with the key."""
    with pytest.raises(ValueError, match=rf"^policy\.acceptance\.(betas: )?{message}"):
        Speculative("d", 2, empirical(betas))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta\n0.5\n", "line 1: .*allowed: the columns text,beta"),
        ("text,beta\n0,0.5\n0,nan\n", "line 3: .*from 0 to 1"),
        ("text,beta\n0,0.5,1\n", "line 2: "),
        ("text,beta\n0\n", "line 2: "),
        ("text,beta\n" + "0,1\n" * 200_001, "200001 tokens; allowed"),
        ('text,beta\n"0,1\n', "not CSV"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    """File and line in one line; nothing is taken from a damaged file."""
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Speculative("d", 2, empirical(str(tmp_path / "b.csv")))
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    """Hostile files end in a ValueError of one line or in probabilities."""
    path = tmp_path_factory.mktemp("b") / "x.csv"
    path.write_bytes(b"text,beta\n" + data)
    try:
        assert ((acceptance.load(path) >= 0) & (acceptance.load(path) <= 1)).all()
    except ValueError as error:
        assert "\n" not in str(error)


def test_shipped_measurements():
    """Compact, named in SOURCES.md, and of the size that alpha between 0.6 and 0.9 asks for."""
    folder = acceptance.files("workloads.acceptance")
    said = (folder / "SOURCES.md").read_text()
    assert sum(len((folder / f"{name}.csv").read_bytes()) for name in acceptance.names()) < 200_000
    for name in acceptance.names():
        assert f"`{name}.csv`" in said and len(acceptance.load(name)) == 40 * 127
        assert 0.55 < acceptance.load(name).mean() < 0.9
