"""One time for several tasks, one after the other."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from opnorm.bounds.deadlines import Deadline

Task = TypeVar("Task")


def in_turn(tasks: Sequence[Task], deadline: Deadline) -> Iterator[tuple[Task, Deadline]]:
    """Yield tasks, each with its deadline: an equal share of what is left by then. What one leaves, others have.

    Args:
        tasks: The largest first: one that its share does not do for takes nothing, and the others have more.
        deadline: Of all together; after it nothing more is yielded.
    """
    for done, task in enumerate(tasks):
        if deadline.passed:
            return
        yield task, deadline.share(len(tasks) - done)
