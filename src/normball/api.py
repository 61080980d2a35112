"""The public functions: read the arguments, find the backend, hand over."""

from collections.abc import Iterable, Iterator
from typing import Any

from normball import arguments
from normball.dispatch import backend_for, check_type, types_of


def norm_constraint(
    tensor_var: Any,
    max_norm: Any,
    norm_axes: Any = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    out: Any = None,
) -> Any:
    """Max-norm constraint and gradient clipping: every group of incoming weights inside a ball.

    A group v is the slice of `tensor_var` along the norm axes, n its p-norm in exact arithmetic, c its `max_norm`:

        v                        where n <= c  (the same bits)
        v * c / (n + epsilon)    where n >  c

    For order 2 and epsilon 0 this is the Euclidean projection onto the ball; for orders 1 and inf it is a radial
    rescaling, and no projection.

    Parameters
    ----------
    tensor_var : array or iterable of array
        Weights, an update, a gradient: a NumPy array, PyTorch tensor or JAX array (float64, float32, float16, bfloat16;
        complex numbers of the latter two, too, with the norm of their moduli), a PyTensor variable (float64, float32,
        float16), or an array of dask or of another library of the Array API standard (of those of these dtypes that it
        has), of any shape and layout. Or several of them, in a list or from a generator: each is constrained by
        itself, arrays in one go.
    max_norm : float or array, or list of these
        The largest norm allowed, in the units of `tensor_var`. One number, or anything that broadcasts against the
        norms with the reduced axes kept as 1 (one bound per unit). `inf` means no constraint. In a PyTensor graph or
        under torch.compile or jax.jit it may be symbolic, shared, a tensor or traced: a schedule needs no second
        compilation. For several arrays one bound for all, or a list of as many.
    norm_axes : int or sequence of int, optional
        The axes to take the norm over. By default a 2-D array is a dense layer's (inputs, outputs), with the norm over
        axis 0, and a 3-D, 4-D or 5-D one a convolution's (filters, channels, space...), with the norm over all axes
        but 0. Others must say, and so must you for `torch.nn.Linear`, whose weight is (outputs, inputs): pass 1. ``()``
        makes every entry its own group. Of several arrays each has its own default; axes that are given are those of
        all.
    epsilon : float or array, optional
        Added to the norms of violating groups, so that they end this much inside the ball. Unlike in PyMC and Lasagne,
        compliant groups never feel it.
    ord : 1, 2 or inf, optional
        The order p of the norm.
    out : array or list of array, optional
        NumPy and PyTorch only: where to write the result; an array of the same shape and dtype, which may be
        `tensor_var` itself. For several arrays a list of as many, none of which shares memory with another.

    Returns
    -------
    array or list of array
        Of the same kind, dtype and shape as `tensor_var`, which is not written to (unless it is `out`). A list for
        several arrays, with the same bits as of one at a time.

    Raises
    ------
    TypeError
        For integers, booleans, objects, and complex numbers outside of PyTorch and JAX; for a `max_norm` or `epsilon`
        that is None, text or bool.
    ValueError
        For axes that are missing, repeated or out of range; a concrete `max_norm` or `epsilon` that is negative or
        NaN, or does not broadcast; an `out` of another shape or dtype, read-only or partly overlapping `tensor_var`;
        lists that are not equally long. Nothing is written then, and the message says which array it is about.
    KeyboardInterrupt
        On Ctrl-C, during a long call too. Each group of `out` is then wholly done or as it was.

    Notes
    -----
    Guaranteed, with no tolerance: groups with n <= c keep their bits; the norm of the result, in exact arithmetic, is
    at most c; each entry lies within 4 ulp of the formula; a second call changes nothing; no finite input overflows or
    underflows; a NaN or inf turns its own group into NaN, and no other. A symbolic bound that turns out negative or
    NaN makes NaN. On other devices than CPUs, where a group is split over several, in JAX, and in libraries known by
    the Array API standard alone, a group within 4 ulp under its bound may be rescaled. In the latter a bound that is an
    array of the library counts as symbolic, and nothing has derivatives. dask makes chunks twice, rather than keep them
    all, where a group lies in several.

    The derivative is the identity where n <= c, ties and zero vectors included. Where n > c it is
    s (I - n / (n + epsilon) u u^T) for order 2, with s = c / (n + epsilon) and u = v / n. `max_norm` and `epsilon`
    have derivatives too.

    References
    ----------
    The signature is that of PyMC and of Lasagne's ``lasagne.updates.norm_constraint``. The method: N. Srivastava et
    al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014), section 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> from normball import norm_constraint
    >>> weights = np.array([[3.0, 0.3], [4.0, 0.4]])
    >>> norm_constraint(weights, 1.0, epsilon=0)
    array([[0.6, 0.3],
           [0.8, 0.4]])

    All weights of a network, in place, each with a bound of its own:

    >>> layers = [np.full((4, 2), 3.0), np.full((2, 1), 0.5)]
    >>> norm_constraint(layers, [2.0, 1.0], epsilon=0, out=layers)
    [array([[1., 1.],
           [1., 1.],
           [1., 1.],
           [1., 1.]]), array([[0.5],
           [0.5]])]

    PyMC's own example, on a PyTensor graph:

    >>> import pytensor
    >>> from normball import compute_norms
    >>> param = pytensor.shared(np.random.randn(100, 200).astype(pytensor.config.floatX))
    >>> update = norm_constraint(param + 100, 10)
    >>> func = pytensor.function([], [], updates=[(param, update)])
    >>> _ = func()
    >>> bool(np.isclose(np.max(compute_norms(param.get_value())), 10))
    True
    """
    if arguments.is_list(tensor_var):
        return _constrain_each(tensor_var, max_norm, norm_axes, epsilon, ord, out)
    backend = backend_for(type(tensor_var), type(max_norm), type(epsilon))
    axes = arguments.read_axes(_ndim(tensor_var), norm_axes)
    bound, small = arguments.read_bound("max_norm", max_norm), arguments.read_bound("epsilon", epsilon)
    return backend.constrain(tensor_var, bound, axes, small, arguments.read_ord(ord), out)


def total_norm_constraint(
    tensor_vars: Iterable[Any],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: bool = False,
    *,
    ord: float = 2,
) -> Any:
    """Gradient clipping by the total (global) norm: all arrays as one group inside a ball.

    With n the p-norm of all entries of all arrays v together, in exact arithmetic, and c the `max_norm`, each v becomes

        v                        where n <= c  (the same bits)
        v * c / (n + epsilon)    where n >  c

    Parameters
    ----------
    tensor_vars : iterable of array
        Gradients, say: NumPy or JAX arrays, PyTorch tensors or PyTensor variables, of any shapes and of mixed dtypes. A
        generator will do. For a PyTorch model's gradients `normball.torch.clip_grad_norm_` writes over them.
    max_norm : float or scalar
        The largest total norm allowed; symbolic in a PyTensor graph, if you like. `inf` means no constraint.
    epsilon : float or scalar, optional
        Added to the norm where it exceeds `max_norm`; felt by no compliant list.
    return_norm : bool, optional
        Whether to return the total norm, too.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Returns
    -------
    list of array
        As many arrays, each of its own dtype and shape. An empty list for an empty list.
    norm : float64 scalar
        The norm before rescaling, if `return_norm`; it exceeds `max_norm` exactly when the list was rescaled.

    Raises
    ------
    TypeError
        If `tensor_vars` is a single array, or holds what is no array of floats; else as in `norm_constraint`.
    ValueError
        For a concrete `max_norm` or `epsilon` that is negative or NaN, or is not a scalar.

    Notes
    -----
    The guarantees of `norm_constraint` hold, with the whole list as the group. One NaN makes all of it NaN.

    References
    ----------
    The signature is that of PyMC and Lasagne. The method: R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of
    training recurrent neural networks", ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from normball import total_norm_constraint
    >>> gradients = [np.array([3.0, 0.0]), np.array([[4.0]])]
    >>> clipped, norm = total_norm_constraint(gradients, 1.0, epsilon=0, return_norm=True)
    >>> clipped
    [array([0.6, 0. ]), array([[0.8]])]
    >>> float(norm)
    5.0
    """
    variables = arguments.read_list(tensor_vars)
    bound, small = arguments.read_bound("max_norm", max_norm), arguments.read_bound("epsilon", epsilon)
    order = arguments.read_ord(ord)
    if not variables:
        return ([], 0.0) if return_norm else []
    types = set(map(type, variables))
    for kind in types:
        check_type(kind)
    for variable in variables:
        _ndim(variable)
    backend = backend_for(*types, type(max_norm), type(epsilon))
    constrained, total = backend.constrain_total(variables, bound, small, order)
    return (constrained, total) if return_norm else constrained


def compute_norms(array: Any, norm_axes: Any = None, *, ord: float = 2) -> Any:
    """The norms of the groups of incoming weights: the p-norm of every group that `norm_constraint` would see.

    Parameters
    ----------
    array : array
        As in `norm_constraint`.
    norm_axes : int or sequence of int, optional
        As in `norm_constraint`. By default the norms of a 1-D array are its absolute values.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Returns
    -------
    array
        Float64 (in JAX without 64-bit mode float32), whatever the dtype of `array`, with the norm axes removed. At most
        one ulp off, and exact where a float64 holds the norm; so ``compute_norms(w) <= c`` holds wherever the exact
        norm is at most c.

    Raises
    ------
    TypeError, ValueError
        As in `norm_constraint`.

    Notes
    -----
    In float64 no norm of a narrower dtype overflows; that of a float64 group beyond the largest number is inf.
    The derivative at a zero vector is zero.

    References
    ----------
    ``lasagne.utils.compute_norms``, which PyMC's example of `norm_constraint` still imports.

    Examples
    --------
    >>> import numpy as np
    >>> from normball import compute_norms
    >>> compute_norms(np.array([[3.0, 1.0], [4.0, 0.0]]))
    array([5., 1.])
    """
    backend, ndim = backend_for(type(array)), _ndim(array)
    axes = () if norm_axes is None and ndim == 1 else arguments.read_axes(ndim, norm_axes)
    order = arguments.read_ord(ord)
    norms = backend.norm(backend.summarise(array, axes, order), order)
    if hasattr(norms, "squeeze"):
        return norms.squeeze(axes)
    return norms[tuple(0 if axis in axes else slice(None) for axis in range(ndim))]  # the standard has no methods


def set_num_threads(n: int) -> None:
    """How many threads a call may use from now on: on NumPy arrays, PyTorch tensors, in a compiled PyTensor function.

    Results have the same bits whatever the number. Small arrays are worked on by the calling thread alone.

    Parameters
    ----------
    n : int
        At least 1, which is the calling thread alone; more than 64 are not used. It holds for the whole process. The
        environment variable ``NORMBALL_NUM_THREADS`` sets it from the start. On PyTorch tensors no more are used than
        `torch.get_num_threads` says, either.

    Raises
    ------
    TypeError, ValueError
        If `n` is no int, or less than 1.

    Notes
    -----
    Where the C kernels are not built, the work is NumPy's, in one thread, and this has no effect.

    Examples
    --------
    >>> import normball
    >>> normball.set_num_threads(1)
    >>> normball.get_num_threads()
    1
    """
    from normball import kernels  # loads NumPy, which `import normball` does not need

    kernels.set_num_threads(arguments.read_threads("n", n))


def get_num_threads() -> int:
    """How many threads a call may use; see `set_num_threads`.

    Returns
    -------
    int
        The number set last, by `set_num_threads` or the environment variable ``NORMBALL_NUM_THREADS``; else that of
        ``OMP_NUM_THREADS``; else as many as there are CPUs for this process. 1 where the C kernels are not built.

    Examples
    --------
    >>> import normball
    >>> normball.get_num_threads() >= 1
    True
    """
    from normball import kernels

    return kernels.get_num_threads()


def _constrain_each(
    tensor_vars: Iterable[Any], max_norm: Any, norm_axes: Any, epsilon: Any, ord: float, out: Any
) -> list:
    """`norm_constraint` of a list, every array by itself."""
    variables = list(tensor_vars)
    types = types_of(variables, type(tensor_vars))
    ndims = [_ndim(variable, index) for index, variable in enumerate(variables)]
    if isinstance(norm_axes, Iterator):  # read once for each
        norm_axes = list(norm_axes)
    axes = [arguments.read_axes(ndim, norm_axes, index) for index, ndim in enumerate(ndims)]
    bounds = arguments.read_bounds("max_norm", max_norm, len(variables))
    small, order = arguments.read_bound("epsilon", epsilon), arguments.read_ord(ord)
    outs = arguments.read_outs(out, len(variables))
    if not variables:
        return []
    backend = backend_for(*types, *set(map(type, bounds)), type(small))
    return backend.constrain_each(variables, bounds, axes, small, order, outs)


def _ndim(tensor_var: Any, index: int | None = None) -> int:
    try:
        return tensor_var.ndim
    except AttributeError:  # a PyTensor variable that is no tensor, say
        raise arguments.no_array(tensor_var, index) from None
