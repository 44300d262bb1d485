"""A specification -> results on disk: methods x individuals x prompts x seeds, each cell measured once.

A benchmark lives in a folder: `cells/ROW/INDIVIDUAL.json` is what one method made of one individual, with a strip of
its images beside it. Every result carries a digest of all that it depends on, is written whole, and is computed again
only when that changes: a run that was killed goes on where it was.
"""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from infusion.base import Base, load_base
from infusion.benchmark.cells import Cell, Failure, Pair, Tile, Trained, rounded
from infusion.benchmark.individuals import Individual, concept_of, real_images
from infusion.benchmark.specification import Row, Specification, load_specification
from infusion.benchmark.units import Ground, Unit, adapter_digest, common_digest, digest, digest_of, is_done, units
from infusion.evaluation.drawing import as_image, decoded, draw
from infusion.evaluation.evaluate import Drawn, Evaluation, drawn_with, evaluate
from infusion.evaluation.evaluators import Evaluators
from infusion.evaluation.pairs import measure_pair
from infusion.evaluation.plans import Plan
from infusion.evaluation.reference import Reference
from infusion.evaluation.validity import collapse_where_known, null_ranks
from infusion.files import whole_file
from infusion.methods.adapter import Adapter
from infusion.methods.adapter_file import load_adapter, read_adapter_file, save_adapter
from infusion.metrics.catalogue import BASE, NULL
from infusion.metrics.encoders import load_clip, load_image_encoder
from infusion.toybox.judges import load_judges
from infusion.training.loop import Diverged, train

_OF_DRAWING = ("num_seeds", "num_class_pictures", "num_inference_steps", "guidance_scale")
_TILE_PX = 64


@dataclass(frozen=True)
class Done:
    """Progress: `done` of `total` results stand on disk. failed: what could not be made, and why."""

    unit: Unit
    done: int
    total: int
    seconds_left: float
    failed: str | None = None


def run(spec_path: str | Path, folder: str | Path, num_processes: int = 1) -> Generator[Done, None, None]:
    """Make every result that is not there yet; yields after each.

    A method that diverges is a result too: its cell says so, and has no measures.
    """
    spec, folder = load_specification(spec_path), Path(folder)
    shop = Workshop.of(spec, folder)
    everything = units(spec)
    missing = [unit for unit in everything if not is_done(folder, unit, digest(spec, unit, shop.ground))]
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "benchmark.toml") as temporary:
        temporary.write_bytes(Path(spec_path).read_bytes())
    made: Iterator[tuple[Unit, str | None]]
    if num_processes == 1:
        made = ((unit, make(shop, unit)) for unit in missing)
    else:
        del shop  # every process has its own
        made = _made_apart(str(spec_path), str(folder), missing, num_processes)
    started = time.monotonic()
    for done, (unit, failed) in enumerate(made, start=1):
        left = (time.monotonic() - started) / done * (len(missing) - done)
        yield Done(unit, len(everything) - len(missing) + done, len(everything), left, failed)


def _made_apart(
    spec_path: str, folder: str, missing: Sequence[Unit], num_processes: int
) -> Iterator[tuple[Unit, str | None]]:
    """In several processes at a time."""
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(num_processes, context, initializer=_alone, initargs=(os.getpid(),)) as pool:
        waiting = {pool.submit(_make_apart, spec_path, folder, unit): unit for unit in missing}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _alone(parent: int) -> None:
    """One thread of computing for each process; and one that ends it when the process that began it has gone."""
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _workshop(spec_path: str, folder: str) -> "Workshop":
    return Workshop.of(load_specification(spec_path), Path(folder))


def _make_apart(spec_path: str, folder: str, unit: Unit) -> str | None:
    return make(_workshop(spec_path, folder), unit)


# ------------------------------------------------------------------------------------------------- making a result


@dataclass
class Workshop:
    """What a process keeps between results: the base, the evaluators, what the base draws of each class."""

    spec: Specification
    folder: Path
    base: Base
    ground: Ground
    references: dict[str, Reference] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Specification, folder: Path) -> "Workshop":
        base = load_base(spec.base)
        base.freeze()
        return cls(spec, folder, base, Ground.of(spec, base))

    @cached_property
    def evaluators(self) -> Evaluators:
        return evaluators_of(self.spec.judges)

    def reference(self, class_noun: str) -> Reference:
        if class_noun not in self.references:
            plan = self.spec.plan_for(class_noun)
            facts = {"base": self.ground.base, "class_noun": class_noun, "plan": asdict(plan)}
            folder = self.folder / "work" / f"{class_noun.replace(' ', '-')}-{digest_of(facts)}"
            self.references[class_noun] = Reference(
                self.base, class_noun, plan, self.evaluators, folder=folder, shared_noise=True
            )
        return self.references[class_noun]


def evaluators_of(judges: str) -> Evaluators:
    """One of the toybox's sets of judges, all of it."""
    name = f"toybox-{judges}"
    return Evaluators(load_clip(name), load_image_encoder(name), load_judges(judges))


def make(shop: Workshop, unit: Unit) -> str | None:
    """Make one result and write it; returns why there are no measures, where a training diverged."""
    path = shop.folder / unit.path
    key, common = digest(shop.spec, unit, shop.ground), common_digest(shop.spec, shop.ground)
    result: Cell | Pair | Failure
    try:
        result, strip = (_cell if len(unit.individuals) == 1 else _pair)(shop, unit, key, common)
    except Diverged as error:
        result, strip = Failure(path, key, common, unit.row, str(error)), []
    if strip:
        with whole_file(path.with_suffix(".webp")) as temporary:
            _side_by_side(strip).save(temporary, "WEBP", quality=90)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(result.to_json(), indent=1, sort_keys=True) + "\n")
    return result.reason if isinstance(result, Failure) else None


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    strip = Image.new("RGB", (_TILE_PX * len(images), _TILE_PX))
    for n, image in enumerate(images):
        strip.paste(image.resize((_TILE_PX, _TILE_PX)), (n * _TILE_PX, 0))
    return strip


def _cell(shop: Workshop, unit: Unit, key: str, common: str) -> tuple[Cell, list[Image.Image]]:
    """What a row made of an individual, and the strip of images beside it."""
    [individual] = unit.individuals
    reference = shop.reference(individual.class_noun)
    real = real_images(individual, reference.plan)
    facts, answers, ranks = None, None, None
    started = time.process_time()
    if unit.row == BASE:
        found = evaluate(reference, None, real)
        answers = rounded(collapse_where_known(reference, real))
    elif unit.row == NULL:
        found = evaluate(reference, None, real, Drawn(reference.null_images, reference.class_images))
        ranks = rounded(null_ranks(reference))
    else:
        row = _row(shop, unit)
        adapter, facts = trained(shop, row, individual)
        started = time.process_time()
        found = evaluate(reference, adapter, real, drawn_with(reference, adapter, _drawn_dir(shop, row, individual)))
    tiles, images = _tiles(shop.spec.plan, found)
    if unit.row == BASE:
        tiles += [Tile("training")] * len(real.training)
        images += list(real.training)
    cell = Cell(
        path=shop.folder / unit.path,
        digest=key,
        benchmark=common,
        row=unit.row,
        individual=individual.seed,
        class_noun=individual.class_noun,
        trained=facts,
        num_images=len(found.drawn.images),
        seconds_per_image=found.drawn.seconds_per_image and round(found.drawn.seconds_per_image, 3),
        evaluation_seconds=round(time.process_time() - started, 1),
        measures=rounded({name: figure.value for name, figure in found.measures.items()}),
        nulls=rounded(reference.nulls),
        tiles=tuple(tiles),
        known_answers=answers,
        null_ranks=ranks,
    )
    return cell, [as_image(image) for image in images]


def _row(shop: Workshop, unit: Unit) -> Row:
    row = shop.spec.row(unit.row)
    assert row
    return row


def trained(shop: Workshop, row: Row, individual: Individual) -> tuple[Adapter, Trained]:
    """The adapter of a row for an individual, from its file or trained now; and what is known of it."""
    key = adapter_digest(shop.spec, row.name, individual, shop.ground)
    path = shop.folder / "work" / "adapters" / f"{row.name}-{individual.seed}-{key}.safetensors"
    if not path.exists():
        _train(shop, row, individual, path)
    about, _ = read_adapter_file(path)
    adapter = load_adapter(path, shop.base)
    return adapter, Trained(
        method=row.method.name,
        paper=row.method.paper,
        settings=asdict(adapter.method) | asdict(row.training),
        num_parameters=adapter.num_parameters,
        file_bytes=path.stat().st_size,
        train_seconds=about["training"]["seconds"],
    )


def _drawn_dir(shop: Workshop, row: Row, individual: Individual) -> Path:
    """Where the images of an adapter are kept: they depend on it, on the prompts, and on how it is drawn."""
    plan = shop.spec.plan
    facts = {
        "adapter": adapter_digest(shop.spec, row.name, individual, shop.ground),
        "prompts": [prompt.text for prompt in plan.prompts],
        "drawing": [getattr(plan.drawing, name) for name in _OF_DRAWING],
    }
    return shop.folder / "work" / "drawn" / f"{row.name}-{individual.seed}-{digest_of(facts)}"


def _train(shop: Workshop, row: Row, individual: Individual, path: Path) -> None:
    method, concept = row.method_for(individual), concept_of(individual)
    adapter = method.adapter(shop.base, concept)
    prior = None
    if method.prior_preservation_weight:
        prior = shop.reference(individual.class_noun).prior_latents(method.num_class_images)
    started = time.process_time()
    for _ in train(shop.base, adapter, concept, row.training, class_latents=prior):
        pass
    save_adapter(adapter, path, shop.base, {"seconds": round(time.process_time() - started, 1)})


def _pair(shop: Workshop, unit: Unit, key: str, common: str) -> tuple[Pair, list[Image.Image]]:
    """Two concepts in one prompt: whether both are there, and how much of each is in the other's place."""
    row, plan, nouns = _row(shop, unit), shop.spec.plan, [one.class_noun for one in unit.individuals]
    adapters = [trained(shop, row, one)[0] for one in unit.individuals]
    names = [f"<{adapter.concept_name}>" for adapter in adapters]
    texts = [text.format(*names) for text in shop.spec.pair_prompts]
    images = decoded(shop.base, draw(shop.base, plan, texts, range(plan.drawing.num_seeds), adapters))
    real = [real_images(one, plan) for one in unit.individuals]
    pair = Pair(
        path=shop.folder / unit.path,
        digest=key,
        benchmark=common,
        row=unit.row,
        individuals=tuple(one.seed for one in unit.individuals),
        class_nouns=tuple(nouns),
        num_images=len(images),
        measures=rounded(measure_pair(shop.evaluators, images, real, (nouns[0], nouns[1]))),
    )
    return pair, [as_image(image) for image in images[:6]]


def _tiles(plan: Plan, found: Evaluation) -> tuple[list[Tile], list[Tensor]]:
    """Images to look at: the first seed of the first six prompts, the two best and the two worst of all."""
    num_seeds, order = plan.drawing.num_seeds, found.score.nan_to_num(0).argsort().tolist()
    kinds = [("grid", n * num_seeds) for n in range(min(6, len(plan.prompts)))]
    kinds += [("best", n) for n in order[::-1][:2]] + [("worst", n) for n in order[:2]]
    tiles = [
        Tile(kind, plan.prompts[n // num_seeds].text.format("<c>"), n % num_seeds, round(found.score[n].item(), 3))
        for kind, n in kinds
    ]
    return tiles, [found.drawn.images[n] for _, n in kinds]
