"""Rows that name a concept run twice: as their untouched foundation, then customized beside it.

The foundation pass is the unmodified network on the whole batch, so every row without a concept is the base model's
to the bit. The customized pass runs only the rows that name a concept; in every layer that reads text it takes over
what its twin's attention map is made of, and learned residuals are added to the values at the concept's tokens:

    out_c = A_f (V + sum_{j in J} e_j r_l^T)        Infusion, arXiv 2404.14007, section 4

In cross-attention the keys come from the same text in both streams, so that taking over the queries is enough; most
layers need not even these (`rank_form`). Where image and text attend jointly, queries and keys of all tokens are taken
over. Nothing is computed twice that is the same in both streams, and nothing of the foundation that nobody reads.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infusion.base import rank_form
from infusion.base.edits import hook_output, wrap_method
from infusion.base.families import Family, TextLayer
from infusion.base.prompts import ConceptTokens

if TYPE_CHECKING:
    from infusion.base.customization import Customized
from infusion.base.shared_start import SharedStart
from infusion.errors import UserError


@dataclass(frozen=True)
class ValueResiduals:
    """The edit of one concept: a vector to add to the values of every layer at the concept's tokens.

    vectors: [width] by layer path. borrows: whether the concept's rows take the foundation's queries, of all rows
    alike or by row of the batch. key_vectors: [width] by layer path, added to the keys; with any, the maps are no
    longer the foundation's.
    """

    concept: str
    vectors: Mapping[str, Tensor]
    borrows: bool | Mapping[int, bool]
    key_vectors: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attach(self, live: "Customized") -> Iterator[None]:
        live.residuals.append(self)
        yield

    def scaled(self, weight: float) -> "ValueResiduals":
        vectors, keys = (
            {path: weight * vector for path, vector in some.items()} for some in (self.vectors, self.key_vectors)
        )
        return replace(self, vectors=vectors, key_vectors=keys)

    def borrows_in(self, row: int) -> bool:
        """Whether that row of the batch takes the foundation's queries."""
        return self.borrows if isinstance(self.borrows, bool) else self.borrows[row]


@dataclass
class _FoundationPass:
    """What the customized rows of a batch take over from the foundation; empty until it was run.

    states: queries and keys [K, L, W], by the path of their projection. attended: by the path of a layer in rank form,
    its output [K, N, D] and columns of its map [K, N, M * H]. start: what modules gave before the first edited layer.
    """

    states: dict[str, Tensor] = field(default_factory=dict)
    attended: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    start: deque[Any] = field(default_factory=deque)


@dataclass(frozen=True)
class _Plan:
    """The rows of the customized pass: K of the batch's B rows.

    at: [K] their places in the batch. changed: which of the K name a concept; the others only keep the batch in shape.
    borrows: [K] whether they take over their twins' maps. concepts: those that are named, at most M in one row. slots:
    [K, M] their indices in `concepts`. tokens: [K, T, M], 1 at the tokens that name them. in_rank_form: the layers that
    need nothing of their own.
    """

    batch_size: int
    at: Tensor
    changed: Sequence[int]
    borrows: Sequence[bool]
    concepts: Sequence[str]
    slots: Tensor
    tokens: Tensor
    in_rank_form: Sequence[str]

    @property
    def is_whole(self) -> bool:
        """Whether it is the batch, row by row, so that nothing of the foundation's prediction is left in the result."""
        return len(self.at) == self.batch_size and (len(self.changed) == self.batch_size or not any(self.borrows))

    def take(self, value: Any) -> Any:
        """Its rows of everything that has one entry per row of the batch; all else as it is."""
        return _take_rows(value, None if self.is_whole else self.at, self.batch_size)


class _Enough(Exception):
    """The foundation pass has given all that is read of it."""


class TwinStreams:
    """Runs a network with value residuals. `rows` says which concepts each row of the next batch names, and where.

    of_prompts: for every block of a batch, each as long as `rows`, whether it is these rows; a pipeline's batch holds
    others too, such as the unconditional ones of guidance. None where it holds nothing else.
    released: rows that name a concept have maps of their own, and no foundation beside them: one pass for all rows.
    """

    def __init__(self, family: Family, network: nn.Module, residuals: Sequence[ValueResiduals]) -> None:
        self.family = family
        self.network = network
        self.residuals = {residual.concept: residual for residual in residuals}
        self.rows: Sequence[ConceptTokens] = ()
        self.of_prompts: Sequence[bool] | None = None
        self.released = False
        self._layers = family.text_layers(network)
        edited = {path for residual in residuals for path in (*residual.vectors, *residual.key_vectors)}
        self._edited = [path for path in self._layers if path in edited]
        self._network_trains = any(weight.requires_grad for weight in network.parameters())
        self._start = SharedStart()
        self._recording: _Plan | None = None
        self._replaying: _Plan | None = None
        self._found = _FoundationPass()
        self._unread: set[str] = set()

    @contextmanager
    def attached(self) -> Iterator["TwinStreams"]:
        """Within the block every call of the network is run in two streams; afterwards no trace is left."""
        with ExitStack() as stack:
            for path, layer in self._layers.items():
                for name in layer.borrowed:
                    change = partial(self._on_borrowed, f"{path}.{name}")
                    stack.enter_context(hook_output(getattr(layer.attention, name), change))
                stack.enter_context(hook_output(getattr(layer.attention, layer.keys), partial(self._on_keys, path)))
                stack.enter_context(hook_output(getattr(layer.attention, layer.values), partial(self._on_values, path)))
                around = partial(self._on_attention, path, layer)
                stack.enter_context(wrap_method(layer.attention, "forward", around))
            if self._edited:
                stack.enter_context(self._start.attached(self.network, self._edited[0]))
            stack.enter_context(wrap_method(self.network, "forward", self._forward))
            yield self

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inputs = signature(type(self.network).forward).bind(self.network, *args, **kwargs).arguments
        del inputs["self"]
        as_output = inputs.pop("return_dict", True)
        plan = self._plan(inputs)
        if plan is None:
            self._forget()
            return original(**inputs, return_dict=as_output)
        # taken first, because the network empties some of the lists it is given
        shared = self.family.shared_inputs
        rows = {name: value if name in shared else plan.take(value) for name, value in inputs.items()}
        self._forget()
        prediction = self._foundation_pass(original, inputs, plan)
        self._replaying = plan
        self._start.give(self._found.start)
        changed = original(**rows, return_dict=True)
        if not torch.is_grad_enabled():  # else checkpointed layers may be run again, until the next call
            self._forget()
        if prediction is not None:
            at = plan.at[plan.changed]
            changed.sample = prediction.index_copy(0, at, changed.sample[plan.changed])
        return changed if as_output else (changed.sample,)

    def _forget(self) -> None:
        self._replaying = None
        self._found = _FoundationPass()
        self._start.reached()

    def _plan(self, inputs: Mapping[str, Any]) -> _Plan | None:
        """Which rows of a batch are customized.

        Guidance puts blocks of other rows beside the prompts' own. Where the prompts stand in several blocks, attention
        may treat the blocks differently (perturbed-attention guidance does), so that all of them are kept together.
        Where nothing is taken over, all rows are: those without a concept get residuals of nothing, and are the base's.
        """
        batch_size = len(next(iter(inputs.values())))  # the noisy latents, whatever the network calls them
        text_states = inputs["encoder_hidden_states"]
        ours = [sorted(tokens.keys() & self.residuals.keys()) for tokens in self.rows]
        named = [row for row, concepts in enumerate(ours) if concepts]
        of_prompts = self.of_prompts or [True] * num_blocks(batch_size, len(self.rows))
        if not named or not any(of_prompts):
            return None
        borrowing = {row: self._borrows(row, ours[row]) for row in named}
        twinned = any(borrowing.values())
        kept = [of_prompts.index(True)] if twinned and sum(of_prompts) == 1 else range(len(of_prompts))
        rows = [(block, row) for block in kept for row in (named if twinned else range(len(ours)))]
        concepts = sorted({concept for row in named for concept in ours[row]})
        most = max(len(ours[row]) for row in named)
        slots = torch.zeros(len(rows), most, dtype=torch.long)
        tokens = torch.zeros(len(rows), text_states.shape[1], most)
        for k, (block, row) in enumerate(rows):
            for m, concept in enumerate(ours[row] if of_prompts[block] else ()):
                slots[k, m] = concepts.index(concept)
                tokens[k, list(self.rows[row][concept]), m] = 1
        borrows = [borrowing.get(row, False) for _, row in rows]
        at = [block * len(self.rows) + row for block, row in rows]

        def there(tensor: Tensor) -> Tensor:
            return tensor.to(text_states.device, non_blocking=True)

        return _Plan(
            batch_size=batch_size,
            at=there(torch.tensor(at)),
            changed=[k for k, (block, row) in enumerate(rows) if of_prompts[block] and ours[row]],
            borrows=borrows,
            concepts=concepts,
            slots=there(slots),
            tokens=there(tokens),
            in_rank_form=self._in_rank_form(concepts) if all(borrows) and self._trains_only_residuals(inputs) else [],
        )

    def _borrows(self, row: int, concepts: Collection[str]) -> bool:
        if self.released:
            return False
        return all(self.residuals[name].borrows_in(row) for name in concepts)

    def _trains_only_residuals(self, inputs: Mapping[str, Any]) -> bool:
        """Whether nothing but the residuals needs a gradient, so that the foundation may stand for customized rows."""
        if not torch.is_grad_enabled():
            return True
        given = [value for value in inputs.values() if isinstance(value, Tensor)]
        return not (self._network_trains or any(tensor.requires_grad for tensor in given))

    def _in_rank_form(self, concepts: Collection[str]) -> list[str]:
        if any(self.residuals[concept].key_vectors for concept in concepts):
            return []
        return [path for path, layer in self._layers.items() if rank_form.has_rank_form(layer)]

    def _foundation_pass(self, original: Callable[..., Any], inputs: Mapping[str, Any], plan: _Plan) -> Tensor | None:
        """The untouched network on the whole batch, without gradient: its prediction, where anything of it is needed.

        It is skipped, or ends at the last layer that is taken over, where nothing else is.
        """
        if plan.is_whole and not any(plan.borrows):
            return None
        self._recording = plan
        self._unread = set(self._layers)
        if self._trains_only_residuals(inputs):
            self._start.keep(self._found.start, plan.take)
        try:
            with torch.no_grad(), suppress(_Enough):
                return original(**inputs, return_dict=False)[0]
            return None
        finally:
            self._recording = None
            self._start.reached()

    def _on_attention(
        self, path: str, layer: TextLayer, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """A whole layer: in rank form, the foundation's output and what the residuals add to it."""
        if path in self._edited:
            self._start.reached()
        if self._replaying and path in self._found.attended:
            return self._in_place_of(path, layer)
        output = original(*args, **kwargs)
        if self._recording:
            if path in self._recording.in_rank_form:
                self._keep_attended(path, layer, output, kwargs.get("attention_mask"))
            self._unread.discard(path)
            if self._recording.is_whole and not self._unread:
                raise _Enough
        return output

    def _keep_attended(self, path: str, layer: TextLayer, output: Tensor, bias: Tensor | None) -> None:
        plan = self._recording
        assert plan is not None
        queries, keys = (self._found.states.pop(f"{path}.{name}") for name in (*layer.borrowed, layer.keys))
        columns = rank_form.map_columns(layer.attention, queries, keys, plan.tokens, plan.take(bias))
        self._found.attended[path] = plan.take(output), columns

    def _in_place_of(self, path: str, layer: TextLayer) -> Tensor:
        """The output [K, N, D] of a layer in rank form."""
        plan = self._replaying
        assert plan is not None
        output, columns = self._found.attended[path]
        vectors = self._stacked({name: residual.vectors.get(path) for name, residual in self.residuals.items()})
        if vectors is None:
            return output
        added = rank_form.directions(layer.attention, vectors)[plan.slots]  # [K, M, H, D]
        return torch.baddbmm(output, columns, added.flatten(1, 2))

    def _on_borrowed(self, path: str, states: Tensor) -> Tensor:
        """states [B, L, W]: kept in the foundation pass, taken over in the customized one."""
        if self._recording:
            self._found.states[path] = self._recording.take(states)
        if self._replaying and path in self._found.states:
            recorded, borrows = self._found.states[path], self._replaying.borrows
            if all(borrows):
                return recorded
            return torch.where(torch.tensor(borrows, device=states.device)[:, None, None], recorded, states)
        return states

    def _on_values(self, path: str, values: Tensor) -> Tensor:
        return self._added(values, {name: residual.vectors.get(path) for name, residual in self.residuals.items()})

    def _on_keys(self, path: str, keys: Tensor) -> Tensor:
        if self._recording and path in self._recording.in_rank_form:
            self._found.states[f"{path}.{self._layers[path].keys}"] = self._recording.take(keys)
        return self._added(keys, {name: residual.key_vectors.get(path) for name, residual in self.residuals.items()})

    def _added(self, states: Tensor, vectors: Mapping[str, Tensor | None]) -> Tensor:
        """states [K, L, W] of the customized pass, with every concept's vector [W] at the tokens that name it.

        The T text tokens stand first among the L positions; mostly they are all of them.
        """
        plan = self._replaying
        stacked = self._stacked(vectors) if plan else None
        if plan is None or stacked is None:
            return states
        added = plan.tokens.to(stacked.dtype) @ stacked.to(states.device)[plan.slots]
        return states + nn.functional.pad(added, (0, 0, 0, states.shape[1] - added.shape[1])).to(states.dtype)

    def _stacked(self, vectors: Mapping[str, Tensor | None]) -> Tensor | None:
        """The vectors of the concepts that the rows name, [C, W], 0 where a concept has none; None without any."""
        assert self._replaying
        named = [vectors[concept] for concept in self._replaying.concepts]
        there = next((vector for vector in named if vector is not None), None)
        if there is None:
            return None
        return torch.stack([torch.zeros_like(there) if vector is None else vector for vector in named])


def num_blocks(batch_size: int, num_rows: int) -> int:
    """How often a batch holds `num_rows` rows, as guidance puts others beside them.

    Raises:
        UserError: not a whole number of times.
    """
    num, rest = divmod(batch_size, max(1, num_rows))
    if rest:
        raise UserError(
            f"The pipeline calls its network with {batch_size} rows for {num_rows} images; pipelines that treat all "
            "images alike can be customized."
        )
    return num


def blocks_of_prompts(text_states: Tensor, of_prompts: Tensor | None, num_rows: int) -> list[bool]:
    """For every block of `num_rows` rows of a batch's text states, whether it has the prompts' own states.

    Raises:
        UserError: the batch is no whole number of blocks; nobody heard what the prompts' states are.
    """
    blocks = text_states.chunk(num_blocks(len(text_states), num_rows))
    if of_prompts is None:
        raise UserError("This pipeline has a way of its own to encode prompts, and cannot be customized.")
    told = of_prompts.to(text_states)
    return [torch.equal(block, told) for block in blocks]


def _take_rows(value: Any, at: Tensor | None, batch_size: int) -> Any:
    """The rows `at`, or all, of everything that has one entry per row of the batch, in new lists; all else as it is."""
    if isinstance(value, Tensor):
        return value[at] if at is not None and value.dim() and len(value) == batch_size else value
    if isinstance(value, Mapping):
        return {name: _take_rows(item, at, batch_size) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_take_rows(item, at, batch_size) for item in value)
    return value
