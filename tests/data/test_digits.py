"""The data set that needs no file."""

from __future__ import annotations

import hashlib

import torch

from edgeprune import data


def test_split_is_stratified_and_the_same_everywhere(alone):
    loaded = data.load("digits")
    assert loaded.train.x.shape == (1437, 1, 8, 8) and loaded.test.x.shape == (360, 1, 8, 8)
    train, test = loaded.train.y.bincount(), loaded.test.y.bincount()
    # Each class's exact share of 360, rounded down or up.
    assert float((test - (train + test) * 360 / 1797).abs().max()) < 1
    digest = hashlib.sha256(loaded.test.x.numpy().tobytes() + loaded.test.y.numpy().tobytes()).hexdigest()
    assert digest == "68780132faf1ab8eda675b235eafc4a5b8aa07f7bb9047f01d3861532936c129"


def test_no_image_is_in_both_parts():
    loaded = data.load("digits")
    rows = {bytes(row) for row in loaded.train.x.flatten(1).numpy()}
    assert not any(bytes(row) in rows for row in loaded.test.x.flatten(1).numpy())


def test_normalised_training_pixels_have_mean_0_and_deviation_1():
    loaded = data.load("digits")
    x = loaded.normalise(loaded.train.x).double()
    assert x.shape == loaded.train.x.shape and loaded.train.x.dtype == torch.uint8
    assert abs(float(x.mean())) < 1e-6 and abs(float(x.std(correction=0)) - 1) < 1e-6
