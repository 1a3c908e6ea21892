"""What a run sets for the whole process."""

import pytest
import torch

from gen1_train.config import TrainerConfig
from gen1_train.training.run import set_switches


@pytest.fixture(autouse=True)
def restored():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("benchmark", [True, False])
def test_the_switches_are_set_each_by_its_own_and_a_cpu_s_numbers_stay(tf32, benchmark):
    torch.manual_seed(0)
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    before = a @ b
    set_switches(TrainerConfig(tf32=tf32, cudnn_benchmark=benchmark))
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cudnn.benchmark is benchmark
    assert torch.equal(a @ b, before)
