"""What a run looks like: the lecture's figure with brackets and with colours."""

import numpy as np
import pytest
from small_models import random_llama

from sim.reference import cli_view
from sim.reference.cli_view import render, run, transcribe
from sim.reference.decoding import Generation, Round
from sim.reference.demos import headline


class Words:
    """A codec of whole words."""

    def __init__(self, vocab):
        self.vocab = list(vocab)

    def encode(self, text):
        """Ids of space-separated words."""
        return [self.vocab.index(w) for w in text.split()]

    def decode(self, ids):
        """Words, each after a space."""
        return "".join(f" {self.vocab[i]}" for i in ids)


LETTERS = Words("abcdefgh")


def test_the_lectures_figure_in_brackets():
    """Line 1 shows four kept guesses, one rejected, the target's own; line 8 a lone rejection; nine lines in all."""
    generation, vocab = headline()
    lines = render(transcribe(generation, Words(vocab)), colour=False, width=40).plain.splitlines()
    assert lines[0] == "[ japan][ '][ s][ benchmark]< bond> n"
    assert lines[1].endswith("benchmark n[ ik][ kei][ 22]< 7> 5")
    assert lines[7].endswith("79 in< tokyo> late")
    assert lines[8].endswith("[ morning][ trading][ .] [END]")
    assert lines[9] == "[accepted draft]  <rejected draft>  target's own  "
    assert lines[10].startswith("36 tokens in 9 target passes (3.88 tokens a pass after the prefill); ")
    assert lines[10].endswith("27 of 34 drafted tokens kept")


def test_colours_carry_the_same_information():
    """Green, red and blue spans cover exactly the pieces of their status; no brackets."""
    generation, vocab = headline()
    text = render(transcribe(generation, Words(vocab)), colour=True)
    green = [text.plain[s.start : s.end] for s in text.spans if s.style == "green"]
    red = [text.plain[s.start : s.end] for s in text.spans if s.style == "red strike"]
    assert green[:4] == [" japan", " '", " s", " benchmark"]
    assert red[0] == " bond" and red[-1] == "rejected draft"
    assert "[ japan]" not in text.plain and "< bond>" not in text.plain


def test_run_decodes_and_transcribes():
    """A run with a model object: as many lines as target passes, output text from output tokens."""
    target, draft = random_llama(1, vocab=8), random_llama(2, vocab=8, d=8, layers=1)
    t = run(target, "speculative", "a b c", {"draft": draft, "gamma": 3, "new_tokens": 20}, seed=3, codec=LETTERS)
    assert t.tokens == 20 and t.passes == len(t.lines)
    assert t.text == LETTERS.decode(t.generation.tokens)
    assert t.tokens_per_pass == pytest.approx(19 / (t.passes - 1))
    again = run(target, "speculative", "a b c", {"draft": draft, "gamma": 3, "new_tokens": 20}, seed=3, codec=LETTERS)
    assert again == t
    assert {p.status for line in t.lines for p in line} == {"accepted", "rejected", "own"}


def test_autoregressive_lines_hold_one_own_token():
    """Nothing drafted, nothing coloured; the summary does not speak of drafts."""
    t = run(random_llama(1, vocab=8), "autoregressive", "a", {"new_tokens": 5, "temperature": 0}, codec=LETTERS)
    assert [[p.status for p in line] for line in t.lines] == [["own"]] * 5
    assert "drafted" not in t.summary


def test_a_clipped_round_shows_no_rejection():
    """When the limit falls inside accepted drafts, the draft after them was not rejected."""
    generation = Generation((0,), (Round((), 0, (1,)), Round((2, 3, 4), 3, (2, 3, 4, 5)).clipped(2)))
    assert [p.status for p in transcribe(generation, LETTERS).lines[1]] == ["accepted", "accepted"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gama": 2}, "unknown option 'gama', did you mean 'gamma'"),
        ({"new_tokens": 0}, "new_tokens of prompt 0 is 0"),
        ({"new_tokens": "many"}, "new_tokens: 'many' is not allowed"),
        ({"temperature": -1}, "sampler: temperature is -1"),
    ],
)
def test_bad_options_are_named(options, message):
    """Options of run, sampler and policy are told apart; each error names its key."""
    model = random_llama(1, vocab=8)
    with pytest.raises(ValueError, match=message):
        run(model, "speculative", "a", {"draft": model, **options}, codec=LETTERS)
    with pytest.raises(ValueError, match="codec: model tiny is an object without tokenizer"):
        run(model, "autoregressive", "a")


def test_unknown_model_names_are_refused():
    """A misspelt name lists what ships."""
    with pytest.raises(ValueError, match="no such model folder or file"):
        run("primray", "autoregressive", "a")
    assert np.isnan(Generation((0,), (Round((), 0, (1,)),)).tokens_per_round)
    assert cli_view.STYLES.keys() == cli_view.BRACKETS.keys()
