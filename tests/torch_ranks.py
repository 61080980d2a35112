"""Four processes that constrain DTensors; run by `test_torch_sharded.py`, which judges what they report.

    python tests/torch_ranks.py FOLDER

Starting processes costs seconds, so one start runs all cases; and collectives cost milliseconds where processes outnumber
the CPUs, so each rank makes and reports its own parts. Knows PyTorch and what is to be run; judges nothing.
"""

import datetime
import math
import multiprocessing
import pickle
import sys
import time
import traceback
import warnings
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import normball
from normball.backends import torch_mesh, torch_sharded

RANKS = 4
LAZY = "torch.distributed.tensor" not in sys.modules  # ours loaded neither this nor the compiler
LAZY = LAZY and "torch._dynamo" not in sys.modules

from normball.backends import torch_groups  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
ORDS = (1, 2, math.inf)
AXES = ((0,), (1,), (0, 1))
# name -> (dimensions of the mesh, placements as a key of `placed`, shape)
LAYOUTS = {
    "Shard(0)": ((4,), ("S0",), (8, 8)),
    "Shard(1)": ((4,), ("S1",), (8, 8)),
    "Replicate": ((4,), ("R",), (8, 8)),
    "Shard(0) Shard(1)": ((2, 2), ("S0", "S1"), (8, 8)),
    "Shard(0) Shard(0)": ((2, 2), ("S0", "S0"), (8, 8)),
    "Replicate Shard(0)": ((2, 2), ("R", "S0"), (8, 8)),
    "_StridedShard(0) Shard(0)": ((2, 2), ("X0", "S0"), (8, 8)),
    "uneven": ((2, 2), ("S0", "S1"), (7, 5)),
    "empty": ((4,), ("S0",), (5, 8)),
}
PAIR = {"Shard(0) of two": ((2,), ("S0",), (8, 8))}  # on ranks 0 and 1: compiling is slow, and two tell as much as four
ALL = {**LAYOUTS, **PAIR}
BOUND, EPSILON = 2.5, 1e-7


def inputs(shape, axes, dtype, ord):
    """Matrices whose groups are compliant, violating, tied, zero, tiny, huge, and spoilt."""
    random = np.random.default_rng(7)
    largest = {"float64": 1e308, "float32": 3e38, "bfloat16": 3e38}[dtype]
    tiny = {"float64": 5e-324, "float32": 1e-45, "bfloat16": 1e-40}[dtype]
    length = math.prod(shape[axis] for axis in axes)
    pattern = random.uniform(-1, 1, (8, length))
    groups = [
        pattern[0] / length,  # compliant
        pattern[1] * 10,
        np.where(np.arange(length) % 4 == 1, np.resize([1.5, 2.0], length), 0) * (np.arange(length) < 4)
        + pattern[2] * 0,
        np.sign(pattern[3]) * largest,
        np.resize([tiny, 0, -tiny], length),
        np.where(np.arange(length) == length - 1, math.nan, pattern[5]),
        np.where(np.arange(length) == 0, -math.inf, pattern[6]),
        np.where(np.arange(length) == 1, 40.0, pattern[7] * tiny),
    ]
    groups[2][0], groups[2][length - 1] = 1.5, 2.0  # order 2: a tie, over the first rank and the last
    if axes == (0, 1):
        groups = groups if ord == 2 and dtype == "float32" else groups[1:4]
        arrays = [group.reshape(shape) for group in groups]
    else:
        count = shape[1 - axes[0]]
        matrix = np.stack([groups[index % 8] for index in range(count)])
        arrays = [matrix.T if axes == (0,) else matrix]
    return [torch.tensor(array).to(DTYPES[dtype]) for array in arrays]


def cotangent(x):
    """What flows back in all tests of derivatives."""
    return torch.tensor(np.random.default_rng(3).uniform(-1, 1, x.shape)).to(x.dtype)


class Collectives(TorchDispatchMode):
    """Counts them, in whichever way they are called."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any("DTensor" in kind.__name__ for kind in types):
            return NotImplemented  # DTensor comes here again, with what it makes of the function
        name = str(function.name())
        self.count += "c10d" in name and not any(word in name for word in ("wait", "wrap", "barrier"))
        return function(*args, **(kwargs or {}))


def counted(call):
    """What the call returns, and how many collectives it took."""
    with Collectives() as counter:
        result = call()
    return result, counter.count


def array_of(tensor):
    """This rank's part as a NumPy array, bfloat16 as the bits that it is."""
    part = (tensor.to_local() if torch_mesh.is_dtensor(tensor) else tensor).detach()
    return (part.view(torch.int16) if part.dtype == torch.bfloat16 else part).numpy().copy()


class Rank:
    """One of the processes: its meshes, and the cases it runs in step with the others."""

    def __init__(self):
        from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
        from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
        from torch.distributed.tensor.placement_types import _StridedShard

        self.dtensor, self.distribute = DTensor, distribute_tensor
        self.meshes = {
            (4,): init_device_mesh("cpu", (4,)),
            (2,): DeviceMesh("cpu", [0, 1]),
            (2, 2): init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp")),
        }
        self.named = {"S0": Shard(0), "S1": Shard(1), "R": Replicate(), "X0": _StridedShard(0, split_factor=2)}
        self.placements = {name: [self.named[key] for key in keys] for name, (_, keys, _) in ALL.items()}
        self.indices = {}  # which entries of a whole tensor are this rank's
        for name, (mesh, _, shape) in ALL.items():
            whole = torch.arange(math.prod(shape)).reshape(shape)
            placed = distribute_tensor(whole, self.meshes[mesh], self.placements[name])
            self.indices[name] = placed.to_local() if self.meshes[mesh].get_coordinate() else None

    def place(self, tensor, layout):
        """What `distribute_tensor` would make of it, without a word to the other ranks."""
        part = tensor.reshape(-1)[self.indices[layout]]
        mesh, shape = self.meshes[ALL[layout][0]], tensor.shape
        stride = tensor.contiguous().stride()
        return self.dtensor.from_local(part, mesh, self.placements[layout], run_check=False, shape=shape, stride=stride)

    def matrix(self, layout, axes, dtype, ord):
        """Forward, backward, again, and in place."""
        report = []
        for array in inputs(ALL[layout][2], axes, dtype, ord):
            x = self.place(array, layout).requires_grad_()
            y, forward = counted(lambda: torch_sharded.constrain(x, BOUND, axes, EPSILON, ord))  # noqa: B023
            flow = self.place(cotangent(array), layout)
            _, backward = counted(lambda: y.backward(flow))  # noqa: B023
            again = torch_sharded.constrain(y.detach(), BOUND, axes, EPSILON, ord)
            written = x.detach().clone()
            torch_sharded.constrain_each_([written], [BOUND], [axes], EPSILON, ord)
            results = {"y": y, "gradient": x.grad, "again": again, "written": written}
            report.append({name: array_of(result) for name, result in results.items()})
            report[-1]["placements kept"] = all(
                t.placements == x.placements and t.shape == x.shape and t.dtype == x.dtype for t in results.values()
            )
            report[-1]["counts"] = forward, backward
        return report

    def without_exchange(self):
        """Each rank by its own sums: a twin that the judge must condemn."""
        kept = torch_mesh.all_reduce
        torch_mesh.all_reduce = lambda values, meshes, dims, op="sum": list(values)
        try:
            return self.matrix("Shard(0)", (0,), "float32", 2)
        finally:
            torch_mesh.all_reduce = kept

    def by_dtensor_itself(self):
        """PyMC's formula in DTensor's own operations: a twin on which the counter must count more than we need."""
        x = self.place(torch.ones(8, 8), "Shard(0) Shard(0)")

        def formula():
            norms = torch.linalg.vector_norm(x, dim=0, keepdim=True)
            return (x * (norms.clamp(max=BOUND) / (EPSILON + norms))).to_local()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch itself warns of sequential all-reduces
            return counted(formula)[1]

    def fused(self):
        """Thirteen weights of three meshes, a plain one among them, in place."""
        layouts = [*LAYOUTS, "Shard(0)", "Shard(0) Shard(1)"]
        wholes = [ramp(ALL[name][2]).float() for name in layouts] + [ramp((8, 8)).float()] * 2
        xs = [self.place(array, name) for name, array in zip(layouts, wholes, strict=False)]
        xs += [self.distribute(wholes[-2], self.meshes[2, 2]["tp"], [self.named["S0"]]), wholes[-1].clone()]
        versions = [x._version for x in xs]
        bounds = [1.0 + index / 8 for index in range(len(xs))]
        _, count = counted(lambda: torch_sharded.constrain_each_(xs, bounds, [(0,)] * len(xs), EPSILON, 2))
        return {
            "xs": [array_of(array) for array in wholes],
            "ys": [array_of(x.full_tensor() if torch_mesh.is_dtensor(x) else x) for x in xs],
            "bounds": bounds,
            "count": count,
            "written to": [x._version > version for x, version in zip(xs, versions, strict=True)],
        }

    def bounds(self, layout, axes, kind):
        """A bound for each group, and epsilon, with their derivatives: plain, placed, or one for all."""
        array = ramp(ALL[layout][2])
        x = self.place(array, layout).requires_grad_()
        bound, epsilon = bounds_of(array, axes, kind)
        own = (
            self.distribute(bound, x.device_mesh, [self.named["R"]] * x.device_mesh.ndim) if kind == "placed" else bound
        )
        own.requires_grad_()
        epsilon.requires_grad_()
        y, count = counted(lambda: torch_sharded.constrain(x, own, axes, epsilon, 2))
        y.backward(self.place(cotangent(array), layout))
        return {
            "y": array_of(y),
            "gradient": array_of(x.grad),
            "to bounds": [
                array_of(t.grad.full_tensor() if kind == "placed" and t is own else t.grad) for t in (own, epsilon)
            ],
            "count": count,
        }

    def compiled(self, layout, dtype):
        """The whole graph through torch.compile, with its derivative."""
        if self.indices[layout] is None:
            return None
        array = inputs(ALL[layout][2], (0,), dtype, 2)[0]
        x, flow = self.place(array, layout), self.place(cotangent(array), layout)
        x.requires_grad_(dtype == "float32")  # tracing the derivative takes as long again
        constrain = torch.compile(
            lambda x: torch_sharded.constrain(x, BOUND, (0,), EPSILON, 2), fullgraph=True, backend="aot_eager"
        )
        y = constrain(x)
        if not x.requires_grad:
            return [{"y": array_of(y)}]
        y.backward(flow)
        return [{"y": array_of(y), "gradient": array_of(x.grad)}]

    def fully_shard(self):
        """FSDP2 over tensor parallel layers, as users have them: the weights of a model, after an optimizer's step."""
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        torch.manual_seed(5)
        model = torch.nn.Sequential(torch.nn.Linear(8, 12, bias=False), torch.nn.Linear(12, 8, bias=False))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(20)
        before = [array_of(weight) for weight in model.parameters()]
        mesh = self.meshes[2, 2]
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        for layer in model:
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
        weights = list(model.parameters())
        report = {"before": before, "placements": [str(weight.placements) for weight in weights], "calls": []}
        for axes, bound in (((1,), 3.0), ((0,), 2.0), ((0, 1), 1.0)):
            _, count = counted(
                lambda: torch_sharded.constrain_each_(weights, [bound] * 2, [axes] * 2, EPSILON, 2)  # noqa: B023
            )
            report["calls"].append((axes, bound, count, [array_of(weight.full_tensor()) for weight in weights]))
        return report

    def fsdp1(self):
        """What FSDP1's flat parameters and pieces are told; whole weights inside summon_full_params are taken."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        told = []
        for use_orig_params in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # FSDP1 is deprecated, and has no accelerator here
                model = FullyShardedDataParallel(
                    torch.nn.Linear(6, 5, bias=False), use_orig_params=use_orig_params, device_id=torch.device("cpu")
                )
                told.append(message(lambda: self.constrain_in_place(next(model.parameters()))))  # noqa: B023
                with FullyShardedDataParallel.summon_full_params(model, writeback=True):
                    weight = model.module.weight
                    torch_sharded.constrain_each_([weight], [0.5], [(1,)], EPSILON, 2)
                with FullyShardedDataParallel.summon_full_params(model):
                    told.append(float(torch.linalg.vector_norm(model.module.weight.detach(), dim=1).max()))
        return told

    def constrain_in_place(self, x):
        torch_sharded.constrain_each_([x], [1.0], [(0,)], EPSILON, 2)

    def refused(self):
        """Messages of errors."""
        from torch.distributed.tensor import DTensor, Partial

        mesh = self.meshes[4,]
        partial = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
        elsewhere = self.distribute(torch.ones(1, 8), self.meshes[2, 2], [self.named["R"]] * 2)
        x = self.place(torch.ones(8, 8), "Shard(0)")
        return [
            message(lambda: torch_sharded.constrain(partial, 1.0, (0,), EPSILON, 2)),
            message(lambda: torch_sharded.constrain(x, elsewhere, (0,), EPSILON, 2)),
            message(lambda: torch_sharded.constrain(x, torch.ones(3, 8), (0,), EPSILON, 2)),
            message(
                lambda: torch_sharded.constrain(self.place(torch.ones(8, 8).long(), "Shard(0)"), 1.0, (0,), EPSILON, 2)
            ),
        ]

    def submesh(self):
        """A tensor on the first two ranks alone: the others have nothing to do, and do not wait."""
        x = self.distribute(torch.full((4, 4), 3.0), self.meshes[2,], [self.named["S0"]])
        y = torch_sharded.constrain(x, 1.0, (0,), EPSILON, 2)
        torch_sharded.constrain_each_([x], [1.0], [(0,)], EPSILON, 2)
        return [array_of(t) for t in (x, y)]

    def norms(self, layout, axes, ord):
        """The public function, and its derivative."""
        array = ramp(LAYOUTS[layout][2])
        x = self.place(array, layout).requires_grad_()
        norms, count = counted(lambda: normball.compute_norms(x, axes, ord=ord))
        norms.sum().backward()
        return {"norms": array_of(norms.full_tensor()), "gradient": array_of(x.grad), "count": count}

    def complex_weights(self):
        """Complex numbers are two real ones each, of one group."""
        array = torch.complex(ramp((8, 8)), ramp((8, 8)).flip(0)).to(torch.complex64)
        x = self.place(array, "Shard(0)").requires_grad_()
        y, count = counted(lambda: torch_sharded.constrain(x, BOUND, (0,), EPSILON, 2))
        y.backward(self.place(array.conj().resolve_conj(), "Shard(0)"))
        written = x.detach().clone()
        torch_sharded.constrain_each_([written], [BOUND], [(0,)], EPSILON, 2)
        results = [array_of(t.full_tensor()) for t in (y, x.grad, written)]
        return {"x": array.numpy(), "results": results, "count": count}

    def part_of_the_world(self):
        """The square mesh, where it is taken for half of eight processes: as it is, and flattened."""
        kept, world = torch_groups.dist, SimpleNamespace(size=lambda: 8)
        torch_groups.dist = SimpleNamespace(
            group=SimpleNamespace(WORLD=world), get_process_group_ranks=kept.get_process_group_ranks
        )
        try:
            before = self.matrix("Shard(0) Shard(0)", (0,), "float32", 2)
            before += self.matrix("Shard(0) Shard(0)", (0,), "float64", 2)
            self.meshes[2, 2]._flatten()
            return before + self.matrix("Shard(0) Shard(0)", (0,), "float32", 2)
        finally:
            torch_groups.dist = kept


def ramp(shape):
    return torch.linspace(-3, 3, math.prod(shape), dtype=torch.float64).reshape(shape)


def bounds_of(array, axes, kind):
    """A bound and an epsilon for the groups of an array."""
    shape = [1 if axis in axes else length for axis, length in enumerate(array.shape)]
    if kind == "one":
        return torch.tensor(BOUND, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)
    count = math.prod(shape)
    epsilon = torch.linspace(0, 0.5, count, dtype=torch.float64).reshape(shape)
    return torch.linspace(0.5, 12, count, dtype=torch.float64).reshape(shape), epsilon


def message(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


# Orders 1 and inf on what is hardest to sum.
MATRIX = {
    f"{layout} axes={axes} {dtype} ord={ord}": ("matrix", layout, axes, dtype, ord)
    for layout in LAYOUTS
    for axes in AXES
    for dtype in DTYPES
    for ord in (ORDS if layout in ("_StridedShard(0) Shard(0)", "uneven", "empty") else (2,))
}
BOUNDS = {
    f"bounds {kind} {layout} axes={axes}": ("bounds", layout, axes, kind)
    for kind in ("one", "plain", "placed")
    for layout in ("Shard(0)", "uneven", "_StridedShard(0) Shard(0)", "Replicate Shard(0)")
    for axes in ((0,), (1,))
}
NORMS = {
    f"norms {layout} axes={axes} ord={ord}": ("norms", layout, axes, ord)
    for layout in ("Shard(0)", "uneven", "_StridedShard(0) Shard(0)")
    for axes in AXES
    for ord in ORDS
}
COMPILED = {
    f"compiled {layout} {dtype}": ("compiled", layout, dtype)
    for layout, dtype in (("_StridedShard(0) Shard(0)", "float32"), ("Shard(0) of two", "float64"))
}
OTHERS = (
    "without_exchange",
    "by_dtensor_itself",
    "fused",
    "fully_shard",
    "fsdp1",
    "refused",
    "submesh",
    "part_of_the_world",
    "complex_weights",
)
CASES = {**MATRIX, **BOUNDS, **NORMS, **{name: (name,) for name in OTHERS}, **COMPILED}


def work(number, folder):
    """Run every case on this rank, and write down what it saw."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)  # with a rank that failed; all reports tell why, then
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/ranks", rank=number, world_size=RANKS, timeout=patience
    )
    rank, report = Rank(), {"lazy": LAZY, "indices": {}}
    report["indices"] = {name: None if own is None else array_of(own) for name, own in rank.indices.items()}
    for name, (method, *args) in CASES.items():
        begin = time.perf_counter()
        try:
            report[name] = getattr(rank, method)(*args)
        except Exception:
            report[name] = traceback.format_exc()
            break  # the ranks are no longer in step
        if number == 0 and "--times" in sys.argv:
            print(f"{time.perf_counter() - begin:.3f} s {name}", flush=True)
    with open(f"{folder}/report.{number}", "wb") as file:
        pickle.dump(report, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    # The compiler is loaded once and forked, for it takes each rank seconds.
    import torch._dynamo

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, sys.argv[1])) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))
