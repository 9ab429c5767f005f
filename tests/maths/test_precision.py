"""The type that autocast computes in, where it is on."""

import torch

from toolkit.maths.precision import autocast_device, autocast_type


def test_the_type_is_autocasts_where_it_is_on_and_none_elsewhere() -> None:
    tensor = torch.zeros(1)
    assert autocast_type(tensor) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_type(tensor) == torch.bfloat16 == (tensor[None] @ tensor[:, None]).dtype
        with torch.autocast("cpu", enabled=False):
            assert autocast_type(tensor) is None


def test_a_tensor_without_storage_is_taken_for_a_cpus() -> None:
    assert autocast_device(torch.device("meta")) == "cpu"
    assert autocast_device(torch.device("cuda", 1)) == "cuda"
