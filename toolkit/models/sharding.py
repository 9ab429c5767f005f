"""Sharding a base over GPUs: each holds a part of every decoder layer's frozen weights.

PyTorch's FSDP2 gathers a layer's weights while the layer works, 4-bit ones without unpacking.
Adapters and heads stay whole in every process: their gradients are summed as without sharding, so
the updates are the same. Embedding and output head are not sharded.
"""

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from toolkit.errors import InputError


def shard_base(models: list[PreTrainedModel]) -> int:
    """Shard the frozen weights of the models' decoder layers; return the number of layers.

    From then on all processes must make the same number of passes, or they wait forever.

    Args:
        models: transformers models with their adapters; weights that need a gradient stay whole.

    Raises:
        InputError: a model does not name its layers (``_no_split_modules``), or its experts
            are in 4 bits.
    """
    count = 0
    for model in models:
        kinds = set(model._no_split_modules or ())
        layers = [m for m in model.modules() if type(m).__name__ in kinds]
        if not layers:
            raise InputError(f"FSDP: {type(model).__name__} does not name its layers")
        if any(hasattr(module, "parametrizations") for module in model.modules()):
            raise InputError("FSDP: experts in 4 bits cannot be sharded (pass --precision bf16)")
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in layers:
            whole = {
                p for name, p in layer.named_parameters() if p.requires_grad or ".lora_" in name
            }
            fully_shard(layer, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
        count += len(layers)
    return count
