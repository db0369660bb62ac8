"""What a benchmark of speech counts: sentences that are plain, and words that were not understood."""

import numpy as np

from benchmarks.sentence_corpus import sentences
from benchmarks.word_errors import errors, interval, words


def test_words_are_counted_however_they_are_spelt() -> None:
    assert words("Mister Darcy's 2 dogs.") == words("mr. darcys two dogs") != words("two dogs")
    assert words("Mrs. Bennet") == words("Missis Bennet")
    assert errors("The cat sat.", "the cat sat!") == (0, 3)
    assert errors("The cat sat.", "a cat sat down") == (2, 3)
    assert errors("The cat sat.", "") == (3, 3) == errors("The cat sat.", " ...")


def test_an_interval_is_of_sentences_each_with_its_words() -> None:
    assert interval(np.array([(1, 4), (1, 4)]), 100, " %") == "25.0 % [25.0, 25.0]"
    some = interval(np.array([(0, 1), (9, 9)]), 100, " %")
    assert some == "90.0 % [0.0, 100.0]"


def test_a_corpus_takes_plain_sentences_alone() -> None:
    text = """It was _late_; "Stay here," said she.  Mr. Knightley looked
    at her for a while. In 1803 he came back to the house. He went, and she
    stayed at home! No."""
    assert sentences(text) == [
        "Mister Knightley looked at her for a while.",
        "He went, and she stayed at home!",
    ]
