"""Frozen encoders see a picture once: their features come from disk where that is faster.

Design decisions:

- What is kept must be what would be computed, bit for bit. A matrix product may sum in another
  order in a batch of another size, so before anything is kept the encoders are asked: random
  pictures alone and in batches must give the same bits. Where they do not, ``auto`` keeps nothing,
  and ``on`` computes picture by picture, so that a first and a later run agree.
- ``auto`` keeps features where it pays: computing and keeping and reading are measured, and set
  against how often the stage draws each picture and how many are there already. A picture that is
  drawn once is only ever written; a sweep over such stages says ``on``.
- A thread of its own writes, while the model goes on with what was computed.
- A batch whose pictures are all there is not even decoded (``manyeyes.data.loading.loader``).
- The choice never changes a result, so the recipe's word is no part of a state's identity.
- A fusion that lets one expert look into another's blocks (``mixture_of_resolution``) trains parts
  of what computes the features: nothing can be kept. So it is told by ``see`` not being the plain
  one. At zero 3 weights are shared out and every process must run every tower: nothing either.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

import numpy as np
import torch

from manyeyes.artifact.files import FEATURES_FILE
from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.config.recipe import DeepSpeed, SingleProcess
from manyeyes.data.loading.threads import take_one_core
from manyeyes.errors import UserError
from manyeyes.model.encoders.spec import spec_to_json
from manyeyes.model.fusion import is_trainable
from manyeyes.model.fusion.base import Fusion, look
from manyeyes.training.engine import precision
from manyeyes.training.feature_store import Shelf, features_folder, size_limit
from manyeyes.training.freeze import digest_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from manyeyes.config.recipe import TrainSection
    from manyeyes.data.loading.batches import Batch, Prepared
    from manyeyes.model.encoders import Encoder
    from manyeyes.model.vlm import VisionLanguageModel
    from manyeyes.runtime.progress import Progress

MARGIN = 0.05
"""Share of the encoders' time that must be saved for ``auto`` to keep features."""
_AHEAD = 64
"""Entries that may wait to be written."""
_ASKED = 64
"""Pictures that are looked up to estimate how many are there already."""


@dataclass(frozen=True)
class Draws:
    """How often a stage draws its pictures."""

    pictures: float
    """Draws in the whole stage."""
    distinct: int
    """Different pictures among them, at most."""
    some: tuple[str, ...]
    """sha256 of some of them."""

    @classmethod
    def of(cls, prepared: Prepared, section: TrainSection) -> Draws:
        """Estimate from the sources' weights; exact where every sample has equally many."""
        total = sum(section.sources.values())
        drawn = 0.0
        everything = []
        for task, weight in section.sources.items():
            places = prepared.samples.of_task(task)
            shown = prepared.encoded.num_images[places]
            samples = weight / total * section.num_steps * section.batch.size
            drawn += samples * int(shown.sum()) / len(shown)
            everything.append(prepared.samples.chosen(places).picture_places(shown))
        names = prepared.samples.source.pictures.distinct(np.concatenate(everything))
        some = tuple(names[:: max(1, len(names) // _ASKED)].to_pylist())
        return cls(drawn, min(len(names), int(drawn)), some)


@dataclass(frozen=True)
class Decision:
    """Whether features are kept, and what that was decided on; times in seconds per picture."""

    keep: bool
    why: str
    same_bits: bool = False
    compute: float = 0.0
    write: float = 0.0
    read: float = 0.0
    bytes_per_picture: int = 0
    draws: float = 0.0
    distinct: int = 0
    share_kept_before: float = 0.0


class Features:
    """The maps of a batch: from the shelves what is there, from the encoders what is not."""

    def __init__(
        self, experts: dict[str, Encoder], shelves: dict[str, Shelf], section: TrainSection
    ) -> None:
        self.experts = experts
        self.shelves = shelves
        self.section = section
        self.alone = False
        """Whether pictures are computed one by one."""
        self.channels_last: dict[tuple[str, bool], bool] = {}
        """How an expert's maps lie in memory, by (expert, whether it is one picture's): what sums
        over them must find them the same, and a convolution may lay out one picture otherwise."""
        self.num_read = 0
        """Pictures whose maps all came from disk, since ``take_read`` was called."""
        self._writer = ThreadPoolExecutor(1, "features", take_one_core)
        self._room = BoundedSemaphore(_AHEAD)
        self._waiting: dict[tuple[str, str], Tensor] = {}
        """Entries to be written, by expert and picture."""
        self._problem: Exception | None = None
        """What the thread met that is no full disk."""

    def has(self, sha256: str) -> bool:
        """Tell whether there is an entry for a picture on every shelf, whole or not."""
        return all(shelf.has(sha256) for shelf in self.shelves.values())

    def maps(
        self, batch: Batch, device: torch.device, decode: Callable[[], Tensor]
    ) -> list[Tensor]:
        """Return the experts' maps (I, C_i, H_i, H_i) of a batch; none for no pictures.

        Args:
            batch: its pictures may be left out where all of them were on the shelves.
            device: where the model computes.
            decode: makes those pictures after all, if one is no longer there or is damaged.
        """
        names = batch.pictures
        if not names:
            return []
        pixels = batch.pixels
        missing: set[int] = set()
        maps = []
        for name in self.shelves:
            found = [self._read(name, picture) for picture in names]
            places = [place for place, one in enumerate(found) if one is None]
            missing.update(places)
            if places:
                pixels = decode() if pixels is None else pixels
                computed = self.compute(self.experts[name], pixels[places].to(device))
                for place, one in zip(places, computed, strict=True):
                    found[place] = one
                    self._keep(name, names[place], one)
            whole = torch.stack([one.to(device) for one in found if one is not None])
            if self.channels_last.get((name, len(names) == 1)):
                whole = whole.contiguous(memory_format=torch.channels_last)
            maps.append(whole)
        self.num_read += len(names) - len(missing)
        return maps

    def close(self) -> None:
        """Wait until everything is written; what the thread could not do is raised here."""
        self._writer.shutdown()
        if self._problem is not None:
            raise self._problem

    def compute(self, expert: Encoder, pixels: Tensor) -> Tensor:
        """Return the map of canvases (I, 3, S, S) as the engine's forward would have it."""
        with self._precision(pixels.device), torch.no_grad():
            if not self.alone:
                return look(expert, pixels)
            return torch.cat([look(expert, one) for one in torch.split(pixels, 1)])

    def take_read(self) -> int:
        """Return and forget the count of pictures that came from disk."""
        count, self.num_read = self.num_read, 0
        return count

    def _read(self, expert: str, picture: str) -> Tensor | None:
        # What waits to be written is there, so that what is read does not depend on the disk.
        waiting = self._waiting.get((expert, picture))
        return self.shelves[expert].get(picture) if waiting is None else waiting

    def _keep(self, expert: str, picture: str, features: Tensor) -> None:
        """Have the thread write an entry; wait where it is far behind."""
        if (expert, picture) in self._waiting:  # twice in a batch
            return
        self._room.acquire()
        self._waiting[expert, picture] = features.cpu()
        self._writer.submit(self._write, expert, picture)

    def _write(self, expert: str, picture: str) -> None:
        try:
            self.shelves[expert].put(picture, self._waiting[expert, picture])
        except Exception as error:  # handed to the training thread
            self._problem = error
        finally:
            del self._waiting[expert, picture]
            self._room.release()

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        match self.section.engine:
            case SingleProcess():
                return precision(self.section, device)
            case _:
                return nullcontext()


def find_features(
    model: VisionLanguageModel, section: TrainSection, canvas: str, device: torch.device
) -> Features | None:
    """Return the features that a stage could keep; None where it keeps none.

    To be called before an engine takes the model: it may round and share out its weights.

    Args:
        model: with what trains marked.
        section: of the stage.
        canvas: what decides how a picture becomes a canvas.
        device: where the encoders will compute.

    Raises:
        UserError: the recipe says ``on`` where nothing can be kept.
    """
    if section.feature_cache == "off":
        return None
    obstacle = _obstacle(model, section)
    if obstacle:
        if section.feature_cache == "on":
            raise UserError(f"feature_cache: on is not possible here, {obstacle}; write auto.")
        return None
    shelves = {}
    for name, expert in model.experts.items():
        # Which device and library computed is part of it: their last bits differ.
        parts = {
            "canvas": canvas,
            "spec": spec_to_json(expert.spec),
            "grid": expert.grid,
            "normalization": expert.normalization,
            "precision": section.precision,
            "engine": section.engine.kind,
            "weights": digest_tensors(expert.state_dict().items()),
            "torch": torch.__version__,
            "device": _device_name(device),
            "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        }
        text = json.dumps(parts, sort_keys=True, default=str)
        shelves[name] = Shelf(hashlib.sha256(text.encode()).hexdigest()[:32])
    return Features(model.experts, shelves, section)


def decide(
    features: Features, prepared: Prepared, canvas_size: int, device: torch.device
) -> Decision:
    """Measure and decide whether features are kept; may set ``features.alone``."""
    section = features.section
    forced = section.feature_cache == "on"
    draws = Draws.of(prepared, section)
    if not draws.distinct:
        return Decision(keep=False, why="there are no pictures")
    if not forced and draws.pictures < 2 * draws.distinct and not _share_kept(features, draws):
        return Decision(keep=False, why="each picture is drawn once", distinct=draws.distinct)
    same_bits, compute, maps = _probe(features, canvas_size, device)
    if not same_bits and not forced:
        return Decision(keep=False, why="batches of another size give other bits")
    features.alone = not same_bits
    write, read, size = _disk_times(features, maps)
    share = _share_kept(features, draws)
    fitting = min(1.0, size_limit(features_folder()) / max(1, size * draws.distinct))
    cold = (1.0 - share) * draws.distinct
    saved = fitting * (draws.pictures - cold) * (compute - read) - fitting * cold * write
    pays = saved > MARGIN * draws.pictures * compute
    return Decision(
        keep=forced or pays,
        why="the recipe says so" if forced else "it pays" if pays else "it does not pay",
        same_bits=same_bits,
        compute=round(compute, 6),
        write=round(write, 6),
        read=round(read, 6),
        bytes_per_picture=size,
        draws=round(draws.pictures, 1),
        distinct=draws.distinct,
        share_kept_before=round(share, 3),
    )


def record(decision: Decision, out: Path, progress: Progress) -> None:
    """Write the decision down; say it where features are kept."""
    path = out / FEATURES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, asdict(decision))
    if decision.keep:
        progress.note("features of the frozen encoders are kept on disk and used again")


def _obstacle(model: VisionLanguageModel, section: TrainSection) -> str:
    """Say why nothing can be kept; empty where something can."""
    trained = [name for name, expert in model.experts.items() if is_trainable(expert)]
    if trained:
        return f"the encoder {trained[0]} trains in this stage"
    if type(model.fusion).see is not Fusion.see:
        return f"the fusion {(model.config.fusion or {}).get('kind')} looks into the encoders"
    if isinstance(section.engine, DeepSpeed) and section.engine.zero == 3:
        return "zero 3 shares the encoders' weights out"
    return ""


def _probe(
    features: Features, canvas_size: int, device: torch.device
) -> tuple[bool, float, list[Tensor]]:
    """Run random pictures alone and in batches.

    Returns:
        (whether the bits agree, seconds per picture, the maps of one picture)
    """
    num = max(2, min(8, features.section.batch.per_device))
    shape = (num, 3, canvas_size, canvas_size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    same, seconds, maps = True, 0.0, []
    for name, expert in features.experts.items():
        alone = features.compute(expert, pixels[:1])
        some = features.compute(expert, pixels[: num // 2 + 1])
        _wait_for(device)
        began = time.perf_counter()
        every = features.compute(expert, pixels)
        _wait_for(device)
        seconds += (time.perf_counter() - began) / num
        last = features.compute(expert, pixels[-1:])
        same = same and torch.equal(alone, every[:1]) and torch.equal(some, every[: len(some)])
        same = same and torch.equal(last, every[-1:])
        for made in (alone, every):
            plain, channels_last = _layout(made)
            same = same and (plain or channels_last)
            features.channels_last[name, len(made) == 1] = channels_last
        maps.append(alone[0])
    return same, seconds, maps


def _layout(maps: Tensor) -> tuple[bool, bool]:
    """Tell whether maps (I, C, H, W) lie row by row, or else with the channels innermost."""
    plain = maps.is_contiguous()
    return plain, not plain and maps.is_contiguous(memory_format=torch.channels_last)


def _disk_times(features: Features, maps: list[Tensor]) -> tuple[float, float, int]:
    """Return (seconds to write, seconds to read, bytes) of a picture's maps, over all experts."""
    name = uuid.uuid4().hex * 2  # no picture's; other processes ask at the same time
    write = read = 0.0
    for shelf, one in zip(features.shelves.values(), maps, strict=True):
        shelf.put(name, one)  # makes the folder
        began = time.perf_counter()
        shelf.put(name, one)
        write += time.perf_counter() - began
        began = time.perf_counter()
        shelf.get(name)
        read += time.perf_counter() - began
        shelf.drop(name)
    return write, read, sum(one.numel() * one.element_size() for one in maps)


def _share_kept(features: Features, draws: Draws) -> float:
    there = [all(shelf.has(name) for shelf in features.shelves.values()) for name in draws.some]
    return sum(there) / max(1, len(there))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
