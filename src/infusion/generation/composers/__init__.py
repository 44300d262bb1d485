"""How several concepts act in one image: one file for each composer; this folder is the registry."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infusion.registry import Registry

if TYPE_CHECKING:
    from infusion.generation.composers.composer import Composer

COMPOSERS: Mapping[str, "Composer"] = Registry(__name__, lambda module: module.COMPOSER, support=("composer",))
