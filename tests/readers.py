"""How every hostile file must end."""

import pytest

from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError


def fails(path):
    """Open and read everything; return whether it failed, as it may, in one line."""
    try:
        [weight.read() for weight in open_checkpoint(path).weights]
    except CheckpointError as caught:
        message = str(caught)
    else:
        message = None
    assert message is None or "\n" not in message
    return message is not None


def refused(path, match):
    """Open and read everything: exactly one error of one line that names the file."""
    with pytest.raises(CheckpointError, match=match) as error:
        [weight.read() for weight in open_checkpoint(path).weights]
    assert "\n" not in str(error.value)
    assert repr(path.name) in str(error.value)
