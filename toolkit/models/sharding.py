"""Sharding a base over GPUs: each holds a part of every decoder layer's frozen weights.

PyTorch's FSDP2 gathers a layer's weights while the layer works, 4-bit ones without unpacking.
Adapters and heads stay whole in every process: their gradients are summed as without sharding, so
the updates are the same. Embedding and output head are not sharded.

With several GPUs on each of several nodes, each node holds the whole base between its GPUs. So a
layer is gathered at every token over the links within a node, and not over the network.
"""

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from toolkit.errors import InputError
from toolkit.launched import processes_here


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
        mesh = _mesh(device.type)
        for layer in layers:
            whole = {
                p for name, p in layer.named_parameters() if p.requires_grad or ".lora_" in name
            }
            fully_shard(layer, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
        count += len(layers)
    return count


def _mesh(device: str) -> DeviceMesh:
    """Return the processes in a row, or as nodes times GPUs: weights are split along the last."""
    world, here = dist.get_world_size(), processes_here()
    if 1 < here < world and world % here == 0:
        return init_device_mesh(device, (world // here, here), mesh_dim_names=("nodes", "gpus"))
    return init_device_mesh(device, (world,))
