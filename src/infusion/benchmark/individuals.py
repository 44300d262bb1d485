"""An individual of the toybox -> its images: those that a method learns from, and others that nothing is trained on."""

from dataclasses import dataclass

from torch import Tensor

from infusion.concepts.concept import Concept
from infusion.evaluation.drawing import to_tensor
from infusion.evaluation.evaluate import ConceptImages
from infusion.evaluation.plans import Plan
from infusion.toybox.concepts import concept_images
from infusion.toybox.render import render
from infusion.toybox.scene import BACKGROUNDS, STYLES, TIMES, concept_scene, individual

RARE_TOKENS = ("sks", "zwx", "ohwx", "qjb")
_NUM_TRAINING, _NUM_ELSEWHERE, _NUM_SAME_PLACE = 5, 2, 20  # images; elsewhere: for each prompt
_FIRST_ELSEWHERE, _FIRST_SAME_PLACE = 100, 500
_SCENE_FACTS = (("background", BACKGROUNDS[0]), ("style", STYLES[0]), ("time", TIMES[0]))


@dataclass(frozen=True)
class Individual:
    """One concept of the toybox. rare_token: what stands for it in methods that put one before the class noun; two
    individuals of one class have two, so that they can stand in one prompt."""

    seed: int
    class_noun: str
    rare_token: str = RARE_TOKENS[0]


def concept_of(one: Individual) -> Concept:
    """The individual's training images with their true masks, as a concept."""
    images, masks = concept_images(one.seed, _NUM_TRAINING, class_noun=one.class_noun)
    return Concept(
        name=f"toy-{one.seed}",
        class_noun=one.class_noun,
        images=tuple(images),
        masks=tuple(masks),
        captions=(None,) * len(images),
        sources=tuple(f"{n}.png" for n in range(len(images))),
        mask_sources=("given",) * len(images),
    )


def real_images(one: Individual, plan: Plan) -> ConceptImages:
    """Renders of an individual: its training images, and others that nothing is trained on.

    Those elsewhere are in the places, styles and hours that the plan's prompts ask for.
    """

    def rendered(num: int, first: int) -> Tensor:
        images, _ = concept_images(one.seed, num, first=first, class_noun=one.class_noun)
        return to_tensor(images)

    who = individual(one.seed, one.class_noun)
    scenes = []
    for number, facts in enumerate(prompt.facts for prompt in plan.prompts for _ in range(_NUM_ELSEWHERE)):
        place, style, hour = (str(facts.get(*kind)) for kind in _SCENE_FACTS)
        scenes.append(concept_scene(who, one.seed * 1000 + _FIRST_ELSEWHERE + number, place, style, hour))
    elsewhere = (render(scenes).images * 255).round() / 255  # as a file would have them
    return ConceptImages(rendered(_NUM_TRAINING, 0), elsewhere, rendered(_NUM_SAME_PLACE, _FIRST_SAME_PLACE))
