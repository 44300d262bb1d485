"""What PEFT notes beside an adapter's tensors -> how strongly the factors of every layer count."""

import math
import re
from collections.abc import Mapping
from typing import Any

from infusion.errors import UserError
from infusion.foreign.tensor_files import TensorFile, as_object, read_json, shown

_KINDS = ("LORA", "LOHA", "LOKR")
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftConfig:
    """The notes in adapter_config.json beside a file of PEFT's, or in the metadata of one of diffusers'.

    alphas: every value that is noted.

    Raises:
        UserError: the adapter is of a kind that is not read, or belongs to a base that its training changed too.
    """

    def __init__(self, file: TensorFile) -> None:
        self._by_part: dict[str, dict[str, Any]] = {}  # "" for every part
        beside = file.path.parent / "adapter_config.json"
        if file.path.stem == "adapter_model" and beside.is_file():
            self._by_part[""] = read_json(beside)
        for name, value in as_object(file.metadata.get("lora_adapter_metadata")).items():
            part, _, key = name.partition(".")
            self._by_part.setdefault(part, {})[key] = value
        for config in self._by_part.values():
            kind, start = config.get("peft_type") or "LORA", config.get("init_lora_weights")
            if kind not in _KINDS:
                raise UserError(f"{file.path} is PEFT's {shown(kind)}; of PEFT's kinds, {', '.join(_KINDS)} are read.")
            if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
                raise UserError(
                    f"{file.path} began as {shown(start)}, for which the base was changed too; save it converted to a "
                    "plain LoRA (save_pretrained's path_initial_model_for_weight_conversion)."
                )

    @property
    def alphas(self) -> set[float]:
        return {
            alpha
            for config in self._by_part.values()
            for alpha in (_overall_alpha(config), *_patterns(config, "alpha_pattern").values())
            if _is_number(alpha)
        }

    def scale(self, part: str, path: str, rank: int | None) -> float | None:
        """alpha / rank of a layer, or alpha / sqrt(rank) where it is rank-stabilized (arXiv 2312.03732).

        Args:
            rank: of the factors; None where there are none, so that the noted one counts.

        Returns:
            None where nothing is noted.

        Raises:
            UserError: what is noted of the layer cannot be understood.
        """
        config = self._by_part.get(part, self._by_part.get(""))
        if config is None:
            return None
        alpha = _of_layer(config, "alpha_pattern", path, _overall_alpha(config))
        rank = rank or _of_layer(config, "rank_pattern", path, config.get("r"))
        if alpha is None or rank is None:
            return None
        if not _is_number(alpha) or not _is_number(rank) or rank <= 0:
            raise UserError(f"its notes on the rank and alpha of {shown(path)} are no numbers.")
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _overall_alpha(config: Mapping[str, Any]) -> Any:
    return config.get("lora_alpha", config.get("alpha"))


def _patterns(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _of_layer(config: Mapping[str, Any], key: str, path: str, default: Any) -> Any:
    """What is noted of a layer by the end of its path; of a whole path where a ^ stands before it."""
    for pattern, value in _patterns(config, key).items():
        end = pattern.removeprefix("^")
        if re.search(r"[^\w.\-]", end):  # PEFT would run it as a regular expression
            raise UserError(f'its {key} has the pattern "{shown(pattern)}", and only names of layers are read there.')
        if path == end or (end == pattern and path.endswith(f".{end}")):
            return value
    return default


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**31
