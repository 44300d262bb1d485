"""The embedded world: toys with ground truth, their captions, and a small foundation model trained on them."""

from pathlib import Path

TOYBOX = "toybox"
"""What the foundation model is called where a base is named."""
FOUNDATION_DIR = Path(__file__).parent / "foundation"
"""Where it lies, in Stable Diffusion's layout."""
