"""A task of your own: any model, any data in memory. Copy this file and change what is between the rules.

    cd examples
    edgeprune run --set task.name=user_task:cell_nuclei --set run.rounds=20

What matters: samples as uint8 or float32 (normalised batch by batch, so that they stay small in memory), labels as
int64, a model that torch.export can trace, and a batch-norm after each layer whose channels AdaptCL should rank.
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from edgeprune.data import DataSet, Split
from edgeprune.data.normalise import Standardise
from edgeprune.tasks import Task


# --- data: 569 cell nuclei described by 30 numbers, benign or malignant --------------------------------------------
def nuclei() -> DataSet:
    bunch = load_breast_cancer()
    x = torch.from_numpy(bunch.data).float()
    y = torch.from_numpy(bunch.target).long()
    test = torch.arange(len(y)) % 5 == 0
    train = Split(x[~test], y[~test])
    normalise = Standardise.of(train.x, unit=1.0)  # mean and deviation of the training part only
    return DataSet("nuclei", train, Split(x[test], y[test]), ("malignant", "benign"), normalise)


# --- model: fresh weights at every call ----------------------------------------------------------------------------
def make_model() -> nn.Module:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]

    return nn.Sequential(*layer(30, 256), *layer(256, 256), nn.Linear(256, 2))


# --- task: the function that task.name points to -------------------------------------------------------------------
def cell_nuclei() -> Task:
    return Task("cell-nuclei", nuclei, make_model, lambda: (torch.zeros(2, 30),), batch_size=16, lr=0.02)
