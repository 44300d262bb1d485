"""A base's name -> the names of who evaluates its images when nothing else is said; needs no torch."""

TOYBOX = "toybox"
DEFAULT_CLIP, DEFAULT_ENCODER = "openai/clip-vit-base-patch32", "facebook/dinov2-base"  # for other bases
_OF_TOYBOX, _TOYBOX_JUDGES = "toybox-b", "b"  # no method is trained with them


def evaluator_names(base: str, clip: str | None = None, encoder: str | None = None) -> dict[str, str | None]:
    """Who evaluates what a base draws, by name: those given, or the defaults of the base."""
    toybox = base == TOYBOX
    return {
        "clip": clip or (_OF_TOYBOX if toybox else DEFAULT_CLIP),
        "encoder": encoder or (_OF_TOYBOX if toybox else DEFAULT_ENCODER),
        "judges": _TOYBOX_JUDGES if toybox else None,
    }
