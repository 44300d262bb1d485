"""A base + adapters' edits -> a denoiser; leaving the block undoes them all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.edits import all_or_nothing, swap_parameter, wrap_module
from infusion.base.streams import TwinStreams, ValueResiduals
from infusion.base.token_vectors import ALL_LAYERS, TextReader, TokenVectors
from infusion.errors import UserError

if TYPE_CHECKING:
    from infusion.base.model import Base


class Edit(Protocol):
    """A reversible change of a base. A new kind of edit is a class with these two, wherever it is needed."""

    def attach(self, live: "Customized") -> AbstractContextManager[None]:
        """The change, on the live network for the length of the block."""
        ...

    def scaled(self, weight: float) -> "Edit":
        """The edit, acting `weight` times as strongly; UserError where it is all or nothing."""
        ...


@dataclass(frozen=True)
class SwappedParameters:
    """The edit of a method with weights of its own: tensors that stand in for the network's, by parameter path."""

    tensors: Mapping[str, Tensor]

    @contextmanager
    def attach(self, live: "Customized") -> Iterator[None]:
        with ExitStack() as stack:
            for path, tensor in self.tensors.items():
                first = live.swapped.setdefault(path, tensor)
                if first is not tensor:
                    raise UserError(
                        f"The concepts {', '.join(live.concepts)} each bring weights of their own for {path}, and a "
                        "network has one: use one of them at a time."
                    )
                stack.enter_context(swap_parameter(live.base.network, path, tensor))
            yield

    def scaled(self, weight: float) -> "SwappedParameters":
        raise all_or_nothing(weight)


@dataclass(frozen=True)
class WrappedModules:
    """The edit of a method that adds to layers: by module path, what makes the new layer of the one that is there."""

    wrappers: Mapping[str, Callable[[nn.Module], nn.Module]]

    @contextmanager
    def attach(self, live: "Customized") -> Iterator[None]:
        with ExitStack() as stack:
            for path, wrapper in self.wrappers.items():
                stack.enter_context(wrap_module(live.base.network, path, wrapper))
            yield

    def scaled(self, weight: float) -> "WrappedModules":
        raise all_or_nothing(weight)


class Customization(Protocol):
    """What can be applied to a base: all that the base needs to know of an adapter."""

    concept_name: str

    def check_fits(self, base: "Base") -> None:
        """Raise UserError if the base lacks what is to be edited."""
        ...

    def edits(self, base: "Base") -> Sequence[Edit]:
        """The changes of the base."""
        ...


class Named(Customization, Protocol):
    """A customization whose concepts prompts can name: an adapter, `Words`, or a merge of several adapters."""

    @property
    def spoken(self) -> Mapping[str, str]:
        """By concept name, what the text model reads where a prompt names the concept."""
        ...

    @property
    def words(self) -> str:
        """What the text model reads for `concept_name`."""
        ...


@dataclass
class Words:
    """The words by which a model customized already knows a concept, such as "sks cat": nothing is applied."""

    words: str
    concept_name: str = "concept"

    @property
    def spoken(self) -> Mapping[str, str]:
        return {self.concept_name: self.words}

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
        self.spoken = customization.spoken
        self.weight = weight
        if (method := getattr(customization, "method", None)) is not None:
            self.method = method

    def check_fits(self, base: "Base") -> None:
        self.customization.check_fits(base)

    def edits(self, base: "Base") -> Sequence[Edit]:
        if self.weight == 0:
            return ()
        edits = self.customization.edits(base)
        return edits if self.weight == 1 else [edit.scaled(self.weight) for edit in edits]


@dataclass
class Edited:
    """Edits as they are given, by one who knows that they fit: what a training step applies, or a merge."""

    concept_name: str
    given: Sequence[Edit]

    def check_fits(self, base: "Base") -> None:
        """They do."""

    def edits(self, base: "Base") -> Sequence[Edit]:
        return self.given


@dataclass
class Merged(Edited):
    """What a closed form makes of several adapters: one customization, which prompts may name by all their concepts."""

    spoken: Mapping[str, str]

    @property
    def words(self) -> str:
        """Of the first concept."""
        return next(iter(self.spoken.values()))


class Customized:
    """A base under edits; a `Denoiser`. streams and texts are None where no edit needs them.

    While edits attach, those of one kind that act together leave themselves here: swapped weights by path, residuals
    of values, vectors of tokens.
    """

    def __init__(self, base: "Base", concepts: Sequence[str]) -> None:
        self.base = base
        self.concepts = concepts
        self.swapped: dict[str, Tensor] = {}
        self.residuals: list[ValueResiduals] = []
        self.vectors: list[TokenVectors] = []
        self.streams: TwinStreams | None = None
        self.texts: TextReader | None = None

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
    def running(self) -> Iterator[None]:
        """The texts and the second stream, around all other edits: streams see the network as these have made it."""
        by_layer = [edit.concept for edit in self.vectors if edit.vectors.keys() - {ALL_LAYERS}]
        if self.residuals and by_layer:  # the second stream holds some rows, states by layer are there for all of them
            raise UserError(
                f"<{self.residuals[0].concept}> adds to values in a stream of its own and <{by_layer[0]}> has words of "
                "its own for every layer, which do not go together: use one of them at a time."
            )
        self.texts = TextReader(self.base, self.vectors) if self.vectors else None
        self.streams = TwinStreams(self.base.family, self.base.network, self.residuals) if self.residuals else None
        with ExitStack() as stack:
            for part in (self.texts, self.streams):
                if part:
                    stack.enter_context(part.attached())
            yield


def check_names(adapters: Sequence[Customization]) -> list[str]:
    """The names of the concepts; UserError where two share one."""
    names = [adapter.concept_name for adapter in adapters]
    if len(set(names)) < len(names):
        raise UserError(f"Two concepts share a name among: {', '.join(names)}; train one under another name.")
    return names


@contextmanager
def attached(base: "Base", adapters: Sequence[Customization]) -> Iterator[Customized]:
    """The adapters' edits, on the live network for the length of the block.

    Raises:
        UserError: two concepts share a name, both bring a whole weight of their own for one place, or their kinds of
            edits exclude each other; or an adapter edits layers that the base lacks.
    """
    names = check_names(adapters)
    edits: list[Edit] = []
    for adapter in adapters:
        adapter.check_fits(base)
        edits += adapter.edits(base)
    live = Customized(base, names)
    with ExitStack() as stack:
        for edit in sorted(edits, key=lambda edit: not isinstance(edit, SwappedParameters)):  # paths change by wrapping
            stack.enter_context(edit.attach(live))
        stack.enter_context(live.running())
        yield live
