"""Installed packages -> their versions, as results and files record them."""

from importlib.metadata import version

import infusion

_LIBRARIES = ("torch", "diffusers", "transformers")


def versions(with_infusion: bool = False) -> dict[str, str]:
    """Name -> version of what results depend on."""
    own = {"infusion": infusion.__version__} if with_infusion else {}
    return own | {name: version(name) for name in _LIBRARIES}
