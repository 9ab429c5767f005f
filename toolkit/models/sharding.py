"""A base shared out among several GPUs: each holds a part of every decoder layer's frozen weights.

PyTorch's FSDP2 gathers a layer's weights for as long as the layer works, 4-bit ones as they are.
Adapters and heads stay whole in every process: their gradients are summed as without sharding, so
the updates are the same. Embedding and output head are not shared out.
"""

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from toolkit.errors import InputError


def shard_base(models: list[PreTrainedModel]) -> int:
    """Share out the frozen weights of the models' decoder layers; returns how many layers.

    From then on every process must make as many passes as every other, or all wait for ever.

    Args:
        models: transformers models, adapters already on; what requires a gradient is left whole.

    Raises:
        InputError: a model whose layers are not known (no ``_no_split_modules``), or whose experts
            are in 4 bits.
    """
    count = 0
    for model in models:
        kinds = set(model._no_split_modules or ())
        layers = [m for m in model.modules() if type(m).__name__ in kinds]
        if not layers:
            raise InputError(f"FSDP: {type(model).__name__} does not name its layers")
        if any(hasattr(module, "parametrizations") for module in model.modules()):
            raise InputError("FSDP: experts in 4 bits cannot be shared out (pass --precision bf16)")
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in layers:
            whole = {
                p for name, p in layer.named_parameters() if p.requires_grad or ".lora_" in name
            }
            fully_shard(layer, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
        count += len(layers)
    return count
