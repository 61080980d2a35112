"""Clipping on four ranks: run as a program, it forks them, and prints one line of JSON: what each case found, by rank.

`test_torch_clip.py` holds the findings. Each rank knows all gradients whole, from one seed, so that the judge of
`oracle.py` can look at what comes out, exactly.
"""

import itertools
import json
import math
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings

import ml_dtypes
import numpy as np
import torch
import torch.distributed as dist
from oracle import broken_total_laws, exact_norm
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from normball.torch import ClipReport, clip_grad_norm_, clip_grads_with_norm_, get_total_norm

WORLD = 4
S0, S1, R = Shard(0), Shard(1), Replicate()


def array(tensor):
    tensor = tensor.detach().cpu().contiguous()
    return (
        tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    )


def whole(tensor):
    return array(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).copy()


def parameter(shape, placed=None, scale=1.0, dtype=torch.float32, seed=0):
    """A parameter with a gradient; `placed` is (mesh, placements), None for a plain tensor."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)
    grad = (values * scale).to(dtype)
    grad = distribute_tensor(grad, *placed) if placed else grad
    result = torch.nn.Parameter(torch.zeros_like(grad))
    result.grad = grad
    return result


def clip(parameters, share, **options):
    """Clip to this share of the exact total norm; what is wrong with it, and the collectives it took."""
    before = [whole(p.grad) for p in parameters]
    ord = options.get("norm_type", 2)
    norm = float(exact_norm([float(v) for x in before for v in x.reshape(-1)], ord))
    with CommDebugMode() as communication:
        total = clip_grad_norm_(iter(parameters), norm * share, **options)
    after = [whole(p.grad) for p in parameters]
    broken = broken_total_laws(before, after, norm * share, 0.0, ord, band=4) if dist.get_rank() == 0 else set()
    if type(total) is not torch.Tensor or not abs(total.item() / norm - 1) < 2e-7:
        broken.add("total norm")
    totals = [None] * WORLD
    dist.all_gather_object(totals, total.item())
    if len(set(totals)) > 1:
        broken.add("all ranks alike")
    return sorted(broken), communication.get_total_counts()


def lists(meshes):
    """Lists of parameters, and how many sets of sharded mesh dimensions each has."""
    line, grid, other = meshes["line"], meshes["grid"], meshes["other"]
    tp, both, dp = (grid["tp"], [S0]), (grid, [S0, S1]), (grid, [S0, R])
    yield "plain", [parameter((5, 3)), parameter((4,))], 0
    yield "tensor parallel", [parameter((6, 4), tp), parameter((4, 6), (grid["tp"], [S1])), parameter((7,))], 1
    yield "replicas", [parameter((6, 4), (grid, [R, S0])), parameter((5, 2), (line, [R]))], 1
    yield "uneven and empty", [parameter((3, 5), (line, [S0])), parameter((9, 2), (line, [S0]))], 1
    yield "two dimensions", [parameter((6, 5), both), parameter((7, 3), (grid, [S0, S0]))], 1
    mixed = [(6, 4), (5, 5), (9, 2), (3, 7), (4, 4)]
    places = [tp, both, dp, (line, [S1]), (other, [S1])]
    parameters = [*(parameter(*pair) for pair in zip(mixed, places, strict=True)), parameter((3,))]
    yield "meshes", parameters, 4  # the line and the whole grid are the same ranks
    wide = {"dtype": torch.float64}
    yield "float64", [parameter((6, 4), tp, **wide), parameter((5, 5), both, **wide), parameter((3,), **wide)], 2
    yield "huge float64", [parameter((6, 4), tp, 1e300, **wide), parameter((5, 5), both, 1e304, **wide)], 2
    yield "tiny float64", [parameter((6, 4), tp, 1e-300, **wide), parameter((5, 5), both, 1e-295, **wide)], 2
    yield "1e25", [parameter((6, 4), tp, 1e25), parameter((3,), None, 1e25)], 1
    half = {"dtype": torch.bfloat16}
    yield "bfloat16", [parameter((6, 4), tp, **half), parameter((50, 5), both, **half), parameter((3,))], 2
    yield "float16", [parameter((6, 4), tp, 1e4, torch.float16), parameter((5, 5), both, 1e-5, torch.float16)], 2
    yield "mixed", [parameter((6, 4), tp, **wide), parameter((5, 5), tp, **half), parameter((5, 9), tp)], 1


def each_list(rank, meshes):
    """Each list clipped with order 2, and in one more way, another one from list to list."""
    others = itertools.cycle([(1, 0.5), (math.inf, 0.5), (2, 0.999), (2, 2.0)])
    for name, parameters, sets in lists(meshes):
        before = [p.grad.clone() for p in parameters]
        for ord, share in ((2, 0.5), next(others)):
            for p, grad in zip(parameters, before, strict=True):
                p.grad = grad.clone()
            broken, count = clip(parameters, share, norm_type=ord)
            yield f"{name}, order {ord}, {share}", broken + ([] if count == sets else [f"{count} collectives"])


def policies(rank, meshes):
    """A NaN that lies on one rank alone."""
    tp, line = (meshes["grid"]["tp"], [S0]), (meshes["line"], [S0])
    for policy in ("propagate", "zero", "skip", "raise"):
        named = {"fine": parameter((4, 2), line), "bad": parameter((6, 4), tp), "worse": parameter((8,), line)}
        for name in ("bad", "worse"):
            grad = torch.ones(named[name].shape)
            grad[-1] = math.nan
            named[name].grad = distribute_tensor(grad, *(tp if name == "bad" else line))
        before = [whole(p.grad) for p in named.values()]
        report = ClipReport()
        try:
            total = clip_grad_norm_(None, 1.0, nonfinite=policy, named=named, report=report)
        except RuntimeError as error:
            kept = all(whole(p.grad).tobytes() == x.tobytes() for p, x in zip(named.values(), before, strict=True))
            yield "raise", [] if "'bad' is the first" in str(error) and kept and policy == "raise" else [str(error)]
            continue
        grads = [p.grad for p in named.values()]
        left = {"propagate": math.nan, "zero": 0.0}.get(policy)
        fine = math.isnan(total) and policy != "raise"
        fine &= all(
            g is None if left is None else np.array_equal(whole(g), np.full(g.shape, left), True) for g in grads
        )
        yield policy, [] if fine and report.nonfinite == ["bad", "worse"] else [str(grads), str(report)]


def reports(rank, meshes):
    tp, both = (meshes["grid"]["tp"], [S0]), (meshes["grid"], [S0, S1])
    parameters = [parameter((6, 4), tp), parameter((7,)), parameter((5, 5), both)]
    wanted = [float(np.linalg.norm(whole(p.grad))) for p in parameters]
    report = ClipReport()
    with CommDebugMode() as communication:
        clip_grad_norm_(parameters, 1.0, report=report)
    close = all(abs(a / b - 1) < 1e-6 for a, b in zip(report.norms.values(), wanted, strict=True))
    yield "norms of all shards", [] if close and report.clipped else [report.norms, wanted]
    yield "no other collective", [] if communication.get_total_counts() == 2 else [communication.get_total_counts()]


def groups(rank, meshes):
    """Each rank holds other parameters, the last none: a pipeline. And two groups, one across the other."""
    shapes = [(5, 3), (4,), (2, 2)]
    everything = [parameter(shape, seed=index) for index, shape in enumerate(shapes)]
    before = [whole(p.grad) for p in everything]
    norm = float(exact_norm([float(v) for x in before for v in x.reshape(-1)]))
    own = everything[rank : rank + 1]
    with CommDebugMode() as communication:
        total = clip_grad_norm_(own, norm / 2, groups=[dist.group.WORLD])
    after = [None] * WORLD
    dist.all_gather_object(after, [whole(p.grad) for p in own])
    broken = broken_total_laws(before, [x for xs in after for x in xs], norm / 2, 0.0, 2, band=4)
    yield "pipeline", sorted(broken) + ([] if abs(total.item() / norm - 1) < 1e-7 else [total.item(), norm])
    yield "pipeline, one collective", [] if communication.get_total_counts() == 1 else ["not one"]
    grid = meshes["grid"]
    p = parameter((3,), seed=rank)
    all_of = [float(exact_norm([float(v) for v in whole(parameter((3,), seed=r).grad)])) for r in range(WORLD)]
    total = get_total_norm([p.grad], groups=[grid.get_group("dp"), grid.get_group("tp")])
    yield (
        "two groups",
        [] if abs(total.item() / math.hypot(*all_of) - 1) < 1e-7 else [total.item(), math.hypot(*all_of)],
    )
    shared, expert = parameter((4,)), parameter((3,), seed=rank)  # as the docstring has it
    before = [whole(shared.grad), *(whole(parameter((3,), seed=r).grad) for r in range(WORLD))]
    experts = get_total_norm([expert.grad], groups=[dist.group.WORLD])
    clip_grads_with_norm_([shared, expert], 1.0, get_total_norm([get_total_norm([shared.grad]), experts]))
    after = [None] * WORLD
    dist.all_gather_object(after, whole(expert.grad))
    yield "experts", sorted(broken_total_laws(before, [whole(shared.grad), *after], 1.0, 0.0, 2, band=4))
    sharded = parameter((6, 4), (grid["tp"], [S0]), seed=rank // 2)  # two stages, each tensor parallel
    wholes = [parameter((6, 4), seed=stage) for stage in range(2)]
    norm = math.hypot(*(np.linalg.norm(whole(w.grad).astype(float)) for w in wholes))
    total = clip_grad_norm_([sharded], 1.0, groups=[grid.get_group("dp")])
    yield "stages of tensor parallel", [] if abs(total.item() / norm - 1) < 1e-7 else [total.item(), norm]


def in_two_steps(rank, meshes):
    parameters = [parameter((6, 4), (meshes["grid"], [S0, S1])), parameter((3,))]
    before = [whole(p.grad) for p in parameters]
    total = get_total_norm([p.grad for p in parameters])
    clip_grads_with_norm_(parameters, 1.0, total)
    yield "in two steps", sorted(broken_total_laws(before, [whole(p.grad) for p in parameters], 1.0, 0.0, 2, band=4))


def refusals(rank, meshes):
    p, q = parameter((4, 4)), parameter((4, 4))
    before = whole(q.grad)
    p = torch.nn.Parameter(distribute_tensor(torch.zeros(4, 4), meshes["line"], [R]))
    p.grad = DTensor.from_local(torch.ones(4, 4), meshes["line"], [Partial()])
    try:
        clip_grad_norm_(None, 1.0, named={"q": q, "p": p})
    except TypeError as error:
        message = str(error)
    same = before.tobytes() == whole(q.grad).tobytes()
    right = (
        message.startswith("the gradient of 'p' is a DTensor placed") and "redistribute it to Replicate()" in message
    )
    yield "Partial", [] if same and right else [message]


def models(rank, meshes):
    """Real ones, with a backward pass, beside the same model on one process."""
    for name in ("fsdp2", "tensor parallel", "both"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
        torch.manual_seed(0)
        single = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
        if name != "fsdp2":
            parallelize_module(model, meshes["grid"]["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        if name != "tensor parallel":
            fully_shard(model, mesh=meshes["line"] if name == "fsdp2" else meshes["grid"]["dp"])
        inputs = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
        for net in (model, single):
            net(inputs).square().sum().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in single.parameters()]).item()
        broken, count = clip(list(model.parameters()), 0.5)
        yield f"model, {name}", broken + ([] if count == (2 if name == "both" else 1) else [f"{count} collectives"])
        torch.nn.utils.clip_grad_norm_(single.parameters(), norm / 2)
        pairs = zip(model.parameters(), single.parameters(), strict=True)
        close = all(np.allclose(whole(p.grad), whole(q.grad), rtol=1e-4, atol=1e-6) for p, q in pairs)
        yield f"model, {name}, as on one process", [] if close else ["differs"]


def twins(rank, meshes):
    """That the judges above can find something: a total that misses a shard, and a collective too many."""
    p = parameter((6, 4), (meshes["line"], [S0]))
    before = whole(p.grad)
    norm = float(exact_norm([float(v) for v in before.reshape(-1)]))
    alone = torch.linalg.vector_norm(p.grad.to_local())  # of this rank's shard alone
    clip_grads_with_norm_([p], norm / 2, alone)
    yield (
        "twin: missed shards are found",
        [] if broken_total_laws([before], [whole(p.grad)], norm / 2, 0.0) else ["not"],
    )
    with CommDebugMode() as communication:
        whole(p.grad)
        get_total_norm([p.grad])
    yield "twin: collectives are counted", [] if communication.get_total_counts() == 2 else ["not"]


def run(rank, path, findings):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*_StridedShard|.*all_gather_object|.*sequential")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=WORLD)
    meshes = {
        "line": init_device_mesh("cpu", (WORLD,)),
        "grid": init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp")),
        "other": init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))["a"],
    }
    try:
        for case in (each_list, policies, reports, groups, in_two_steps, refusals, models, twins):
            for name, found in case(rank, meshes):
                findings.put((rank, f"{case.__name__}: {name}", [str(f) for f in found]))
    except BaseException as error:
        findings.put((rank, "crash", [str(error), traceback.format_exc()]))
        findings.close()
        findings.join_thread()
        os._exit(1)  # the others wait for this one
    findings.put(None)
    dist.destroy_process_group()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        queue = context.Queue()
        ranks = [context.Process(target=run, args=(r, f"{folder}/store", queue), daemon=True) for r in range(WORLD)]
        for process in ranks:
            process.start()
        collected, ended = [], 0
        while ended < WORLD:
            item = queue.get(timeout=60)
            ended += item is None
            collected += [item] if item else []
            if item and item[1] == "crash":
                break
        for process in ranks:
            process.join(0 if ended < WORLD else 10)
    print(json.dumps(collected))
    sys.stdout.flush()
