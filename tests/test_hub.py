"""Names on the Hub and pushes to it, by the real client, against a stand-in of the Hub on this machine."""

import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import hub_reads_from

from infusion.errors import UserError
from infusion.hub import adapter_path, push_folder
from infusion.methods.adapter_file import load_adapter, read_adapter_file, save_adapter


@pytest.fixture
def content(base, adapter, tmp_path) -> bytes:
    save_adapter(adapter, tmp_path / "made" / "cat.safetensors", base)
    return (tmp_path / "made" / "cat.safetensors").read_bytes()


@pytest.fixture
def folder(tmp_path, content) -> Path:
    """What a push has written."""
    root = tmp_path / "folder"
    (root / "pictures").mkdir(parents=True)
    (root / "adapter.safetensors").write_bytes(content)
    (root / "README.md").write_text("---\ntags:\n- infusion\n---\n# my-cat\n")
    (root / "pictures" / "01-beach.png").write_bytes(b"an image")
    return root


def refusal(given: str) -> str:
    with pytest.raises(UserError) as refused:
        adapter_path(given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- a name -> a file ---


def test_what_lies_here_goes_first(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("user/my-cat/adapter.safetensors", "user/toy"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"here")
        assert adapter_path(name) == Path(name)
    assert adapter_path("user/my-cat") == Path("user/my-cat")
    assert stand_in.requests == []


@pytest.mark.parametrize(
    "name", ["cat.safetensors", "out/cat.safetensors", "/a/cat", "../cat", "a b/c", "user/my--cat", "user/cat@", ""]
)
def test_what_cannot_be_a_repository_is_a_path(stand_in, name):
    assert adapter_path(name) == Path(name)
    assert stand_in.requests == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/my-cat", b"own"),
        ("user/my-cat/other.safetensors", b"other"),
        ("user/my-cat/sub/third.safetensors", b"third"),
        ("user/my-cat@v1", b"old"),
        ("user/my-cat@refs/pr/1", b"asked for"),
        ("user/my-cat@v1/old.safetensors", b"old"),
        ("user/lone", b"lone"),
    ],
)
def test_names_on_the_hub(stand_in, name, expected):
    files = {"adapter.safetensors": b"own", "other.safetensors": b"other", "sub/third.safetensors": b"third"}
    repository = stand_in.add("user/my-cat", files)
    for revision, text in (("v1", b"old"), ("refs/pr/1", b"asked for")):
        old = {"old.safetensors": text}
        repository.revisions |= {revision: old, ("1" if revision == "v1" else "2") * 40: old}
    stand_in.add("user/lone", {"README.md": b"", "my-toy.safetensors": b"lone"})
    assert adapter_path(name).read_bytes() == expected
    assert adapter_path(Path(name)).read_bytes() == expected


def test_an_adapter_on_the_hub_is_loaded_and_then_without_network(stand_in, content, base, adapter, monkeypatch):
    stand_in.add("user/my-cat", {"README.md": b"", "my-cat.safetensors": content})
    loaded = load_adapter("user/my-cat", base).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in adapter.state_dict().items())
    asked = len(stand_in.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert read_adapter_file("user/my-cat")[0]["concept_name"] == "my-cat"
    assert len(stand_in.requests) == asked
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    stand_in.close()
    assert read_adapter_file("user/my-cat")[0]["concept_name"] == "my-cat"


def test_a_new_version_is_got(stand_in):
    repository = stand_in.add("user/my-cat", {"adapter.safetensors": b"old"})
    assert adapter_path("user/my-cat").read_bytes() == b"old"
    repository.commit({"adapter.safetensors": b"new"})
    assert adapter_path("user/my-cat").read_bytes() == b"new"
    stand_in.status, asked = 503, len(stand_in.requests)
    assert adapter_path("user/my-cat").read_bytes() == b"new"
    assert len(stand_in.requests) == asked + 1


def test_what_the_hub_gives_is_as_untrusted_as_any_file(stand_in, content):
    broken = bytearray(content)
    broken[-1] ^= 1
    stand_in.add("user/broken", {"adapter.safetensors": bytes(broken)})
    stand_in.add("user/strange", {"adapter.safetensors": b"\x80\x04pickle"})
    with pytest.raises(UserError, match=r"^user/broken is damaged"):
        read_adapter_file("user/broken")
    with pytest.raises(UserError, match=r"^user/strange is not a readable"):
        read_adapter_file("user/strange")


def test_which_file_is_a_question_with_an_answer(stand_in):
    stand_in.add("user/two", {"b.safetensors": b"", "a.safetensors": b""})
    stand_in.add("user/many", {f"{n:02}.safetensors": b"" for n in range(11)})
    stand_in.add("user/none", {"README.md": b"", "model.bin": b""})
    assert refusal("user/two") == (
        "user/two has several .safetensors files; give one of them, user/two/FILE: a.safetensors, b.safetensors."
    )
    assert refusal("user/many").endswith("07.safetensors, 3 more.")
    assert refusal("user/none").startswith("user/none on the Hub has no .safetensors file")
    assert refusal("user/two/c.safetensors") == (
        "user/two has no file c.safetensors; its .safetensors files: a.safetensors, b.safetensors."
    )


def test_what_the_hub_refuses(stand_in, monkeypatch):
    stand_in.add("user/gated", {"adapter.safetensors": b""}, gated=True)
    stand_in.add("user/secret", {"adapter.safetensors": b"secret"}, private=True)
    stand_in.add("user/my-cat", {"adapter.safetensors": b""})
    monkeypatch.delenv("HF_TOKEN")
    assert refusal("user/absent") == (
        "There is no adapter file user/absent here, and none was got from the Hub: it has no model repository "
        "user/absent, or a private one that your token does not open; check the name, or log in with `hf auth login`."
    )
    assert "private one" in refusal("user/secret")
    assert "gives access on request" in refusal("user/gated")
    assert "user/my-cat has no revision v9; give a branch" in refusal("user/my-cat@v9")
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    assert adapter_path("user/secret").read_bytes() == b"secret"
    assert "no model repository" in refusal("user/absent")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know your token" in refusal("user/my-cat")
    stand_in.status = 500
    assert "it answered 500; try later" in refusal("user/my-cat")


def test_without_network_and_without_a_copy(stand_in, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        hub_reads_from(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")
        assert "it cannot be reached" in refusal("user/my-cat")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal("user/my-cat")


def test_without_network_only_what_was_got_is_known(stand_in, monkeypatch):
    stand_in.add("user/two", {"a.safetensors": b"a", "b.safetensors": b"b"})
    assert adapter_path("user/two/a.safetensors").read_bytes() == b"a"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert adapter_path("user/two/a.safetensors").read_bytes() == b"a"
    assert "has no file b.safetensors" in refusal("user/two/b.safetensors")


# --- a folder -> a repository ---


def push_refusal(*given) -> str:
    with pytest.raises(UserError) as refused:
        push_folder(*given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_push_is_one_commit_and_comes_back(stand_in, folder, content):
    assert push_folder(folder, "user/my-cat", False, "A cat") == f"{stand_in.url}/user/my-cat"
    repository = stand_in.repositories["user/my-cat"]
    assert repository.messages == ["", "A cat"] and not repository.private
    assert set(repository.files) == {".gitattributes", "README.md", "adapter.safetensors", "pictures/01-beach.png"}
    assert repository.files["adapter.safetensors"] == content == adapter_path("user/my-cat").read_bytes()


def test_a_second_push_replaces_pictures_and_keeps_the_rest(stand_in, folder):
    push_folder(folder, "user/my-cat", True, "First")
    repository = stand_in.repositories["user/my-cat"]
    assert repository.private
    repository.commit(repository.files | {"notes.txt": b"kept", "pictures/00-old.png": b""})
    (folder / "README.md").write_text("---\ntags:\n- infusion\n---\n# new\n")
    push_folder(folder, "user/my-cat", True, "Second")
    assert "pictures/00-old.png" not in repository.files
    assert repository.files["notes.txt"] == b"kept" and repository.files["README.md"].endswith(b"# new\n")


def test_what_is_no_repository_of_ours_is_left_alone(stand_in, folder):
    other = stand_in.add("user/model", {".gitattributes": b"", "README.md": b"card", "model.safetensors": b"weights"})
    public = stand_in.add("user/open", {"adapter.safetensors": b""})
    empty = stand_in.add("user/empty", {".gitattributes": b"", "README.md": b"made on the site"})
    assert "something else (it holds model.safetensors" in push_refusal(folder, "user/model", False, "m")
    assert "there already, and public" in push_refusal(folder, "user/open", True, "m")
    assert len(other.messages) == len(public.messages) == 1
    push_folder(folder, "user/empty", False, "m")
    assert empty.files["README.md"].startswith(b"---")


def test_a_push_that_the_hub_refuses(stand_in, folder, monkeypatch):
    for name in ("my-cat", "user/my--cat", "a/b/c", "user/my cat", "user/x.safetensors"):
        assert "give user/name" in push_refusal(folder, name, False, "m")
    stand_in.add("user/there", {"adapter.safetensors": b""})
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    for name in ("user/new", "user/there"):
        told = push_refusal(folder, name, False, "m")
        assert told == (
            f"Nothing was pushed to {name}: your token does not allow it; it needs the right to write to {name}."
        )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know your token" in push_refusal(folder, "user/new", False, "m")
    monkeypatch.delenv("HF_TOKEN")
    asked = len(stand_in.requests)
    assert "set HF_TOKEN, or run `hf auth login`" in push_refusal(folder, "user/new", False, "m")
    assert len(stand_in.requests) == asked


def test_a_push_without_network(stand_in, folder, monkeypatch):
    stand_in.close()
    assert "it cannot be reached" in push_refusal(folder, "user/my-cat", False, "m")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in push_refusal(folder, "user/my-cat", False, "m")


def test_an_upload_that_breaks_off(stand_in, folder):
    stand_in.is_full = True
    assert (
        push_refusal(folder, "user/my-cat", False, "m")
        == "Nothing was pushed to user/my-cat: it answered 413; try later."
    )
    assert set(stand_in.repositories["user/my-cat"].files) == {".gitattributes"}
