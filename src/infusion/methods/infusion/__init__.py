"""Infusion: one learned vector per cross-attention layer, added to the value at the concept's tokens (2404.14007)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from infusion.methods.method import MASKED_LOSS, Method
from infusion.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from infusion.base import Base
    from infusion.concepts.concept import Concept
    from infusion.methods.infusion.adapter import InfusionAdapter


@dataclass(frozen=True)
class Infusion(Method):
    """Value residuals, and whose attention maps they act on.

    Defaults, the published recipe: all layers, dual streams, AdamW at 0.01, 500 steps.
    """

    name: ClassVar[str] = "infusion"
    paper: ClassVar[str] = "arXiv 2404.14007"
    own_tokens_only: ClassVar[bool] = True
    trains_together: ClassVar[bool] = True

    masked_loss: bool = setting(True, help=MASKED_LOSS)
    layers: str = setting(
        "all",
        help="Which cross-attention layers learn a residual: all, down, mid, up, or patterns of module paths "
        'separated by commas, such as "up_blocks.2.*,up_blocks.3.*".',
    )
    streams: Literal["dual", "single", "mixed"] = setting(
        "dual",
        help="Whose attention maps the customized rows use: the foundation's (dual), their own (single), or, in "
        "training, the foundation's for a random share of the rows (mixed).",
    )
    mixing_probability: float = setting(
        0.5,
        help="Share of training rows that borrow the foundation's maps when streams is mixed.",
        minimum=0,
        maximum=1,
    )
    keys: bool = setting(
        False, help="Also learn a residual for the keys, as the authors' code does where xformers is installed."
    )

    @property
    def notes(self) -> tuple[str, ...]:
        if self.streams == "single" or self.keys:
            maps = "Attention maps are the concept's own, so silhouette, pose and layout may leave the base model's."
        else:
            maps = "Attention maps stay the base model's, so silhouette, pose and layout stay the base model's too."
        vectors = "a vector for the values and one for the keys" if self.keys else "one vector"
        return (
            f"{maps} What is learnt is {vectors} a layer: it carries main colours, and neither patterns nor where on "
            "the body each mark sits.",
            "Prompts without the concept are the base model's by construction, so a difference of 0 is a test of the "
            "implementation and no measurement of quality.",
        )

    def adapter(self, base: "Base", concept: "Concept") -> "InfusionAdapter":
        """Zero residuals for the chosen layers: a fresh adapter is silent.

        Raises:
            UserError: `layers` matches no layer of the base that reads text.
        """
        from infusion.methods.infusion.adapter import InfusionAdapter, chosen_widths

        return InfusionAdapter(self, concept.name, concept.class_noun, chosen_widths(self, base)).to(base.device)

    def num_parameters(self, base: "Base", class_noun: str) -> int:
        """The sum of the widths of the chosen layers: 12,480 for all of Stable Diffusion 1.5; twice that with keys."""
        from infusion.methods.infusion.adapter import chosen_widths

        return sum(chosen_widths(self, base).values())

    def restored(
        self, base: "Base", tensors: "Mapping[str, Tensor]", concept_name: str, class_noun: str
    ) -> "InfusionAdapter":
        from infusion.methods.infusion.adapter import restored

        return restored(self, base, tensors, concept_name, class_noun)
