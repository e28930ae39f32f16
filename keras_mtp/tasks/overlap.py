"""A test item that was trained on says nothing: such data are refused."""

from keras_mtp.errors import UserError
from keras_mtp.tasks.task import Task


def refuse_overlap(task: Task) -> None:
    """Checks that no test item is in the training data as well, white space aside.

    Raises:
        UserError: some are; names the first and how many.
    """
    training = {example.normalised: example.id for example in task.examples("train")}
    shared = [
        (item.id, training[item.normalised]) for item in task.examples("test") if item.normalised in training
    ]
    if shared:
        test_id, training_id = shared[0]
        raise UserError(
            f"No test item may be in the training data. Received: {task.title}, where {len(shared)} are: the first is "
            f"{test_id}, the same as {training_id}. Remove them from one of the two."
        )
