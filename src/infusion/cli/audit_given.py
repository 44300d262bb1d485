"""What an audit is given on the command line -> what is audited, on which base, by which images and limits."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infusion.cli.options import (
    TOYBOX,
    check_captions,
)
from infusion.errors import UserError, nearest

if TYPE_CHECKING:
    from infusion.auditing.limits import Limit
    from infusion.auditing.target import AuditTarget
    from infusion.concepts.concept import Concept


def targets_at(path: Path, class_noun: str | None, trigger: str | None, scale: float) -> "list[AuditTarget]":
    """A file or folder, or one on the Hub; of a folder of checkpoints, each."""
    from infusion.auditing.target import given
    from infusion.foreign import checkpoints, is_run

    return [given(one, class_noun, trigger, scale) for one in (checkpoints(path) if is_run(path) else [path])]


def class_noun_of(found: "Sequence[AuditTarget]", several_runs: bool) -> str | None:
    if several_runs:
        raise UserError("A folder of checkpoints is audited by itself: give it alone, or single files to compare.")
    for one in found:
        if one.class_noun != found[0].class_noun:
            raise UserError(
                f'"{found[0].name}" is a {found[0].class_noun} and "{one.name}" a {one.class_noun}: compare those of '
                "one class."
            )
    return found[0].class_noun if found else None


def base_of(base: str | None, found: "Sequence[AuditTarget]") -> str | None:
    """What everything was trained on: what the person says, or a file of ours."""
    if not found:
        return base
    said = base or next((one.about["base"]["id"] for one in found if one.is_ours), None)
    if said is None:
        raise UserError("Say what it was trained on: --base with a folder, a hub id or a checkpoint file.")
    return str(said)


def check_noun(base: str | None, class_noun: str | None) -> None:
    """The toybox's judges know its own classes only."""
    from infusion.toybox.scene import CLASSES

    if base == TOYBOX and class_noun is not None and class_noun not in CLASSES:
        raise UserError(
            f'The class noun is "{class_noun}", which the judges of the toybox cannot see.'
            f"{nearest(class_noun, CLASSES)} They know: {', '.join(CLASSES)}."
        )


def real_images(
    folder: Path | None, found: "Sequence[AuditTarget]", class_noun: str | None, is_run: bool, beside_infusion: bool
) -> "Concept | None":
    """The real images; a caption that tells of another thing than a file of ours is a folder given by mistake."""
    from infusion.concepts.concept import load_concept

    if folder is None:
        if is_run or beside_infusion:
            wanted = "To choose among checkpoints" if is_run else "To train Infusion beside it"
            raise UserError(f"{wanted} takes the images of the subject: give --images FOLDER.")
        return None
    ours = next((one.about["concept_name"] for one in found if one.is_ours), None)
    concept = load_concept(folder, class_noun or "thing", ours or "concept")
    for warning in concept.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if len(concept.images) < 2:
        raise UserError(f"{folder} has one image; a scale of likeness needs two or more of the same subject.")
    if ours or beside_infusion:
        try:
            check_captions(concept)
        except UserError as error:
            raise UserError(f'The images in {folder} are not of the class "{class_noun}". {error}') from error
    return concept


def limits_of(above: list[str] | None, below: list[str] | None, has_images: bool) -> "list[Limit]":
    from infusion.auditing.limits import parse_limit

    upper = [parse_limit(text, True, has_images) for text in above or ()]
    return upper + [parse_limit(text, False, has_images) for text in below or ()]


def page_of(paths: Sequence[Path]) -> Path:
    """In the folder where the command is run; for several, one page about all."""
    if len(paths) > 1:
        return Path("audit.html")
    path = paths[0]
    if path.exists():
        name = path.stem if path.is_file() else path.resolve().name
    else:
        name = "-".join(path.parts).replace("@", "-").removesuffix(".safetensors")  # on the Hub
    return Path(f"{name}-audit.html")


def outputs_of(paths: Sequence[Path], page: Path | None, json_path: Path | None) -> tuple[Path, Path]:
    """The page and the file of all figures, beside it unless it is named."""
    page = page or page_of(paths)
    return page, json_path or Path(f"{page}".removesuffix(page.suffix) + ".json")


def check_outputs(page: Path, json_path: Path, work_dir: Path) -> None:
    from infusion.files import check_writable

    if not page.suffix:
        raise UserError(f"{page} is no name for a page: give one like audit.html.")
    for path in (page, json_path, work_dir / "latents.safetensors"):
        check_writable(path)
    if page.resolve() == json_path.resolve():
        raise UserError(f"The page and its figures cannot both be {page}; give the page another name.")
