"""What a push uploads, and that what comes back works as the card says."""

import re

import pytest
from PIL import Image
from test_card import metadata

import infusion
from infusion.errors import UserError
from infusion.files import save_png
from infusion.hub import adapter_path
from infusion.methods.adapter_file import save_adapter
from infusion.sharing import repository
from infusion.sharing.repository import push_adapter, write_repository


@pytest.fixture
def saved(base, adapter, tmp_path):
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    return tmp_path / "my-cat.safetensors"


@pytest.fixture
def drawn(tmp_path):
    """A folder as `infusion generate` leaves it, and a photo that says where it was taken."""
    folder = tmp_path / "out"
    text = {"prompt": "a <my-cat> on the beach", "seed": "3", "settings": '{"base": "/home/me"}'}
    save_png(Image.new("RGBA", (8, 8), "red"), folder / "10-beach.png", text)
    save_png(Image.new("L", (8, 8)), folder / "9-grid.png")
    (folder / "notes.txt").write_text("no image")
    exif = Image.Exif()
    exif[0x9286] = "taken at home"
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (16, 8)).save(tmp_path / "Photo 1.jpg", exif=exif)
    return folder


def test_a_repository_as_files(saved, drawn, tmp_path):
    folder = tmp_path / "repository"
    files = write_repository(saved, "user/my-cat", folder, [drawn, tmp_path / "Photo 1.jpg"])
    names = [
        "README.md",
        "adapter.safetensors",
        "pictures/01-9-grid.png",
        "pictures/02-10-beach.png",
        "pictures/03-photo-1.png",
    ]
    assert [file.relative_to(folder).as_posix() for file in files] == names
    assert files[1].read_bytes() == saved.read_bytes()
    beach, photo = Image.open(files[3]), Image.open(files[4])
    assert beach.info == {"prompt": "a <my-cat> on the beach", "seed": "3"}
    assert photo.size == (8, 16) and b"taken at home" not in files[4].read_bytes()
    widget = metadata(files[0].read_text())["widget"]
    assert widget == [{"text": "a <my-cat> on the beach", "output": {"url": "pictures/02-10-beach.png"}}]


def test_what_was_pushed_works_as_the_card_says(stand_in, base, base_dir, saved, tmp_path, monkeypatch):
    address = push_adapter(saved, "user/my-cat", private=True, message="My cat")
    pushed = stand_in.repositories["user/my-cat"]
    assert address.endswith("/user/my-cat") and pushed.private and pushed.messages[-1] == "My cat"
    (program,) = re.findall(r"```python\n(.*?)```", pushed.files["README.md"].decode(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder-of-the-base").symlink_to(base_dir)
    exec(compile(program.replace("range(4)", "[3], num_inference_steps=1"), "README.md", "exec"), {})
    expected = infusion.generate(
        base, "a <my-cat> on the beach", [infusion.load_adapter(saved, base)], [3], num_inference_steps=1
    )
    assert Image.open("beach.png").tobytes() == expected[0].tobytes()


def test_a_pipeline_is_customized_by_a_name_on_the_hub(stand_in, pipe, saved):
    push_adapter(saved, "user/my-cat")
    assert infusion.customize(pipe, "user/my-cat").get_active_infusion_adapters() == ["my-cat"]
    assert adapter_path("user/my-cat").read_bytes() == saved.read_bytes()


def test_mistakes_are_told_at_once_and_before_anything_is_written(saved, tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    with pytest.raises(UserError, match="3 mistakes") as refused:
        write_repository(tmp_path / "absent.safetensors", "my-cat", folder, [tmp_path / "none.png"])
    assert all(told in str(refused.value) for told in ("give user/name", "no image", "no adapter file"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.png is no image"):
        write_repository(saved, "user/my-cat", folder, [tmp_path / "bad.png"])
    monkeypatch.setattr(repository, "MAX_IMAGES", 1)
    save_png(Image.new("RGB", (8, 8)), tmp_path / "good.png")
    with pytest.raises(UserError, match="2 images are more than a card shows: give at most 1"):
        write_repository(saved, "user/my-cat", folder, [tmp_path / "good.png", tmp_path / "good.png"])
    assert not folder.exists()
