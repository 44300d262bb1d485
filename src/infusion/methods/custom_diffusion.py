"""Custom Diffusion: keys and values of cross-attention and a word, merged in closed form (arXiv 2212.04488)."""

from dataclasses import dataclass
from typing import ClassVar

from infusion.methods.keys_and_values import KeysAndValuesMethod


@dataclass(frozen=True)
class CustomDiffusion(KeysAndValuesMethod):
    """W_k and W_v of every cross-attention, and the embedding of a rare token before the class noun.

    The paper's scale augmentation is left out; prior preservation uses images that the base draws, where the paper
    retrieves real ones.
    """

    name: ClassVar[str] = "custom-diffusion"
    paper: ClassVar[str] = "arXiv 2212.04488"
