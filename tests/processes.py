"""Real processes for tests: N ranks with gloo, forked from a server that has torch loaded already."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([
    "torch", "dtrain.run", "torch.utils.tensorboard", "tests.harness",
    # What only some runs import, each in a second: with ddp, with fsdp, at the first checkpoint.
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint",
])  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _child(rank: int, world: int, port: int, function: Callable[..., Any], args: tuple[Any, ...], pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it may have workers
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    try:
        pipe.send_bytes(pickle.dumps((True, function(*args))))
    except BaseException as e:
        pipe.send_bytes(pickle.dumps((False, f"{type(e).__name__}: {e}\n{traceback.format_exc()}")))
        os._exit(1)  # a broken process group must not be waited for


def launch(
    world: int, function: Callable[..., Any], *args: Any, timeout: float = 600, check: bool = True
) -> list[Any]:
    """function(*args) on every rank; returns the results by rank, or the error texts where check=False."""
    port = free_port()
    pipes, processes = [], []
    for rank in range(world):
        receive, send = _context.Pipe(duplex=False)
        process = _context.Process(target=_child, args=(rank, world, port, function, args, send), daemon=True)
        process.start()
        send.close()
        pipes.append(receive)
        processes.append(process)
    results = []
    try:
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(timeout):
                raise TimeoutError(f"rank {rank} of {world} said nothing for {timeout} s")
            try:
                good, result = pickle.loads(pipe.recv_bytes())
            except EOFError:
                good, result = False, "died"
            if check and not good:
                raise AssertionError(f"rank {rank}: {result}")
            results.append(result)
    finally:
        for process in processes:
            process.join(5 if len(results) == world else 0)
            process.kill()
    return results
