"""One module per array library, all of the same shape. See README.md in this folder."""

# What a backend can claim in its SUPPORTS, in the order of the README's table. Each claim is tested where it is made.
CLAIMS = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "exact decision": "n <= c decided as in exact arithmetic, so that every compliant group keeps its bits",
    "bounded": "the result's exact norm is at most c",
    "tight": "within 4 ulp of v c / (n + epsilon)",
    "subnormals": "subnormal numbers are not flushed to zero",
    "per-group bounds": "one bound for each group",
    "symbolic bounds": "bounds may be symbolic or shared: a schedule needs no second compilation",
    "gradient": "derivatives in the array, max_norm and epsilon; finite at zero, ties and extremes",
    "in place": "can work without a second array",
}
