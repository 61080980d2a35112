"""Time gradient clipping against torch.nn.utils.clip_grad_norm_, on the gradients of whole models:

    python benchmarks/torch_clip.py [SECONDS]

Answers are checked first. Both are timed one right after the other, in rounds, on one thread; "times faster" is the
median over rounds of PyTorch's time over ours. Where gradients are clipped, they are restored before every call.
"""

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "NORMBALL")})

import sys
from collections.abc import Callable, Sequence

import cells
import torch
from timing import Rival, again, interleave, median, pin, ratio, readable

from normball.torch import ClipReport, clip_grad_norm_

LISTS = {**cells.LISTS, "160 tensors of 8": tuple([(8,)] * 160)}
STATES = {"nothing clips": 2.0, "clips": 0.5}  # the bound, in total norms


def parameters_of(shapes: Sequence[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return parameters


def norm_of(parameters: Sequence[torch.nn.Parameter]) -> float:
    """In float64, of whose rounding the margin of a float32 result is a thousand times as much and more."""
    return sum(p.grad.to(torch.float64).square().sum().item() for p in parameters) ** 0.5


def check(parameters: Sequence[torch.nn.Parameter], before: Sequence[torch.Tensor], norm: float, bound: float) -> None:
    """The same bits, or within the bound and close to what is wanted."""
    if norm <= bound:
        assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True)), "changed without need"
        return
    assert norm_of(parameters) <= bound, "above the bound"
    for p, g in zip(parameters, before, strict=True):
        torch.testing.assert_close(p.grad, g * (bound / norm), rtol=1e-6, atol=0)


def prove_the_check_can_fail() -> None:
    """On what was changed without need, was left above the bound, and was scaled by too much."""
    for share, factor in ((2.0, 0.999999), (0.5, 0.50001), (0.5, 0.49999)):
        parameters = parameters_of([(50,)])
        before, norm = [parameters[0].grad.clone()], norm_of(parameters)
        parameters[0].grad *= factor
        try:
            check(parameters, before, norm, norm * share)
        except AssertionError:
            continue
        raise SystemExit("the check of the answers cannot fail")


def rivals(parameters: list[torch.nn.Parameter], before: list[torch.Tensor], bound: float, clips: bool) -> list[Rival]:
    report = ClipReport()

    def restore() -> None:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad.copy_(grad)

    def rival(name: str, call: Callable[[], object]) -> Rival:
        return Rival(name, again(call), restore if clips else lambda: None, most=1 if clips else 1 << 20)

    return [
        rival("normball", lambda: clip_grad_norm_(parameters, bound)),
        rival("with a report", lambda: clip_grad_norm_(parameters, bound, report=report)),
        rival("PyTorch", lambda: torch.nn.utils.clip_grad_norm_(parameters, bound)),
    ]


def main() -> None:
    prove_the_check_can_fail()
    pin(1)
    torch.set_num_threads(1)
    print(f"{'':38}{'normball':>12}{'report':>12}{'PyTorch':>12}   times faster")
    for name, shapes in LISTS.items():
        parameters = parameters_of(shapes)
        before, norm = [p.grad.clone() for p in parameters], norm_of(parameters)
        for state, share in STATES.items():
            timed = rivals(parameters, before, norm * share, share < 1)
            for rival in timed[:2]:
                rival.run(1)
                check(parameters, before, norm, norm * share)
                rival.reset()
            times = interleave(timed, float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
            ours, reported, theirs = (times[rival.name] for rival in timed)
            durations = "".join(f"{readable(median(t)):>12}" for t in (ours, reported, theirs))
            low, high = ratio(theirs, ours)["quartiles"]
            print(f"{name + ', ' + state:38}{durations}   {ratio(theirs, ours)['ratio']} ({low} to {high})")


if __name__ == "__main__":
    main()
