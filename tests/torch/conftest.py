"""One thread for PyTorch: these modules are small, and the machines that run the tests are shared."""

import torch

torch.set_num_threads(1)
