"""The folder is the registry: a metric is one file, which is found, tabulated, explained and measured."""

from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

import infusion.metrics as folder
from infusion.intervals import Figure
from infusion.metrics.catalogue import AUDIT_MEASURES, BY_NAME, MEASURES, METRICS, tabulated
from infusion.metrics.metric import GROUPS, Evidence, Images, Measure, Metric, Need, find_metrics, measure

SUPPORT = {"catalogue", "distances", "encoders", "metric", "prompts", "two_samples"}
STUB = """
from infusion.intervals import Figure
from infusion.metrics.metric import FIDELITY, Measure, Metric

def _compute(evidence):
    warmth = evidence.images.tensor[:, 0].mean().item()
    return {"warmth": Figure(warmth, warmth, warmth, len(evidence.images.tensor))}

METRIC = Metric((Measure("warmth", "warmth", "How red.", None, FIDELITY, place=15),), frozenset(), _compute)
"""


class Averages:
    """An encoder whose features are the mean colours."""

    def __init__(self):
        self.calls = 0

    def encode_images(self, images):
        self.calls += 1
        return images.mean(dim=(2, 3))


@pytest.fixture
def evidence():
    images = Images(torch.full((4, 3, 2, 2), 0.5))
    clip: Any = Averages()
    encoder: Any = Averages()
    return Evidence(images, images, np.arange(4) // 2, ["a cat"] * 4, clip, encoder)


def test_every_file_is_a_metric_or_known_as_support():
    files = {path.stem for path in Path(folder.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == METRICS.keys() | SUPPORT and not METRICS.keys() & SUPPORT


def test_a_metric_is_one_file(tmp_path, monkeypatch, evidence):
    (tmp_path / "warmth.py").write_text(dedent(STUB))
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    metrics = find_metrics()
    assert metrics.keys() == METRICS.keys() | {"warmth"}
    names = [one.name for one in tabulated(metrics)]
    assert names[:3] == ["identity", "warmth", "text_alignment"]
    assert measure(evidence, {"warmth": metrics["warmth"]})["warmth"].value == 0.5


def test_every_measure_belongs_to_one_metric():
    names = [one.name for metric in METRICS.values() for one in metric.measures]
    assert len(names) == len(set(names)) and set(names) == BY_NAME.keys()
    assert {one.name for one in AUDIT_MEASURES} == {"recalled"} and set(MEASURES) | set(AUDIT_MEASURES) == set(
        BY_NAME.values()
    )
    assert list(dict.fromkeys(one.group for one in MEASURES)) == list(GROUPS)


def test_what_lacks_its_needs_is_left_out(evidence):
    asked = []

    def of(need):
        def compute(_):
            asked.append(need)
            return {need.name: Figure(0, 0, 0, 1)}

        return Metric((Measure(need.name, need.name, ".", None, "own"),), frozenset({need}), compute)

    metrics = {need.name: of(need) for need in Need}
    assert measure(evidence, metrics) == {} and asked == []
    training = replace(evidence, training=evidence.images)
    assert list(measure(training, metrics)) == ["TRAINING_IMAGES"]
    masks = Images(evidence.images.tensor, lambda some: some[:, 0], lambda some: some[:, 0])
    everything = replace(
        training,
        images=masks,
        base_images=masks,
        elsewhere=masks,
        class_images=masks,
        base_class_images=masks,
        unguided=masks,
        judges=object(),
        predict=dict,
    )
    assert everything.met == set(Need)


def test_images_are_encoded_once_by_each_encoder(evidence):
    for _ in range(3):
        evidence.images.features(evidence.clip)
    evidence.images.features(evidence.encoder)
    assert evidence.clip.calls == evidence.encoder.calls == 1


def test_what_is_made_of_evidence_is_made_once(evidence):
    made = []

    def make(some):
        made.append(some)
        return len(made)

    assert evidence.once(make) == evidence.once(make) == 1 and made == [evidence]
    assert replace(evidence).once(make) == 2, "other evidence"
