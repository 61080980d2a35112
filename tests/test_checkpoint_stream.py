"""Tensors constrained piece by piece obey the laws of arrays in memory, however they are cut."""

import itertools
import math
from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normball
from normball.checkpoint import exact, pieces, stream, sums
from normball.checkpoint.errors import CheckpointError
from normball.checkpoint.statistics import Statistics
from normball.checkpoint.tensors import Tensor
from normball.checkpoint.workers import Workers

WORDS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Bytes and groups so few that small arrays are cut in every way.
SMALL = {"PIECE": 64, "WHOLE": 128, "GROUPS": 4}
SHAPES = [(5,), (50,), (3, 40), (40, 3), (7, 1, 9), (2, 3, 4, 5), (3, 60, 2), (2, 20, 3, 2), (30, 2, 2), ()]


class Memory:
    """Bytes in memory, read like a file; counts what was read."""

    def __init__(self, content):
        self.content, self.read = content, 0

    def read_into(self, offset, buffer):
        assert offset + len(buffer) <= len(self.content)
        buffer[:] = self.content[offset : offset + len(buffer)]
        self.read += len(buffer)


def on_disk(x, fortran=False, swapped=False):
    stored = x.T if fortran else x
    if swapped:
        stored = stored.byteswap()
    return Tensor("w", WORDS[x.dtype.name], x.shape, Memory(stored.tobytes()), 0, x.nbytes, fortran, swapped)


def constrained(x, axes, limit, threads=1, **kind):
    """X, constrained on disk, and the statistics; every byte is written exactly once."""
    tensor, result, written = on_disk(x, **kind), bytearray(x.nbytes), np.zeros(x.nbytes, int)

    def write(offset, data):
        result[offset : offset + len(data)] = data
        written[offset : offset + len(data)] += 1

    statistics = Statistics()
    with Workers(threads) as workers:
        stream.constrain(tensor, axes, limit, write, statistics, workers)
    assert (written == 1).all()
    shape = x.shape[::-1] if kind.get("fortran") else x.shape
    y = np.frombuffer(bytes(result), x.dtype).reshape(shape)
    y = y.byteswap() if kind.get("swapped") else y
    return (y.T if kind.get("fortran") else y), statistics.finish()


def measured(x, axes, limit, threads=1):
    statistics = Statistics()
    with Workers(threads) as workers:
        stream.measure(on_disk(x), axes, limit, statistics, workers)
    return statistics.finish()


def array(dtype, shape, seed=0):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-3, 3, shape))
    return x.astype(dtype)


def every_axes(ndim):
    return [axes for n in range(ndim + 1) for axes in itertools.combinations(range(ndim), n)]


@pytest.fixture
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(pieces, name, value)
    monkeypatch.setattr(stream, "PIECE", SMALL["PIECE"])


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_laws(dtype, shape, small):
    x = array(dtype, shape)
    for axes in every_axes(len(shape)):
        norms = normball.compute_norms(x, axes)
        for limit in (float(np.median(norms)), *((0.0, 1e-30, 1e300) if len(shape) == 2 else ())):
            y, statistics = constrained(x, axes, limit)
            assert not oracle.broken_laws(x, y, limit, axes, epsilon=0.0)
            assert statistics.groups == norms.size
            assert statistics.over == sum(oracle.exact_norm(g) > Fraction(limit) for g in oracle.groups_of(x, axes))


@pytest.mark.parametrize("dtype", WORDS)
def test_what_fits_in_memory_has_the_bits_of_norm_constraint(dtype):
    for shape in SHAPES:
        x = array(dtype, shape)
        for axes in every_axes(len(shape)):
            y, _ = constrained(x, axes, 1.5)
            assert oracle.same_bits(y, normball.norm_constraint(x, 1.5, axes, 0.0))


@pytest.mark.parametrize("dtype", WORDS)
def test_extremes(dtype, small):
    for x in (array(dtype, (5, 40)), array(dtype, (40, 5))):
        info = np.finfo(np.float64 if dtype == "float64" else np.float32)
        for scale in (info.max / 100, info.tiny) if dtype != "float16" else (100, 2.0**-20):
            scaled = (x.astype(np.float64) * float(scale)).astype(x.dtype)
            for axes, limit in itertools.product(((0,), (1,), (0, 1)), (1.0, float(scale), float(scale) / 1e3)):
                y, _ = constrained(scaled, axes, limit)
                assert not oracle.broken_laws(scaled, y, limit, axes, epsilon=0.0)


@pytest.mark.parametrize("dtype", WORDS)
def test_groups_at_the_bound_are_decided_exactly(dtype, small):
    """64 signs, whose norm is the bound, and a hair more: pieces' norms can't tell, so integers do."""
    at = np.zeros((65, 6), array(dtype, ()).dtype)
    at[:64] = np.sign(array(dtype, (64, 6)).astype(np.float32))
    above = at.copy()
    above[64, ::2] = 2.0**-24  # the norm's excess of 2**-52 is an eighth of what float64 can hold there
    for x, scale in itertools.product((at, above), (1, 2.0**-9 if dtype != "float16" else 1)):
        scaled = (x.astype(np.float64) * scale).astype(x.dtype)
        y, statistics = constrained(scaled, (0,), 8.0 * scale)
        assert not oracle.broken_laws(scaled, y, 8.0 * scale, (0,), epsilon=0.0)
        assert statistics.over == (3 if x is above else 0) == measured(scaled, (0,), 8.0 * scale).over
        assert measured(scaled.T.copy(), (1,), 8.0 * scale).over == statistics.over


def test_what_single_pieces_are_too_small_for_adds_up():
    merged, piece = sums.Narrow((1,)), pieces.Piece(0, (1,), (slice(0, 1),))
    merged.merge(piece, np.array([1.0]))
    for _ in range(2**10):
        merged.merge(piece, np.array([2.0**-27]))  # whose square is half an ulp of 1 and less
    assert merged.settle(None, None) == math.sqrt(1 + 2.0**-44)


@pytest.mark.parametrize("kind", [{"fortran": True}, {"swapped": True}, {"fortran": True, "swapped": True}], ids=str)
def test_other_memory_orders(kind, small):
    for shape in SHAPES[2:6]:
        x = array("float32", shape)
        for axes in every_axes(len(shape)):
            y, _ = constrained(x, axes, 0.7, **kind)
            assert not oracle.broken_laws(x, y, 0.7, axes, epsilon=0.0)


def test_norms_that_were_kept_are_those_computed_again(small, monkeypatch):
    for axes in ((0,), (1,), (0, 1)):
        x = array("float32", (40, 13))
        kept, _ = constrained(x, axes, 0.7)
        for room in (0, 20):
            monkeypatch.setattr(sums, "KEPT", room)
            assert oracle.same_bits(constrained(x, axes, 0.7)[0], kept)


def test_the_same_bits_for_any_number_of_threads(small):
    for dtype, axes in itertools.product(("float32", "float64"), ((0,), (1,), (0, 1))):
        x = array(dtype, (40, 13))
        results = [constrained(x, axes, 0.7, threads)[0] for threads in (1, 2, 5)]
        assert oracle.same_bits(results[0], results[1])
        assert oracle.same_bits(results[0], results[2])


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_groups_that_are_not_finite(dtype, bad, small):
    for axes in ((0,), (1,)):
        x = array(dtype, (40, 37))
        x[3, 5] = bad
        with pytest.raises(
            CheckpointError, match=r"w: holds groups with NaN, inf or a norm beyond float64.*rule 'w: skip'"
        ):
            constrained(x, axes, 1.0)
        statistics = measured(x, axes, 1.0)
        assert statistics.nonfinite == 1
        assert (
            statistics.over == (normball.compute_norms(np.delete(x, (3, 5)[1 - axes[0]], 1 - axes[0]), axes) > 1).sum()
        )


@pytest.mark.parametrize("dtype", WORDS)
def test_statistics_are_those_of_the_norms(dtype, small):
    x = array(dtype, (30, 20))
    x[:, 4] = 0
    for axes in every_axes(2):
        norms = normball.compute_norms(x, axes).reshape(-1)
        found = measured(x, axes, 2.0)
        assert (found.groups, found.over, found.zero) == (norms.size, (norms > 2).sum(), (norms == 0).sum())
        expected = [norms.min(), np.median(norms), np.quantile(norms, 0.99), norms.max()]
        assert np.allclose([found.minimum, found.median, found.p99, found.maximum], expected, rtol=1e-15)
        assert sum(found.histogram.values()) == norms.size
        for place, count in found.histogram.items():
            low, high = Statistics.edges(place)
            assert ((norms >= low * (1 - 1e-15)) & (norms < high * (1 + 1e-15))).sum() >= count


def test_statistics_of_many_groups_are_good_to_a_thousandth(monkeypatch):
    monkeypatch.setattr("normball.checkpoint.statistics.KEPT", 50)
    norms = np.random.default_rng(0).gamma(2, size=4000)
    exactly, roughly = Statistics(), Statistics()
    roughly.add(norms[:1000], 2.0)
    for block in norms[1000:].reshape(-1, 20):
        roughly.add(block, 2.0)
    monkeypatch.setattr("normball.checkpoint.statistics.KEPT", 10**6)
    exactly.add(norms, 2.0)
    exactly.finish(), roughly.finish()
    assert exactly.exact
    assert not roughly.exact
    assert (roughly.minimum, roughly.maximum, roughly.over) == (exactly.minimum, exactly.maximum, exactly.over)
    assert roughly.histogram == exactly.histogram
    for found, wanted in ((roughly.median, exactly.median), (roughly.p99, exactly.p99)):
        assert abs(found - wanted) < 0.002 * wanted


def test_nothing_was_measured():
    nothing = Statistics().finish()
    assert nothing.groups == 0
    assert math.isnan(nothing.median)
    assert measured(np.zeros((0, 5), np.float32), (0,), 1.0).groups == 0


@given(
    shape=st.lists(st.integers(1, 9), max_size=4).map(tuple),
    data=st.data(),
    limits=st.tuples(*[st.integers(1, 40)] * 3),
)
@settings(max_examples=150, deadline=None)
def test_pieces_cover_a_tensor_once_and_name_their_groups(shape, data, limits):
    axes = tuple(axis for axis in range(len(shape)) if data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(SMALL, limits, strict=True):
            patch.setattr(pieces, name, value)
        assert not broken_cover(shape, axes, pieces.regions)


def broken_cover(shape, axes, regions):
    """What is wrong with the regions of a shape, entries being one byte."""
    lengths, reduced = pieces.collapse(shape, axes)
    entries = np.arange(math.prod(lengths)).reshape(lengths)
    group_of = np.broadcast_to(
        np.arange(math.prod(n for axis, n in enumerate(lengths) if axis not in reduced)).reshape(
            [1 if axis in reduced else n for axis, n in enumerate(lengths)]
        ),
        lengths,
    )
    # The same groups as those of the array as it was.
    kept = [1 if axis in axes else n for axis, n in enumerate(shape)]
    if not np.array_equal(
        np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), shape).reshape(-1), group_of.reshape(-1)
    ):
        return "other groups"
    seen = np.zeros(entries.size, int)
    finished = set()
    for region in regions(lengths, reduced, 1):
        own = group_of[tuple(slice(*r) for r in region.ranges)]
        firsts = own[tuple(slice(0, 1) if axis in reduced else slice(None) for axis in range(own.ndim))]
        if len(region.pieces) != len(list(region.pieces)):
            return "length"
        for piece in region.pieces:
            count = math.prod(piece.shape)
            if len(region.pieces) > 1 and count > max(pieces.PIECE, pieces.WHOLE, 1):
                return "too long a piece"
            run = slice(piece.offset, piece.offset + count)
            seen[run] += 1
            if not np.array_equal(
                group_of.reshape(-1)[run].reshape(piece.shape), np.broadcast_to(firsts[piece.groups], piece.shape)
            ):
                return "a piece's groups"
        if finished & set(own.reshape(-1).tolist()):
            return "a group in two regions"
        finished |= set(own.reshape(-1).tolist())
    return None if (seen == 1).all() else "not each entry once"


def test_a_wrong_cover_is_found():
    def cut(shape, axes, itemsize):  # each region twice
        return itertools.chain(pieces.regions(shape, axes, itemsize), pieces.regions(shape, axes, itemsize))

    def none(shape, axes, itemsize):
        return iter(())

    def shifted(shape, axes, itemsize):  # the groups of other axes
        return pieces.regions(shape, tuple(1 - axis for axis in axes), itemsize)

    assert [broken_cover((4, 3), (0,), wrong) for wrong in (cut, none, shifted)] == [
        "a group in two regions",
        "not each entry once",
        "a piece's groups",
    ]


def test_memory_is_bounded_for_many_groups_and_long_ones():
    """No region keeps more sums than GROUPS, no piece is longer than WHOLE, whatever the tensor."""
    for shape, axes in (((2, 10**9), (0,)), ((10**9, 2), (0,)), ((2, 3, 5, 10**8), (0, 2)), ((10**10,), (0,))):
        lengths, reduced = pieces.collapse(shape, axes)
        for region in itertools.islice(pieces.regions(lengths, reduced, 4), 5):
            groups = math.prod(b - a for axis, (a, b) in enumerate(region.ranges) if axis not in reduced)
            longest = max(math.prod(piece.shape) * 4 for piece in itertools.islice(region.pieces, 5))
            assert longest <= pieces.WHOLE
            assert len(region.pieces) == 1 or groups <= pieces.GROUPS


@given(
    st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), max_size=5),
    st.floats(0, 1e308),
)
@settings(max_examples=60, deadline=None)
def test_exact_sums(rows, limit):
    array = np.array(rows, np.float64).reshape(-1, 3)
    sums = [sum((Fraction(v) ** 2 for v in row), Fraction(0)) for row in rows]
    assert [Fraction(s, 4**exact.SCALE) for s in exact.sums_of_squares(array)] == sums
    assert exact.exceed(array, limit).tolist() == [s > Fraction(limit) ** 2 for s in sums]
    for row in rows:
        norm = math.hypot(*row)
        if math.isfinite(norm):
            assert exact.exceed(np.array([row]), norm).tolist() == [
                sum(Fraction(v) ** 2 for v in row) > Fraction(norm) ** 2
            ]


def test_norms_a_rounding_error_from_the_limit_are_decided_in_integers():
    """Float64 sums of 300 squares err by more than that, and near the ends of its range much more."""
    rng = np.random.default_rng(0)
    wrong = 0
    for scale in (1.0, 2.0**-530, 2.0**505):
        rows = rng.standard_normal((40, 300)) * scale
        for row in rows:
            square = sum(Fraction(v) ** 2 for v in row.tolist())
            norm = math.hypot(*row)
            for limit in (math.nextafter(norm, 0), norm, math.nextafter(norm, math.inf)):
                truth = square > Fraction(limit) ** 2
                assert exact.exceed(row[None], limit).tolist() == [truth]
                with np.errstate(all="ignore"):
                    wrong += bool((row @ row > np.float64(limit) ** 2) != truth)
    assert wrong > 20  # so the sums alone would not have done


def test_exact_sums_in_blocks(monkeypatch):
    x = np.random.default_rng(0).standard_normal((7, 50))
    whole = exact.sums_of_squares(x)
    monkeypatch.setattr(exact, "BLOCK", 12)
    assert exact.sums_of_squares(x) == whole


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_verify_accepts_a_result_and_nothing_else(dtype, axes, small):
    x = array(dtype, (30, 20))
    limit = float(np.median(normball.compute_norms(x, axes))) * (1 if len(axes) == 1 else 0.5)
    y, _ = constrained(x, axes, limit)
    with Workers(2) as workers:
        stream.verify(on_disk(x), on_disk(y), axes, limit, workers)
        stream.verify(on_disk(x), on_disk(x), None, limit, workers)
        over = normball.compute_norms(x, axes) > limit
        violator = np.unravel_index(np.argmax(np.broadcast_to(np.expand_dims(over, axes), x.shape)), x.shape)
        wrong = [x.copy()]  # never rescaled
        wrong.append(y.copy())
        wrong[-1][violator] = 1.5 * limit  # above the bound
        if not over.all():
            compliant = np.unravel_index(np.argmin(np.broadcast_to(np.expand_dims(over, axes), x.shape)), x.shape)
            wrong.append(y.copy())
            wrong[-1][compliant] = np.nextafter(wrong[-1][compliant], wrong[-1][compliant] * 0)
        for z in wrong:
            with pytest.raises(CheckpointError, match=r"w: the result read back does not hold the bound"):
                stream.verify(on_disk(x), on_disk(z), axes, limit, workers)
        with pytest.raises(CheckpointError, match="w: the result read back is not the input byte for byte"):
            stream.verify(on_disk(x), on_disk(y), None, limit, workers)


@pytest.mark.parametrize("dtype", WORDS)
def test_verify_reads_again_only_what_float64_leaves_in_doubt(dtype, small, monkeypatch):
    """Sums in integers take a thousand times as long, so a column of millions must not be added so without need."""
    x, summed = array(dtype, (60, 6)), []
    limit = float(np.median(normball.compute_norms(x, 0)))
    y, _ = constrained(x, (0,), limit)
    sums_of_squares = exact.sums_of_squares
    monkeypatch.setattr(exact, "sums_of_squares", lambda rows: summed.append(len(rows)) or sums_of_squares(rows))
    with Workers(1) as workers:
        stream.verify(on_disk(x), on_disk(y), (0,), limit, workers)
        assert bool(summed) == (dtype == "float64")  # whose violators end within its rounding errors of the limit
        ones = np.ones((64, 6), x.dtype)
        stream.verify(on_disk(ones), on_disk(ones), (0,), 8.0, workers)
        assert summed


def test_a_copy_is_a_copy(small):
    x = array("float32", (30, 7))
    result = bytearray(x.nbytes)

    def write(offset, data):
        result[offset : offset + len(data)] = data

    done = []
    with Workers(2, done.append) as workers:
        stream.copy(on_disk(x), write, workers)
    assert bytes(result) == x.tobytes()
    assert sum(done) == x.nbytes


def test_what_is_compliant_is_read_once_and_long_groups_twice(small):
    for shape, axes, times in (((30, 7), (1,), 1), ((50, 7), (0,), 2)):
        tensor = on_disk(array("float32", shape))
        with Workers(1) as workers:
            stream.constrain(tensor, axes, 1e9, lambda offset, data: None, Statistics(), workers)
        assert tensor.source.read == times * tensor.nbytes


def test_an_error_in_a_thread_is_the_callers(small):
    def full(offset, data):
        raise OSError("disk full")

    for threads, axes in itertools.product((1, 3), ((0,), (1,))):
        with Workers(threads) as workers, pytest.raises(OSError, match="disk full"):
            stream.constrain(on_disk(array("float32", (50, 7))), axes, 1.0, full, Statistics(), workers)


def test_as_many_workers_as_are_of_use():
    with Workers(10**6) as workers:
        assert workers.threads == 64
        assert list(workers.map(abs, range(-9, 0))) == list(range(9, 0, -1))


def test_workers_keep_the_order_and_few_results():
    begun = []

    def work(item):
        begun.append(item)
        return item

    with Workers(3) as workers:
        results = workers.map(work, itertools.count())
        assert [next(results) for _ in range(50)] == list(range(50))
        results.close()
        assert len(begun) <= 50 + 2 * 3 + 1


@pytest.mark.parametrize("word", [word for word in stream.ML_DTYPES if word.startswith("F8")])
def test_fp8_is_measured_with_its_scale(word, small):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.abs(array("float32", (20, 30))).astype(getattr(ml_dtypes, stream.ML_DTYPES[word]))
    tensor = Tensor("w", word, x.shape, Memory(x.tobytes()), 0, x.nbytes)
    for axes in ((0,), (1,)):
        norms = normball.compute_norms(x.astype(np.float32), axes)
        for scale in (1.0, 0.5):
            statistics = Statistics()
            with Workers(1) as workers:
                stream.measure(tensor, axes, 2.0, statistics, workers, scale)
            assert statistics.finish().maximum == pytest.approx(scale * norms.max(), rel=1e-15)
            assert statistics.over == (scale * norms > 2).sum()
