"""A specification -> results on disk: methods x individuals x prompts x seeds, each cell measured once.

A benchmark lives in a folder: `cells/ROW/INDIVIDUAL.json` is what one method made of one individual, with a strip of
its pictures beside it. Every result carries a digest of all that it depends on, is written whole, and is computed again
only when that changes: a run that was killed goes on where it was.
"""

import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infusion.base import Base, load_base
from infusion.benchmark.images import concept_of, real_pictures
from infusion.benchmark.specification import Individual, Row, Specification, load_specification
from infusion.benchmark.units import SCHEMA, Ground, Unit, adapter_digest, digest, facts_digest, is_done, units
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


# ------------------------------------------------------------------------------------------------ the specification


# ---------------------------------------------------------------------------------------------------- units of work


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
    ground = Ground.of(spec, load_base(spec.base))
    everything = units(spec)
    missing = [unit for unit in everything if not is_done(folder, unit, digest(spec, unit, ground))]
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "benchmark.toml") as temporary:
        temporary.write_bytes(Path(spec_path).read_bytes())
    started = time.monotonic()
    for done, (unit, failed) in enumerate(_made(spec_path, folder, missing, num_processes), start=1):
        left = (time.monotonic() - started) / done * (len(missing) - done)
        yield Done(unit, len(everything) - len(missing) + done, len(everything), left, failed)


def _made(
    spec_path: str | Path, folder: Path, missing: Sequence[Unit], num_processes: int
) -> Iterator[tuple[Unit, str | None]]:
    if num_processes == 1:
        for unit in missing:
            yield unit, make(str(spec_path), str(folder), unit)
        return
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(num_processes, context, initializer=_alone, initargs=(os.getpid(),)) as pool:
        waiting = {pool.submit(make, str(spec_path), str(folder), unit): unit for unit in missing}
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


# ------------------------------------------------------------------------------------------------- making a result


@dataclass
class Workshop:
    """What a process keeps between results: the base, the evaluators, what the base draws of each class."""

    spec: Specification
    folder: Path
    base: Base
    evaluators: Evaluators
    ground: Ground
    references: dict[str, Reference] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Specification, folder: Path) -> "Workshop":
        base = load_base(spec.base)
        base.freeze()
        return cls(spec, folder, base, evaluators_of(spec.judges), Ground.of(spec, base))

    def reference(self, class_noun: str) -> Reference:
        if class_noun not in self.references:
            plan = self.spec.plan_for(class_noun)
            facts = {"base": self.ground.base, "class_noun": class_noun, "plan": asdict(plan)}
            folder = self.folder / "work" / f"{class_noun.replace(' ', '-')}-{facts_digest(facts)}"
            self.references[class_noun] = Reference(
                self.base, class_noun, plan, self.evaluators, folder=folder, shared_noise=True
            )
        return self.references[class_noun]


def evaluators_of(judges: str) -> Evaluators:
    """One of the toybox's sets of judges, all of it."""
    name = f"toybox-{judges}"
    return Evaluators(load_clip(name), load_image_encoder(name), load_judges(judges))


@cache
def _workshop(spec_path: str, folder: str) -> Workshop:
    return Workshop.of(load_specification(spec_path), Path(folder))


def make(spec_path: str, folder: str, unit: Unit) -> str | None:
    """Make one result and write it; returns why there are no measures, where a training diverged."""
    shop = _workshop(spec_path, folder)
    key = digest(shop.spec, unit, shop.ground)
    common = facts_digest({"schema": SCHEMA, "ground": asdict(shop.ground), "plan": asdict(shop.spec.plan)})
    try:
        told, tiles = (_cell if len(unit.individuals) == 1 else _pair)(shop, unit)
        failed = None
    except Diverged as error:
        told, tiles, failed = {"measures": {}, "failed": str(error)}, [], str(error)
    path = shop.folder / unit.path
    if tiles:
        strip = Image.new("RGB", (_TILE_PX * len(tiles), _TILE_PX))
        for n, tile in enumerate(tiles):
            strip.paste(tile.resize((_TILE_PX, _TILE_PX)), (n * _TILE_PX, 0))
        with whole_file(path.with_suffix(".webp")) as temporary:
            strip.save(temporary, "WEBP", quality=90)
    with whole_file(path) as temporary:
        temporary.write_text(
            json.dumps({"digest": key, "benchmark": common, "row": unit.row, **told}, indent=1, sort_keys=True) + "\n"
        )
    return failed


def _cell(shop: Workshop, unit: Unit) -> tuple[dict[str, Any], list[Image.Image]]:
    individual = unit.individuals[0]
    reference = shop.reference(individual.class_noun)
    real = real_pictures(individual, reference.plan)
    told: dict[str, Any] = {"individual": individual.seed, "class_noun": individual.class_noun}
    started = time.process_time()
    if unit.row == BASE:
        found = evaluate(reference, None, real)
        told["known_answers"] = _rounded(collapse_where_known(reference, real))
    elif unit.row == NULL:
        found = evaluate(reference, None, real, Drawn(reference.null_images, reference.class_images))
        told["null_ranks"] = _rounded(null_ranks(reference))
    else:
        row = shop.spec.row(unit.row)
        assert row
        adapter, about = trained(shop, row, individual)
        told |= about
        started = time.process_time()
        drawn = drawn_with(reference, adapter, _drawn_dir(shop, row, individual))
        found = evaluate(reference, adapter, real, drawn)
    told |= {
        "num_images": len(found.drawn.images),
        "seconds_per_image": found.drawn.seconds_per_image and round(found.drawn.seconds_per_image, 3),
        "evaluation_seconds": round(time.process_time() - started, 1),
        "measures": _rounded({name: figure.value for name, figure in found.measures.items()}),
        "nulls": _rounded(reference.nulls),
    }
    chosen = _tiles(shop.spec.plan, found)
    if unit.row == BASE:
        chosen += [({"kind": "training"}, picture) for picture in real.training]
    told["tiles"] = [tile for tile, _ in chosen]
    return told, [as_image(picture) for _, picture in chosen]


def trained(shop: Workshop, row: Row, individual: Individual) -> tuple[Adapter, dict[str, Any]]:
    """The adapter of a row for an individual, from its file or trained now; and what there is to tell of it."""
    key = adapter_digest(shop.spec, row.name, individual, shop.ground)
    path = shop.folder / "work" / "adapters" / f"{row.name}-{individual.seed}-{key}.safetensors"
    if not path.exists():
        _train(shop, row, individual, path)
    about, _ = read_adapter_file(path)
    adapter = load_adapter(path, shop.base)
    return adapter, {
        "method": row.method.name,
        "paper": row.method.paper,
        "settings": asdict(adapter.method) | asdict(row.training),
        "num_parameters": adapter.num_parameters,
        "file_bytes": path.stat().st_size,
        "train_seconds": about["training"]["seconds"],
    }


def _drawn_dir(shop: Workshop, row: Row, individual: Individual) -> Path:
    """Where the pictures of an adapter are kept: they depend on it, on the prompts, and on how it is drawn."""
    plan = shop.spec.plan
    facts = {
        "adapter": adapter_digest(shop.spec, row.name, individual, shop.ground),
        "prompts": [prompt.text for prompt in plan.prompts],
        "drawing": [getattr(plan.drawing, name) for name in _OF_DRAWING],
    }
    return shop.folder / "work" / "drawn" / f"{row.name}-{individual.seed}-{facts_digest(facts)}"


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


def _pair(shop: Workshop, unit: Unit) -> tuple[dict[str, Any], list[Image.Image]]:
    """Two concepts in one prompt: whether both are there, and how much of each is in the other's place."""
    first, second = unit.individuals
    row = shop.spec.row(unit.row)
    assert row
    adapters = [trained(shop, row, one)[0] for one in (first, second)]
    names = [f"<{adapter.concept_name}>" for adapter in adapters]
    texts = [text.format(*names) for text in shop.spec.pair_prompts]
    images = decoded(
        shop.base, draw(shop.base, shop.spec.plan, texts, range(shop.spec.plan.drawing.num_seeds), adapters)
    )
    measures = measure_pair(
        shop.evaluators,
        images,
        [real_pictures(one, shop.spec.plan) for one in (first, second)],
        (first.class_noun, second.class_noun),
    )
    told = {
        "individuals": [first.seed, second.seed],
        "class_nouns": [first.class_noun, second.class_noun],
        "same_class": first.class_noun == second.class_noun,
        "num_images": len(images),
        "measures": _rounded(measures),
    }
    return told, [as_image(image) for image in images[:6]]


def _tiles(plan: Plan, found: Evaluation) -> list[tuple[dict[str, Any], Tensor]]:
    """Pictures to look at: the first seed of the first six prompts, the two best and the two worst of all."""
    order = found.score.nan_to_num(0).argsort().tolist()
    kinds = [("grid", n * plan.drawing.num_seeds) for n in range(min(6, len(plan.prompts)))]
    kinds += [("best", n) for n in order[::-1][:2]] + [("worst", n) for n in order[:2]]
    return [
        (
            {
                "kind": kind,
                "prompt": plan.prompts[n // plan.drawing.num_seeds].text.format("<c>"),
                "seed": n % plan.drawing.num_seeds,
                "score": round(found.score[n].item(), 3),
            },
            found.drawn.images[n],
        )
        for kind, n in kinds
    ]


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    """To six digits; what could not be measured as None, because JSON has no NaN."""
    return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}
