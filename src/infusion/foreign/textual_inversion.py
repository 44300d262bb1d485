"""A Textual Inversion file -> the vectors of a new word, and a base whose text models know it."""

import re
from collections.abc import Mapping, Sequence

from infusion.base import Base
from infusion.errors import UserError, first_line
from infusion.foreign.layer_names import PARTS
from infusion.foreign.provenance import STEP
from infusion.foreign.tensor_files import TensorFile, shown

MAX_VECTORS = 1024  # of one word; prompts hold fewer
_A1111 = "string_to_param."
_CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_NO_WORDS = ("", "emb_params", "clip_l", "clip_g")


def vectors_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The tensors of a Textual Inversion, by the text model that reads them; none where it is something else."""
    fits = all(
        len(s) in (1, 2) and 0 < s[-1] <= 2**16 and (len(s) == 1 or 0 < s[0] <= MAX_VECTORS) for s in shapes.values()
    )
    if not shapes or not fits:
        return {}
    if shapes.keys() <= set(_CLIP.values()):
        return {part: name for part, name in _CLIP.items() if name in shapes}
    params = [name for name in shapes if name.startswith(_A1111)]
    names = params or list(shapes)
    is_path = not params and "." in names[0] and not re.fullmatch(r"<.+>", names[0])
    return {} if len(names) > 1 or is_path else {"text_encoder": names[0]}


def token_of(file: TensorFile) -> str | None:
    """The word that prompts say for a Textual Inversion: its tensor's name, what the file says, or the file's name."""
    name = next(iter(file.shapes))
    is_word = len(file.shapes) == 1 and name not in _NO_WORDS and not name.startswith(_A1111)
    said = (name if is_word else "") or file.metadata.get("name") or STEP.sub("", file.path.stem)
    return shown(said) or None


def tool_of_words(file: TensorFile) -> str | None:
    if "emb_params" in file.shapes or any(name.startswith(_A1111) for name in file.shapes):
        return "A1111"
    return "diffusers" if re.fullmatch(r"<.+>", next(iter(file.shapes))) else None


def add_words(base: Base, file: TensorFile) -> str:
    """A Textual Inversion's vectors, in every text model that it has some for; what prompts read for its word."""
    tensors = file.tensors()
    vectors = {
        part: tensors[name].reshape(-1, tensors[name].shape[-1]) for part, name in vectors_of(file.shapes).items()
    }
    pipeline = base.pipeline
    if vectors.keys() != set(base.family.text_encoders):
        here, there = (", ".join(PARTS[part] for part in parts) for parts in (vectors, base.family.text_encoders))
        raise UserError(f"its vectors are for {here}, and the base has {there}.")
    token = re.sub(r"[^\w-]+", "-", token_of(file) or "").strip("-") or "concept"
    for part, vector in vectors.items():
        tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
        text_encoder = getattr(pipeline, part)
        width = text_encoder.get_input_embeddings().weight.shape[1]
        if vector.shape[1] != width:
            raise UserError(
                f"its vectors have a width of {vector.shape[1]}, and {PARTS[part]} of the base reads {width}."
            )
        try:
            pipeline.load_textual_inversion(vector, token=f"<{token}>", tokenizer=tokenizer, text_encoder=text_encoder)
        except (ValueError, AttributeError) as error:
            raise UserError(f"diffusers does not add its words ({shown(first_line(error), 200)}).") from error
        text_encoder.requires_grad_(False)
    counts = {len(vector) for vector in vectors.values()}
    if len(counts) > 1:
        raise UserError("it has more vectors for one text model than for another.")
    return " ".join([f"<{token}>", *(f"<{token}>_{i}" for i in range(1, counts.pop()))])
