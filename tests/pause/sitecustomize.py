"""A training that stands still at a named place, for tests that kill or stop it just there.

However fast the machine is, a training that stands still has not ended. Python imports this module
by itself where its folder is on PYTHONPATH, and only ``tests/pause_kit.py`` puts it there. Nothing
else about the training changes.

``PAUSE_AT`` is a JSON object: ``sign`` (a file, written with the process's number when the place is
reached; the training stands still as long as it is there), ``stage`` (as progress lines name it, or
empty for any), ``place`` and ``step``.
"""

import json
import os
import sys
import time
from pathlib import Path

WANTED = json.loads(os.environ.get("PAUSE_AT", "{}"))


def stand_still():
    """Say that the place is reached and wait until told to go on, or until nobody is left."""
    sign = Path(f"{WANTED['sign']}-{os.environ.get('RANK', '0')}")
    half = sign.with_name(f"half-{sign.name}")
    half.write_text(str(os.getpid()), encoding="ascii")
    half.rename(sign)
    parent = os.getppid()
    while sign.exists() and os.getppid() == parent:
        time.sleep(0.01)


def patch_loop(module):
    """``step``: a step's row is in the curve; ``saved``: its state is on disk."""
    run = module.Run
    report, save = run.report, run.save

    def concerns(self):
        return WANTED["stage"] in ("", self.progress.stage)

    def reported(self, row):
        report(self, row)
        if WANTED["place"] == "step" and row.step == WANTED["step"] and concerns(self):
            stand_still()

    def saved(self, step):
        save(self, step)
        if WANTED["place"] == "saved" and step == WANTED["step"] and concerns(self):
            stand_still()

    run.report, run.save = reported, saved


def patch_checkpoint(module):
    """``saving``: half of a step's state is on disk."""
    write = module.save_file

    def half_written(tensors, path):
        write(tensors, path)
        if WANTED["place"] == "saving" and path.parent.name == f"step-{WANTED['step']}.tmp":
            os.truncate(path, path.stat().st_size // 2)
            stand_still()

    module.save_file = half_written


PATCHES = {"manyeyes.training.loop": patch_loop, "manyeyes.training.checkpoint": patch_checkpoint}


if WANTED:
    sys.path.append(str(Path(__file__).parents[1]))
    from patch_kit import AfterImport

    sys.path.pop()
    sys.meta_path.insert(0, AfterImport(PATCHES))
