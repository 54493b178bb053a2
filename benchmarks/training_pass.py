"""One training pass of `full` against its rivals, on the same layers and the same kept z₀.

    python -m benchmarks.training_pass [--device cpu] [--out results/training_pass.json]

Compared, for one minibatch, forward and backward:

- full: tangent program on kept residuals, gradients of w₁, b and w₂;
- (a) fine-tuning of the same θ₂ and head from kept z₀, with the same folded batch norms;
- (b) backward through `torch.func.jvp` of the network's own layers on kept z₀ (batch norms as they are, which is what
  one has without a linearization), gradients of w₁, b and w₂; and (b') the same with this project's folded layers;
- (c) the plain forward pass of those layers from kept z₀.

Times are medians over interleaved rounds, so that a disturbance of the machine meets all rivals; the ratio of a rival
is the median of its ratios by round. With one thread on a CPU they are the processor's, which other processes lengthen
less. Peak memory is what torch allocated during the pass.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as default_timer

from gradfeat import GradientFeatureModel
from gradfeat.backbones.encoders import TextEncoder
from gradfeat.files.writing import write_text
from gradfeat.linearization import linearize
from gradfeat.losses import CrossEntropy
from gradfeat.optional import require
from gradfeat.pretrain.encoder import BIGAN, ConvEncoder


@dataclass(frozen=True)
class Case:
    """A network, the modules that are θ₂, and the size of its input: images, or texts of so many tokens."""

    title: str
    model: str
    theta2: tuple[str, ...]
    image: int = 224
    batch: int = 64
    tokens: int = 0

    def network(self) -> nn.Module:
        """Return the network with random weights."""
        if self.model == "bigan":
            return ConvEncoder(3, **BIGAN).eval()
        if not self.tokens:
            return require("timm", extra="vision").create_model(self.model, num_classes=0).eval()
        transformers = require("transformers", extra="text")
        config = transformers.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        return TextEncoder(transformers.BertModel(config, add_pooling_layer=False), "mean").eval()

    def inputs(self, n: int) -> Tensor:
        """Return n samples; texts of equal length, none of it padding."""
        if not self.tokens:
            return torch.randn(n, 3, self.image, self.image)
        ids = torch.randint(1000, 30000, (n, self.tokens))
        return torch.stack([ids, torch.ones_like(ids)], 1)


CASES = (
    Case("ResNet-18, last block", "resnet18", ("layer4.1",)),
    Case("ResNet-18, topmost convolution", "resnet18", ("layer4.1.conv2",)),
    Case("ResNet-50, last block", "resnet50", ("layer4.2",)),
    Case("BiGAN encoder (32 × 32), topmost convolution", "bigan", ("blocks.4",), image=32),
    Case("MobileNetV2, head convolution", "mobilenetv2_100", ("conv_head",)),
    Case("ViT-tiny, last block", "vit_tiny_patch16_224", ("blocks.11",)),
    Case("ViT-small, last block", "vit_small_patch16_224", ("blocks.11",)),
    Case("MiniLM (6 × 384), last layer, 64 tokens", "bert", ("transformer.encoder.layer.5",), tokens=64),
)
CLASSES = 10
RIVALS = ("finetune", "jvp", "jvp folded", "forward")


def rivals(case: Case, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Any]]:
    """Return a function for each rival that runs one pass and returns its gradients."""
    torch.manual_seed(0)
    network, example = case.network(), case.inputs(3)
    lin = linearize(network, example, case.theta2, check=False).to(device, dtype)
    parts = [lin.bottom(case.inputs(8)) for _ in range(case.batch // 8)]
    z0 = tree_map(lambda *tensors: torch.cat(tensors), *parts)
    f, residuals = lin.primal(z0)
    plain = linearize(network, example, case.theta2, check=False, fold_batchnorm=False).to(device, dtype)
    y = torch.randint(0, CLASSES, (case.batch,), device=device)
    omega = torch.randn(f.shape[1], CLASSES, device=device) * f.shape[1] ** -0.5
    loss = CrossEntropy()
    full = GradientFeatureModel(lin, omega, mode="full")
    tuned = GradientFeatureModel(lin, omega, mode="finetune")

    def gradients(model: GradientFeatureModel, logits: Tensor) -> Any:
        return torch.autograd.grad(loss.value(logits, y), model.trained())

    unfolded = GradientFeatureModel(plain, omega, mode="full")

    def jvp_pass(model: GradientFeatureModel) -> Any:
        layers = model.linearization
        w2 = {name: value.to(dtype) for name, value in model.w2.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            features, moved = torch.func.jvp(lambda theta2: layers.network(theta2, z0), (layers.theta2,), (w2,))
        return gradients(model, features.float() @ model.w1 + model.b + moved.float() @ model.omega)

    def forward_pass() -> Any:
        with torch.no_grad():
            return lin.network(lin.theta2, z0)

    return {
        "full": lambda: gradients(full, full.logits(f, residuals)),
        "finetune": lambda: gradients(tuned, tuned.finetuned(z0)),
        "jvp": lambda: jvp_pass(unfolded),
        "jvp folded": lambda: jvp_pass(full),
        "forward": forward_pass,
    }


def times(passes: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return seconds by rival and round; in each round every rival runs in turn."""
    threads = torch.get_num_threads()
    clock = time.process_time if threads == 1 and device == "cpu" else default_timer
    timers = {
        name: Timer("run()", globals={"run": run}, num_threads=threads, timer=clock) for name, run in passes.items()
    }
    for run in passes.values():
        run()
    repeats = {name: max(1, round(0.3 / timer.timeit(1).median)) for name, timer in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(repeats[name]).median)
    return seconds


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """Return the most bytes that were allocated at one time during a pass, above what was there before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = run()
    changes = _allocations(recorded)
    del result
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak


def _allocations(recorded: Any) -> list[int]:
    """Return sizes of allocations (above zero) and releases (below), in the order of time."""
    changes: list[tuple[int, int]] = []
    queue = list(recorded.profiler.kineto_results.experimental_event_tree())
    while queue:
        event = queue.pop()
        queue.extend(event.children)
        if event.tag == torch._C._profiler._EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return [size for _, size in sorted(changes, key=lambda pair: pair[0])]


def measure(case: Case, dtype: torch.dtype, device: str, rounds: int, chosen: Sequence[str]) -> dict[str, Any]:
    """Time `full` and the chosen rivals of a case."""
    passes = {name: run for name, run in rivals(case, dtype, device).items() if name in ("full", *chosen)}
    seconds = times(passes, rounds, device)
    ratios = {
        name: statistics.median(full / other for full, other in zip(seconds["full"], seconds[name], strict=True))
        for name in chosen
    }
    return {
        "case": case.title,
        "dtype": str(dtype).removeprefix("torch."),
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "full_over": ratios,
        "peak_bytes": {name: peak_memory(run, device) for name, run in passes.items()},
    }


def markdown(rows: list[dict[str, Any]], about: str) -> str:
    """Return the results as a table."""
    header = [
        "θ₂",
        "dtype",
        "full",
        "(a) fine-tuning",
        "(b) jvp",
        "(b') folded",
        "(c) forward",
        "full / (a)",
        "full / (b)",
        "full / (b')",
        "full / (c)",
    ]
    lines = [
        about,
        "",
        "| " + " | ".join(header) + " | peak memory: full, (a), (b), (b'), (c) |",
        "|" + "---|" * (len(header) + 1),
    ]
    for row in rows:
        ms, over, peak = row["milliseconds"], row["full_over"], row["peak_bytes"]
        cells = [row["case"], row["dtype"]]
        cells += [f"{ms[name]:.1f} ms" if name in ms else "" for name in ("full", *RIVALS)]
        cells += [f"{over[name]:.2f}" if name in over else "" for name in RIVALS]
        cells.append(", ".join(f"{peak[name] / 1e6:.0f} MB" for name in ms))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(device: str) -> str:
    """Describe where this ran."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    threads = torch.get_num_threads()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' if threads > 1 else ''}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=list(RIVALS), help="which ones; all")
    parser.add_argument("--cases", default="", help="only cases whose title contains this")
    parser.add_argument("--out", type=Path, default=Path("results/training_pass.json"))
    options = parser.parse_args()
    rows = []
    for dtype in options.dtypes.split(","):
        for case in CASES:
            if options.cases.lower() in case.title.lower():
                row = measure(case, getattr(torch, dtype), options.device, options.rounds, options.rivals)
                rows.append(row)
                print(markdown(rows[-1:], "").splitlines()[-1], flush=True)
    about = (
        f"`python -m benchmarks.training_pass`, {machine(options.device)}, torch {torch.__version__}, {date.today()}"
    )
    write_text(options.out, json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    table = markdown(rows, about)
    write_text(options.out.with_suffix(".md"), table + "\n")
    print(table)


if __name__ == "__main__":
    main()
