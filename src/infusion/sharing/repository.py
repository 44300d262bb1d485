"""An adapter file + images + an evaluation -> its repository on the Hub."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps, UnidentifiedImageError

from infusion.concepts.concept import slug
from infusion.concepts.folder import IMAGE_SUFFIXES, natural_key
from infusion.errors import UserError, all_at_once, noting
from infusion.files import save_png, whole_file
from infusion.hub import ADAPTER_NAME, PICTURES_DIR, adapter_path, check_repo_id, push_folder
from infusion.sharing.card import Shown, card, describe, read_evaluation

MAX_IMAGES = 64


def push_adapter(
    path: str | Path,
    repo_id: str,
    images: Sequence[str | Path] = (),
    evaluation: str | Path | None = None,
    private: bool = False,
    message: str | None = None,
) -> str:
    """Upload an adapter file with a model card, in one commit; returns the address of its repository.

    Args:
        repo_id: `user/repo`; made where there is none.
        images: files, or folders of files, that the card shows. They are written anew, with nothing in them but the
            prompt and the seed that `infusion generate` wrote.
        evaluation: the JSON file that `infusion audit` wrote of this adapter.
        private: whether the repository, if it is new, is for its owner only.
        message: of the commit.

    Raises:
        UserError: a file is unusable; the Hub cannot be reached, or does not allow it.
    """
    with TemporaryDirectory(prefix="infusion-") as folder:
        write_repository(path, repo_id, Path(folder), images, evaluation)
        return push_folder(Path(folder), repo_id, private, message or "Upload an adapter, with its model card")


def write_repository(
    path: str | Path,
    repo_id: str,
    folder: Path,
    images: Sequence[str | Path] = (),
    evaluation: str | Path | None = None,
) -> list[Path]:
    """What a push uploads, as files in `folder`; returns them.

    Raises:
        UserError: a file is unusable. All mistakes are reported at once, before anything is written.
    """
    file = Path(path)
    figures, found = None, []
    mistakes: list[str] = []
    with noting(mistakes):
        check_repo_id(repo_id)
    with noting(mistakes):
        found = _image_files(images)
    with noting(mistakes):
        file = adapter_path(path)
        described = describe(file)
        figures = read_evaluation(Path(evaluation), described) if evaluation is not None else None
    if mistakes:
        raise all_at_once(mistakes, "this push")

    shown = [_written(image, number, folder) for number, image in enumerate(found, start=1)]
    with whole_file(folder / ADAPTER_NAME) as temporary:
        shutil.copyfile(file, temporary)
    with whole_file(folder / "README.md") as temporary:
        temporary.write_text(card(described, repo_id, shown, figures), encoding="utf-8")
    return [folder / name for name in ("README.md", ADAPTER_NAME, *(one.path for one in shown))]


def _image_files(given: Sequence[str | Path]) -> list[Path]:
    """The files given, and those in the folders given, in order."""
    found: list[Path] = []
    for path in map(Path, given):
        inside = path.iterdir() if path.is_dir() else [path]
        named = [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        if not named:
            raise UserError(f"There is no image {path}: give an image, or a folder with some ({_suffixes()}).")
        found += sorted(named, key=lambda file: natural_key(file.name))
    if len(found) > MAX_IMAGES:
        raise UserError(f"{len(found)} images are more than a card shows: give at most {MAX_IMAGES} of them.")
    for file in found:
        try:
            with Image.open(file) as image:
                image.verify()
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{file} is no image that can be read; leave it out, or save it anew.") from error
    return found


def _suffixes() -> str:
    return ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)


def _written(file: Path, number: int, folder: Path) -> Shown:
    """Written anew: a photo's own file may say where and when it was taken."""
    path = f"{PICTURES_DIR}/{number:02}-{slug(file.stem)[:60].strip('-_') or 'image'}.png"
    with Image.open(file) as image:
        # str: Pillow's texts are of a type of its own, which a card would spell out.
        text = {name: str(image.info[name]) for name in ("prompt", "seed") if isinstance(image.info.get(name), str)}
        save_png(ImageOps.exif_transpose(image).convert("RGB"), folder / path, text)
    return Shown(path, **text)
