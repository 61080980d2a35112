"""The laws on DTensors: four processes run `torch_ranks.py`, and here their parts are put together and judged."""

import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import broken_laws, groups_of, same_bits, ulp

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")
if not torch.distributed.is_available() or sys.platform == "win32":
    pytest.skip("PyTorch is built without distributed processes here", allow_module_level=True)

import ml_dtypes  # noqa: E402
import torch_ranks as ranks  # noqa: E402

import normball  # noqa: E402
from normball.backends import torch as backend  # noqa: E402
from normball.backends import torch_mesh  # noqa: E402

DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}
SHARED_BAND = {"float32": 2.0**-44, "bfloat16": 2.0**-44, "float64": 2.0**-90}  # of the bound; documented


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What each rank saw of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(ranks.__file__)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return [pickle.loads((folder / f"report.{rank}").read_bytes()) for rank in range(ranks.RANKS)]


def report_of(reports, case):
    """All ranks' reports of a case, none of which failed."""
    for report in reports:
        if isinstance(report.get(case), str):
            pytest.fail(report[case])
    if case not in reports[0]:
        pytest.fail("not run, for a case before failed")
    return [report[case] for report in reports]


def whole(reports, parts, layout, dtype):
    """The tensor whose parts the ranks hold; replicas are the same bits."""
    shape = ranks.ALL[layout][2]
    result = np.empty(shape, DTYPES[dtype])
    seen = np.zeros(shape, bool)
    for report, part in zip(reports, parts, strict=True):
        if part is None:
            continue
        own, part = report["indices"][layout], part.view(DTYPES[dtype])
        known = seen.reshape(-1)[own]
        assert part.shape == own.shape
        assert same_bits(result.reshape(-1)[own][known], part[known])
        result.reshape(-1)[own] = part
        seen.reshape(-1)[own] = True
    assert seen.all()
    return result


def numpy_of(tensor):
    tensor = tensor.detach()
    return (
        tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    )


def split(layout, axes):
    """Whether groups along the axes lie on several ranks."""
    return any(name != "R" and int(name[1]) in axes for name in ranks.ALL[layout][1])


def band(dtype, max_norm=ranks.BOUND):
    """The documented band below a bound, in ulp."""
    return Fraction(SHARED_BAND[dtype]) * Fraction(max_norm) / ulp(Fraction(max_norm), DTYPES[dtype])


def same_but_for_nan(a, b):
    """The same bits, where NaN is one value: which of its bits are set is promised nowhere."""
    numbers = ~np.isnan(a)
    return np.array_equal(numbers, ~np.isnan(b)) and same_bits(a[numbers], b[numbers])


def assert_close(ours, theirs, axes, ulps=8):
    """Derivatives within a few ulp of the group's largest."""
    eps = float(ml_dtypes.finfo(theirs.dtype).eps)
    for a, b in zip(groups_of(ours, axes), groups_of(theirs, axes), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ulps * eps * np.nan_to_num(np.abs(b)).max())


def alone(array, axes, max_norm=ranks.BOUND, epsilon=ranks.EPSILON, ord=2):
    """What a single process makes of it, and the derivatives."""
    x = array.clone().requires_grad_()
    y = backend.constrain(x, max_norm, axes, epsilon, ord, None)
    y.backward(ranks.cotangent(array))
    return SimpleNamespace(y=numpy_of(y), gradient=numpy_of(x.grad))


@pytest.mark.parametrize("case", ranks.MATRIX)
def test_laws_and_collectives(reports, case):
    _, layout, axes, dtype, ord = ranks.MATRIX[case]
    seen = report_of(reports, case)
    expected = 1 if split(layout, axes) else 0
    for index, array in enumerate(ranks.inputs(ranks.LAYOUTS[layout][2], axes, dtype, ord)):
        of_ranks = [report[index] for report in seen]
        y, gradient, again, written = (
            whole(reports, [own[name] for own in of_ranks], layout, dtype)
            for name in ("y", "gradient", "again", "written")
        )
        own_band = band(dtype) if expected else 0
        assert broken_laws(numpy_of(array), y, ranks.BOUND, axes, ranks.EPSILON, ord, band=own_band) == set()
        assert same_bits(again, y)
        assert same_but_for_nan(written, y)
        single = alone(array, axes, ord=ord)
        assert_close(gradient, single.gradient, axes)
        if not expected:
            assert same_but_for_nan(y, single.y)
        for own in of_ranks:
            assert own["counts"] == (expected, expected)
            assert own["placements kept"]


@pytest.mark.parametrize("case", ranks.BOUNDS)
def test_a_bound_for_each_group(reports, case):
    _, layout, axes, kind = ranks.BOUNDS[case]
    seen = report_of(reports, case)
    shape = ranks.LAYOUTS[layout][2]
    array = ranks.ramp(shape)
    bound, epsilon = ranks.bounds_of(array, axes, kind)
    single = alone(array, axes, bound.requires_grad_(), epsilon.requires_grad_())
    y, gradient = (whole(reports, [own[name] for own in seen], layout, "float64") for name in ("y", "gradient"))
    assert broken_laws(numpy_of(array), y, numpy_of(bound), axes, numpy_of(epsilon), band=Fraction(2) ** -30) == set()
    assert_close(gradient, single.gradient, axes)
    for own in seen:
        for ours, theirs in zip(own["to bounds"], (bound.grad, epsilon.grad), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13)
        assert own["count"] == (1 if split(layout, axes) else 0)


@pytest.mark.parametrize("case", ranks.NORMS)
def test_norms_of_all_parts(reports, case):
    _, layout, axes, ord = ranks.NORMS[case]
    seen = report_of(reports, case)
    x = ranks.ramp(ranks.LAYOUTS[layout][2]).requires_grad_()
    norms = normball.compute_norms(x, axes, ord=ord)
    norms.sum().backward()
    gradient = whole(reports, [own["gradient"] for own in seen], layout, "float64")
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-14, atol=0)
    for own in seen:
        np.testing.assert_allclose(own["norms"], norms.detach().numpy(), rtol=2**-52, atol=0)
        assert own["count"] == (1 if split(layout, axes) else 0)


@pytest.mark.parametrize("case", ranks.COMPILED)
def test_torch_compile_takes_the_whole_graph(reports, case):
    _, layout, dtype = ranks.COMPILED[case]
    (array,) = ranks.inputs(ranks.ALL[layout][2], (0,), dtype, 2)
    seen = [own and own[0] for own in report_of(reports, case)]
    y = whole(reports, [own and own["y"] for own in seen], layout, dtype)
    assert broken_laws(numpy_of(array), y, ranks.BOUND, (0,), ranks.EPSILON, band=band(dtype)) == set()
    if "gradient" in seen[0]:
        gradient = whole(reports, [own["gradient"] for own in seen], layout, dtype)
        assert_close(gradient, alone(array, (0,)).gradient, (0,))


def test_many_weights_take_one_collective_for_each_set_of_ranks(reports):
    for own in report_of(reports, "fused"):
        # Of 13 weights, 11 are split: over all ranks, over the rows of the square mesh, or over its columns.
        assert own["count"] == 3
        assert all(own["written to"])
        for x, y, bound in zip(own["xs"], own["ys"], own["bounds"], strict=True):
            assert broken_laws(x, y, bound, (0,), ranks.EPSILON, band=band("float32", bound)) == set()


def test_fsdp2_with_tensor_parallelism(reports):
    for own in report_of(reports, "fully_shard"):
        assert "_StridedShard" in own["placements"][0]
        before = own["before"]
        for (axes, bound, count, after), expected in zip(own["calls"], (1, 2, 1), strict=True):
            assert count == expected
            for x, y in zip(before, after, strict=True):
                assert broken_laws(x, y, bound, axes, ranks.EPSILON, band=band("float32", bound)) == set()
                assert not same_bits(x, y)
            before = after


def test_complex_numbers_are_pairs(reports):
    for own in report_of(reports, "complex_weights"):
        y, gradient, written = own["results"]
        x = torch.tensor(own["x"], requires_grad=True)
        single = backend.constrain(x, ranks.BOUND, (0,), ranks.EPSILON, 2, None)
        single.backward(x.detach().conj().resolve_conj())
        pairs, axes = own["x"].view(np.float32).reshape(8, 8, 2), (0, 2)
        ours = y.view(np.float32).reshape(8, 8, 2)
        assert broken_laws(pairs, ours, ranks.BOUND, axes, ranks.EPSILON, band=band("float32")) == set()
        np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-5, atol=1e-6)
        assert same_bits(written, y)
        assert own["count"] == 1


def test_a_mesh_of_some_ranks_keeps_no_other_waiting(reports):
    seen = report_of(reports, "submesh")
    for name in range(2):
        parts = [own[name] for own in seen]
        assert [part.size for part in parts] == [8, 8, 0, 0]
        y = np.concatenate(parts[:2])
        assert broken_laws(np.full((4, 4), 3, np.float32), y, 1.0, (0,), ranks.EPSILON) == set()


def test_several_mesh_dimensions_are_one_set_of_ranks_where_somebody_made_it(reports):
    seen = report_of(reports, "part_of_the_world")
    for index, (dtype, expected) in enumerate([("float32", 2), ("float64", 2), ("float32", 1)]):
        (array,) = ranks.inputs((8, 8), (0,), dtype, 2)
        y = whole(reports, [own[index]["y"] for own in seen], "Shard(0) Shard(0)", dtype)
        assert broken_laws(numpy_of(array), y, ranks.BOUND, (0,), ranks.EPSILON, band=band(dtype)) == set()
        assert all(own[index]["counts"][0] == expected for own in seen)


def test_refusals(reports):
    for own in report_of(reports, "refused"):
        assert own == [
            "TypeError: tensor_var is a DTensor placed [Partial(sum)]: P(sum) holds summands, from which the norm of their "
            "sum is not known; redistribute it to Replicate() or Shard(dim) first",
            "ValueError: max_norm is a DTensor on another mesh than tensor_var; pass max_norm.full_tensor()",
            "ValueError: max_norm of shape (3, 8): must broadcast against the norms, of shape (1, 8) (the reduced axes kept "
            "as 1); add axes of length 1 where the norm is taken",
            "TypeError: tensor_var of dtype int64: must be one of float64, float32, float16, bfloat16; cast it first, for "
            "example tensor_var.to(torch.float32)",
        ]


def test_fsdp1_is_refused_but_for_whole_weights(reports):
    for own in report_of(reports, "fsdp1"):
        for told, largest in (own[:2], own[2:]):
            assert "is a flat parameter of FullyShardedDataParallel, or a piece of one: its axes are not" in told
            assert "use FullyShardedDataParallel.summon_full_params(module, writeback=True), or fully_shard" in told
            assert 0.499 < largest <= 0.5


def test_deepspeed_placeholders_are_refused():
    weight = torch.nn.Parameter(torch.empty(0))
    torch_mesh.refuse_unsharded_placeholders(weight)
    weight.ds_id = 3
    with pytest.raises(TypeError) as caught:
        torch_mesh.refuse_unsharded_placeholders(weight, "parameters[3]")
    assert str(caught.value) == (
        "parameters[3] of shape (0,) is a placeholder of DeepSpeed ZeRO-3, whose data lie elsewhere; gather it first: with "
        "deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)"
    )
    weight.data = torch.ones(3)  # gathered
    torch_mesh.refuse_unsharded_placeholders(weight)


def test_plain_tensors_lie_on_one_rank():
    x = torch.ones(2, 3)
    assert not torch_mesh.is_dtensor(x)
    assert torch_mesh.mesh_dims(x) == ()
    assert torch_mesh.local(x) is x
    (same,) = torch_mesh.all_reduce([x.double()], [None], [()])
    assert same.equal(x.double())


def test_nothing_of_torch_distributed_is_loaded_for_plain_tensors(reports):
    assert all(report["lazy"] for report in reports)


def test_the_judge_condemns_ranks_that_exchange_nothing(reports):
    (array,) = ranks.inputs((8, 8), (0,), "float32", 2)
    seen = [own[0] for own in report_of(reports, "without_exchange")]
    y = whole(reports, [own["y"] for own in seen], "Shard(0)", "float32")
    assert {"bounded", "tight"} <= broken_laws(
        numpy_of(array), y, ranks.BOUND, (0,), ranks.EPSILON, band=band("float32")
    )
    with pytest.raises(AssertionError):
        assert_close(
            whole(reports, [own["gradient"] for own in seen], "Shard(0)", "float32"), alone(array, (0,)).gradient, (0,)
        )
    assert all(own["counts"] == (0, 0) for own in seen)


def test_the_counter_sees_what_dtensor_itself_sends(reports):
    assert all(count > 1 for count in report_of(reports, "by_dtensor_itself"))
