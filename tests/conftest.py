"""One thread a process: the tests' tensors are small, and xdist already runs a process on every core."""

import torch

torch.set_num_threads(1)
