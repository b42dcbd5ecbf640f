"""A tensor, an eager layer, memory, a copy to the host, and more memory than there is."""

import torch
from device import counted_since, counts, report

before = counts()
layer = torch.nn.Linear(1024, 4096, device="cuda", dtype=torch.bfloat16)
kept = torch.cuda.memory_allocated()
x = torch.zeros(64, 1024, device="cuda", dtype=torch.bfloat16)
y = layer(x)
without_waiting = counted_since(before)
y.sum().backward()
y.cpu()
try:
    torch.empty(200 * 10**9, dtype=torch.uint8, device="cuda")
    refused = False
except torch.OutOfMemoryError:
    refused = True
report(
    {
        "name": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "device": str(y.device),
        "layer_bytes": kept,
        "gradient": tuple(layer.weight.grad.shape),
        "without_waiting": without_waiting,
        "in_all": counted_since(before),
        "refused": refused,
        "copied": torch.arange(5).cuda().cpu().tolist(),
        "cudnn": torch.backends.cudnn.enabled or torch.backends.cuda.cudnn_sdp_enabled(),
    }
)
