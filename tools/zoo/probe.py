"""What a linear map can read from an expert's features, cell by cell.

Alignment trains a small projector in front of a frozen language model, so a part of the zoo is
worth what is linearly there. The probe is a multinomial logistic regression on frozen features of
training pictures, scored on pictures of another split, per kind of thing in the cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyeyes.data.sources.starter.vocabulary import scene_words
from manyeyes.runtime.progress import Progress
from tools.zoo.fit import Schedule, fit
from tools.zoo.pictures import Pictures, class_weights, word_kinds


@torch.no_grad()
def features_of(encoder: nn.Module, pictures: Pictures, batch_size: int = 128) -> Tensor:
    """Return one feature vector per cell, (num_pictures * side * side, width)."""
    encoder.eval()
    starts = range(0, len(pictures), batch_size)
    chunks = [
        encoder(pictures.pixels_BCHW[start : start + batch_size]).permute(0, 2, 3, 1).flatten(0, 2)
        for start in starts
    ]
    return torch.cat(chunks)


def accuracy_by_kind(predicted: Tensor, classes: Tensor) -> dict[str, float]:
    """Return the share of right cells per kind, and of empty cells."""
    index = {word: number for number, word in enumerate(scene_words())}
    result = {}
    for kind, words in {**word_kinds(), "empty": scene_words()[:1]}.items():
        members = torch.tensor([index[word] for word in words])
        inside = torch.isin(classes, members)
        if bool(inside.any()):
            result[kind] = round(float((predicted == classes)[inside].float().mean()), 4)
    return result


def probe(
    encoder: nn.Module, train: Pictures, test: Pictures, *, seed: int, schedule: Schedule
) -> dict[str, float]:
    """Fit a linear probe on `train` and return its accuracy per kind on `test`."""
    features, classes = features_of(encoder, train), train.classes_BGG.flatten()
    mean, deviation = features.mean(0), features.std(0) + 1e-5
    features = (features - mean) / deviation
    torch.manual_seed(seed)
    linear = nn.Linear(features.shape[1], len(scene_words()))
    weights = class_weights(train.classes_BGG)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(features), (schedule.batch_size,), generator=generator)
        return functional.cross_entropy(linear(features[rows]), classes[rows], weight=weights)

    fit([linear], loss_of, schedule, seed=seed, progress=Progress(stage="zoo:probe"))
    with torch.no_grad():
        predicted = linear((features_of(encoder, test) - mean) / deviation).argmax(-1)
    return accuracy_by_kind(predicted, test.classes_BGG.flatten())
