"""A stage in a process other than process 0: it trains with it, and writes nothing that stays.

Process 0 alone (``runner``) looks into the store, takes the lock, writes the artifact, the progress
and the record. This one waits to hear whether there is anything to train, does the same stage in a
folder that is thrown away, and ends when and as process 0 ends.
"""

from __future__ import annotations

from manyeyes.errors import UserError
from manyeyes.pipeline import stages
from manyeyes.pipeline.fingerprint import Paths, fingerprint, open_parents
from manyeyes.pipeline.stages import StageContext
from manyeyes.runtime import ranks
from manyeyes.runtime.home import INPUTS, home
from manyeyes.runtime.locks import temporary
from manyeyes.runtime.progress import Progress
from manyeyes.steps import Task
from manyeyes.store import open_store
from manyeyes.store.delivery import left_behind, whole
from manyeyes.store.pointer import open_input


def follow_stage(stage: str, recipe_slice: str, *, inputs: Paths, expert: str | None = None) -> str:
    """Take part in a stage and return the content digest of its result.

    Args:
        stage: name in the step table.
        recipe_slice: canonical JSON of the slice.
        inputs: role to artifact directory, or directories for one input per expert.
        expert: the expert that ``prealign`` trains.

    Raises:
        UserError: an input cannot be used, or is not what process 0 was given.
        Followed: process 0 or another process failed or was stopped.
    """
    from manyeyes.training.distributed import joined

    task = Task(stage, expert)
    with joined() as world:
        key, told = world.hear("train", "end")
        if key == "train" and task.step.writes == "checkpoint":
            store = open_store()
            parents = open_parents(stage, inputs, lambda path, kind: open_input(store, path, kind))
            if told != fingerprint(stage, recipe_slice, parents.digests):
                raise UserError(
                    f"Process {ranks.rank()} of the training was given another recipe, other "
                    "inputs or another version of manyeyes than process 0; start all with the same."
                )
            with (
                temporary() as thrown_away,
                whole(store, parents.paths, home() / INPUTS, left_behind(stage)) as paths,
            ):
                context = StageContext(paths, thrown_away, Progress(task.label))
                stages.ready(stage, recipe_slice, context)()
        return str(world.hear("end")[1])
