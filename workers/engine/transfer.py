"""How do small things get to the device and back without anybody waiting? Through pinned memory, on the stream.

A copy from ordinary memory makes the host wait for the device. PyTorch keeps a pinned buffer from being used again
before the copy that reads it is done.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(
    values: Sequence[int] | Sequence[float] | Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor on the device, of the shape of (nested) `values`."""
    return to_device(torch.tensor(values, dtype=dtype), device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that later work on its stream finds complete; on the CPU the tensor itself."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """Copies on their way to the host; all of a step go together, and the host waits once."""

    def __init__(self, *tensors: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not tensors or tensors[0].device.type == "cpu":
            self._copies = list(tensors)
            return
        self._copies = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> list[Tensor]:
        """The tensors, on the host."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._copies
