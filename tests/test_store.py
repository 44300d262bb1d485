"""What is made of facts is made once, in memory or on disk, and again for other facts."""

import pytest
import torch
from safetensors.torch import load_file

from infusion.store import Store, digest


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(float(self.calls))}


@pytest.fixture(params=["memory", "disk"])
def folder(request, tmp_path):
    return tmp_path / "new" if request.param == "disk" else None


def test_it_is_made_once(folder):
    store, make = Store(folder), Maker()
    assert not store.has("some", {"seed": 1})
    first, again = store.get("some", {"seed": 1}, make), store.get("some", {"seed": 1}, make)
    assert make.calls == 1 and store.has("some", {"seed": 1})
    assert torch.equal(first["a"], make()["a"]) and all(torch.equal(first[name], again[name]) for name in first)


def test_other_facts_and_other_kinds_are_made_anew(folder):
    store, make = Store(folder), Maker()
    facts = {"texts": ["a cat"], "seeds": [range(2)], "scale": 1.0}
    asked = [("some", facts), ("other", facts), ("some", facts | {"scale": 2.0}), ("some", facts | {"seeds": [[0, 2]]})]
    assert [store.get(kind, some, make)["b"].item() for kind, some in asked] == [1, 2, 3, 4]
    assert store.get("some", dict(reversed(facts.items())), make)["b"] == 1, "the order of facts is none"


def test_another_process_reads_it_and_no_half_file_counts(tmp_path):
    make = Maker()
    Store(tmp_path).get("some", 1, make)
    assert Store(tmp_path).get("some", 1, make)["b"] == 1 and make.calls == 1
    path = Store(tmp_path).path("some", 1)
    assert path.name == f"some-{digest(1)}.safetensors" and load_file(path).keys() == {"a", "b"}

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).get("some", 2, broken)
    assert list(tmp_path.iterdir()) == [path]


def test_facts_are_what_json_can_say():
    assert digest({"a": range(3)}) == digest({"a": [0, 1, 2]}) != digest({"a": [0, 1]})
    with pytest.raises(TypeError, match="is no fact"):
        digest({"a": torch.zeros(1)})
