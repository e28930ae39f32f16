"""Generated stories: what their questions ask for is in them, as far as a program can see."""

import doctest
import re

import pytest

import keras_mtp.tasks.told_stories
from keras_mtp.tasks.told_stories import STORY, ToldStories, generate

pytestmark = pytest.mark.any_backend


def test_the_docstrings_examples():
    assert doctest.testmod(keras_mtp.tasks.told_stories).failed == 0


def test_it_never_calls_itself_coqa():
    task = ToldStories(seed=7, train_size=2, test_size=1)
    assert (task.name, task.title) == ("coqa", "generated stories with questions (not CoQA)")
    assert (task.source, task.revision, task.is_benchmark, task.note) == ("builtin", "seed 7", False, "")
    assert not ToldStories(train_size=7199, test_size=500).is_benchmark


def test_the_seed_decides():
    assert generate("train", 20, seed=3) == generate("train", 40, seed=3)[:20]
    assert not {d.passage for d in generate("train", 40, seed=4)} & {
        d.passage for d in generate("train", 40, seed=3)
    }


def test_the_splits_share_no_story_whatever_their_seeds():
    training = {dialogue.passage for dialogue in generate("train", 1000, seed=5)}
    assert len(training) == 1000
    assert not training & {dialogue.passage for dialogue in generate("test", 200, seed=6)}


def test_answers_are_told_or_unknown():
    words = {
        "yes", "no", "unknown", "years", "on", "at", "in", "a", "that", "carrying", "the",
    }  # fmt: skip
    questions = set()
    for dialogue in generate("train", 200):
        assert 4 <= len(dialogue.turns) <= 19
        told = set(re.findall(r"\w+", dialogue.passage.lower()))
        for turn in dialogue.turns:
            text = f"{dialogue.passage} {turn.question} {turn.answer}"
            assert not re.search(r"[{}]|  |\b[Aa] [aeiou]", text), text
            assert set(re.findall(r"\w+", turn.answer.lower())) <= told | words, text
            questions.add(re.sub(r"\b[A-Z]\w+", "", turn.question))
    assert len(questions) >= sum(len(asked) for _, asked in STORY) - 3
