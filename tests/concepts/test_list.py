"""Custom Diffusion's lists of concepts, good and bad."""

import json
from pathlib import Path

import pytest
from test_concept import picture

from infusion.concepts.list import holds_concepts, load_concepts
from infusion.errors import UserError


def write(folder: Path, content: object) -> Path:
    path = folder / "concepts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_list(tmp_path: Path) -> None:
    for name in ("data/cat", "data/My Pot", "10_rex dog"):
        picture(tmp_path / name / "1.png")
    cat = {"instance_prompt": "photo of a <new1> cat", "class_prompt": "cat", "instance_data_dir": "./data/cat"}
    pot = {"class_prompt": "a photo of a wooden  pot", "instance_data_dir": str(tmp_path / "data" / "My Pot")}
    dog = {"instance_prompt": "photo of a dog", "instance_data_dir": "10_rex dog", "class_data_dir": "absent"}
    concepts = load_concepts(write(tmp_path, [cat, pot, dog]))
    assert [concept.name for concept in concepts] == ["new1", "my-pot", "rex"]
    assert [concept.class_noun for concept in concepts] == ["cat", "wooden pot", "dog"]


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png")
    fine = {"instance_prompt": "a <new1> cat", "class_prompt": "cat", "instance_data_dir": "cat"}
    entries = [
        fine,
        fine,
        3,
        {},
        fine | {"instance_data_dir": "x" * 5000},
        fine | {"class_prompt": ["cat"]},
        {"instance_data_dir": "cat"},
        fine | {"instance_prompt": "a <pad> cat"},
    ]
    with pytest.raises(UserError) as caught:
        load_concepts(write(tmp_path, entries))
    told = str(caught.value).splitlines()
    assert told[0].startswith("7 mistakes in") and len(told) == 8
    expected = [
        'Concept 2: It is the second called "new1"',
        "Concept 3: It is not a JSON object",
        'Concept 4: It has no "instance_data_dir"',
        "Concept 5: There is no folder",
        'Concept 6: Its "class_prompt" is ["cat"], not a text.',
        "Concept 7: Nothing says what kind of thing",
        "Concept 8: ",
    ]
    assert all(words in line for words, line in zip(expected, told[1:], strict=True))


@pytest.mark.parametrize("content", ["", "{}", "[]", "[", "[" * 100_000, "3"])
def test_what_is_no_list(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match="is not a JSON list of concepts, such as"):
        load_concepts(write(tmp_path, content))


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the list of concepts .*: No such file"):
        load_concepts(tmp_path / "absent.json")
    (tmp_path / "latin.json").write_bytes('["ä"]'.encode("latin-1"))
    with pytest.raises(UserError, match="is not a JSON list"):
        load_concepts(tmp_path / "latin.json")


def test_a_folder_of_concept_folders(tmp_path: Path) -> None:
    for path in ("many/img/5_rex dog/1.png", "many/img/10_tom cat/1.png", "many/reg/1_cat/1.png"):
        picture(tmp_path / path)
    assert holds_concepts(tmp_path / "many")
    assert [(found.name, found.class_noun) for found in load_concepts(tmp_path / "many")] == [
        ("rex", "dog"),
        ("tom", "cat"),
    ]


def test_one_concepts_own_folder_holds_no_others(tmp_path: Path) -> None:
    for path in ("kohya/img/5_rex dog/1.png", "own/1.png", "own/a/1.png", "own/b/1.png", "one/a/1.png"):
        picture(tmp_path / path)
    (tmp_path / "one" / "empty").mkdir()
    assert not any(holds_concepts(tmp_path / name) for name in ("kohya", "own", "one", "absent"))
