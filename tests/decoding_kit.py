"""What worker processes of the tests do with a picture; they find it by name."""

import os
import signal

import numpy as np
import torch


def canvas(picture):
    """Return the picture as it is, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def deadly(picture):
    """Die as a process does that the kernel kills for its memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return canvas(picture)
