"""Methods x individuals x prompts x seeds -> results on disk, tables and a page."""

from pathlib import Path

PRESETS_DIR = Path(__file__).parent / "presets"
"""Specifications that come along."""
