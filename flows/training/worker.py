"""What a Ray Train worker runs: join the others, train, say how it ended. Imports are few: they are the start."""

import gc
import os
import socket
import time
from pathlib import Path
from typing import Any


def work(config: dict[str, Any]) -> None:
    """Train as this worker's rank; where trying again cannot help, leave what failed in the run's folder.

    Args:
        config: {"spec": JSON of the TrainingSpec, "folder": the run's, "lease": the caller's, "submitted": its clock}.

    Raises:
        RuntimeError: a peer was lost; Ray starts all workers again.
    """
    seconds = {"workers_start": time.time() - config["submitted"]}
    began = time.monotonic()
    gc.disable()  # imports make a million objects and no garbage
    import torch

    from flows.training.attempt import train
    from flows.training.loop import PERMANENT
    from flows.training.run_folder import RunFolder
    from flows.training.spec import TrainingSpec

    gc.freeze()
    gc.enable()
    seconds["imports"] = time.monotonic() - began
    spec = TrainingSpec.model_validate_json(config["spec"])
    torch.set_num_threads(max(1, int(spec.resources.cpus_per_worker)))
    device = _device(config["gpus"])
    ranks = _join(device)
    seconds["process_group"] = time.monotonic() - began - seconds["imports"]
    folder, lease = RunFolder(Path(config["folder"])), config["lease"]
    try:
        train(spec, folder, ranks, lease=lease, seconds=seconds)
    except PERMANENT as error:
        who = f"worker {ranks.rank} on {socket.gethostname()}: " if ranks.world > 1 else ""
        folder.fail(lease, type(error).__name__, f"{who}{error}")
        return  # the caller ends the others, who may wait for this one
    if ranks.world > 1:
        torch.distributed.destroy_process_group()


def _device(gpus: float) -> Any:
    import torch

    if not gpus:
        return torch.device("cpu")
    from ray.train.torch import get_device

    device = get_device()
    torch.cuda.set_device(device)
    return device


def _interface() -> str | None:
    """Return the network interface of Ray's address of this node: a host name may lead to loopback (127.0.1.1)."""
    from ray.util import get_node_ip_address

    from infra.stack.cluster import addresses

    return addresses().get(get_node_ip_address())


def _join(device: Any) -> Any:
    from ray.train import get_context

    from flows.training.ranks import PATIENCE, Ranks
    from flows.training.rendezvous import meeting_point

    context = get_context()
    if context.get_world_size() == 1:
        return Ranks(device=device)
    import torch.distributed as dist

    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    rank, world = context.get_world_rank(), context.get_world_size()
    if name := _interface():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=meeting_point(rank, world),
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )
    return Ranks.joined(device)
