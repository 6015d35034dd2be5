"""The notebooks' exercises: hidden answers are those of the project's objects, and hints say what is wrong."""

import json
import re
from pathlib import Path

import pytest
from exercise_answers import ANSWERS, SLIPS
from hypothesis import given
from hypothesis import strategies as st

from analysis import exercises as module
from analysis.exercises import SLIPS as FACTORS
from analysis.exercises import check, exercises, hide

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
ASKED = {
    number: path
    for path in NOTEBOOKS
    for cell in json.loads(path.read_text("utf-8"))["cells"]
    if cell["cell_type"] == "code"
    for number in re.findall(r'check\("([\d.]+)", \.\.\.\)', "".join(cell["source"]))
}


def test_every_exercise_is_asked_once_and_answered() -> None:
    """Numbers of the file, of the key and of the notebooks are the same; the first digit is its notebook."""
    assert list(exercises()) == list(ANSWERS)
    assert sorted(ASKED) == sorted(ANSWERS)
    assert all(path.name.startswith(number.split(".")[0].zfill(2)) for number, path in ASKED.items())


@pytest.mark.parametrize("number", ANSWERS)
def test_the_answer_of_our_objects_is_right(number: str) -> None:
    """And nothing near it but outside the tolerance is; an answer is not asked for by itself."""
    answer = ANSWERS[number]()
    assert check(number, answer) and not check(number, ...) and check(number, None).right is None
    if isinstance(answer, str):
        [other] = set(exercises()[number].choices) - {answer}
        assert check(number, f" {answer.upper()} ") and check(number, other).right is False
    else:
        within = exercises()[number].within
        assert check(number, answer * (1 + 0.9 * within))
        assert check(number, answer * (1 + 1.1 * within)).right is False


@pytest.mark.parametrize(("number", "slip", "hint"), [(n, s, h) for n, found in SLIPS.items() for s, h in found])
def test_a_common_slip_is_named(number: str, slip: float | str, hint: str) -> None:
    """The hint of this very slip, not a general one."""
    found = check(number, slip)
    assert found.right is False and found.message == hint


@pytest.mark.parametrize(("factor", "hint"), FACTORS)
def test_a_wrong_factor_is_named(factor: float, hint: str) -> None:
    """Either way round, on an answer without slips of its own."""
    assert check("2.3", 524288 * factor).message == hint == check("2.3", 524288 / factor).message


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (1 / 524288, "the other way round: this is the reciprocal"),
        (-524288, "the sign is wrong"),
        (526000, "near, but not within 0.1%: round less on the way"),
        (300_000, "too small"),
        (700_000, "too large"),
    ],
)
def test_other_hints(answer: float, hint: str) -> None:
    """Reciprocal, sign, rounding, direction."""
    assert check("2.3", answer).message == hint


def test_a_verdict_is_what_a_notebook_shows() -> None:
    """One line with the number, the answer only once it was found."""
    assert repr(check("2.3", ...)) == "2.3: not answered yet (bytes)"
    assert repr(check("2.3", 524288)) == "2.3: right, 524,288 bytes"
    assert "524" not in repr(check("2.3", 1))


@pytest.mark.parametrize(
    ("number", "answer", "match"),
    [
        ("2.11", 1, r"exercise '2.11'; allowed: 1.1, .*; did you mean '2.1'\?$"),
        ("2.3", "many", r"exercise 2.3: 'many' is not a number \(bytes\)$"),
        ("2.3", True, "is not a number"),
        ("2.3", float("nan"), "is not a number"),
        ("2.3", 10**400, "is not a number"),
        ("2.3", [1], "is not a number"),
        ("1.4", 3, "3 is not one of memory, compute$"),
        ("1.4", "memry", "'memry' is not one of memory, compute; did you mean 'memory'"),
    ],
)
def test_no_answer_at_all_is_refused(number: str, answer: object, match: str) -> None:
    """One line that says what is allowed."""
    with pytest.raises(ValueError, match=match) as caught:
        check(number, answer)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_is_judged(answer: float) -> None:
    """Whatever is typed, there is one verdict and one line; only what is near is right."""
    found = check("2.3", answer)
    assert found.right is (abs(answer - 524288) <= 524.288) and found.message and "\n" not in repr(found)


def test_answers_are_not_in_sight() -> None:
    """The file shows no answer, neither as a number nor as a word; a hidden number depends on its exercise."""
    text = module.FILE.read_text("utf-8")
    for number in ANSWERS:
        answer = ANSWERS[number]()
        entry = re.search(rf'^"{number}":\n(?:  .*\n)+', text, re.MULTILINE)
        assert entry
        shown = re.findall(r"answer: (.*)", entry[0])
        assert shown == [f'"{hide(number, answer)}"' if isinstance(answer, str) else hide(number, answer)]
    assert hide("1.1", 3.0) != hide("1.2", 3.0)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"unit": "x", "answer": "AAAA"}, "exercises.yaml: 9.9: 'AAAA' hides no number"),
        ({"unit": "x", "answer": "!"}, "exercises.yaml: 9.9: '!' hides no number"),
        ({"unit": "x", "answers": "AAAA"}, "exercises.yaml: '9.9': not an exercise with keys of unit"),
    ],
)
def test_a_broken_entry_is_named(
    entry: dict[str, str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, the exercise and what is wrong with it."""
    broken = tmp_path / "exercises.yaml"
    broken.write_text(json.dumps({"9.9": entry}), "utf-8")
    monkeypatch.setattr(module, "FILE", broken)
    with pytest.raises(ValueError, match=match):
        exercises.__wrapped__()
