"""KFP skin of the exit handler. Lightweight mode copies the function alone."""

from kfp.dsl import PipelineTaskFinalStatus


def finalize(status: PipelineTaskFinalStatus) -> None:
    """End the run after any outcome: send spooled tracking, write the summary.

    Args:
        status: how the pipeline ended; KFP fills it in.
    """
    from manyeyes.pipeline.worker import finalize_run

    finalize_run(status.state)
