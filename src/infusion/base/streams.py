"""Rows that name a concept run twice: as their untouched foundation, then customized beside it.

The foundation pass is the unmodified network on the whole batch, so every row without a concept is the base model's
to the bit. The customized pass runs only the rows that name a concept; in every layer that reads text it takes over
what its twin's attention map is made of, and learned residuals are added to the values at the concept's tokens:

    out_c = A_f (V + sum_{j in J} e_j r_l^T)        Infusion, arXiv 2404.14007, section 4

In cross-attention the keys come from the same text in both streams, so that taking over the queries is enough. Where
image and text attend jointly, queries and keys of all tokens are taken over.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from infusion.base.edits import hook_output, wrap_method
from infusion.base.families import Family
from infusion.errors import UserError
from infusion.prompts import ConceptTokens


@dataclass(frozen=True)
class ValueResiduals:
    """The edit of one concept: a vector to add to the values of every layer at the concept's tokens.

    vectors: [width] by layer path. borrows: whether the concept's rows take the foundation's queries. key_vectors:
    [width] by layer path, added to the keys; with any, the maps are no longer the foundation's.
    """

    concept: str
    vectors: Mapping[str, Tensor]
    borrows: bool
    key_vectors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """The rows of the customized pass: K of the batch's rows.

    at: [K] their places in the batch. changes: [K] which of them name a concept; the others only keep the batch in
    shape. borrows: [K] whether they take over their twins' maps. here: [K, T] by concept, 1 at the tokens that name it.
    """

    at: Tensor
    changes: Tensor
    borrows: Tensor
    here: Mapping[str, Tensor]


class TwinStreams:
    """Runs a network with value residuals. `rows` says which concepts each row of the next batch names, and where.

    borrows: [B] which of those rows take over the foundation's maps; by default what the residuals say.
    among_others: a batch may hold other rows too, such as the unconditional ones of guidance; then `text_states`
    [B, T, C] say which are the `rows`, and `found`, whether any were.
    """

    def __init__(
        self,
        family: Family,
        network: nn.Module,
        residuals: Sequence[ValueResiduals],
        borrows: Tensor | None = None,
    ) -> None:
        self.family = family
        self.network = network
        self.residuals = {residual.concept: residual for residual in residuals}
        self.borrows = borrows
        self.rows: Sequence[ConceptTokens] = ()
        self.text_states: Tensor | None = None
        self.among_others = self.found = False
        self._recording: _Plan | None = None
        self._replaying: _Plan | None = None
        self._recorded: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator["TwinStreams"]:
        """Within the block every call of the network is run in two streams; afterwards no trace is left."""
        with ExitStack() as stack:
            for path, layer in self.family.text_layers(self.network).items():
                for name in layer.borrowed:
                    change = partial(self._on_borrowed, f"{path}.{name}")
                    stack.enter_context(hook_output(getattr(layer.attention, name), change))
                stack.enter_context(hook_output(getattr(layer.attention, layer.keys), partial(self._on_keys, path)))
                stack.enter_context(hook_output(getattr(layer.attention, layer.values), partial(self._on_values, path)))
            stack.enter_context(wrap_method(self.network, "forward", self._forward))
            yield self

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inputs = signature(type(self.network).forward).bind(self.network, *args, **kwargs).arguments
        del inputs["self"]
        as_output = inputs.pop("return_dict", True)
        batch_size = len(next(iter(inputs.values())))  # the noisy latents, whatever the network calls them
        plan = self._plan(batch_size, inputs["encoder_hidden_states"])
        if plan is None:
            self._forget()
            return original(**inputs, return_dict=as_output)
        # taken first, because the network empties some of the lists it is given
        rows = {
            name: value if name in self.family.shared_inputs else _take_rows(value, plan.at, batch_size)
            for name, value in inputs.items()
        }
        self._forget()
        prediction = self._foundation_pass(original, inputs, plan)
        self._replaying = plan
        changed = original(**rows, return_dict=True)
        if not torch.is_grad_enabled():  # else checkpointed layers may be run again, until the next call
            self._forget()
        if prediction is not None:
            changed.sample = prediction.index_copy(0, plan.at[plan.changes], changed.sample[plan.changes])
        return changed if as_output else (changed.sample,)

    def _forget(self) -> None:
        self._replaying = None
        self._recorded.clear()

    def _plan(self, batch_size: int, text_states: Tensor) -> _Plan | None:
        """Which rows of a batch are customized.

        Guidance puts blocks of other rows beside the prompts' own. Where the prompts stand in several blocks, attention
        may treat the blocks differently (perturbed-attention guidance does), so that all of them are kept together.
        """
        ours = [tokens.keys() & self.residuals.keys() for tokens in self.rows]
        named = [row for row, concepts in enumerate(ours) if concepts]
        of_prompts = self._blocks(batch_size, text_states)
        if not named or not any(of_prompts):
            return None
        kept = list(range(len(of_prompts))) if sum(of_prompts) > 1 else [of_prompts.index(True)]
        rows = [(block, row) for block in kept for row in named]
        here = {concept: torch.zeros(len(rows), text_states.shape[1]) for concept in self.residuals}
        for k, (block, row) in enumerate(rows):
            for concept in ours[row] if of_prompts[block] else ():
                here[concept][k, list(self.rows[row][concept])] = 1
        device = text_states.device
        return _Plan(
            at=torch.tensor([block * len(self.rows) + row for block, row in rows], device=device),
            changes=torch.tensor([of_prompts[block] for block, _ in rows], device=device),
            borrows=torch.tensor([self._borrows(row, ours[row]) for _, row in rows], device=device),
            here={concept: where.to(device) for concept, where in here.items()},
        )

    def _blocks(self, batch_size: int, text_states: Tensor) -> list[bool]:
        """For every block of the batch, each as long as `rows`, whether it is told the prompts."""
        num_blocks, rest = divmod(batch_size, max(1, len(self.rows)))
        if rest:
            raise UserError(
                f"The pipeline calls its network with {batch_size} rows for {len(self.rows)} pictures; pipelines that "
                "treat all pictures alike can be customized."
            )
        if not self.among_others:
            return [True] * num_blocks
        if self.text_states is None:
            raise UserError("This pipeline has a way of its own to encode prompts, and cannot be customized.")
        told = self.text_states.to(text_states)
        theirs = [torch.equal(block, told) for block in text_states.chunk(num_blocks)]
        self.found |= any(theirs)
        return theirs

    def _borrows(self, row: int, concepts: Collection[str]) -> bool:
        if self.borrows is not None:
            return bool(self.borrows[row])
        return all(self.residuals[name].borrows for name in concepts)

    def _foundation_pass(self, original: Callable[..., Any], inputs: Mapping[str, Any], plan: _Plan) -> Tensor | None:
        """The untouched network on the whole batch, without gradient; skipped where nothing of it is needed."""
        if len(plan.at) == len(next(iter(inputs.values()))) and not plan.borrows.any():
            return None
        self._recording = plan
        try:
            with torch.no_grad():
                return original(**inputs, return_dict=False)[0]
        finally:
            self._recording = None

    def _on_borrowed(self, path: str, states: Tensor) -> Tensor:
        """states [B, L, W]: kept in the foundation pass, taken over in the customized one."""
        if self._recording:
            self._recorded[path] = states[self._recording.at]
        if self._replaying and path in self._recorded:
            return torch.where(self._replaying.borrows[:, None, None], self._recorded[path], states)
        return states

    def _on_values(self, path: str, values: Tensor) -> Tensor:
        return self._added(values, {name: residual.vectors.get(path) for name, residual in self.residuals.items()})

    def _on_keys(self, path: str, keys: Tensor) -> Tensor:
        return self._added(keys, {name: residual.key_vectors.get(path) for name, residual in self.residuals.items()})

    def _added(self, states: Tensor, vectors: Mapping[str, Tensor | None]) -> Tensor:
        """states [K, L, W] of the customized pass, with every concept's vector [W] at the tokens that name it.

        The T text tokens stand first among the L positions; mostly they are all of them.
        """
        if not self._replaying:
            return states
        for concept, vector in vectors.items():
            if vector is not None:
                here = self._replaying.here[concept]
                here = nn.functional.pad(here, (0, states.shape[1] - here.shape[1]))
                added = here[..., None] * vector.to(states.device)
                states = states + added.to(states.dtype)
        return states


def _take_rows(value: Any, at: Tensor, batch_size: int) -> Any:
    """The rows `at` of everything that has one entry per row of the batch; all else as it is."""
    if isinstance(value, Tensor):
        return value[at] if value.dim() and len(value) == batch_size else value
    if isinstance(value, Mapping):
        return {name: _take_rows(item, at, batch_size) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_take_rows(item, at, batch_size) for item in value)
    return value
