"""The embedded world: toys with ground truth, their captions, and a small foundation model trained on them."""
