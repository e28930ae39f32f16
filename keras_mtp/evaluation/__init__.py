"""What a model is judged by: held-out loss and top-1 of every head, and the task's own score on generated answers.

A held-out loss is total nats over total answer tokens, never a mean of batch means. Items are kept apart, so that two
runs can be compared item by item.

    judge      both, as a recipe says
    held_out   loss and top-1 on held-out examples
    on_task    the score on test items
"""

from keras_mtp.evaluation.held_out import BUCKETS, HeadScore, HeldOutEvaluation
from keras_mtp.evaluation.judge import Judge, Scores
from keras_mtp.evaluation.on_task import TaskEvaluation, TaskScore, asked, write_answers

__all__ = [
    "BUCKETS",
    "HeadScore",
    "HeldOutEvaluation",
    "Judge",
    "Scores",
    "TaskEvaluation",
    "TaskScore",
    "asked",
    "write_answers",
]
