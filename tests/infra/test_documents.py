"""JSON and YAML from outside end in one line, however they are nested and whatever their aliases unfold to."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.documents import DocumentError, parse_json, parse_yaml, read_json, read_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=200,
)  # fmt: skip


@given(VALUES)
def test_what_is_plain_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value), "it") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "it") == value


@given(VALUES)
def test_yaml_is_read_as_pyyaml_reads_it(value: Any) -> None:
    text = yaml.safe_dump(value)
    assert parse_yaml(text, "it") == yaml.safe_load(text)


def nested(depth: int, left: str = "[", right: str = "]", inside: str = "1") -> str:
    return left * depth + inside + right * depth


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LADDER = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 3_000_000, "nested more than 100 deep"),
        ('{"a":' * 600_000, "nested more than 100 deep"),
        (nested(101), "nested more than 100 deep"),
        (nested(101, '{"a":[', "]}"), "nested more than 100 deep"),
        ('["' + '"], ["' * 101 + '"]', "is not JSON"),
        ("9" * 5000, "is not JSON"),
        ("{", "is not JSON"),
        (b"\xff", "is not JSON"),
        ('"' + '\\"' * 100_000, "is not JSON"),
        ('{"a": [{"seed": 1, "b": 2, "seed": 1}]}', "says 'seed' twice"),
        ('{"seed": 1, "\\u0073eed": 2}', "says 'seed' twice"),
    ],
    ids=range(11),
)
def test_json_that_is_none_or_too_deep_ends_in_one_line(content: str | bytes, says: str) -> None:
    with pytest.raises(DocumentError, match=f"^it.* {says}") as refused:
        parse_json(content, "it")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 3_000_000, "is nested more than 100 deep"),
        ("{a: " * 500_000, "is nested more than 100 deep"),
        ("- " * 1_000_000, "is nested more than 100 deep"),
        ("? " * 1_000_000, "is nested more than 100 deep"),
        (LADDER, "is nested more than 100 deep"),
        (BOMB, "unfolds to more than 100000 nodes"),
        (MERGES, "unfolds to more than 100000 nodes"),
        ("a\n---\n" * 120_000, "unfolds to more than 100000 nodes"),
        ("a: &a [*a]", "has an alias 'a' of nothing before it"),
        ("x" * 5_000_000, "has more than 4194304 bytes"),
        ("a: [", "is not YAML"),
        ("a: 2026-13-45", "is not YAML"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        ("a: 1\nb:\n  seed: 1\n  seed: 2", "says 'seed' twice, the second time in line 4"),
        ("[{seed: [seed], 'seed': 2}]", "says 'seed' twice, the second time in line 1"),
    ],
    ids=range(16),
)
def test_yaml_that_is_none_or_too_much_ends_in_one_line(content: str | bytes, says: str) -> None:
    with pytest.raises(DocumentError, match=f"^it {says}") as refused:
        parse_yaml(content, "it")
    assert "\n" not in str(refused.value)


def test_brackets_in_strings_do_not_count_and_a_hundred_levels_may_be() -> None:
    assert parse_json(json.dumps({"a": "[{" * 500, 'b"]\\': "\\"}), "it")["a"] == "[{" * 500
    assert parse_json(nested(100), "it")
    assert parse_yaml(nested(100), "it")


@given(st.lists(st.text('[]{}"\\a', max_size=12), max_size=6), st.sampled_from([True, False]))
def test_strings_of_brackets_quotes_and_backslashes_are_no_levels(
    texts: list[str], spaced: bool
) -> None:
    rest = json.dumps(texts, separators=(", ", ": ") if spaced else (",", ":"))
    assert parse_json(nested(99, inside=rest), "it")
    with pytest.raises(DocumentError, match="nested more than 100 deep"):
        parse_json(nested(100, inside=rest), "it")


def test_an_honest_alias_is_unfolded() -> None:
    found = parse_yaml("base: &b {x: 1}\nmore: {<<: *b, y: 2}\nsame: *b", "it")
    assert found == {"base": {"x": 1}, "more": {"x": 1, "y": 2}, "same": {"x": 1}}


def test_names_may_come_again_in_another_object_and_over_what_is_merged() -> None:
    again = '{"a": {"a": "a"}, "b": [{"a": 1}, {"a": 2}]}'
    assert parse_json(again, "it") == parse_yaml(again, "it") == json.loads(again)
    found = parse_yaml("one: &a {x: 1, y: 1}\ntwo: {<<: *a, x: 2}", "it")
    assert found["two"] == {"x": 2, "y": 1}


def test_a_file_above_its_bound_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_text("[" + "1," * 1000 + "1]")
    assert len(read_json(path)) == 1001
    with pytest.raises(DocumentError, match=r"large\.json has more than 100 bytes"):
        read_json(path, most=100)
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none.yaml")
