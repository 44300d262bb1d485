"""A base + adapters' edits -> a denoiser; leaving the block undoes them all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.edits import swap_parameter, wrap_module
from infusion.base.streams import FoundationPass, TwinStreams, ValueResiduals
from infusion.base.token_vectors import ALL_LAYERS, TextReader, TokenVectors
from infusion.errors import UserError

if TYPE_CHECKING:
    from infusion.base.model import Base


@dataclass(frozen=True)
class SwappedParameters:
    """The edit of a method with weights of its own: tensors that stand in for the network's, by parameter path."""

    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class WrappedModules:
    """The edit of a method that adds to layers: by module path, what makes the new layer of the one that is there."""

    wrappers: Mapping[str, Callable[[nn.Module], nn.Module]]


Edit = ValueResiduals | TokenVectors | SwappedParameters | WrappedModules


def scaled(edit: Edit, weight: float) -> Edit:
    """The edit, acting `weight` times as strongly.

    Raises:
        UserError: it is all or nothing, and the weight is neither 1 nor 0.
    """
    if weight in (0, 1):
        return edit
    if not isinstance(edit, ValueResiduals):
        raise UserError(f"A weight of {weight:g} needs a method that adds to values, such as infusion; give 1 or 0.")
    vectors, keys = (
        {path: weight * vector for path, vector in some.items()} for some in (edit.vectors, edit.key_vectors)
    )
    return replace(edit, vectors=vectors, key_vectors=keys)


class Customization(Protocol):
    """What can be laid on a base: all that the base needs to know of an adapter."""

    concept_name: str

    def check_fits(self, base: "Base") -> None:
        """Raise UserError if the base lacks what is to be edited."""
        ...

    def edits(self, base: "Base") -> Sequence[Edit]:
        """The changes of the base."""
        ...


class Named(Customization, Protocol):
    """A customization whose concept prompts can name: an adapter, or `Words`."""

    @property
    def words(self) -> str:
        """What the text model reads where a prompt names the concept."""
        ...


@dataclass
class Words:
    """The words by which a model customized already knows a concept, such as "sks cat": nothing is laid on it."""

    words: str
    concept_name: str = "concept"

    def check_fits(self, base: "Base") -> None:
        """It fits every base."""

    def edits(self, base: "Base") -> Sequence[Edit]:
        return ()


class Strengthened:
    """A customization whose edits act `weight` times as strongly; at 0 it is the base's view of its words."""

    def __init__(self, customization: Named, weight: float) -> None:
        self.customization = customization
        self.concept_name = customization.concept_name
        self.words = customization.words
        self.weight = weight

    def check_fits(self, base: "Base") -> None:
        self.customization.check_fits(base)

    def edits(self, base: "Base") -> Sequence[Edit]:
        if self.weight == 0:
            return ()
        return [scaled(edit, self.weight) for edit in self.customization.edits(base)]


class Customized:
    """A base under edits; a `Denoiser`. streams and texts are None where no edit needs them."""

    def __init__(self, base: "Base", streams: TwinStreams | None, texts: TextReader | None) -> None:
        self.base = base
        self.streams = streams
        self.texts = texts

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if self.texts:
            conditioning = self.texts.read(conditioning)
        if self.streams:
            self.streams.rows = conditioning.concept_tokens
        return self.base.predict(noisy_latents, timesteps, conditioning)

    def release(self, released: bool) -> None:
        """Whether rows that name a concept have attention maps of their own from here on, and no foundation."""
        if self.streams:
            self.streams.released = released


@contextmanager
def attached(
    base: "Base",
    adapters: Sequence[Customization],
    borrows: Tensor | None = None,
    foundation: FoundationPass | None = None,
) -> Iterator[Customized]:
    """The adapters' edits, on the live network for the length of the block.

    Args:
        borrows: [B] bool, which rows take the foundation's queries; None leaves it to the adapters' methods.
        foundation: what the foundation gave for the one batch that is given here, or is to be filled with it.

    Raises:
        UserError: two concepts share a name, both bring a whole weight of their own for one place, or their kinds of
            edits exclude each other; or an adapter edits layers that the base lacks.
    """
    names = [adapter.concept_name for adapter in adapters]
    if len(set(names)) < len(names):
        raise UserError(f"Two concepts share a name among: {', '.join(names)}; train one under another name.")
    edits: list[Edit] = []
    for adapter in adapters:
        adapter.check_fits(base)
        edits += adapter.edits(base)
    vectors = [edit for edit in edits if isinstance(edit, TokenVectors)]
    residuals = [edit for edit in edits if isinstance(edit, ValueResiduals)]
    _check_mix(residuals, vectors)
    with ExitStack() as stack:
        for path, tensor in _swapped(edits, names).items():
            stack.enter_context(swap_parameter(base.network, path, tensor))
        for edit in edits:
            if isinstance(edit, WrappedModules):
                for path, wrapper in edit.wrappers.items():
                    stack.enter_context(wrap_module(base.network, path, wrapper))
        texts = stack.enter_context(TextReader(base, vectors).attached()) if vectors else None
        streams = (
            stack.enter_context(TwinStreams(base.family, base.network, residuals, borrows, foundation).attached())
            if residuals
            else None
        )
        yield Customized(base, streams, texts)


def _check_mix(residuals: Sequence[ValueResiduals], vectors: Sequence[TokenVectors]) -> None:
    """The second stream holds some rows of the batch, and states by layer are there for all of them."""
    by_layer = [edit.concept for edit in vectors if edit.vectors.keys() - {ALL_LAYERS}]
    if residuals and by_layer:
        raise UserError(
            f"<{residuals[0].concept}> adds to values in a stream of its own and <{by_layer[0]}> has words of its own "
            "for every layer, which do not go together: use one of them at a time."
        )


def _swapped(edits: Sequence[Edit], names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors that stand in, by parameter path; several adapters may bring one and the same tensor."""
    swapped: dict[str, Tensor] = {}
    for edit in edits:
        if isinstance(edit, SwappedParameters):
            for path, tensor in edit.tensors.items():
                if swapped.setdefault(path, tensor) is not tensor:
                    raise UserError(
                        f"The concepts {', '.join(names)} each bring weights of their own for {path}, and a network "
                        "has one: use one of them at a time."
                    )
    return swapped
