"""A specification -> results on disk: methods x individuals x prompts x seeds, each cell measured once.

A benchmark lives in a folder: `cells/ROW/INDIVIDUAL.json` is what one method made of one individual, with a strip of
its pictures beside it. Every result carries a digest of all that it depends on, is written whole, and is computed again
only when that changes: a run that was killed goes on where it was.
"""

import hashlib
import json
import math
import multiprocessing
import os
import re
import threading
import time
import tomllib
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infusion.base import Base, load_base
from infusion.concepts.concept import Concept
from infusion.errors import UserError, all_at_once, nearest, noting
from infusion.evaluation.drawing import as_image, decoded, draw, to_tensor
from infusion.evaluation.evaluate import ConceptImages, Drawn, Evaluation, drawn_with, evaluate
from infusion.evaluation.evaluators import Evaluators
from infusion.evaluation.pairs import measure_pair
from infusion.evaluation.plans import Drawing, Plan, Wanted
from infusion.evaluation.reference import Reference
from infusion.evaluation.validity import collapse_where_known, null_ranks
from infusion.files import whole_file
from infusion.methods import METHODS
from infusion.methods.adapter import Adapter
from infusion.methods.adapter_file import load_adapter, read_adapter_file, save_adapter
from infusion.methods.method import Method
from infusion.metrics import check_wanted
from infusion.metrics.catalogue import BASE, NULL
from infusion.metrics.encoders import load_clip, load_image_encoder
from infusion.settings import from_mapping, parse
from infusion.toybox.concepts import concept_pictures
from infusion.toybox.judges import judges_dir, load_judges
from infusion.toybox.render import render
from infusion.toybox.scene import (
    BACKGROUNDS,
    CLASSES,
    FIRST_RESERVED_CONCEPT,
    STYLES,
    TIMES,
    concept_scene,
)
from infusion.toybox.scene import individual as one_individual
from infusion.training.loop import Diverged, train
from infusion.training.settings import TrainingSettings

RARE_TOKENS = ("sks", "zwx", "ohwx", "qjb")
_SCHEMA = 2  # to be raised when what is measured changes
_NUM_TRAINING, _NUM_ELSEWHERE, _NUM_SAME_PLACE = 5, 2, 20  # pictures; elsewhere: for each prompt
_FIRST_ELSEWHERE, _FIRST_SAME_PLACE = 100, 500
_SCENE_FACTS = (("background", BACKGROUNDS[0]), ("style", STYLES[0]), ("time", TIMES[0]))
_OF_DRAWING = ("num_seeds", "num_class_pictures", "num_inference_steps", "guidance_scale")
_TILE_PX = 64


@dataclass(frozen=True)
class Individual:
    """One concept of the toybox. rare_token: what stands for it in methods that put one before the class noun; two
    individuals of one class have two, so that they can stand in one prompt."""

    seed: int
    class_noun: str
    rare_token: str = RARE_TOKENS[0]


@dataclass(frozen=True)
class Row:
    """A method with its settings, under the name that tables call it by."""

    name: str
    method: Method
    training: TrainingSettings

    def method_for(self, individual: Individual) -> Method:
        """The method, with the individual's own rare token where it uses one."""
        if not hasattr(self.method, "rare_token"):
            return self.method
        return replace(self.method, rare_token=individual.rare_token)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Specification:
    """What a TOML file says of a benchmark. siblings: for each class noun, other nouns that S2 asks about."""

    title: str
    base: str
    judges: str
    individuals: tuple[Individual, ...]
    pairs: tuple[tuple[Individual, Individual], ...]
    pair_prompts: tuple[str, ...]
    rows: tuple[Row, ...]
    plan: Plan
    siblings: Mapping[str, tuple[str, ...]]

    def row(self, name: str) -> Row | None:
        """The row called so; None for the base's rows."""
        return next((row for row in self.rows if row.name == name), None)

    def others(self, first_seed: int, num: int) -> list[Individual]:
        """Individuals beside those of the benchmark, of its classes in turn."""
        classes = list(dict.fromkeys(one.class_noun for one in self.individuals))
        return [Individual(first_seed + n, classes[n % len(classes)]) for n in range(num)]

    def plan_for(self, class_noun: str) -> Plan:
        """The plan, with the prompts about other classes than this one."""
        unrelated = tuple(text for text in self.plan.unrelated if not re.search(rf"\b{class_noun}\b", text))
        siblings = tuple(text.format(noun) for noun in self.siblings[class_noun] for text in self.plan.siblings)
        return replace(self.plan, unrelated=unrelated, siblings=siblings)


# ------------------------------------------------------------------------------------------------ the specification


def load_specification(path: str | Path) -> Specification:
    """Read a benchmark's TOML file.

    Raises:
        UserError: it cannot be read; keys, classes, methods or settings in it are unknown; all mistakes at once.
    """
    try:
        told = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the benchmark {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a TOML file: {error}.") from error
    mistakes = _mistakes_of_form(told)
    if mistakes:
        raise all_at_once(mistakes, str(path))
    rows, prompts, drawing = [], [], Drawing()
    for name, settings in told["rows"].items():
        with noting(mistakes, f"rows.{name}: "):
            rows.append(_row(name, settings))
    classes, probes = told["individuals"]["classes"], told["probes"]
    for noun in classes:
        if noun not in CLASSES:
            mistakes.append(f'The toybox has no class "{noun}".{nearest(noun, CLASSES)}')
    for one in told["prompts"]:
        with noting(mistakes, "prompts: "):
            prompts.append(_wanted(one, classes))
    with noting(mistakes, "drawing: "):
        drawing = from_mapping(Drawing, told["drawing"])
    if len(classes) <= probes["num_siblings"]:
        mistakes.append(
            "individuals.classes needs more classes than probes.num_siblings: siblings come from among them."
        )
    if len(prompts) < 2:
        mistakes.append("prompts: intervals are over prompts; give two or more.")
    if mistakes:
        raise all_at_once(mistakes, str(path))
    individuals = _individuals(**told["individuals"])
    pairs = told.get("pairs", {"num": 0, "prompts": []})
    return Specification(
        title=told["title"],
        base=told["base"],
        judges=told["judges"],
        individuals=individuals,
        pairs=_pairs(individuals, pairs["num"]),
        pair_prompts=tuple(pairs["prompts"]),
        rows=tuple(rows),
        plan=Plan(tuple(prompts), tuple(probes["unrelated"]), tuple(probes["siblings"]), drawing),
        siblings=_siblings(classes, probes["num_siblings"]),
    )


_FORM: dict[str, Any] = {
    "title": str,
    "base": str,
    "judges": str,
    "individuals": {"classes": list, "each": int, "first_seed": int},
    "prompts": list,
    "drawing": dict,
    "probes": {"unrelated": list, "siblings": list, "num_siblings": int},
    "pairs": {"num": int, "prompts": list},
    "rows": dict,
}
_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}


def _mistakes_of_form(told: Mapping[str, Any]) -> list[str]:
    """Keys that are unknown, missing, or hold another kind of thing; only `pairs` may be missing."""
    mistakes = []
    found = [("", told, _FORM)]
    found += [(f"{key}.", told[key], kind) for key, kind in _FORM.items() if isinstance(kind, dict) and key in told]
    for prefix, table, kinds in found:
        if not isinstance(table, dict):
            mistakes.append(f'"{prefix.rstrip(".")}" must be a table.')
            continue
        for key in table.keys() - kinds.keys():
            mistakes.append(f'Unknown key "{prefix}{key}".{nearest(key, kinds)} There are: {", ".join(kinds)}.')
        for key, kind in kinds.items():
            if key not in table and (prefix, key) != ("", "pairs"):
                mistakes.append(f'"{prefix}{key}" is missing.')
            elif (
                key in table and not isinstance(kind, dict) and (not isinstance(table[key], kind) or table[key] is True)
            ):
                mistakes.append(f'"{prefix}{key}" must be {_NAMES[kind]}.')
    return mistakes


def _wanted(one: Any, classes: Sequence[str]) -> Wanted:
    if not isinstance(one, dict) or "{}" not in str(one.get("text")):
        raise UserError(
            f'{one} is not a table with a text in which {{}} stands for the concept, such as "a {{}} on the beach".'
        )
    facts = {key: value for key, value in one.items() if key != "text"}
    for noun in classes:
        check_wanted({"class": noun, **facts})
    return Wanted(one["text"], facts)


def _row(name: str, settings: Mapping[str, Any]) -> Row:
    if name in (BASE, NULL):
        raise UserError(f'"{name}" is a row that every benchmark has; choose another name.')
    given = dict(settings)
    called = given.pop("method", None)
    if called not in METHODS:
        raise UserError(f'method = "{called}" is none of: {", ".join(METHODS)}.{nearest(str(called), METHODS)}')
    method, training = parse(given, METHODS[called], TrainingSettings)
    return Row(name, method, training)


def _individuals(classes: Sequence[str], each: int, first_seed: int) -> tuple[Individual, ...]:
    """`each` individuals of every class, the first of all classes before the second: a part of them is a fair part."""
    last = first_seed + each * len(classes)
    if last > FIRST_RESERVED_CONCEPT:
        raise UserError(
            f"Concept seeds from {FIRST_RESERVED_CONCEPT:,} on are kept for others; this would use {last:,}."
        )
    return tuple(
        Individual(first_seed + turn * len(classes) + n, noun, RARE_TOKENS[turn % len(RARE_TOKENS)])
        for turn in range(each)
        for n, noun in enumerate(classes)
    )


def _siblings(classes: Sequence[str], num: int) -> dict[str, tuple[str, ...]]:
    """For each class the next ones of the benchmark's own list, round and round: neighbours should be alike."""
    return {
        noun: tuple(classes[(at + step) % len(classes)] for step in range(1, num + 1))
        for at, noun in enumerate(classes)
    }


def _pairs(individuals: Sequence[Individual], num: int) -> tuple[tuple[Individual, Individual], ...]:
    """`num` pairs of one class and `num` of two."""
    pairs = list(combinations(individuals, 2))
    same = [pair for pair in pairs if pair[0].class_noun == pair[1].class_noun]
    other = [(individuals[n], individuals[(n + 1) % len(individuals)]) for n in range(min(num, len(individuals)))]
    return tuple(same[:num] + [pair for pair in other if pair[0].class_noun != pair[1].class_noun])


# ---------------------------------------------------------------------------------------------------- units of work


@dataclass(frozen=True)
class Unit:
    """One result to be made: a row's cell for an individual, or for two in one prompt."""

    row: str
    individuals: tuple[Individual, ...]

    @property
    def path(self) -> Path:
        folder = "cells" if len(self.individuals) == 1 else "pairs"
        return Path(folder) / self.row / ("-".join(str(one.seed) for one in self.individuals) + ".json")


def units(spec: Specification) -> list[Unit]:
    """All results of a benchmark, two individuals at a time, so that whatever is done is a comparison and two processes
    have two classes to draw."""
    names = [BASE, NULL, *(row.name for row in spec.rows)]
    two = [spec.individuals[at : at + 2] for at in range(0, len(spec.individuals), 2)]
    cells = [Unit(name, (one,)) for some in two for name in names for one in some]
    composing = [row.name for row in spec.rows if row.method.composes]
    return cells + [Unit(name, pair) for pair in spec.pairs for name in composing]


@dataclass(frozen=True)
class Ground:
    """What all results stand on: digests of the base model's and of the judges' weights."""

    base: str
    judges: str

    @classmethod
    def of(cls, spec: Specification, base: Base) -> "Ground":
        files = sorted(path for path in judges_dir(spec.judges).rglob("*") if path.is_file())
        contents = hashlib.sha256(b"".join(path.read_bytes() for path in files))
        return cls(base.digest(), contents.hexdigest()[:16])


def adapter_digest(spec: Specification, row_name: str, individual: Individual, ground: Ground) -> str:
    """What a trained adapter depends on; for the base's rows, what stands in for one."""
    row = spec.row(row_name)
    if row is None:
        return _digest({"base": ground.base, "row": row_name})
    drawing, method = spec.plan.drawing, row.method_for(individual)
    facts: dict[str, Any] = {
        "base": ground.base,
        "method": [method.name, asdict(method), asdict(row.training)],
        "pictures": _pictures_digest(individual),
        "class_noun": individual.class_noun,
    }
    if method.prior_preservation_weight:
        facts["class_pictures"] = [drawing.num_inference_steps, drawing.guidance_scale]
    return _digest(facts)


def digest(spec: Specification, unit: Unit, ground: Ground) -> str:
    """What a result depends on, as 16 hexadecimal digits."""
    facts = {
        "schema": _SCHEMA,
        "ground": asdict(ground),
        "adapters": [adapter_digest(spec, unit.row, one, ground) for one in unit.individuals],
        "individuals": [asdict(one) for one in unit.individuals],
        "plan": asdict(spec.plan_for(unit.individuals[0].class_noun)),
        "pair_prompts": spec.pair_prompts if len(unit.individuals) > 1 else None,
    }
    return _digest(facts)


@cache
def _pictures_digest(individual: Individual) -> str:
    concept = concept_of(individual)
    pictures = b"".join(picture.tobytes() for picture in (*concept.images, *concept.masks) if picture)
    return hashlib.sha256(pictures).hexdigest()[:16]


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def is_done(folder: Path, unit: Unit, key: str) -> bool:
    try:
        return bool(json.loads((folder / unit.path).read_text())["digest"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
            folder = self.folder / "work" / f"{class_noun.replace(' ', '-')}-{_digest(facts)}"
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
    common = _digest({"schema": _SCHEMA, "ground": asdict(shop.ground), "plan": asdict(shop.spec.plan)})
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


def real_pictures(individual: Individual, plan: Plan) -> ConceptImages:
    """Renders of an individual: its training pictures, and others that nothing is trained on.

    Those elsewhere are in the places, styles and hours that the plan's prompts ask for.
    """

    def rendered(num: int, first: int) -> Tensor:
        images, _ = concept_pictures(individual.seed, num, first=first, class_noun=individual.class_noun)
        return to_tensor(images)

    who = one_individual(individual.seed, individual.class_noun)
    scenes = []
    for number, facts in enumerate(prompt.facts for prompt in plan.prompts for _ in range(_NUM_ELSEWHERE)):
        place, style, hour = (str(facts.get(*kind)) for kind in _SCENE_FACTS)
        scenes.append(concept_scene(who, individual.seed * 1000 + _FIRST_ELSEWHERE + number, place, style, hour))
    elsewhere = (render(scenes).images * 255).round() / 255  # as a file would have them
    return ConceptImages(rendered(_NUM_TRAINING, 0), elsewhere, rendered(_NUM_SAME_PLACE, _FIRST_SAME_PLACE))


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


def concept_of(individual: Individual) -> Concept:
    """The individual's training pictures with their true masks, as a concept."""
    images, masks = concept_pictures(individual.seed, _NUM_TRAINING, class_noun=individual.class_noun)
    return Concept(
        name=f"toy-{individual.seed}",
        class_noun=individual.class_noun,
        images=tuple(images),
        masks=tuple(masks),
        captions=(None,) * len(images),
        sources=tuple(f"{n}.png" for n in range(len(images))),
        mask_sources=("given",) * len(images),
    )


def _drawn_dir(shop: Workshop, row: Row, individual: Individual) -> Path:
    """Where the pictures of an adapter are kept: they depend on it, on the prompts, and on how it is drawn."""
    plan = shop.spec.plan
    facts = {
        "adapter": adapter_digest(shop.spec, row.name, individual, shop.ground),
        "prompts": [prompt.text for prompt in plan.prompts],
        "drawing": [getattr(plan.drawing, name) for name in _OF_DRAWING],
    }
    return shop.folder / "work" / "drawn" / f"{row.name}-{individual.seed}-{_digest(facts)}"


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
