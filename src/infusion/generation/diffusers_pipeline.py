"""A diffusers pipeline + adapters -> the same pipeline, whose prompts may name concepts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infusion.base import Base, Conditioning, attached
from infusion.base.cross_attention import cross_attentions
from infusion.base.customization import Customized, Strengthened
from infusion.base.edits import wrap_method
from infusion.base.prompts import Prompt, parse_prompt
from infusion.base.streams import blocks_of_prompts
from infusion.concepts.concept import checked_name
from infusion.errors import UserError, nearest
from infusion.generation.composers.together import together
from infusion.methods.adapter import Adapter
from infusion.methods.adapter_file import load_adapter

_PROMPTS = ("prompt", "prompt_2", "prompt_3")
_OWN = ("pipeline", "adapters", "weights", "any_base")


class CustomizedPipeline:
    """A pipeline whose prompts may name concepts; called, read and set as the pipeline itself is.

    Between calls the pipeline is untouched: hooks are attached for the length of a call only.
    """

    pipeline: Any
    adapters: dict[str, Adapter]
    weights: dict[str, float]
    any_base: bool

    def __init__(self, pipeline: Any, any_base: bool = False) -> None:
        Base.from_pipeline(pipeline)  # of a kind that can be customized
        self.pipeline = pipeline
        self.adapters = {}
        self.weights = {}
        self.any_base = any_base

    def __getattr__(self, name: str) -> Any:
        if "pipeline" not in vars(self):
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            vars(self)[name] = value
        else:
            setattr(self.pipeline, name, value)

    def to(self, *args: Any, **kwargs: Any) -> "CustomizedPipeline":
        """Move the pipeline, as its own `to` does."""
        self.pipeline.to(*args, **kwargs)
        return self

    # --- concepts: diffusers' verbs ---

    def load_infusion(self, adapter: Adapter | str | Path, adapter_name: str | None = None) -> None:
        """Load a concept, in addition to those loaded; it is active from here on.

        Args:
            adapter: an adapter, the path of its file, or its name on the Hub (`user/repo`).
            adapter_name: what prompts call it; by default the name in the file.

        Raises:
            UserError: the file is unusable, or for another base; it cannot stand beside those loaded; another concept
                has the name.
        """
        base = Base.from_pipeline(self.pipeline)
        loaded = adapter if isinstance(adapter, Adapter) else load_adapter(adapter, base, self.any_base)
        if adapter_name is not None:
            loaded = loaded.renamed(checked_name(adapter_name))
        name = loaded.concept_name
        if name in self.adapters:
            raise UserError(
                f"Two concepts share a name: <{name}> is loaded already; unload it, or give another adapter_name."
            )
        with attached(base, together(base, [*self.adapters.values(), loaded])):
            pass  # they go together
        self.adapters[name] = loaded
        self.weights[name] = 1.0

    def set_infusion_adapters(
        self, adapter_names: str | Sequence[str], weights: float | Sequence[float] | None = None
    ) -> None:
        """Make these concepts active, and no others: prompts that name the others read the plain class noun.

        Args:
            weights: how strongly each acts, 1 by default; at 0 images are the base's, bit for bit.

        Raises:
            UserError: a name is not loaded; the numbers of names and weights differ; a method has no strength.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        strengths = [1.0] * len(names) if weights is None else weights
        strengths = [strengths] * len(names) if isinstance(strengths, int | float) else list(strengths)
        if len(strengths) != len(names):
            raise UserError(f"{len(names)} adapters need as many weights, and {len(strengths)} were given.")
        base = Base.from_pipeline(self.pipeline)
        for name, strength in zip(names, strengths, strict=True):
            Strengthened(self._loaded(name), strength).edits(base)
        self.weights = dict.fromkeys(self.adapters, 0.0) | dict(zip(names, strengths, strict=True))

    def get_active_infusion_adapters(self) -> list[str]:
        """Names of the concepts that act."""
        return [name for name, weight in self.weights.items() if weight]

    def get_list_infusion_adapters(self) -> list[str]:
        """Names of all concepts that are loaded."""
        return list(self.adapters)

    def delete_infusion_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unload some concepts.

        Raises:
            UserError: a name is not loaded.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            self._loaded(name)
        for name in names:
            del self.adapters[name], self.weights[name]

    def unload_infusion(self) -> None:
        """Unload all concepts; nothing is left behind."""
        self.adapters.clear()
        self.weights.clear()

    def _loaded(self, name: str) -> Adapter:
        if name not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise UserError(f'No concept "{name}" is loaded; loaded are: {known}.{nearest(name, self.adapters)}')
        return self.adapters[name]

    # --- calls ---

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline, with its own arguments. Prompts and negative prompts may be a text or a list of texts.

        Where a prompt is also given as `prompt_embeds`, these are used, and the text says where concepts stand.

        Raises:
            UserError: a placeholder names no concept; embeddings come without a text; or the prompt and the negative
                prompt read the same.
        """
        given = _arguments(self.pipeline, args, kwargs)
        if not self.adapters and given.get("prompt") is None:
            return self.pipeline(**given)
        base = Base.from_pipeline(self.pipeline)
        prompts = self._prompts(given)
        options = {name: given[name] for name in ("max_sequence_length",) if given.get(name) is not None}
        options |= {name: given[name] for name in ("complex_human_instruction",) if name in given}
        _, tokens = base.family.tokenize(self.pipeline, prompts, **options)
        self._make_plain(given, prompts)
        copies = given.get("num_images_per_prompt") or 1
        with attached(base, self._active(base)) as denoiser, ExitStack() as stack:
            if not (denoiser.streams or denoiser.texts) or not any(tokens):
                return self.pipeline(**given)
            _check_perturbed(self.pipeline, base, given)
            heard = _Heard()
            plain = base.family.encode(self.pipeline, prompts) if denoiser.texts else None
            called = _Called(denoiser, heard, plain, len(tokens), copies)
            stack.enter_context(wrap_method(self.pipeline, "encode_prompt", heard.listen))
            if denoiser.streams:
                denoiser.streams.rows = [row for row in tokens for _ in range(copies)]
            stack.enter_context(wrap_method(base.network, "forward", called.forward))
            drawn = self.pipeline(**given)
            if not called.found:
                raise UserError(
                    f"{type(self.pipeline).__name__} gave its network other text states than its encode_prompt made, "
                    "so that no row could be told to be the prompt's, and the concept did not act."
                )
            return drawn

    def _active(self, base: Base) -> list[Any]:
        """The adapters that act, as their methods merge them, each as strongly as it is to."""
        acting = [adapter.to(base.device) for name, adapter in self.adapters.items() if self.weights[name]]
        weights = {id(self.adapters[name]): weight for name, weight in self.weights.items()}
        return [
            Strengthened(adapter, weights[id(adapter)]) if id(adapter) in weights else adapter
            for adapter in together(base, acting)
        ]

    def _prompts(self, given: Mapping[str, Any]) -> list[Prompt]:
        """The prompts, with their concepts found."""
        prompt = given.get("prompt")
        if prompt is None:
            raise UserError(
                "Give the prompt as text too: the concept's tokens cannot be found in prompt embeddings. With both, "
                "the embeddings are used."
            )
        if given.get("clean_caption"):
            raise UserError("clean_caption rewrites prompts, so that a concept's tokens cannot be found: leave it off.")
        parsed = self._parsed(prompt)
        for name in _PROMPTS[1:]:
            other = given.get(name)
            if other is not None and other != prompt and any(p.mentions for p in (*parsed, *self._parsed(other))):
                raise UserError(
                    f"{name} differs from prompt; where a prompt names concepts, all text models must read the same."
                )
        return parsed

    def _make_plain(self, given: dict[str, Any], prompts: Sequence[Prompt]) -> None:
        """Arguments that the pipeline understands: every placeholder has become its class noun."""
        plain = [prompt.text for prompt in prompts]
        if "clean_caption" in signature(self.pipeline.__call__).parameters:
            given["clean_caption"] = False
        for name in _PROMPTS:
            if given.get(name) is not None and any(prompt.mentions for prompt in prompts):
                given[name] = plain[0] if isinstance(given[name], str) else plain
            if given.get(f"negative_{name}") is not None:
                negative = [prompt.text for prompt in self._parsed(given[f"negative_{name}"])]
                given[f"negative_{name}"] = negative[0] if isinstance(given[f"negative_{name}"], str) else negative
        if given.get("prompt_embeds") is not None:
            for name in _PROMPTS:
                given.pop(name, None)

    def _parsed(self, prompts: str | Sequence[str]) -> list[Prompt]:
        words = {adapter.concept_name: adapter.words for adapter in self.adapters.values()}
        tokenizer = self.pipeline.tokenizer
        parsed = []
        for text in [prompts] if isinstance(prompts, str) else prompts:
            parsed.append(parse_prompt(text, words, tokenizer.get_added_vocab()))
            convert = getattr(self.pipeline, "maybe_convert_prompt", None)
            if convert and convert(parsed[-1].text, tokenizer) != parsed[-1].text:
                raise UserError(
                    f'The prompt "{text}" holds a textual inversion of several vectors, which the pipeline spells out '
                    "later, so that the tokens of a concept cannot be counted; use one of a single vector."
                )
        return parsed


def customize(pipeline: Any, *adapters: Adapter | str | Path, any_base: bool = False) -> CustomizedPipeline:
    """Teach a diffusers pipeline (text-to-image, img2img, inpaint, ControlNet, PAG) concepts.

    Args:
        adapters: adapters, paths of adapter files, or names on the Hub (`user/repo`); more may be
            loaded later, with `load_infusion`.
        any_base: accept adapters that were trained on another base with the same layers.

    Raises:
        UserError: the pipeline is of an unsupported kind; an adapter cannot be loaded (`load_infusion`).
    """
    customized = CustomizedPipeline(pipeline, any_base)
    for adapter in adapters:
        customized.load_infusion(adapter)
    return customized


def _arguments(pipeline: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the pipeline, by name."""
    call = signature(pipeline.__call__)
    given = call.bind(*args, **kwargs).arguments
    collected = [name for name, parameter in call.parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    for name in collected:
        given |= given.pop(name, {})
    return given


def _check_perturbed(pipeline: Any, base: Base, given: Mapping[str, Any]) -> None:
    """Perturbed joint attention treats the rows of a batch in two parts, of which neither can be told whose it is."""
    is_perturbed = "pag_scale" in signature(pipeline.__call__).parameters and given.get("pag_scale") != 0
    if is_perturbed and not cross_attentions(base.network):
        raise UserError(
            "Where image and text attend jointly, concepts and perturbed-attention guidance do not go together: give "
            "pag_scale=0."
        )


class _Heard:
    """What a pipeline's `encode_prompt` gave for the prompts, by which their rows are found in a batch.

    Every pipeline returns the prompts' states first, and the negative prompts' among the rest or in a second call.
    """

    def __init__(self) -> None:
        self.states: Tensor | None = None

    def listen(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        encoded = original(*args, **kwargs)
        states, *others = encoded
        if self.states is None:
            self.states = states
        else:
            others.append(states)
        if any(isinstance(other, Tensor) and torch.equal(other, self.states) for other in others):
            raise UserError("The negative prompt reads the same as the prompt, which guidance cannot tell apart.")
        return encoded


class _Called:
    """Around a network that a pipeline calls: the prompts' rows read the concepts' own words, where they have some.

    plain: the conditioning of the prompts, as the base itself encodes them, where concepts have words of their own.
    copies: images of each prompt. found: whether the prompts' rows were in any batch.
    """

    def __init__(
        self, denoiser: Customized, heard: _Heard, plain: Conditioning | None, num_prompts: int, copies: int
    ) -> None:
        rows = [row for row in range(num_prompts) for _ in range(copies)]
        self.denoiser = denoiser
        self.heard = heard
        self.plain = plain and plain.rows(rows)
        self.num_rows = len(rows)
        self.found = False
        self._read: Conditioning | None = None

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        network = self.denoiser.base.network
        inputs = signature(type(network).forward).bind(network, *args, **kwargs).arguments
        del inputs["self"]
        inputs |= inputs.pop("kwargs", {})
        states = inputs["encoder_hidden_states"]
        theirs = blocks_of_prompts(states, self.heard.states, self.num_rows)
        self.found |= any(theirs)
        if self.denoiser.texts:
            self.denoiser.texts.give_by_layer({})
        if self.denoiser.texts and any(theirs):
            read = self._own_words(states)
            inputs["encoder_hidden_states"] = self._instead(states, read.text_states, theirs)
            by_layer = {path: self._instead(states, own, theirs) for path, own in read.states_by_layer.items()}
            self.denoiser.texts.give_by_layer(by_layer)
        if self.denoiser.streams:
            self.denoiser.streams.of_prompts = theirs
        return original(**inputs)

    @staticmethod
    def _instead(states: Tensor, own: Tensor, theirs: Sequence[bool]) -> Tensor:
        """The batch's states, with `own` in the place of the prompts' blocks."""
        blocks = states.chunk(len(theirs))
        return torch.cat([own.to(states) if theirs[n] else block for n, block in enumerate(blocks)])

    def _own_words(self, states: Tensor) -> Conditioning:
        """What the text model makes of the prompts with the concepts' own words; read once."""
        if self._read is None:
            heard = self.heard.states
            assert heard is not None and self.plain and self.denoiser.texts
            plain = self.plain.text_states.to(states)
            if heard.shape != plain.shape or not torch.allclose(heard.to(states), plain, atol=1e-3, rtol=1e-3):
                raise UserError(
                    "The concept has words of its own, and this call encodes its prompt in another way than the base "
                    "model does (clip_skip, prompt embeddings, a LoRA of the text model): leave that out, or draw it "
                    "with infusion.generate."
                )
            self._read = self.denoiser.texts.read(self.plain)
        return self._read
