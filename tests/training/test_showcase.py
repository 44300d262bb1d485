import pytest
import torch

from infusion.concepts.masks import subject_masks
from infusion.pages.training_page import render_page
from infusion.training.showcase import UNTOUCHED, TrainingRecord, compare, training_page


def test_what_does_not_name_the_concept_is_untouched_beside_what_does(base, adapter):
    comparisons, untouched = compare(base, adapter, ["a {}"], range(2), num_inference_steps=2)
    assert [row.largest_difference for row in untouched] == [0.0] * len(UNTOUCHED)
    assert comparisons[0].prompt == "a <my-cat>"
    for before, after in zip(comparisons[0].base_images, comparisons[0].customized_images, strict=True):
        assert before.tobytes() != after.tobytes()


def test_a_difference_is_told_as_it_is(base, concept, adapter, monkeypatch):
    def sampled(base, prompts, adapters, seeds, **settings):
        yield torch.full((len(prompts) * len(seeds), 4, 8, 8), 0.25 if adapters else 0.0)

    monkeypatch.setattr("infusion.training.showcase.sample_prompts", sampled)
    _, untouched = compare(base, adapter, ["a {}"], range(1))
    assert [row.largest_difference for row in untouched] == [0.25] * len(UNTOUCHED)


@pytest.mark.slow
def test_what_is_learnt_whole_is_shown_whole(base, concept, adapter, monkeypatch):
    monkeypatch.setattr("infusion.training.showcase.COMPARED", ("a {}",))
    page = training_page(base, adapter, concept, None, TrainingRecord(kept_step=75), {})
    assert [(shown.mask, shown.coverage) for shown in page.training_images] == [(None, 1.0)] * 3
    assert "no mask: all of it is learnt" in render_page(page) and "in 75 training steps" in page.statement


@pytest.mark.slow
def test_the_page_tells_what_was_measured(base, concept, adapter, monkeypatch):
    monkeypatch.setattr("infusion.training.showcase.COMPARED", ("a {} on the beach",))
    record = TrainingRecord(losses=[(1, 0.5), (2, 0.4)], seconds=3.0, images_per_second=2.0, file_bytes=1234)
    page = training_page(base, adapter, concept, subject_masks(base, concept), record, {"seed": 7})
    html = render_page(page)
    assert page.settings["seed"] == "7" and page.facts["file size"] == "1,234 bytes"
    assert "bit for bit" in page.statement
    assert html.count("data:image/") >= 2 * len(concept.images) + 2 * 4 + 2 * len(UNTOUCHED)
