"""Images that are training images over again are told from images of the same thing."""

import torch

from infusion.metrics.memorisation import recalled


def noisy(images, scale, seed=0):
    return images + scale * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def test_a_picture_with_a_little_noise_is_a_copy_and_another_is_none():
    references = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images = torch.cat([noisy(references[[2, 0]], 0.05), torch.rand(1, 3, 16, 16)])
    found = recalled(images, references)
    assert found.is_copy.tolist() == [True, True, False] and found.reference.tolist()[:2] == [2, 0]
    torch.testing.assert_close(found.distance[:2], torch.tensor([0.05, 0.05]), rtol=0.1, atol=0)


def test_the_bar_is_half_of_what_training_pictures_differ_by():
    references = torch.stack([torch.full((3, 4, 4), level) for level in (0.0, 0.2, 0.4)])
    assert recalled(references, references).bar == torch.tensor([0.2, 0.2, 0.4]).median().item() / 2
    levels = torch.tensor([0.29, 0.31, 0.51])[:, None, None, None].expand(3, 3, 4, 4)
    assert recalled(levels, references).is_copy.tolist() == [True, True, False]
