"""The tasks that come with the package."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.nn import at_every_exit
from edgeprune.tasks import gated, models, transformers
from edgeprune.tasks.task import Task


def _images(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.zeros(2, *shape),)


def digits() -> Task:
    """1,797 real 8x8 digits that come with scikit-learn."""
    return Task("digits", "digits", models.digits_cnn, _images(1, 8, 8), batch_size=32, lr=0.05)


def fashion_cnn() -> Task:
    """Fashion-MNIST, 28x28 grey images of clothes."""
    return Task("fashion-cnn", "fashion-mnist", models.fashion_cnn, _images(1, 28, 28), batch_size=64, lr=0.02)


def cifar10_vgg() -> Task:
    """CIFAR-10 with a small VGG-like network."""
    return Task("cifar10-vgg", "cifar-10", models.vgg_like, _images(3, 32, 32), batch_size=64, lr=0.02)


def cifar10_resnet() -> Task:
    """CIFAR-10 with a narrow ResNet-18."""
    return Task("cifar10-resnet", "cifar-10", models.resnet_like, _images(3, 32, 32), batch_size=64, lr=0.02)


def cifar10_feddst() -> Task:
    """CIFAR-10 with the network and recipe of FedDST (arXiv 2112.09824): no batch-norm, no augmentation."""
    return Task(
        "cifar10-feddst", "cifar-10", models.feddst_cifar, _images(3, 32, 32), batch_size=32, lr=0.01, weight_decay=1e-3
    )


def fashion_feddst() -> Task:
    """Fashion-MNIST with FedDST's network and recipe, its first linear layer narrower for 28x28 pixels."""
    return _feddst_of_one_channel("fashion-feddst", "fashion-mnist")


def mnist_feddst() -> Task:
    """MNIST in the same way."""
    return _feddst_of_one_channel("mnist-feddst", "mnist")


def _feddst_of_one_channel(name: str, data: str) -> Task:
    return Task(
        name,
        data,
        lambda: models.feddst_cifar(channels=1, pixels=28),
        _images(1, 28, 28),
        batch_size=32,
        lr=0.01,
        weight_decay=1e-3,
    )


def cifar10_adp() -> Task:
    """CIFAR-10 with the network of cifar10-vgg, every convolution gated."""
    return Task("cifar10-adp", "cifar-10", gated.gated_vgg, _images(3, 32, 32), batch_size=64, lr=0.02)


def cifar10_vit() -> Task:
    """CIFAR-10 with a small ViT of twelve blocks, an exit behind each quarter of them."""
    return Task(
        "cifar10-vit",
        "cifar-10",
        transformers.vit,
        _images(3, 32, 32),
        batch_size=32,
        lr=0.02,
        loss=at_every_exit(functional.cross_entropy),
    )


def shakespeare() -> Task:
    """The next character of Shakespeare's plays: a small transformer of eight blocks, an exit behind each second."""
    return Task(
        "shakespeare",
        "tinyshakespeare",
        transformers.char_transformer,
        lambda: (torch.zeros(2, 80, dtype=torch.int64),),
        batch_size=16,
        lr=0.1,
        loss=at_every_exit(characters_loss),
        correct=characters_correct,
    )


def uci_har() -> Task:
    """What a person does, from 2.56 s of a phone's accelerometer and gyroscope; 30 people."""
    return Task(
        "uci-har",
        "uci-har",
        models.har_net,
        _images(9, 128),
        batch_size=32,
        lr=0.02,
        loss=at_every_exit(functional.cross_entropy),
    )


def characters_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits [N, T, characters] over all positions."""
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def characters_correct(output: Tensor, target: Tensor) -> int:
    """Right characters among N * T."""
    return int((output.argmax(dim=-1) == target).sum())


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "fashion-cnn": fashion_cnn,
    "cifar10-vgg": cifar10_vgg,
    "cifar10-resnet": cifar10_resnet,
    "cifar10-feddst": cifar10_feddst,
    "fashion-feddst": fashion_feddst,
    "mnist-feddst": mnist_feddst,
    "cifar10-adp": cifar10_adp,
    "cifar10-vit": cifar10_vit,
    "shakespeare": shakespeare,
    "uci-har": uci_har,
}
